"""Bad and odd inputs of the pipeline, for the table inputs.md."""

import base64
import gzip
import io
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nula.configuration_nula import NulaConfig
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline

TITLE = "What the pipeline gives"


@cache
def build_pipe() -> NulaImageClassificationPipeline:
    model = NulaForImageClassification(NulaConfig(stem_channels=4, hidden_sizes=(8, 12, 16), depths=(1, 0, 1))).eval()
    return NulaImageClassificationPipeline(model=model, image_processor=NulaImageProcessor())


def _read(file: io.BytesIO) -> io.BytesIO:
    file.read()
    return file


def _with(image: Image.Image, **info: Any) -> Image.Image:
    image.info.update(info)
    return image


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images(folder: Path) -> dict[str, Any]:
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
        "open file": io.BytesIO(png),
        "open file, read to its end": _read(io.BytesIO(jpeg)),
        "open file of text": io.StringIO("text"),
        "file that cannot be read": Broken(),
        "asynchronous upload": Later(),
        "row that is not decoded": {"bytes": png, "path": None},
        "row of a path": {"bytes": None, "path": str(folder / "ok.png")},
        "row of nothing": {"bytes": None, "path": None},
        "row with a label": {"img": png, "label": 3},
        "HEIC": b"\0\0\0\x18ftypheic" + bytes(20),
        "JPEG XL": b"\xff\x0a" + bytes(20),
        "array of paths": np.array([str(folder / "ok.png")]),
        "PIL image with a broken profile": _with(Image.new("RGB", (9, 9)), icc_profile=b"none"),
        "PIL image with a transparent gray": _with(Image.new("L", (9, 9)), transparency=0),
        "PIL image, transparency of another mode": _with(Image.new("RGB", (9, 9)), transparency=b"none"),
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
        "batch of gray images": torch.zeros(2, 1, 4, 4),
        "batch of two channels": torch.zeros(2, 2, 4, 5),
        "array (32, 32, 2)": np.zeros((32, 32, 2), dtype=np.uint8),
        "array (4, 32, 32)": np.zeros((4, 32, 32), dtype=np.uint8),
        "array, masked": np.ma.masked_array(np.zeros((32, 32, 3))),
        "tensor of uint16": torch.zeros(3, 32, 32, dtype=torch.uint16),
        "tensor, quantised": torch.quantize_per_tensor(torch.zeros(3, 32, 32), 0.1, 0, torch.quint8),
    }
    return inputs


def told(answer: Any) -> str:
    """What an answer is, without its figures."""
    if isinstance(answer, Iterator):
        return f"an iterator of {', '.join(map(told, answer)) or 'nothing'}"
    if isinstance(answer, dict):
        return f"error: {answer['error']}"
    if answer and isinstance(answer[0], dict) and "label" in answer[0]:
        assert [set(entry) for entry in answer] == [{"label", "score"}] * 5
        return "an answer"
    return f"a list of {', '.join(map(told, answer)) or 'nothing'}"


class Broken:
    """An upload whose connection is lost."""

    def read(self) -> bytes:
        raise ConnectionResetError("the connection was lost")


class Later:
    async def read(self) -> bytes:
        return b""


