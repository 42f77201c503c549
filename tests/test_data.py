"""Whatever `datasets` reads, decoded as the pipeline decodes it."""

import re
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import SAMPLE, photograph
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from PIL import Image as PILImage

from nula import data as data_module
from nula.configuration_nula import CIFAR10_LABELS
from nula.data import DataSource, Split, load_split, stratified
from nula.image_processing_nula import NulaImageProcessor, to_rgb
from nula.records.cifar10 import is_cifar10

PETS = ("bird", "cat", "dog")
PHOTOGRAPHS = [photograph(48, 64), photograph(40, 40), photograph(33, 70)]


def saved(folder: Path, images: list, labels: list, label=None, **columns) -> str:
    """A data set of one split, "train", as a parquet file in `folder`."""
    features = Features({"picture": Image(), "kind": label or ClassLabel(names=list(PETS)), **columns.pop("more", {})})
    table = Dataset.from_dict({"picture": images, "kind": labels, **columns}, features=features)
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / "train.parquet")
    return str(folder)


@pytest.fixture
def image_folder(tmp_path: Path) -> str:
    """Three classes of two images each, of mixed sizes, in folders."""
    for name in PETS:
        folder = tmp_path / "pets" / "train" / name
        folder.mkdir(parents=True)
        for index, array in enumerate(PHOTOGRAPHS[:2]):
            PILImage.fromarray(array).save(folder / f"{index}.png")
    return str(tmp_path / "pets")


def test_the_sample_is_decoded_to_the_bit():
    split = load_split(str(SAMPLE), "test")
    assert split.images.shape == (200, 32, 32, 3)
    assert split.names == CIFAR10_LABELS
    assert split.size == (32, 32)
    assert split.fingerprint == Split.of(split.images.clone(), split.labels, split.names).fingerprint
    assert torch.equal(load_split(str(SAMPLE), "test", image_size=32).images, split.images)
    assert not is_cifar10({"sha256": split.fingerprint})


def test_a_folder_of_images_keeps_its_sizes_and_names(image_folder):
    split = load_split(image_folder, "train")
    assert split.names == PETS
    assert split.size is None
    assert [tuple(image.shape) for image in split.images] == [(48, 64, 3), (40, 40, 3)] * 3
    assert split.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(split.images[0].numpy(), PHOTOGRAPHS[0])
    assert split.first(3).labels.tolist() == [0, 0, 1]
    assert split.fingerprint != split.first(6).part_off(torch.tensor([5]))[0].fingerprint


def test_an_image_size_resizes_as_the_processor_does(image_folder):
    split = load_split(image_folder, "train", image_size=48)
    processor = NulaImageProcessor(size={"height": 48, "width": 48})
    expected = processor.pixels(PHOTOGRAPHS[1])[0].permute(1, 2, 0)
    assert split.images.shape == (6, 48, 48, 3)
    assert torch.equal(split.images[1], expected)


def test_what_save_to_disk_wrote_is_read(tmp_path):
    table = Dataset.from_dict(
        {"img": [PILImage.fromarray(array) for array in PHOTOGRAPHS], "label": [0, 1, 2]},
        features=Features({"img": Image(), "label": ClassLabel(names=list(PETS))}),
    )
    DatasetDict({"train": table, "held_out": table.select([1])}).save_to_disk(tmp_path / "both")
    source = DataSource(dataset=str(tmp_path / "both"), test_split="held_out")
    assert len(source.train().labels) == 3
    assert source.test(image_size=32).images.shape == (1, 32, 32, 3)
    with pytest.raises(ValueError, match="has no split 'test'; it has 'train', 'held_out'"):
        load_split(str(tmp_path / "both"), "test")
    table.save_to_disk(tmp_path / "one")
    assert len(load_split(str(tmp_path / "one"), "train").labels) == 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "I;16", "1"])
def test_images_of_any_mode_are_taken_as_the_pipeline_takes_them(tmp_path, mode):
    if mode == "I;16":
        image = PILImage.fromarray(PHOTOGRAPHS[0][..., 0].astype(np.uint16) * 257)
    else:
        image = PILImage.fromarray(PHOTOGRAPHS[0]).convert(mode)
        if "A" in mode:
            image.putalpha(128)
    split = load_split(saved(tmp_path, [image, image], [0, 1]), "train")
    assert np.array_equal(split.images[0].numpy(), np.asarray(to_rgb(image)))


def test_integers_are_labels_where_none_have_names(tmp_path):
    folder = saved(tmp_path, PHOTOGRAPHS, [0, 2, 1], label=Value("int32"))
    assert load_split(folder, "train").names == ("0", "1", "2")


