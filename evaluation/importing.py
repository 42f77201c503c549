"""What the user gives as package.module:name: a classifier, or rows of a table."""

import importlib
import os
import re
import sys
from typing import Any

from nula.perturbations.suite import ROWS, Perturbation

NAMED = re.compile(r"(?P<module>[\w.]+):(?P<name>[\w.]+)")


def imported(name: str) -> Any:
    """Import what `package.module:name` means; modules of the working folder are found, as `python -m` finds them.

    Raises:
        ValueError: it is written otherwise, or cannot be imported.
    """
    if NAMED.fullmatch(name) is None:
        raise ValueError(f"{name} cannot be imported; give package.module:name.")
    module_name, attributes = name.split(":")
    sys.path.insert(0, os.getcwd())
    try:
        value: Any = importlib.import_module(module_name)
        for part in attributes.split("."):
            value = getattr(value, part)
    except (Exception, SystemExit) as error:  # a module may raise anything, and a script may end
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name} cannot be imported: {told}; give package.module:name.") from error
    finally:
        sys.path.remove(os.getcwd())
    return value


def imported_rows(name: str) -> tuple[Perturbation, ...]:
    """Import the rows of a table, a tuple of `Perturbation`.

    Raises:
        ValueError: it is none, two rows have one name, or a row has the name of another one of this project.
    """
    rows = imported(name)
    if not isinstance(rows, tuple | list) or not rows:
        raise ValueError(f"--rows {name} is {_told(rows)}, must be a tuple of nula.perturbations.suite.Perturbation.")
    ours = {row.name: row for row in ROWS}
    seen = set[str]()
    for place, row in enumerate(rows):
        where = f"--rows {name}, row {place}"
        if not isinstance(row, Perturbation):
            raise ValueError(f"{where}: is {_told(row)}, must be a nula.perturbations.suite.Perturbation.")
        if not (isinstance(row.name, str) and row.name and isinstance(row.definition, str) and callable(row.apply)):
            raise ValueError(f"{where}: must have a name, a definition in words, and a function apply.")
        if row.name in seen:
            raise ValueError(f"{where}: another row is called {row.name!r} too; give each a name of its own.")
        if ours.get(row.name, row) is not row:
            raise ValueError(f"{where}: {row.name!r} is the name of another row of the published table; rename it.")
        seen.add(row.name)
    return tuple(rows)


def _told(value: Any) -> str:
    return "empty" if isinstance(value, tuple | list) else type(value).__name__
