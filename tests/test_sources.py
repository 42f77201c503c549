"""What may hold an image, and what holds several: open files, uploads, rows, columns, loaders, links, addresses."""

import asyncio
import base64
import gzip
import io
import itertools
import os
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from conftest import CAT
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from nula import batching_nula
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.reading_nula import image_files

PNG = CAT.read_bytes()
JPEG = CAT.with_name("dog.jpg").read_bytes()
BLACK = np.zeros((32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipe(payload: Path) -> NulaImageClassificationPipeline:
    model, processor = (kind.from_pretrained(payload) for kind in (NulaForImageClassification, NulaImageProcessor))
    return NulaImageClassificationPipeline(model=model, image_processor=processor)


def labels(answers: Any) -> list[Any]:
    """The best label of each answer, and what is wrong where there is none."""
    return [answer["error"] if isinstance(answer, dict) else answer[0]["label"] for answer in answers]


# Open files and uploads


class Upload:
    """As a server's framework hands it over: read to its end before, and iterated over by lines."""

    def __init__(self, content: bytes):
        self.file = io.BytesIO(content)
        self.file.read()

    def read(self, *size: int) -> bytes:
        return self.file.read(*size)

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def __iter__(self):
        return iter(self.file)

    def __next__(self):
        return next(self.file)


class Asynchronous:
    """As the framework of an asynchronous server hands it over, with the file itself beside."""

    def __init__(self, content: bytes):
        self.file = io.BytesIO(content)

    async def read(self) -> bytes:
        return self.file.read()


class Stream:
    """Cannot be rewound."""

    def __init__(self, content: bytes):
        self.read = io.BytesIO(content).read


class Resource:
    """As a package's resource in an archive."""

    def read_bytes(self) -> bytes:
        return PNG


@pytest.mark.parametrize("kind", [io.BytesIO, Upload, Asynchronous, Stream])
def test_an_object_that_is_read_is_one_image(pipe, kind):
    for content in (PNG, JPEG):
        expected = pipe(content)
        assert pipe(kind(content), on_error="return") == expected
        assert pipe([kind(content)]) == [expected]
        assert list(pipe(iter([kind(content)]))) == [expected]


def test_files_are_rewound_and_may_come_twice(pipe, tmp_path):
    expected = pipe(PNG)
    with open(CAT, "rb") as file:
        file.read()
        assert pipe(file) == expected
        for first, second in zip(*[iter(pipe([file] * 20))] * 2):
            assert first == second
    assert pipe(Resource()) == expected


def test_what_is_read_but_gives_no_bytes_is_named(pipe):
    with open(__file__, encoding="utf-8") as text, pytest.raises(TypeError, match="open the file in binary mode"):
        pipe(text)
    with pytest.raises(TypeError, match="open the file in binary mode"):
        pipe(io.StringIO("text"))

    class Alone:
        async def read(self):
            return PNG

    with pytest.raises(TypeError, match=r"^Alone: its read is asynchronous; await it, and give the bytes"):
        pipe(Alone())
    assert pipe(asyncio.run(Alone().read())) == pipe(PNG)


# Rows, columns and loaders


def test_rows_that_are_not_decoded_are_images(pipe, tmp_path):
    expected = pipe(PNG)
    assert pipe({"bytes": PNG, "path": None}) == pipe({"bytes": None, "path": str(CAT)}) == expected
    table = datasets.Dataset.from_dict({"img": [str(CAT), str(CAT)], "label": [3, 3]})
    column = table.cast_column("img", datasets.Image(decode=False))["img"]
    assert labels(pipe(column)) == [expected[0]["label"]] * 2
    frame = pd.DataFrame({"img": [{"bytes": PNG, "path": "cat.png"}, {"bytes": PNG, "path": None}]}, index=[7, 3])
    assert labels(pipe(frame["img"])) == [expected[0]["label"]] * 2
    arrow = pa.array([{"bytes": PNG, "path": None}, {"bytes": None, "path": str(CAT)}])
    for values in (arrow, pa.chunked_array([arrow]), pa.array([PNG, PNG]), pd.Series([str(CAT), PNG])):
        assert labels(pipe(values, batch_size=2)) == [expected[0]["label"]] * 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"img": BLACK, "label": 3}, r"dict: a row with 'img', 'label' is no image; give one of its values"),
        ({}, "a row with nothing is no image"),
        ({"bytes": None, "path": None}, r"bytes or path of a row must be given, got {'bytes': None, 'path': None}"),
    ],
)
def test_rows_without_an_image_are_named(pipe, row, message):
    with pytest.raises(TypeError, match=message):
        pipe(row)


