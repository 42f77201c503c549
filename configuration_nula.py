"""Configuration of NULA, an anti-aliased residual CNN for 32x32 RGB images."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from transformers import PretrainedConfig

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
AUTO_MAP = {
    "AutoConfig": "configuration_nula.NulaConfig",
    "AutoModel": "modeling_nula.NulaModel",
    "AutoModelForImageClassification": "modeling_nula.NulaForImageClassification",
}


class NulaConfig(PretrainedConfig):
    """The whole architecture in seven fields; the defaults give 5.06 M parameters and 145 M multiply-adds at 32x32.

    The network is a stem convolution at the input resolution and then one stage for each entry of `hidden_sizes`.
    A stage widens the features by a convolution at its incoming resolution, halves the resolution behind a binomial
    low-pass, and refines the result with `depths[i]` residual layers. The defaults are those of v0 and v1.

    Args:
        num_channels: channels of the input image; 3 for RGB.
        stem_channels: channels of the stem.
        stem_dropout: probability in [0, 1) that training zeroes a value behind the stem.
        hidden_sizes: channels of each stage. Each stage halves height and width, rounding up.
        depths: residual layers of each stage after its downsampling; 0 is allowed. As long as `hidden_sizes`.
        layer_convolutions: convolutions of a residual layer: 1, or 2 as in the basic block of K. He et al. (2016).
        contrast_epsilon: if given, each image enters the network with its contrast normalised: its deviation from the
            mean of each channel is divided by twice (the standard deviation over all values + this), in units of
            pixel_values. The smaller, the more the contrast of flat images is raised. None leaves images as they are.
        calibration_temperature: what logits are divided by for calibrated scores (C. Guo et al., "On Calibration of
            Modern Neural Networks", ICML 2017); None where it is not known.
        id2label: class index to name; the ten classes of CIFAR-10 unless given (`num_labels=n` gives LABEL_0, ...).

    Raises:
        ValueError: a field has an impossible value; the message names the field and what is allowed.
    """

    model_type = "nula"

    def __init__(
        self,
        num_channels: int = 3,
        stem_channels: int = 48,
        stem_dropout: float = 0.2,
        hidden_sizes: tuple[int, ...] = (64, 160, 288, 496),
        depths: tuple[int, ...] = (1, 1, 1, 1),
        layer_convolutions: int = 1,
        contrast_epsilon: float | None = None,
        calibration_temperature: float | None = None,
        **kwargs,
    ):
        self.num_channels = require_integer("num_channels", num_channels, minimum=1)
        self.stem_channels = require_integer("stem_channels", stem_channels, minimum=1)
        if isinstance(stem_dropout, bool) or not isinstance(stem_dropout, (int, float)) or not 0 <= stem_dropout < 1:
            raise ValueError(f"stem_dropout must be a number in [0, 1), got {stem_dropout!r}.")
        self.stem_dropout = float(stem_dropout)
        self.hidden_sizes = _require_integers("hidden_sizes", hidden_sizes, minimum=1)
        self.depths = _require_integers("depths", depths, minimum=0)
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"depths has {len(self.depths)} entries and hidden_sizes {len(self.hidden_sizes)}; "
                "each stage needs one of both."
            )
        self.layer_convolutions = require_integer("layer_convolutions", layer_convolutions, minimum=1)
        if self.layer_convolutions > 2:
            raise ValueError(f"layer_convolutions must be 1 or 2, got {layer_convolutions!r}.")
        if contrast_epsilon is not None:
            require_positive("contrast_epsilon", contrast_epsilon)
        self.contrast_epsilon = None if contrast_epsilon is None else float(contrast_epsilon)
        if calibration_temperature is not None:
            require_positive("calibration_temperature", calibration_temperature)
        self.calibration_temperature = None if calibration_temperature is None else float(calibration_temperature)
        if "id2label" not in kwargs and "num_labels" not in kwargs:
            kwargs["id2label"] = dict(enumerate(CIFAR10_LABELS))
            kwargs["label2id"] = {label: index for index, label in enumerate(CIFAR10_LABELS)}
        # Saving names the class of the saved model alone; a saved classifier is to be loaded by AutoModel, too, and a
        # saved NulaModel by AutoModelForImageClassification.
        kwargs["auto_map"] = AUTO_MAP | (kwargs.get("auto_map") or {})
        # In the configuration rather than in a registry, so that a copy which was fine-tuned and pushed again by
        # somebody else still names its pipeline.
        kwargs.setdefault(
            "custom_pipelines",
            {
                "image-classification": {
                    "impl": "pipeline_nula.NulaImageClassificationPipeline",
                    "pt": ["AutoModelForImageClassification"],
                    "type": "image",
                }
            },
        )
        super().__init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, as they are saved: with the code that is saved beside them, in place of a repository's."""
        fields = super().to_dict()
        fields["auto_map"] = {name: _without_repository(code) for name, code in fields["auto_map"].items()}
        for pipeline in fields["custom_pipelines"].values():
            pipeline["impl"] = _without_repository(pipeline["impl"])
        return fields


def _without_repository(code: str) -> str:
    """module.Class of owner/name--module.Class."""
    return code.rpartition("--")[2]


def require_integer(name: str, value: Any, minimum: int) -> int:
    """Return `value` as an int; raise a ValueError that begins with `name` unless it is one of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


def require_labels(names: Mapping[int, str], classes: int) -> None:
    """Raise a ValueError that begins with "id2label" unless `names` has a name for each class, 0 to `classes` - 1."""
    if set(names) != set(range(classes)):
        missing = sorted(set(range(classes)) - set(names))
        surplus = [key for key in names if key not in range(classes)]
        told = [f"{what} {keys[:5]}" for what, keys in (("lacks", missing), ("has", surplus)) if keys]
        raise ValueError(f"id2label must name the classes 0 to {classes - 1}; it {' and '.join(told)}.")
    wrong = [name for name in names.values() if not isinstance(name, str)]
    if wrong:
        raise ValueError(f"id2label must hold names, got {wrong[0]!r}.")


def require_positive(name: str, value: Any) -> None:
    """Raise a ValueError that begins with `name` unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a positive number, got {value!r}.")


def require_fraction(name: str, value: Any) -> None:
    """Raise a ValueError that begins with `name` unless `value` is a number between 0 and 1, both excluded."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}.")


def _require_integers(name: str, values: Any, minimum: int) -> list[int]:
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{name} must be a non-empty list of integers, one for each stage, got {values!r}.")
    return [require_integer(f"{name}[{index}]", value, minimum) for index, value in enumerate(values)]


NulaConfig.register_for_auto_class()
