"""The exported forms give what the model gives, for any batch."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT

from nula.cli import main
from nula.configuration_nula import CIFAR10_LABELS
from nula.evaluation.classifiers import load_classifier
from nula.image_processing_nula import normalize
from nula.records.weights import load_model

MODEL = str(ROOT / "releases" / "v1")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["nula", "export", "--model", MODEL, "--output", str(folder)])
        main()
    return folder


@pytest.fixture(scope="module")
def sample(test_split) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of the test sample in [0, 1], and the model's logits."""
    pixels = test_split.images.permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return pixels, load_classifier(MODEL, None, torch.device("cpu"))(pixels)


def test_nothing_is_printed_but_the_files(tiny_folder, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.setattr("sys.argv", ["nula", "export", "--model", str(tiny_folder), "--output", str(tmp_path / "out")])
    main()
    printed = capfd.readouterr()
    files = [str(tmp_path / "out" / name) for name in ("nula.pt2", "nula.onnx")]
    assert [line.split()[1] for line in printed.out.splitlines()] == files
    assert printed.err == ""
    assert not recwarn.list


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_onnx(exported, sample, batch_size):
    session = onnxruntime.InferenceSession(exported / "nula.onnx", providers=["CPUExecutionProvider"])
    pixels, logits = sample
    given = [session.run(["logits"], {"pixels": batch.numpy()})[0] for batch in pixels.split(batch_size)]
    np.testing.assert_allclose(np.concatenate(given), logits.numpy(), atol=1e-4, rtol=0)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    assert list(labels.values()) == list(CIFAR10_LABELS)
    assert list(labels) == [str(index) for index in range(10)]


def test_labels_are_in_the_order_of_the_logits(tiny_folder, tmp_path, monkeypatch):
    """A model with CIFAR-10's names in another order has its logits in its own order."""
    config = json.loads((tiny_folder / "config.json").read_text())
    names = dict(enumerate(reversed(CIFAR10_LABELS)))
    config |= {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    (tiny_folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.argv", ["nula", "export", "--model", str(tiny_folder), "--output", str(tmp_path)])
    main()
    labels = json.loads(onnx.load(tmp_path / "nula.onnx").metadata_props[0].value)
    assert list(labels.values()) == list(reversed(CIFAR10_LABELS))
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(tmp_path / "nula.onnx", providers=["CPUExecutionProvider"])
    given = session.run(["logits"], {"pixels": pixels.numpy()})[0].argmax(axis=1)
    with torch.inference_mode():
        own = load_model(tiny_folder)(normalize(pixels)).logits.argmax(dim=1)
    assert [labels[str(index)] for index in given] == [names[index] for index in own.tolist()]


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_torch_export(exported, sample, batch_size):
    form = torch.export.load(exported / "nula.pt2").module()
    pixels, logits = sample
    with torch.inference_mode():
        given = torch.cat([form(batch) for batch in pixels.split(batch_size)])
    torch.testing.assert_close(given, logits, atol=1e-4, rtol=0)


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sys.argv", ["nula", "export", "--model", str(tmp_path / "none"), "--output", str(tmp_path / "to")]
    )
    with pytest.raises(SystemExit, match=r"error: there is no folder .*none here"):
        main()
    assert not (tmp_path / "to").exists()
