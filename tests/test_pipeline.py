"""The pipeline as a user meets it: remote code of the assembled payload, in a process that cannot import `nula`."""

import base64
import contextlib
import io
import itertools
import json
import socket
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import psutil
import pytest
import torch
from conftest import CAT, run_without_nula
from PIL import Image
from safetensors.torch import load_file
from scipy.stats import binom, norm
from torch.utils.data import Dataset, IterableDataset
from transformers import ImageClassificationPipeline
from transformers.pipelines.pt_utils import KeyDataset

from nula.configuration_nula import NulaConfig
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.reading_nula import image_files
from nula.smoothing_nula import certify


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


def close(ours: list, theirs: list) -> None:
    """Whether two lists of answers say the same, but for rounding."""
    assert [[entry["label"] for entry in a] for a in ours] == [[entry["label"] for entry in b] for b in theirs]
    scores = [[[entry["score"] for entry in answer] for answer in answers] for answers in (ours, theirs)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_the_models_weights_are_laid_out_for_a_cpu(pipe, payload, tmp_path):
    weight = max(pipe.model.parameters(), key=torch.numel)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    pipe.save_pretrained(tmp_path)
    saved, released = (load_file(folder / "model.safetensors") for folder in (tmp_path, payload))
    assert saved.keys() == released.keys()
    assert all(torch.equal(saved[name], released[name]) for name in saved)


def test_lists_batches_and_generators_are_answered_in_kind(pipe, test_split):
    images = test_split.images[:6].permute(0, 3, 1, 2)
    single = [pipe(image, top_k=3) for image in images]

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


def test_threads_keep_the_order(pipe):
    images = [CAT, CAT.with_name("dog.jpg"), CAT.read_bytes(), Image.open(CAT), CAT.with_name("horse.jpg")] * 3
    one_by_one = [pipe(image) for image in images]
    for options in ({}, {"num_workers": 1}, {"num_workers": 0}, {"batch_size": 4}, {"num_workers": 3, "batch_size": 2}):
        close(pipe(images, **options), one_by_one)


def test_data_sets_are_answered_as_asked_for(pipe, test_split):
    rows = [{"img": Image.open(CAT)}, {"img": np.zeros((32, 32, 3), dtype=np.uint8)}]
    answers = pipe(KeyDataset(rows, "img"), batch_size=2)
    assert isinstance(answers, Iterator)
    assert list(answers) == pipe([row["img"] for row in rows], batch_size=2)
    table = datasets.Dataset.from_dict({"img": [Image.fromarray(image) for image in test_split.images[:5].numpy()]})
    close(list(pipe(KeyDataset(table, "img"))), pipe(test_split.images[:5].numpy()))
    with pytest.raises(TypeError, match=r"item 0: dict: a row with 'img' is no image; give one of its values, such"):
        list(pipe(iter(table)))

    class Stream(IterableDataset):
        def __iter__(self):
            yield from test_split.images[:5].numpy()

    close(list(pipe(Stream())), pipe(test_split.images[:5].numpy()))
    close(list(pipe(table["img"])), pipe(test_split.images[:5].numpy()))
    close(pipe(images=[CAT]), pipe([CAT]))


@pytest.mark.parametrize("of_files", [False, True])
def test_two_batches_are_held_at_most(pipe, tmp_path, of_files):
    alive = most = 0

    class Bytes(bytearray):
        pass

    def freed():
        nonlocal alive
        alive -= 1

    def row(index):
        nonlocal alive, most
        image = Bytes(CAT.read_bytes()) if of_files else np.zeros((32, 32, 3), dtype=np.uint8)
        weakref.finalize(image, freed)
        alive += 1
        most = max(most, alive)
        return image

    class Rows(Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return row(index)

    for rows in (Rows(), map(row, range(40))):
        most = 0
        assert sum(1 for _ in pipe(rows, batch_size=5)) == 40
        assert most <= 10


def test_an_iterator_is_read_ahead_only_where_batches_are_asked_for(pipe):
    for options, expected in (({}, 1), ({"batch_size": 2}, 4)):
        images = itertools.count()
        next(pipe((np.zeros((32, 32, 3), dtype=np.uint8) for _ in images), **options))
        assert next(images) == expected


def test_a_row_that_cannot_be_read_harms_no_other(pipe):
    good = {"bytes": CAT.read_bytes(), "path": None}
    rows = datasets.Dataset.from_dict({"img": [good, {"bytes": b"broken", "path": None}, good]})
    column = KeyDataset(rows.cast_column("img", datasets.Image()), "img")
    first, second, third = pipe(column, on_error="return")
    close([first, third], [pipe(CAT)] * 2)
    assert second["error"].startswith("row of the data set: cannot identify image file")
    with pytest.raises(ValueError, match="item 1: row of the data set: cannot identify"):
        list(pipe(column))


def test_batches_are_whole(pipe, test_split, monkeypatch):
    """One forward pass a batch: of a list, of a batch that an iterator gives, and of files."""
    sizes, images = [], test_split.images[:150].permute(0, 3, 1, 2)

    def forward(inputs):
        sizes.append(len(inputs["pixel_values"]))
        return {"logits": torch.zeros(sizes[-1], 10)}

    monkeypatch.setattr(pipe, "_forward", forward)
    for inputs, options, expected in (
        (list(images), {}, [64, 64, 22]),
        (images.numpy(), {"batch_size": 100}, [100, 50]),
        (iter(images.split(50)), {}, [50, 50, 50]),
        (iter(images.split(75)), {}, [64, 11] * 2),
        (iter(images[:3]), {}, [1, 1, 1]),
        (iter(images[:3]), {"batch_size": 2}, [2, 1]),
        ([CAT] * 70, {}, [64, 6]),
    ):
        sizes.clear()
        list(pipe(inputs, **options))
        assert sizes == expected


def test_the_first_error_waits_for_nothing_that_is_queued(pipe):
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/cat.png"
        began = time.monotonic()
        with pytest.raises(FileNotFoundError, match="item 0"):
            pipe(["nothing.png"] + [url] * 16, timeout=2, num_workers=2)
        assert time.monotonic() - began < 1.5


def test_images_of_several_sizes_need_resizing(pipe):
    fixed = NulaImageProcessor(do_resize=False)
    as_they_are = NulaImageClassificationPipeline(model=pipe.model, image_processor=fixed)
    arrays = [np.zeros((side, side, 3), dtype=np.uint8) for side in (32, 40)]
    with pytest.raises(ValueError, match="without do_resize all images must have one size"):
        as_they_are(arrays)


@pytest.mark.parametrize("classes", [2, 3, 100])
@pytest.mark.parametrize(("height", "width"), [(48, 48), (40, 64)])
def test_other_sizes_and_classes(classes, height, width, test_split):
    names = {index: f"class {index}" for index in range(classes)}
    torch.manual_seed(0)
    model = NulaForImageClassification(
        NulaConfig(stem_channels=4, hidden_sizes=(8, 12), depths=(1, 0), id2label=names)
    ).eval()
    processor = NulaImageProcessor(size={"height": height, "width": width})
    other = NulaImageClassificationPipeline(model=model, image_processor=processor)
    images = [Image.open(CAT), test_split.images[0].numpy(), Image.open(CAT.with_name("dog.jpg"))]
    inputs = processor(images, return_tensors="pt").pixel_values
    assert inputs.shape == (3, 3, height, width)
    with torch.no_grad():
        scores, order = model(inputs).logits.softmax(dim=1).sort(dim=1, descending=True)
    answers = other(images)
    assert [[entry["label"] for entry in answer] for answer in answers] == [
        [names[index] for index in row[:5].tolist()] for row in order
    ]
    for answer, expected in zip(answers, scores):
        assert [entry["score"] for entry in answer] == pytest.approx(expected[:5].tolist(), abs=1e-5)


def test_a_size_that_is_too_small_for_the_model_is_named(pipe):
    small = NulaImageProcessor(size={"height": 32, "width": 15})
    too_small = NulaImageClassificationPipeline(model=pipe.model, image_processor=small)
    with pytest.raises(ValueError, match=r"must be at least 16x16 pixels, got \(1, 3, 32, 15\)"):
        too_small(CAT)


def test_a_folder_is_answered_file_by_file(pipe, tmp_path):
    for name in ("b/2.png", "b/10.PNG", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(CAT.read_bytes())
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "b" / ".hidden").write_text("")
    (tmp_path / ".thumbnails").mkdir()
    (tmp_path / ".thumbnails" / "a.png").write_bytes(CAT.read_bytes())
    with pytest.warns(
        UserWarning, match=r"1 of 4 files have no image's suffix and are skipped, such as 'notes.txt'"
    ) as warned:
        files = image_files(tmp_path)
    assert len(warned) == 1
    assert [file.relative_to(tmp_path).as_posix() for file in files] == ["a.png", "b/10.PNG", "b/2.png"]
    with pytest.warns(UserWarning, match="skipped"):
        answers = pipe(tmp_path)
    close(answers, [pipe(CAT)] * 3)
    (tmp_path / "b" / "2.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match=r"item 1, image 2: .*2\.png'"):
        pipe([CAT, str(tmp_path)])


def test_errors_are_returned_where_asked_for(pipe, broken, test_split):
    images = [CAT, broken / "missing.png", test_split.images[0], np.full((32, 32, 3), 2.0), broken / "notes.txt", 7]
    answers = pipe(images, on_error="return")
    assert ["error" in answer for answer in answers] == [False, True, False, True, True, True]
    assert "there is no such file" in answers[1]["error"]
    assert "values must lie in [0, 1]" in answers[3]["error"]
    close([answers[0], answers[2]], [pipe(CAT), pipe(test_split.images[0])])
    arrays = np.zeros((3, 3, 32, 32), dtype=np.float32)
    arrays[1] = np.nan
    first, second, third = pipe(arrays, on_error="return")
    assert "got NaN" in second["error"]
    close([first, third], [pipe(arrays[0])] * 2)
    dense, sparse = torch.zeros(3, 32, 32), torch.zeros(3, 32, 32).to_sparse()
    first, second = pipe([dense, sparse], on_error="return")  # alike but for their layout
    assert second["error"].startswith("Tensor of shape (3, 32, 32): a tensor must be dense")
    close([first], [pipe(dense)])
    assert pipe(broken / "missing.png", on_error="return").keys() == {"error"}
    assert [set(answer) for answer in pipe(iter([7, 8]), on_error="return")] == [{"error"}] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, 'on_error must be "raise" or "return", got \'ignore\''),
        ({"top_k": 0}, "top_k must be an integer of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"num_workers": -1}, "num_workers must be an integer of at least 0, got -1"),
        ({"timeout": "5"}, "timeout must be a positive number, got '5'"),
        ({"max_bytes": 0}, "max_bytes must be an integer of at least 1, got 0"),
        ({"noise_draws": 10}, "noise_draws and noise_std must be given together"),
        ({"confidence": 0.9}, "give noise_draws and noise_std with it"),
        ({"noise_draws": 10, "noise_std": 0.0}, "noise_std must be a positive number"),
        ({"noise_draws": 10, "noise_std": float("inf")}, "noise_std must be a positive number, got inf"),
        ({"noise_draws": 1.5, "noise_std": 0.1}, "noise_draws must be an integer of at least 1"),
        ({"noise_draws": 10, "noise_std": 0.1, "confidence": 1.0}, "confidence must be between 0 and 1"),
        ({"top_k": True}, "top_k must be an integer of at least 1, got True"),
    ],
)
def test_options_out_of_range_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(CAT, **options)


def test_data_urls_and_transparency(pipe):
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((200, 30, 30, 255), (10, 10, 30, 30))
    file = io.BytesIO()
    image.save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    white = Image.new("RGB", (40, 40), "white")
    white.paste((200, 30, 30), (10, 10, 30, 30))
    assert pipe(url) == pipe(image) == pipe(white)


# PIL would hand it to Ghostscript.
EPS = "data:image/eps;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken")
    (folder / "notes.txt").write_text("not an image")
    (folder / "folder").mkdir()
    (folder / "empty.png").write_bytes(b"")
    jpeg = CAT.with_name("dog.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "truncated.png").write_bytes(CAT.read_bytes()[:5000])
    return folder


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing.png", FileNotFoundError, r"missing\.png': there is no such file; give the path or URL"),
        (
            "notes.txt",
            ValueError,
            r"notes.txt': this is no image of a supported format \(AVIF, .*PNG, .*\), or it is d",
        ),
        ("empty.png", ValueError, "empty.png': it holds no bytes"),
        ("truncated.jpg", ValueError, "truncated.jpg': image file is truncated"),
        ("truncated.png", ValueError, r"truncated\.png': .*Truncated"),
        ("folder", ValueError, "folder': this folder holds no image"),
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
            torch.zeros(2, 2, 32, 32),
            ValueError,
            r"^image 0: Tensor of shape \(2, 32, 32\): an array must have 1, 3 or 4 channels",
        ),
        (np.full((32, 32, 3), 2.0), ValueError, r"ndarray of shape \(32, 32, 3\): values must lie in \[0, 1\], got 2"),
        (np.full((32, 32, 3), 256), ValueError, r"must lie in \[0, 255\]"),
        (np.zeros(32), ValueError, "must have 3 axes, or 2 if it is gray"),
        (7, TypeError, "int: an image must be a path, a URL, bytes, an open file, a PIL image, a numpy array or a t"),
        ([CAT, None], TypeError, "item 1: NoneType: an image must be"),
        (EPS, ValueError, "^'data:image.*: it looks like EPS, which is not a supported format"),
        ("http://127.0.0.1:1/cät pic.png", ValueError, "'http://127.0.0.1:1/cät pic.png': .*refused"),
        ("data:image/png;base64,AAAA", ValueError, "this is no image"),
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


