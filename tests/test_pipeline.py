"""The pipeline as a user meets it: remote code of the assembled payload, in a process that cannot import `nula`."""

import base64
import io
import json
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAT, run_without_nula
from PIL import Image
from transformers import ImageClassificationPipeline
from transformers.pipelines.pt_utils import KeyDataset

from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline


@pytest.fixture(scope="module")
def pipe(payload: Path) -> NulaImageClassificationPipeline:
    model, processor = (kind.from_pretrained(payload) for kind in (NulaForImageClassification, NulaImageProcessor))
    return NulaImageClassificationPipeline(model=model, image_processor=processor)


@pytest.fixture(scope="module")
def server() -> str:
    """Address of the examples on localhost; the thread ends with the tests."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(CAT.parent))) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()


def test_remote_code_classifies_every_source_alike(payload, server, tmp_path):
    code = """
import json
import numpy as np, torch
from PIL import Image
from transformers import pipeline
model, path, url = sys.argv[1:]
pipe = pipeline("image-classification", model=model, trust_remote_code=True)
array = np.asarray(Image.open(path).convert("RGB"))
tensor = torch.from_numpy(array).permute(2, 0, 1)
answers = [pipe(path), pipe(url), pipe(Image.open(path)), pipe(array), pipe(tensor), *pipe(torch.stack([tensor] * 2))]
try:
    import nula
except ImportError:
    print(json.dumps([type(pipe).__module__, answers]))