def test_columns_are_named_where_there_are_several(tmp_path):
    more = {"other": Image(), "coarse": ClassLabel(names=["furry", "feathered"])}
    columns = {"other": PHOTOGRAPHS[::-1], "coarse": [1, 0, 0]}
    folder = saved(tmp_path, PHOTOGRAPHS, [0, 1, 2], more=more, **columns)
    with pytest.raises(ValueError, match=r"several columns of images; name one by --image_column; it has picture"):
        load_split(folder, "train")
    with pytest.raises(ValueError, match="several columns of class labels; name one by --label_column"):
        load_split(folder, "train", image_column="other")
    split = load_split(folder, "train", image_column="other", label_column="coarse")
    assert split.names == ("furry", "feathered")
    assert np.array_equal(split.images[0].numpy(), PHOTOGRAPHS[2])
    with pytest.raises(ValueError, match="no column 'kind' of images"):
        load_split(folder, "train", image_column="kind")
    with pytest.raises(ValueError, match="no column 'picture' of class labels or integers"):
        load_split(folder, "train", image_column="other", label_column="picture")


@pytest.mark.parametrize(
    ("labels", "label", "message"),
    [
        ([0, -1, 2], None, r"\(train\) image 1 has the label -1, must be 0 to 2; -1 marks images without a label"),
        ([0.0, 1.0, 2.0], Value("float32"), r"no column of class labels; other values .*it has .*kind \(float32\)"),
        ([0, 1, None], None, r"image 2 has the label None, must be 0 to 2"),
        (["a", "b", "c"], Value("string"), "no column of class labels; .*Dataset.class_encode_column"),
        ([0, 0, 0], Value("int64"), "has 1 class in column 'kind'; at least two are needed"),
        ([0, 0, 0], ClassLabel(names=["cat"]), "has 1 class in column 'kind'; at least two are needed"),
        ([[0], [1], [2]], Sequence(Value("int64")), "no column of class labels"),
    ],
)
def test_labels_that_cannot_be_are_told_of(tmp_path, labels, label, message):
    with pytest.raises(ValueError, match=message):
        load_split(saved(tmp_path, PHOTOGRAPHS, labels, label=label), "train")


def test_other_data_sets_are_refused(tmp_path):
    Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"no column of images; .*it has text \(string\)"):
        load_split(str(tmp_path), "train")
    with pytest.raises(ValueError, match='Unknown split "test"'):
        load_split(str(tmp_path), "test")
    for name in ("nobody/nothing", "nothing"):
        with pytest.raises(OSError, match=rf"there is no folder {name} here, and as a Hub id it gives: "):
            load_split(name, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"empty.* doesn't contain any data files"):
        load_split(str(tmp_path / "empty"), "train")