def test_tables_are_asked_for_a_column(pipe):
    table = datasets.Dataset.from_dict({"img": [str(CAT)], "label": [3]})
    for whole in (table, table.to_pandas(), table.data.table, table.to_iterable_dataset()):
        with pytest.raises(TypeError, match=r"a table with the columns 'img', 'label' is no image; give one of its"):
            pipe(whole)


def test_a_loader_gives_the_answers_of_each_batch(pipe, test_split):
    images = test_split.images[:5].permute(0, 3, 1, 2)
    expected = labels(pipe(list(images)))
    with_labels = TensorDataset(images, torch.zeros(5, dtype=torch.int64))
    pictures = [Image.fromarray(image.numpy()) for image in test_split.images[:5]]
    rows = [{"img": image, "label": 0} for image in images]
    for data, options in (
        (images, {}),
        (with_labels, {}),
        (pictures, {"collate_fn": list}),
        ([(picture, 0) for picture in pictures], {"collate_fn": lambda batch: tuple(zip(*batch))}),
        (rows, {}),
    ):
        for batch_size in (None, 1, 4):
            answers = list(pipe(DataLoader(data, batch_size=2, **options), batch_size=batch_size))
            assert [len(batch) for batch in answers] == [2, 2, 1]
            assert labels(itertools.chain(*answers)) == expected


def test_a_nested_tensor_is_a_batch(pipe, test_split):
    images = [test_split.images[0].permute(2, 0, 1), torch.zeros(3, 40, 20, dtype=torch.uint8)]
    assert labels(pipe(torch.nested.nested_tensor(images))) == labels(pipe(images))


@pytest.mark.parametrize("names", [np.array([str(CAT)]), np.array([CAT]), np.array([PNG])])
def test_an_array_of_names_is_named(pipe, names):
    with pytest.raises(ValueError, match=r"holds no pixels; several names come as a list, such as array.tolist\(\)"):
        pipe(names)
    assert labels(pipe(names.tolist())) == labels([pipe(CAT)])


# Iterators


def slow(images: list[Any], seconds: float):
    for image in images:
        time.sleep(seconds)
        yield image


@pytest.mark.parametrize("batch_size", [None, 1, 2, 64])
def test_an_answer_waits_for_no_image_to_come(pipe, batch_size):
    pipe(PNG)
    came = []

    def images():
        for _ in range(3):
            came.append(time.monotonic())
            yield PNG
            time.sleep(1)

    for number, _ in enumerate(pipe(images(), batch_size=batch_size)):
        assert time.monotonic() - came[number] < 0.5


def test_an_answer_waits_for_no_url_behind_it(pipe):
    with answering(lambda request: time.sleep(2)) as address:
        answers = pipe(iter([PNG, f"{address}/cat.png"]), batch_size=2, timeout=1, on_error="return")
        began = time.monotonic()
        assert isinstance(next(answers), list)
        assert time.monotonic() - began < 0.5
        assert "timed out" in next(answers)["error"]


def test_what_is_read_ahead_is_answered_in_order(pipe, test_split):
    images = test_split.images[:40].numpy()
    pauses = np.random.default_rng(0).uniform(0, 0.03, len(images))

    def given():
        for image, pause in zip(images, pauses):
            time.sleep(pause)
            yield image

    assert labels(pipe(given(), batch_size=8)) == labels(pipe(list(images)))


@pytest.mark.parametrize("batch_size", [None, 1, 2, 3, 64])
def test_what_came_before_an_error_is_answered(pipe, batch_size):
    def images():
        for _ in range(3):
            yield BLACK
        raise RuntimeError("the disk is gone")

    answers = pipe(images(), batch_size=batch_size)
    assert len(list(itertools.islice(answers, 3))) == 3
    with pytest.raises(RuntimeError, match="the disk is gone"):
        next(answers)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 64])
@pytest.mark.parametrize("bad", [7, np.full((32, 32, 3), 2.0), "nothing.png"])
def test_what_came_before_a_bad_image_is_answered(pipe, batch_size, bad):
    for images in (iter([BLACK, BLACK, BLACK, bad, BLACK]), pd.Series([BLACK, BLACK, BLACK, bad, BLACK])):
        answers = pipe(images, batch_size=batch_size)
        assert len(list(itertools.islice(answers, 3))) == 3
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=r"^item 3: "):
            next(answers)


