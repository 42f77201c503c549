import json

import numpy as np
import pytest

from nula.configuration_nula import CIFAR10_LABELS, NulaConfig


def test_defaults_name_the_ten_classes_of_cifar10():
    config = NulaConfig()
    assert config.num_labels == 10
    assert [config.id2label[index] for index in range(10)] == list(CIFAR10_LABELS)
    assert config.label2id["truck"] == 9


def test_other_classes_can_be_named():
    assert NulaConfig(num_labels=3).id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert NulaConfig(id2label={0: "a", 1: "b"}).num_labels == 2


def test_numpys_integers_are_saved_as_integers(tmp_path):
    NulaConfig(
        stem_channels=np.int64(4), hidden_sizes=[np.int32(8)], depths=[0], contrast_epsilon=np.float32(0.5)
    ).save_pretrained(tmp_path)
    loaded = NulaConfig.from_pretrained(tmp_path)
    assert (loaded.stem_channels, loaded.hidden_sizes, loaded.contrast_epsilon) == (4, [8], 0.5)


def test_it_survives_saving(tmp_path):
    settings = {"layer_convolutions": 2, "contrast_epsilon": 0.1}
    NulaConfig(stem_dropout=0.5, hidden_sizes=(8, 16), depths=(0, 2), **settings).save_pretrained(tmp_path)
    loaded = NulaConfig.from_pretrained(tmp_path)
    assert {name: getattr(loaded, name) for name in settings} == settings
    assert (loaded.stem_dropout, loaded.hidden_sizes, loaded.depths) == (0.5, [8, 16], [0, 2])
    assert loaded.custom_pipelines["image-classification"]["impl"] == "pipeline_nula.NulaImageClassificationPipeline"


def test_code_of_another_repository_is_named_as_that_beside_the_copy(tmp_path):
    """As old versions of transformers named it; saving copies the code, so that the copy needs nobody else's."""
    config = NulaConfig(
        auto_map={
            "AutoConfig": "owner/nula--configuration_nula.NulaConfig",
            "AutoModelForImageClassification": "owner/nula--modeling_nula.NulaForImageClassification",
        },
        custom_pipelines={
            "image-classification": {
                "impl": "owner/nula--pipeline_nula.NulaImageClassificationPipeline",
                "pt": ["AutoModelForImageClassification"],
                "type": "image",
            }
        },
    )
    assert config.auto_map["AutoConfig"] == "owner/nula--configuration_nula.NulaConfig"
    config.save_pretrained(tmp_path)
    saved, plain = json.loads((tmp_path / "config.json").read_text()), NulaConfig().to_dict()
    assert saved["auto_map"] == plain["auto_map"]
    assert saved["custom_pipelines"] == plain["custom_pipelines"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem_channels": 0}, "stem_channels must be an integer of at least 1, got 0"),
        ({"stem_dropout": 1}, r"stem_dropout must be a number in \[0, 1\), got 1"),
        ({"stem_dropout": "0.1"}, r"stem_dropout must be a number in \[0, 1\), got '0.1'"),
        ({"num_channels": "3"}, "num_channels must be an integer"),
        ({"hidden_sizes": ()}, "hidden_sizes must be a non-empty list"),
        ({"hidden_sizes": (8, -1, 8)}, r"hidden_sizes\[1\] must be an integer of at least 1, got -1"),
        ({"depths": (1, 1, 1.5)}, r"depths\[2\] must be an integer of at least 0, got 1.5"),
        ({"depths": (1, True, 1)}, r"depths\[1\]"),
        ({"layer_convolutions": True}, "layer_convolutions must be an integer of at least 1, got True"),
        ({"layer_convolutions": 3}, "layer_convolutions must be 1 or 2, got 3"),
        ({"contrast_epsilon": 0}, "contrast_epsilon must be a positive number, got 0"),
        ({"depths": (1,)}, "depths has 1 entries and hidden_sizes 4"),
    ],
)
def test_impossible_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NulaConfig(**arguments)