"""
    module, answers = json.loads(run_without_nula(code, tmp_path, payload, CAT, f"{server}/cat.png"))
    assert module.startswith("transformers_modules.")
    assert module.endswith("pipeline_nula")
    assert len(answers) == 7
    assert answers[0][0]["label"] == "cat"
    for answer in answers[1:]:
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in answers[0]]
        assert [entry["score"] for entry in answer] == pytest.approx([entry["score"] for entry in answers[0]], abs=1e-6)


def test_the_stock_pipeline_gives_the_same_results(pipe, test_split):
    stock = ImageClassificationPipeline(model=pipe.model, image_processor=pipe.image_processor)
    images = [Image.fromarray(image) for image in test_split.images[:8].numpy()]
    for options in (
        {},
        {"top_k": 10},
        {"function_to_apply": "sigmoid"},
        {"function_to_apply": "none", "batch_size": 3},
    ):
        for ours, theirs in zip(pipe(images, **options), stock(images, **options), strict=True):
            assert [entry["label"] for entry in ours] == [entry["label"] for entry in theirs]
            assert [e["score"] for e in ours] == pytest.approx([e["score"] for e in theirs], abs=1e-4)
    probabilities = pipe(images[0], top_k=10)
    assert sum(entry["score"] for entry in probabilities) == pytest.approx(1, abs=1e-5)
    assert len(pipe(images[0])) == 5


def labels(answer: list) -> list[str]:
    return [entry["label"] for entry in answer]


def test_lists_batches_and_generators_are_answered_in_kind(pipe, test_split):
    images = test_split.images[:6].permute(0, 3, 1, 2)
    single = [pipe(image, top_k=3) for image in images]

    def close(ours, theirs):
        assert [labels(a) for a in ours] == [labels(b) for b in theirs]
        scores = [[[entry["score"] for entry in answer] for answer in answers] for answers in (ours, theirs)]
        np.testing.assert_allclose(*scores, atol=1e-5)

    close(pipe(images, top_k=3), single)
    close(pipe(images.numpy(), top_k=3, batch_size=4), single)
    close(pipe(list(images), top_k=3, batch_size=4), single)
    close(pipe(tuple(images), top_k=3), single)
    mixed = pipe([images[0], images[1:4].numpy(), images[4:4], images[4:]], top_k=3, batch_size=2)
    close([mixed[0]], single[:1])
    close(mixed[1], single[1:4])
    assert mixed[2] == []
    close(mixed[3], single[4:])
    assert pipe([]) == []
    assert pipe(images[:0]) == []

    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield images[taken[-1] % 6]

    answers = pipe(endless(), top_k=3)
    close([next(answers) for _ in range(6)], single)
    assert len(taken) < 20  # read as the answers are asked for
    close([answer for batch in pipe(half for half in images.split(3)) for answer in batch], [pipe(i) for i in images])


def test_worker_processes_keep_the_order(pipe):
    images = [CAT, CAT.with_name("dog.jpg"), CAT, CAT.with_name("horse.jpg")]
    assert pipe(images, num_workers=1, batch_size=2) == pipe(images, batch_size=2)


def test_a_torch_data_set_is_answered_one_by_one(pipe):
    rows = [{"img": Image.open(CAT)}, {"img": np.zeros((32, 32, 3), dtype=np.uint8)}]
    answers = list(pipe(KeyDataset(rows, "img"), batch_size=2))
    assert answers == pipe([row["img"] for row in rows], batch_size=2)


def test_data_urls_and_transparency(pipe):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (10, 10, 30, 30))
    file = io.BytesIO()
    image.save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    white = Image.new("RGB", (40, 40), "white")
    white.paste((200, 30, 30), (10, 10, 30, 30))
    assert pipe(url) == pipe(image) == pipe(white)


# A DDS texture of a kind that PIL opens but cannot decode: it raises neither OSError nor ValueError.
UNSUPPORTED = "data:image/dds;base64," + base64.b64encode(b"DDS |" + bytes(3) + bytes(120)).decode()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    jpeg = CAT.with_name("dog.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "truncated.png").write_bytes(CAT.read_bytes()[:5000])
    return folder


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing.png", FileNotFoundError, r"missing\.png': there is no such file; give the path or URL"),
        ("notes.txt", ValueError, "notes.txt': this is not an image that PIL can read"),
        ("empty.png", ValueError, "empty.png': this is not an image that PIL can read"),
        ("truncated.jpg", ValueError, "truncated.jpg': image file is truncated"),
        ("truncated.png", ValueError, r"truncated\.png': .*Truncated"),
        (".", ValueError, "Is a directory"),
    ],
)
def test_broken_files_are_named(pipe, broken, name, error, message):
    with pytest.raises(error, match=message):
        pipe(str(broken / name))
    with pytest.raises(error, match=message):
        pipe([CAT, broken / name])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.full((3, 32, 32), float("nan")), ValueError, r"Tensor of shape \(3, 32, 32\): .*\[0, 1\], got NaN"),
        (
            torch.zeros(2, 1, 32, 32),
            ValueError,
            r"item 0, image 0: Tensor of shape \(1, 32, 32\): an array must have 3",
        ),
        (np.full((32, 32, 3), 2.0), ValueError, r"ndarray of shape \(32, 32, 3\): values must lie in \[0, 1\], got 2"),
        (np.full((32, 32, 3), 256), ValueError, r"must lie in \[0, 255\]"),
        (np.zeros((32, 32)), ValueError, "must have 3 axes"),
        (7, TypeError, "int: an image must be a path, a URL, a PIL image, a numpy array or a torch tensor"),
        ([CAT, None], TypeError, "item 1: NoneType: an image must be"),
        (UNSUPPORTED, ValueError, "^'data:image.*: Unknown pixel format flags"),
        ("http://127.0.0.1:1/cat.png", ValueError, "'http://127.0.0.1:1/cat.png': .*refused"),
        ("data:image/png;base64,AAAA", ValueError, "this is not an image"),
    ],
)
def test_bad_input_is_named(pipe, image, error, message):
    with pytest.raises(error, match=message):
        pipe(image)


def test_a_url_that_is_not_there_and_one_that_never_answers(pipe, server):
    with pytest.raises(ValueError, match=r"nothing\.png': HTTP Error 404"):
        pipe(f"{server}/nothing.png")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/cat.png"
        with pytest.raises(ValueError, match="timed out"):
            pipe(address, timeout=0.2)