@contextmanager
def server() -> Iterator[str]:
    """Address on localhost where /gzip gives an encoded PNG, /br one that is said to be, /html a page, and else 404."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "PNG")
    pages = {
        "/gzip": (gzip.compress(file.getvalue()), "gzip"),
        "/br": (file.getvalue(), "br"),
        "/html": (b"<html>", "identity"),
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, encoding = pages.get(self.path, (b"", "identity"))
            self.send_response(200 if content else 404)
            self.send_header("Content-Encoding", encoding)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


def fetched(url: str) -> str:
    with server() as address:
        try:
            return told(build_pipe()([url.format(address)]))
        except ValueError as error:
            raise ValueError(str(error).replace(address, "host")) from error


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[np.ndarray]:
        yield np.zeros((32, 32, 3), dtype=np.uint8)


def failing() -> Iterator[np.ndarray]:
    yield np.zeros((32, 32, 3), dtype=np.uint8)
    raise RuntimeError("the disk is gone")


def before_the_failure(**options: Any) -> str:
    given = []
    try:
        for answer in build_pipe()(failing(), **options):
            given.append(told(answer))
    except RuntimeError as error:
        return f"{', '.join(given)}, then RuntimeError: {error}"
    return ", ".join(given)


def in_training() -> str:
    pipe = build_pipe()
    pipe.model.train()
    try:
        image = np.zeros((32, 32, 3), dtype=np.uint8)
        return f"{told(pipe(image))}, {'the same' if pipe(image) == pipe(image) else 'another'} again"
    finally:
        pipe.model.eval()


def of_labels(labels: dict[Any, Any]) -> str:
    config = NulaConfig(stem_channels=4, hidden_sizes=(8,), depths=(0,))
    model = NulaForImageClassification(config)
    model.config.id2label = labels
    return told(
        NulaImageClassificationPipeline(model=model, image_processor=NulaImageProcessor())(Image.new("L", (9, 9)))
    )


def linked(folder: Path) -> str:
    album = folder / "album"
    (album / "inner").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(album / "inner" / "a.png")
    (album / "inner" / "up").symlink_to(album)
    (album / "again").symlink_to(album / "inner")
    (album / "lost.png").symlink_to(folder / "nothing.png")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        answer = told(build_pipe()(album))
    return f"{answer}; warning: {warned[0].message}"


def corpus(folder: Path) -> dict[str, Callable[[], str]]:
    """Name to what is tried; files lie in `folder`."""
    pipe = build_pipe()
    cases: dict[str, Callable[[], str]] = {
        name: lambda image=image: told(pipe([image])[0]) for name, image in images(folder).items()
    }
    png = (folder / "ok.png").read_bytes()
    black = np.zeros((32, 32, 3), dtype=np.uint8)
    gif = folder / "moving.gif"
    tensors = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    table = datasets.Dataset.from_dict({"img": [str(folder / "ok.png")], "label": [3]})
    undecoded = table.cast_column("img", datasets.Image(decode=False))
    calls: dict[str, tuple[Any, dict[str, Any]]] = {
        "an iterator of images": (iter([black, png]), {}),
        "an iterator of none": (iter(()), {}),
        "a generator, read ahead": ((image for image in [black, png]), {"batch_size": 64}),
        "an iterable torch data set": (Stream(), {}),
        "an iterator of bad and good images, on_error": (iter([7, black]), {"on_error": "return", "batch_size": 2}),
        "a DataLoader of tensors": (DataLoader(tensors, batch_size=2), {}),
        "a DataLoader with labels": (DataLoader(TensorDataset(tensors, torch.zeros(3)), batch_size=2), {}),
        "a DataLoader of lists": (DataLoader([black, black], batch_size=2, collate_fn=list), {}),
        "a column of a data set": (table.cast_column("img", datasets.Image())["img"], {}),
        "a column that is not decoded": (undecoded["img"], {}),
        "a data set": (table, {}),
        "a streamed data set": (table.to_iterable_dataset(), {}),
        "a pandas column of bytes": (pd.Series([png], index=[7]), {}),
        "a pandas column with a gap": (pd.Series([png, None]), {"on_error": "return"}),
        "a pandas table": (pd.DataFrame({"image": [png]}), {}),
        "an Arrow column of rows": (pa.array([{"bytes": png, "path": None}]), {}),
        "an Arrow column with a gap": (pa.array([png, None]), {"on_error": "return"}),
        "an Arrow table": (pa.table({"image": [png]}), {}),
        "an empty list": ([], {}),
        "a frame of an animation": (gif, {"frame": 1}),
        "a frame that is not there": (gif, {"frame": 2}),
        "a frame of a still image": (png, {"frame": 1}),
        "a frame below 0": (gif, {"frame": -1}),
        "a format without a decoder": (png, {"formats": ("HEIF",)}),
        "a format that is no name": (png, {"formats": "PNG"}),
        "an unknown option": (png, {"frames": 1}),
        "a nested tensor": (torch.nested.nested_tensor([tensors[0], torch.zeros(3, 9, 5, dtype=torch.uint8)]), {}),
    }
    cases |= {name: partial(lambda image, options: told(pipe(image, **options)), *call) for name, call in calls.items()}
    return cases | {
        "an iterator that fails": before_the_failure,
        "an iterator that fails, read ahead": partial(before_the_failure, batch_size=64),
        "a folder with links, a loop and a dead end": partial(linked, folder),
        "a model in training": in_training,
        "id2label without an index": partial(of_labels, {index: str(index) for index in range(9)}),
        "id2label with keys of text": partial(of_labels, {str(index): "a" for index in range(10)}),
        "id2label with an index too many": partial(of_labels, {index: str(index) for index in range(11)}),
        "id2label with numbers for names": partial(of_labels, {index: index for index in range(10)}),
        "id2label with a name twice": partial(of_labels, dict.fromkeys(range(10), "cat")),
        "URL of an encoded image": partial(fetched, "http://{}/gzip"),
        "URL of an unknown encoding": partial(fetched, "http://{}/br"),
        "URL of a page": partial(fetched, "http://{}/html"),
        "URL with a password and a token": partial(fetched, "http://me:secret@{}/nothing?token=secret"),
    }
