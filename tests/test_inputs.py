"""What the pipeline gives for bad and odd inputs: an answer, or one of three errors that says what was wrong.

`python tests/test_inputs.py` writes the table inputs.md beside this file.
"""

import base64
import io
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nula.configuration_nula import NulaConfig
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline

TABLE = Path(__file__).with_name("inputs.md")
ERRORS = (FileNotFoundError, ValueError, TypeError)


@cache
def build_pipe() -> NulaImageClassificationPipeline:
    model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(8, 12, 16), depths=(1, 0, 1))).eval()
    return NulaImageClassificationPipeline(model=model, image_processor=NulaImageProcessor())


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corpus(folder: Path) -> dict[str, Any]:
    """Name to input; files lie in `folder`."""
    pixels = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
    image = Image.fromarray((255 * pixels).astype(np.uint8))
    read_only = (255 * pixels).astype(np.uint8)
    read_only.setflags(write=False)
    png, jpeg = file_of(image, "PNG"), file_of(image, "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    broken_check = bytearray(png)
    broken_check[40] ^= 0xFF
    files = {
        "PNG": ("ok.png", png),
        "JPEG": ("ok.jpg", jpeg),
        "JPEG named .png": ("jpeg.png", jpeg),
        "JPEG turned by EXIF": ("turned.jpg", file_of(image, "JPEG", exif=turned)),
        "WebP": ("ok.webp", file_of(image, "WEBP")),
        "TIFF of 16 bits": ("deep.tif", file_of(Image.fromarray((65535 * pixels[..., 0]).astype(np.uint16)), "TIFF")),
        "animated GIF": ("moving.gif", file_of(image, "GIF", save_all=True, append_images=[image.rotate(90)])),
        "file of no bytes": ("empty.png", b""),
        "text named .png": ("text.png", b"not an image"),
        "SVG": ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "half a PNG": ("half.png", png[: len(png) // 2]),
        "half a JPEG": ("half.jpg", jpeg[: len(jpeg) // 2]),
        "PNG with a wrong check sum": ("check.png", bytes(broken_check)),
        "header of a PNG": ("header.png", png[:33]),
        "EPS": ("drawing.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    }
    for name, content in files.values():
        (folder / name).write_bytes(content)
    (folder / "none").mkdir()
    encoded = base64.b64encode(png).decode()
    inputs = {f"file, {kind}": folder / name for kind, (name, _) in files.items()}
    inputs |= {
        "path of nothing": folder / "nothing.png",
        "path as str": str(folder / "ok.png"),
        "folder of no images": folder / "none",
        "empty str": "",
        "str with a NUL": "a\0b.png",
        "str of 10,000 letters": "a" * 10_000,
        "base64 without data:": encoded,
        "URL with a space nobody answers": "http://127.0.0.1:1/my cat.png",
        "data URL": f"data:image/png;base64,{encoded}",
        "data URL that is no base64": "data:image/png;base64,%%%",
        "data URL of text": "data:text/plain,hello",
        "data URL without a comma": "data:image/png",
        "URL without a host": "http://",
        "URL nobody answers": "http://127.0.0.1:1/cat.png",
        "file URL": f"file://{folder}/ok.png",
        "bytes of a PNG": png,
        "bytearray of a JPEG": bytearray(jpeg),
        "no bytes": b"",
        "bytes of text": b"not an image",
        "None": None,
        "int": 7,
        "dict": {"img": image},
        "set": {1, 2},
        "list in a list": [image],
    }
    for mode in ("1", "L", "LA", "P", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"):
        inputs[f"PIL image, mode {mode}"] = Image.new(mode, (32, 32))
    inputs |= {
        "PIL image, mode F beyond 1": Image.fromarray(2 * pixels[..., 0]),
        "PIL image, mode I below 0": Image.fromarray(np.full((4, 4), -1, dtype=np.int32)),
        "PIL image, 1x1": Image.new("RGB", (1, 1)),
        "PIL image, 1x5000": Image.new("RGB", (1, 5000)),
        "PIL image, 0x5": Image.new("RGB", (0, 5)),
        "array of uint8, last axis RGB": read_only.copy(),
        "array of uint8, first axis RGB": np.moveaxis(read_only, 2, 0),
        "array of uint8, read-only": read_only,
        "array of uint8, upside down": read_only[::-1],
        "array of uint16 to 65535": np.full((32, 32, 3), 65535, dtype=np.uint16),
        "array of int64, 0 to 255": read_only.astype(np.int64),
        "array of int64 with 256": np.full((32, 32, 3), 256),
        "array of int8 with -1": np.full((32, 32, 3), -1, dtype=np.int8),
        "array of float16": pixels.astype(np.float16),
        "array of float64": pixels.astype(np.float64),
        "array with 1.5": pixels * 1.5,
        "array with -0.1": pixels - 0.1,
        "array with NaN": np.where(pixels > 0.99, np.nan, pixels),
        "array with infinity": np.where(pixels > 0.99, np.inf, pixels),
        "array of bool": pixels > 0.5,
        "array of complex numbers": pixels.astype(np.complex64),
        "array of objects": pixels.astype(object),
        "array of str": np.array([["a"]]),
        "array (32, 32)": pixels[..., 0],
        "array (1, 32, 32)": pixels[None, ..., 0],
        "array (32, 32, 4)": np.zeros((32, 32, 4), dtype=np.uint8),
        "array (3, 3, 3)": np.zeros((3, 3, 3), dtype=np.uint8),
        "array (3, 0, 5)": np.zeros((3, 0, 5), dtype=np.uint8),
        "array (1, 1, 3)": np.zeros((1, 1, 3), dtype=np.uint8),
        "array ()": np.array(1.0),
        "tensor of bfloat16": torch.zeros(3, 32, 32, dtype=torch.bfloat16),
        "tensor that requires a gradient": torch.zeros(3, 32, 32, requires_grad=True),
        "tensor, sparse": torch.zeros(3, 32, 32).to_sparse(),
        "tensor without data (meta)": torch.zeros(3, 32, 32, device="meta"),
        "tensor with 5 axes": torch.zeros(1, 1, 3, 32, 32),
        "batch of (4, 4) without RGB": torch.zeros(2, 1, 4, 4),
    }
    return inputs


def outcomes(pipe: NulaImageClassificationPipeline) -> list[tuple[str, str]]:
    """Name of each input and what it gives."""
    found = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, value in corpus(Path(folder)).items():
            try:
                [answer] = pipe([value])
                assert [set(entry) for entry in answer] == [{"label", "score"}] * 5
                given = "an answer"
            except ERRORS as error:
                given = f"{type(error).__name__}: {error}".replace(folder, "…")
            found.append((name, given))
    return found


def as_table(found: list[tuple[str, str]]) -> str:
    rows = [f"| {name} | {given.replace('|', chr(92) + '|')} |" for name, given in found]
    head = "# What the pipeline gives for bad and odd inputs\n\nWritten by `python tests/test_inputs.py`.\n\n"
    return "\n".join([f"{head}| input | gives |", "|---|---|", *rows]) + "\n"


def test_every_input_gives_an_answer_or_says_what_is_wrong():
    found = outcomes(build_pipe())
    assert len(found) >= 40
    for name, outcome in found:
        assert outcome == "an answer" or ": item 0" in outcome, name
    assert as_table(found) == TABLE.read_text(encoding="utf-8")


NUMBERS = st.sampled_from(["uint8", "uint16", "int8", "int64", "float16", "float32", "float64", "bool", "complex64"])


@settings(max_examples=300, deadline=None)
@given(
    NUMBERS.flatmap(
        lambda dtype: arrays.arrays(dtype, st.lists(st.sampled_from([0, 1, 2, 3, 4, 5]), max_size=5).map(tuple))
    )
)
def test_any_array_is_answered_or_named(array):
    pipe = build_pipe()
    numbers = array.dtype.kind in "uif"
    images = array.ndim in (3, 4) and 3 in (array.shape[-3], array.shape[-1])
    with np.errstate(over="ignore"):
        values = array.astype(np.float32) if array.dtype.kind == "f" else array  # -1e-266 is taken as 0
    within = numbers and bool((values >= 0).all() and (values <= (1 if array.dtype.kind == "f" else 255)).all())
    if array.ndim == 4 and len(array) == 0:
        assert pipe(array) == []
    elif images and within and array.size:
        answers = [pipe(array)] if array.ndim == 3 else pipe(array)
        assert len(answers) == (1 if array.ndim == 3 else len(array))
        assert all(np.isfinite(entry["score"]) for answer in answers for entry in answer)
    else:
        with pytest.raises(ValueError, match=r"ndarray of shape"):
            pipe(array)


if __name__ == "__main__":
    TABLE.write_text(as_table(outcomes(build_pipe())), encoding="utf-8")
