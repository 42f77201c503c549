"""What the product gives for bad and odd inputs: an answer, or an error that says what was wrong and what is allowed.

`python tests/test_inputs.py` writes the table inputs.md beside this file.
"""

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import conftest  # noqa: F401 (which keeps off the network)
import hypothesis.extra.numpy as arrays
import inputs_door
import inputs_evaluation
import inputs_pipeline
import inputs_training
import inputs_tuning
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nula.publishing.integrity import PushRefused

SECTIONS = (inputs_pipeline, inputs_door, inputs_evaluation, inputs_training, inputs_tuning)
TABLE = Path(__file__).with_name("inputs.md")
ERRORS = (OSError, ValueError, TypeError, argparse.ArgumentTypeError, PushRefused)  # what users are meant to see


def outcomes(section: ModuleType) -> Iterator[tuple[str, str]]:
    """Name of each input of a section and what it gives."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors|torch.quantize_per_tensor")
        for name, tried in section.corpus(Path(folder)).items():
            try:
                given = tried()
            except ERRORS as error:
                given = f"{type(error).__name__}: {error}"
            except SystemExit as error:
                given = str(error)
            yield name, given.replace(folder, "…")


def as_table(section: ModuleType) -> str:
    rows = [f"| {name} | {' '.join(given.split()).replace('|', chr(92) + '|')} |" for name, given in outcomes(section)]
    return "\n".join([f"## {section.TITLE}", "", "| input | gives |", "|---|---|", *rows, ""])


def whole() -> str:
    tables = "\n".join(as_table(section) for section in SECTIONS)
    about = (
        "What the tests try, with tiny nets and made-up data, and what it gives: an answer in a few words, or the "
        "error with its message. In the first table an input stands in a list, hence `item 0`."
    )
    return f"# Bad and odd inputs\n\n{about} Written by\n`.venv/bin/python tests/test_inputs.py`.\n\n{tables}"


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_input_gives_what_the_table_says(section):
    found = as_table(section)
    assert found.count("\n") >= 9
    assert found in TABLE.read_text(encoding="utf-8")


def test_the_table_has_no_other_section():
    headings = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert headings == [f"## {section.TITLE}" for section in SECTIONS]


NUMBERS = st.sampled_from(["uint8", "uint16", "int8", "int64", "float16", "float32", "float64", "bool", "complex64"])


@settings(max_examples=300, deadline=None)
@given(
    NUMBERS.flatmap(
        lambda dtype: arrays.arrays(dtype, st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), max_size=5).map(tuple))
    )
)
def test_any_array_is_answered_or_named(array):
    pipe = inputs_pipeline.build_pipe()
    numbers = array.dtype.kind in "uif"
    images = array.ndim == 2 or (array.ndim in (3, 4) and bool({1, 3, 4} & {array.shape[-3], array.shape[-1]}))
    with np.errstate(over="ignore"):
        values = array.astype(np.float32) if array.dtype.kind == "f" else array  # -1e-266 is taken as 0
    within = numbers and bool((values >= 0).all() and (values <= (1 if array.dtype.kind == "f" else 255)).all())
    if array.ndim == 4 and len(array) == 0:
        assert pipe(array) == []
    elif images and within and array.size:
        answers = pipe(array) if array.ndim == 4 else [pipe(array)]
        assert len(answers) == (len(array) if array.ndim == 4 else 1)
        assert all(np.isfinite(entry["score"]) for answer in answers for entry in answer)
    else:
        with pytest.raises(ValueError, match=r"ndarray of shape"):
            pipe(array)


if __name__ == "__main__":
    TABLE.write_text(whole(), encoding="utf-8")
