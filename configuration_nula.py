"""Configuration of NULA, an anti-aliased residual CNN for 32x32 RGB images."""

from transformers import PretrainedConfig

CIFAR10_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class NulaConfig(PretrainedConfig):
    """The whole architecture in five fields; the defaults give 5.06 M parameters and 145 M multiply-adds at 32x32.

    The network is a stem convolution at the input resolution and then one stage for each entry of `hidden_sizes`.
    A stage widens the features by a convolution at its incoming resolution, halves the resolution behind a binomial
    low-pass, and refines the result with `depths[i]` residual convolutions.

    Args:
        num_channels: channels of the input image; 3 for RGB.
        stem_channels: channels of the stem.
        stem_dropout: probability in [0, 1) that training zeroes a value behind the stem.
        hidden_sizes: channels of each stage. Each stage halves height and width, rounding up.
        depths: residual convolutions of each stage after its downsampling; 0 is allowed. As long as `hidden_sizes`.
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
        **kwargs,
    ):
        self.num_channels = _integer("num_channels", num_channels, minimum=1)
        self.stem_channels = _integer("stem_channels", stem_channels, minimum=1)
        if isinstance(stem_dropout, bool) or not isinstance(stem_dropout, (int, float)) or not 0 <= stem_dropout < 1:
            raise ValueError(f"stem_dropout must be a number in [0, 1), got {stem_dropout!r}.")
        self.stem_dropout = float(stem_dropout)
        self.hidden_sizes = _integers("hidden_sizes", hidden_sizes, minimum=1)
        self.depths = _integers("depths", depths, minimum=0)
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"depths has {len(self.depths)} entries and hidden_sizes {len(self.hidden_sizes)}; "
                "each stage needs one of both."
            )
        if "id2label" not in kwargs and "num_labels" not in kwargs:
            kwargs["id2label"] = dict(enumerate(CIFAR10_LABELS))
            kwargs["label2id"] = {label: index for index, label in enumerate(CIFAR10_LABELS)}
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


def _integer(name: str, value: int, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
    return value


def _integers(name: str, values, minimum: int) -> list[int]:
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f"{name} must be a non-empty list of integers, one for each stage, got {values!r}.")
    return [_integer(f"{name}[{index}]", value, minimum) for index, value in enumerate(values)]


NulaConfig.register_for_auto_class()
