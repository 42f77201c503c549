"""Whatever `datasets` reads, decoded as the pipeline decodes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SAMPLE, photograph
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as PILImage

from nula import data as data_module
from nula.configuration_nula import CIFAR10_LABELS
from nula.data import DataSource, Split, load_split
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
    assert split.fingerprint != split.first(6).part_off(1)[0].fingerprint


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
        ([0, -1, 2], None, r"\(train\) image 1 has the label -1, must be 0 to 2"),
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
    for name in (str(tmp_path / "none"), "../none", "nobody/nothing"):
        with pytest.raises(OSError, match=rf"there is no folder {name} here, and as a Hub id it gives: "):
            load_split(name, "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match=r"empty.* doesn't contain any data files"):
        load_split(str(tmp_path / "empty"), "train")


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
