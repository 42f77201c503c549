"""The sources of the documentation site: README and docs, and every file of this repository that they lead to.

python -m nula.publishing.site FOLDER copies them into FOLDER, from which mkdocs makes the site (`make site`).
"""

import argparse
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")  # the file of a markdown link or image
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)  # in which the like is no link


def links(page: Path) -> Iterator[Path]:
    """Yield the files of this repository that a page in markdown links to.

    Raises:
        ValueError: one is not there, or no file.
    """
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" not in target:
            file = (page.parent / target).resolve()
            if not file.is_file():
                raise ValueError(f"{page} links to {target}, which is no file.")
            yield file


def site_files(root: Path = ROOT) -> set[Path]:
    """Return README, the pages in docs, and whatever is reached from them by links, as absolute paths.

    Raises:
        ValueError: a link leads nowhere.
    """
    found: set[Path] = set()
    waiting = {root / "README.md", *(root / "docs").glob("*.md")}
    while waiting:
        file = waiting.pop()
        found.add(file)
        if file.suffix == ".md":
            waiting |= set(links(file)) - found
    return found


def main() -> None:
    """Copy the sources."""
    parser = argparse.ArgumentParser(prog="python -m nula.publishing.site", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="receives the sources; what it held is removed")
    folder: Path = parser.parse_args().folder
    shutil.rmtree(folder, ignore_errors=True)
    for file in site_files():
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".md":
            # Where GitHub and the Hub read what is folded as markdown, mkdocs asks to be told.
            text = file.read_text(encoding="utf-8")
            copy.write_text(re.sub("^<details>", '<details markdown="1">', text, flags=re.M), encoding="utf-8")
        else:
            shutil.copyfile(file, copy)


if __name__ == "__main__":
    main()
