"""What training and evaluation alike record of how a result came about. Records are published."""

import platform
import shlex
from importlib.metadata import version
from pathlib import Path

LIBRARIES = ("torch", "transformers", "accelerate", "datasets", "numpy", "pillow", "scipy")


def public_argument(argument: str) -> str:
    """The argument, or only the last part of a path that leads out of the working folder."""
    return Path(argument).name if argument.startswith(("/", "~", "..")) else argument


def command_again(program: str, arguments: list[str]) -> str:
    """The command that does the whole run again: `--resume` is left out, and paths are made public."""
    parts = []
    for argument in arguments:
        if argument != "--resume":
            parts.extend(argument.split("=", 1) if argument.startswith("--") else [argument])
    return f"{program} {shlex.join(map(public_argument, parts))}"


def library_versions() -> dict[str, str]:
    return {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