def test_a_url_gives_no_more_than_is_allowed_in_no_more_time(pipe, server):
    with pytest.raises(ValueError, match=r"cat\.png': there are more than 1,000 bytes; pass max_bytes to take more"):
        pipe(f"{server}/cat.png", max_bytes=1000)

    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for byte in CAT.read_bytes()[:100]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.05)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"timed out: not complete after 0\.3 s; pass timeout to wait longer"):
            pipe(f"http://127.0.0.1:{http.server_port}/cat.png", timeout=0.3)
        assert time.monotonic() - began < 3
        http.shutdown()


def test_a_decompression_bomb_is_refused(pipe, tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "large.png")
    for limit in (89_999, 40_000):  # above PIL's limit, and above twice that, where PIL itself raises
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with pytest.raises(ValueError, match=rf"large\.png': it has more pixels than PIL.*\({limit}\); raise that"):
                pipe(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 90_000)
    assert pipe(tmp_path / "large.png")


def test_a_hundred_thousand_images_flow_through(pipe, monkeypatch):
    """Order is kept and nothing piles up; the model is a stand-in, whose answer is the image's number."""
    held, most, count = 0, 0, 100_000

    def images():
        nonlocal held, most
        for number in range(count):
            held += 1
            most = max(most, held)
            yield np.full((32, 32, 3), [number % 251, number // 251 % 251, number // 251**2], dtype=np.uint8)

    class Numbering(torch.nn.Module):
        def forward(self, pixel_values):
            digits = ((pixel_values[:, :, 0, 0] * 0.5 + 0.5) * 255).round().double()
            numbers = digits @ torch.tensor([1.0, 251.0, 251.0**2], dtype=torch.float64)
            return {"logits": numbers[:, None].expand(-1, 10)}

    stand_in = NulaImageClassificationPipeline(model=pipe.model, image_processor=pipe.image_processor)
    monkeypatch.setattr(stand_in, "model", SimpleNamespace(**{"config": pipe.model.config}))
    monkeypatch.setattr(stand_in, "_forward", lambda inputs: Numbering()(**inputs))
    process = psutil.Process()
    early, peak = None, 0
    for number, answer in enumerate(stand_in(images(), batch_size=250, function_to_apply="none", top_k=1)):
        held -= 1
        assert answer[0]["score"] == number
        if number % 1000 == 999:
            peak = max(peak, process.memory_info().rss)
            early = early or peak
    print(f"{count:,} images: {early / 2**20:.0f} MiB after 1,000, {peak / 2**20:.0f} MiB at the peak")
    assert number == count - 1
    assert most <= 2 * 250
    assert peak < early + 64 * 2**20  # their pixels alone, uint8, are 293 MiB


def linear(weight: torch.Tensor, bias: float):
    """A classifier into two classes by the sign of weight · x + bias."""

    def classify(images: torch.Tensor) -> torch.Tensor:
        margin = images.flatten(1) @ weight + bias
        return torch.stack([margin, -margin], dim=1)

    return classify


def test_certified_radii_are_those_of_a_linear_classifier():
    """Smoothing leaves a linear classifier as it is, so the true radius is the distance to its plane.

    Cohen, Rosenfeld and Kolter (2019), appendix B: a certificate beyond that is wrong, and with confidence c at most a
    share 1 − c of them may be.
    """
    torch.manual_seed(0)
    weight, std, draws, confidence, trials = torch.randn(12), 0.5, 400, 0.9, 500
    distance = 0.4
    image = (weight * distance / weight.norm()).view(3, 2, 2)
    found = [certify(linear(weight, 0.0), image, std, draws, confidence) for _ in range(trials)]
    certified = [radius for label, _, radius in found if label == 0]
    wrong = sum(radius > distance for radius in certified) + sum(label == 1 for label, _, _ in found)
    allowed = binom.ppf(0.9999, trials, 1 - confidence)
    print(f"{wrong} of {trials} certificates are beyond the true radius {distance}, {allowed:.0f} allowed")
    assert 0 < wrong <= allowed
    assert np.mean(certified) == pytest.approx(distance, abs=0.1)
    on_the_plane = [certify(linear(weight, 0.0), torch.zeros(3, 2, 2), std, draws, confidence) for _ in range(trials)]
    answered = sum(label is not None for label, _, _ in on_the_plane)
    assert answered <= binom.ppf(0.9999, trials, 1 - confidence)
    assert all(radius == 0 for label, _, radius in on_the_plane if label is None)


def test_the_pipeline_certifies_in_pixels(pipe, monkeypatch):
    """A stand-in tells what the model is shown: N(0, σ²) around the image in [0, 1], clamped and then normalised."""
    shown = []

    class Recording(torch.nn.Module):
        def forward(self, pixel_values, return_dict):
            shown.append(pixel_values * 0.5 + 0.5)
            return SimpleNamespace(logits=linear(torch.ones(3 * 32 * 32), -0.4 * 3 * 32 * 32)(shown[-1]))

    stand_in = NulaImageClassificationPipeline(model=pipe.model, image_processor=pipe.image_processor)
    model = Recording()
    model.config, model.dtype = pipe.model.config, torch.float32
    monkeypatch.setattr(stand_in, "model", model)
    image = np.full((32, 32, 3), 0.5, dtype=np.float32)
    [answer] = stand_in(image, noise_draws=500, noise_std=0.1, confidence=0.9)
    seen = torch.cat(shown)
    assert len(seen) == 600
    assert seen.std().item() == pytest.approx(0.1, rel=0.01)
    assert seen.mean().item() == pytest.approx(0.5, abs=1e-3)
    bound = 0.1 ** (1 / 500)  # all draws alike
    assert answer == {
        "label": "airplane",
        "score": pytest.approx(bound),
        "radius": pytest.approx(0.1 * norm.ppf(bound)),
    }
    assert answer["radius"] < 0.1 * (3 * 32 * 32) ** 0.5  # the distance to the plane where the mean is 0.4
    shown.clear()
    stand_in(image, noise_draws=10, noise_std=1.0)
    assert (torch.cat(shown).min().item(), torch.cat(shown).max().item()) == pytest.approx((0, 1), abs=1e-6)


def test_a_model_that_gives_nan_gives_no_answer(pipe, monkeypatch):
    logits = torch.zeros(1, 10)
    logits[0, 3] = float("nan")
    monkeypatch.setattr(pipe, "_forward", lambda inputs: {"logits": logits})
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        pipe(CAT)


def test_the_pipeline_certifies(pipe, test_split):
    images = test_split.images[:3].numpy()
    torch.manual_seed(0)
    answers = pipe(images, noise_draws=120, noise_std=0.05, confidence=0.99)
    assert [len(answer) for answer in answers] == [1] * 3
    # All of n draws alike give the bound α^(1/n).
    best = 0.01 ** (1 / 120)
    assert max(answer[0]["score"] for answer in answers) == pytest.approx(best)
    for [answer], [plain, *_] in zip(answers, pipe(images)):
        if answer["score"] == pytest.approx(best):
            assert answer["label"] == plain["label"]
            assert answer["radius"] == pytest.approx(0.05 * norm.ppf(best))
    torch.manual_seed(0)
    [abstained] = pipe(images[0], noise_draws=1, noise_std=0.05)
    assert abstained == {"label": None, "score": pytest.approx(0.001), "radius": 0.0}