def test_a_path_of_nothing_is_told_of_without_asking_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *arguments, **options: pytest.fail("the Hub was asked"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    for name in (str(tmp_path / "none"), "../none", "./none", "data/my digits", "a/b/c", "~/none"):
        with pytest.raises(OSError, match=f"^--dataset {re.escape(name)}: there is no such folder; give a folder or a"):
            load_split(name, "train")
    with pytest.raises(OSError, match=r"^--dataset file: is a file; give a folder or a Hub id"):
        load_split("file", "train")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("Dataset scripts are no longer supported"), "Dataset scripts are no longer supported"),
        (ImportError("Using SOCKS proxy, but\nsocksio is missing"), "Using SOCKS proxy, but socksio is missing"),
        (DatasetGenerationError("An error occurred"), "No space left on device"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset"), "Dataset 'a/b' is a gated dataset"),
    ],
)
def test_whatever_datasets_raises_is_told_in_one_line(monkeypatch, error, told):
    def load_dataset(*arguments: object, **options: object) -> None:
        raise error from OSError("No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = rf"^a/b \(train\): there is no folder a/b here, and as a Hub id it gives: {re.escape(told)}$"
    with pytest.raises(OSError, match=message):
        load_split("a/b", "train")


def test_a_folder_of_one_class_is_told_what_it_lacks(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    PILImage.fromarray(PHOTOGRAPHS[0]).save(tmp_path / "train" / "cat" / "0.png")
    with pytest.raises(ValueError, match="no column of class labels; images in folders need a folder for each class"):
        load_split(str(tmp_path), "train")


@pytest.mark.parametrize("kind", [Value("binary"), {"bytes": Value("binary"), "path": Value("string")}])
def test_bytes_of_image_files_are_images(tmp_path, kind):
    """As libraries other than `datasets` write parquet files."""
    for index, array in enumerate(PHOTOGRAPHS):
        PILImage.fromarray(array).save(tmp_path / f"{index}.png")
    files = [(tmp_path / f"{index}.png").read_bytes() for index in range(3)]
    rows = [{"bytes": file, "path": None} for file in files] if isinstance(kind, dict) else files
    features = Features({"img": kind, "label": Value("int64")})
    (tmp_path / "set").mkdir()
    Dataset.from_dict({"img": rows, "label": [0, 1, 2]}, features=features).to_parquet(tmp_path / "set/train.parquet")
    split = load_split(str(tmp_path / "set"), "train")
    assert all(np.array_equal(image, array) for image, array in zip(split.images, PHOTOGRAPHS, strict=True))


def test_numbers_that_are_no_classes_are_refused(tmp_path):
    folder = saved(tmp_path, PHOTOGRAPHS, [0, 1, 2**40], label=Value("int64"))
    with pytest.raises(ValueError, match=f"has the label {2**40} in column 'kind'; integers must number the classes"):
        load_split(folder, "train")


def test_names_of_a_test_split_are_read_without_its_images(image_folder, monkeypatch):
    monkeypatch.setattr(data_module, "_decoded", lambda source: pytest.fail("an image was decoded"))
    assert DataSource(dataset=image_folder, test_split="train").test_names() == PETS
    with pytest.raises(ValueError, match='Unknown split "test"'):
        DataSource(dataset=image_folder).test_names()


def test_what_is_drawn_by_class_has_each_in_proportion():
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[
        torch.randperm(100, generator=torch.Generator().manual_seed(1))
    ]
    state = torch.random.get_rng_state()
    chosen = stratified(labels, 10, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)  # of a generator of its own
    assert labels[chosen].bincount().tolist() == [5, 3, 2]
    assert torch.equal(chosen, chosen.unique())  # ascending, each once
    assert torch.equal(chosen, stratified(labels, 10, seed=0))
    assert not torch.equal(chosen, stratified(labels, 10, seed=1))
    assert torch.equal(stratified(labels, 100, seed=0), torch.arange(100))


@pytest.mark.parametrize(
    ("sizes", "count", "shares"),
    [
        ([50, 30, 20], 11, [6, 3, 2]),  # 5.5, 3.3 and 2.2
        ([3, 3, 3], 4, [2, 1, 1]),  # equal remainders: the first class
        ([3, 3, 3], 5, [2, 2, 1]),
        ([1, 1, 98], 3, None),  # 0.03, 0.03 and 2.94
        ([6, 1, 1], 6, [4, 1, 1]),  # 4.5, 0.75 and 0.75
        ([0, 2, 2], 2, [0, 1, 1]),  # a class without images has none to give
    ],
)
def test_shares_are_rounded_by_largest_remainders(sizes, count, shares):
    labels = torch.arange(3).repeat_interleave(torch.tensor(sizes))
    if shares is None:
        message = "3 of 100 images, of each class its share, leave 2 of 3 classes out, such as class 0; 100 have every"
        with pytest.raises(ValueError, match=message):
            stratified(labels, count, seed=0)
    else:
        assert labels[stratified(labels, count, seed=0)].bincount(minlength=3).tolist() == shares


@pytest.mark.parametrize("count", [0, -1, 4])
def test_more_images_than_there_are_cannot_be_drawn(count):
    with pytest.raises(ValueError, match=f"cannot take {count} of 3 images; give 1 to 3"):
        stratified(torch.tensor([0, 1, 1]), count, seed=0)


def test_what_is_parted_off_is_the_rest(image_folder):
    split = load_split(image_folder, "train")
    kept, off = split.part_off(torch.tensor([1, 4]))
    assert (kept.labels.tolist(), off.labels.tolist()) == ([0, 1, 1, 2], [0, 2])
    assert torch.equal(off.images[1], split.images[4])
    assert off.fingerprint == split.take(torch.tensor([1, 4])).fingerprint


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"parquet \(train\): .*corresponds to no data"):
        load_split(saved(tmp_path / "parquet", [], []), "train")
    stored = Dataset.from_dict({"img": [], "label": []}, features=Features({"img": Image(), "label": Value("int8")}))
    stored.save_to_disk(tmp_path / "disk")
    with pytest.raises(ValueError, match=r"disk \(train\) is empty; give a split with at least one image"):
        load_split(str(tmp_path / "disk"), "train")


def test_a_broken_image_is_told_of_by_its_place(image_folder):
    broken = Path(image_folder) / "train" / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"\(train\) image 3 \(1\.png\) cannot be read: "):
        load_split(image_folder, "train")


def test_data_larger_than_memory_are_told_of_before_they_are_decoded(image_folder, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 2**14}))
    monkeypatch.setattr(data_module, "_decoded", lambda source: pytest.fail("an image was decoded"))
    with pytest.raises(ValueError, match=r"6 images take about 0\.0 GiB decoded, and 0\.0 GiB of memory are free"):
        load_split(image_folder, "train")
    with pytest.raises(ValueError, match="take about 0"):
        load_split(image_folder, "train", image_size=64)
