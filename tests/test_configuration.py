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


def test_it_survives_saving(tmp_path):
    NulaConfig(hidden_sizes=(8, 16), depths=(0, 2)).save_pretrained(tmp_path)
    loaded = NulaConfig.from_pretrained(tmp_path)
    assert (loaded.hidden_sizes, loaded.depths) == ([8, 16], [0, 2])
    assert loaded.custom_pipelines["image-classification"]["impl"] == "pipeline_nula.NulaImageClassificationPipeline"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem_channels": 0}, "stem_channels must be an integer of at least 1, got 0"),
        ({"num_channels": "3"}, "num_channels must be an integer"),
        ({"hidden_sizes": ()}, "hidden_sizes must be a non-empty list"),
        ({"hidden_sizes": (8, -1, 8)}, r"hidden_sizes\[1\] must be an integer of at least 1, got -1"),
        ({"depths": (1, 1, 1.5)}, r"depths\[2\] must be an integer of at least 0, got 1.5"),
        ({"depths": (1, True, 1)}, r"depths\[1\]"),
        ({"depths": (1,)}, "depths has 1 entries and hidden_sizes 4"),
    ],
)
def test_impossible_values_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        NulaConfig(**arguments)