def test_a_reader_is_left_where_the_answers_are(pipe):
    read, before = [], threading.active_count()

    def images():
        for number in itertools.count():
            read.append(number)
            yield BLACK

    answers = pipe(images(), batch_size=4)
    next(answers)
    answers.close()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert len(read) <= 9


# The model behind it


def test_a_model_in_training_is_answered_by_as_it_stands(pipe):
    model, expected = pipe.model, pipe(PNG)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    frozen = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)).eval()
    try:
        assert pipe(PNG) == pipe(PNG) == expected
        assert pipe(PNG, noise_draws=10, noise_std=0.1)
        assert model.training
        assert not frozen.training
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert pipe.__class__(model=model, image_processor=pipe.image_processor).model is model
        assert not model.training  # a pipeline that is made puts it into evaluation mode, as loading a model does
    finally:
        model.eval()


def test_a_model_that_gives_tuples_is_answered_by(pipe, monkeypatch):
    expected = pipe(PNG)
    monkeypatch.setattr(pipe.model.config, "return_dict", False)
    assert pipe(PNG) == expected
    assert pipe(PNG, noise_draws=10, noise_std=0.1)


# Folders and formats


def test_links_are_followed_and_loops_end(pipe, tmp_path):
    album, elsewhere = tmp_path / "album", tmp_path / "elsewhere"
    (album / "inner").mkdir(parents=True)
    elsewhere.mkdir()
    for file in (album / "inner" / "a.png", elsewhere / "b.png"):
        file.write_bytes(PNG)
    (album / "linked").symlink_to(elsewhere)
    (album / "again").symlink_to(album / "inner")
    (album / "inner" / "up").symlink_to(album)
    (album / "c.png").symlink_to(elsewhere / "b.png")
    names = [file.relative_to(album).as_posix() for file in image_files(album)]
    assert names == ["c.png", "inner/a.png", "linked/b.png"]
    assert len(pipe(album)) == 3
    (album / "lost.png").symlink_to(elsewhere / "nothing.png")
    with pytest.warns(UserWarning, match=r"1 links or folders cannot be read, such as 'lost.png'"):
        assert len(image_files(album)) == 3


@pytest.fixture
def plugin():
    """A format that the user has registered with Pillow: the word, and a PNG."""

    def opened(file: Any, name: str) -> Image.Image:
        file.seek(4)
        return Image.open(io.BytesIO(file.read()))

    Image.init()
    Image.register_open("WORD", opened, lambda prefix: prefix[:4] == b"WORD")
    Image.register_extension("WORD", ".word")
    yield b"WORD" + PNG
    del Image.OPEN["WORD"], Image.EXTENSION[".word"]
    Image.ID.remove("WORD")


def test_a_format_may_be_added(pipe, plugin, tmp_path):
    file, expected = tmp_path / "cat.word", pipe(PNG)
    file.write_bytes(plugin)
    for source in (file, plugin, io.BytesIO(plugin)):
        with pytest.raises(ValueError, match=r"it looks like WORD, which is not a supported format; formats=\("):
            pipe(source)
        assert pipe(source, formats=("WORD",)) == expected
    with pytest.warns(UserWarning, match=r"1 of 1 files .* 'cat.word'; formats=\('WORD',\) would take those that are"):
        assert image_files(tmp_path) == []
    assert pipe(tmp_path, formats=["WORD"]) == [expected]


def test_what_cameras_write_is_named(pipe):
    heic, jxl = b"\0\0\0\x18ftypheic" + bytes(20), b"\xff\x0a" + bytes(20)
    for content, name, package in ((heic, "HEIF", "pillow-heif"), (jxl, "JXL", "pillow-jxl-plugin")):
        with pytest.raises(ValueError, match=f"it looks like {name}, .* register {package} with Pillow and pass"):
            pipe(content)
        with pytest.raises(ValueError, match=f"no decoder of '{name}'; register {package} with it first"):
            pipe(content, formats=(name,))
    for wrong in ("HEIF", [7]):
        with pytest.raises(ValueError, match="formats must be names of formats"):
            pipe(PNG, formats=wrong)


