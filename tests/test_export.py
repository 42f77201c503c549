"""The exported forms give what the model gives, for any batch."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT

from nula.configuration_nula import CIFAR10_LABELS
from nula.evaluation.classifiers import load_classifier
from nula.export import main

MODEL = str(ROOT / "releases" / "v1")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["nula.export", "--model", MODEL, "--output", str(folder)])
        main()
    return folder


@pytest.fixture(scope="module")
def sample(test_split) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of the test sample in [0, 1], and the model's logits."""
    pixels = test_split.images.permute(0, 3, 1, 2).float() / 255
    with torch.inference_mode():
        return pixels, load_classifier(MODEL, torch.device("cpu"))(pixels)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_onnx(exported, sample, batch_size):
    session = onnxruntime.InferenceSession(exported / "nula.onnx", providers=["CPUExecutionProvider"])
    pixels, logits = sample
    given = [session.run(["logits"], {"pixels": batch.numpy()})[0] for batch in pixels.split(batch_size)]
    np.testing.assert_allclose(np.concatenate(given), logits.numpy(), atol=1e-4, rtol=0)
    labels = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    assert list(labels.values()) == list(CIFAR10_LABELS)
    assert list(labels) == [str(index) for index in range(10)]


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_torch_export(exported, sample, batch_size):
    form = torch.export.load(exported / "nula.pt2").module()
    pixels, logits = sample
    with torch.inference_mode():
        given = torch.cat([form(batch) for batch in pixels.split(batch_size)])
    torch.testing.assert_close(given, logits, atol=1e-4, rtol=0)
