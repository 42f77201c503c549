"""Types and forms of command-line arguments that several commands share."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from typing import Any


class DefaultsHelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Tell the default of each option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        return action.help if nothing else super()._get_help_string(action)


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Make the type of an argument that must be an integer of at least `least`, and of at most `most`."""

    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
            upper = "" if most is None else f" and at most {most}"
            raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {least}{upper}")
        return int(text)

    return number


def positive(text: str) -> float:
    """Read the type of an argument that must be a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a positive number")
    return value


def assigned(assignments: list[str], allowed: Sequence[str], option: str) -> dict[str, Any]:
    """Read ["weight_decay=0.1"] as {"weight_decay": 0.1}.

    A value that is not JSON is a string, and a list becomes a tuple. An assignment of another form, or of a field that
    is not allowed, ends the program with a message that names `option`.
    """
    result = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in allowed:
            raise SystemExit(
                f"error: {option} {assignment}: must be FIELD=VALUE with FIELD one of {', '.join(allowed)}."
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        result[name] = tuple(value) if isinstance(value, list) else value
    return result