def test_a_frame_is_chosen(pipe, tmp_path):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    for name, options in (("a.gif", {}), ("a.tif", {}), ("a.png", {}), ("a.webp", {"lossless": True})):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        for number, frame in enumerate(frames):
            assert labels([pipe(tmp_path / name, frame=number)]) == labels([pipe(frame)])
        assert pipe(tmp_path / name) == pipe(tmp_path / name, frame=0)
        with pytest.raises(ValueError, match=r"there is no frame 3; the first of 3 is 0"):
            pipe(tmp_path / name, frame=3)
    with pytest.raises(ValueError, match="there is no frame 1; the first of 1 is 0"):
        pipe(PNG, frame=1)
    with pytest.raises(ValueError, match="frame must be an integer of at least 0, got -1"):
        pipe(PNG, frame=-1)


# Bounds


def test_no_more_is_decoded_at_once_than_there_is_room_for(pipe, tmp_path, monkeypatch):
    files = {}
    for name, size in (("small", 10), ("large", 60)):
        files[name] = tmp_path / f"{name}.png"
        Image.new("RGB", (size, size)).save(files[name])
    monkeypatch.setattr(batching_nula, "PIXELS", 1000)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    decoding, lock, seen = [], threading.Lock(), []
    pixels = pipe.image_processor.pixels

    def slowly(image: Image.Image, *arguments: Any) -> torch.Tensor:
        with lock:
            decoding.append(image.width * image.height)
            seen.append(tuple(decoding))
        time.sleep(0.02)
        with lock:
            decoding.remove(image.width * image.height)
        return pixels(image, *arguments)

    monkeypatch.setattr(pipe.image_processor, "pixels", slowly)
    answers = pipe([files["small"]] * 20 + [files["large"]] * 3 + [files["small"]] * 20)
    assert len(answers) == 43
    assert max(map(len, seen)) == 3  # one for each core
    assert all(sum(together) <= 1000 or together == (3600,) for together in seen)


# Addresses


class answering:
    """A server on localhost that does what `answer` does with the handler of a request."""

    def __init__(self, answer: Any):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *of_error: Any) -> None:
        self.server.shutdown()
        self.server.server_close()


def send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def test_a_password_is_sent_and_never_told(pipe):
    seen = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers.get("Authorization"))
        if handler.path.startswith("/elsewhere"):
            send(handler, b"", 302, Location=f"http://localhost:{handler.server.server_port}/cat.png")
        elif handler.path.startswith("/cat.png"):
            send(handler, PNG)
        else:
            send(handler, b"", 404)

    with answering(answer) as address:
        host = address.removeprefix("http://")
        assert pipe(f"http://me:p%40ss:word@{host}/cat.png") == pipe(PNG)
        assert seen.pop() == "Basic " + base64.b64encode(b"me:p@ss:word").decode()
        assert pipe(f"http://me:p%40ss@{host}/elsewhere") == pipe(PNG)
        assert seen == ["Basic " + base64.b64encode(b"me:p@ss").decode(), None]  # another host gets none
        url = f"http://me:secret@{host}/a.png?signature=secret"
        with pytest.raises(ValueError, match=rf"^'http://{host}/a\.png\?\.\.\.': HTTP Error 404") as raised:
            pipe(url)
        assert "secret" not in str(raised.value) + pipe([url], on_error="return")[0]["error"]


@pytest.mark.parametrize(
    ("encoding", "encoded"),
    [("gzip", gzip.compress), ("x-gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)],
)
def test_an_encoded_content_is_decoded(pipe, encoding, encoded):
    with answering(lambda handler: send(handler, encoded(PNG), Content_Encoding=encoding)) as address:
        assert pipe(f"{address}/cat.png") == pipe(PNG)


@pytest.mark.parametrize(
    ("encoding", "content", "message"),
    [
        ("gzip", gzip.compress(bytes(50 * 2**20)), "there are more than 100,000 bytes"),
        ("br", b"", "its Content-Encoding is 'br'; gzip, deflate and none are supported"),
        ("gzip", b"no gzip", r"cat\.png': .*incorrect header"),
        ("gzip", gzip.compress(JPEG)[:9000], "image file is truncated"),
    ],
)
def test_encodings_are_bounded_and_named(pipe, encoding, content, message):
    with answering(lambda handler: send(handler, content, Content_Encoding=encoding)) as address:
        url = f"{address}/cat.png"
        with pytest.raises(ValueError, match=message):
            pipe(url, max_bytes=100_000)
