"""NULA: a residual CNN in which nothing is subsampled without a low-pass filter first.

Follows the anti-aliasing principle of R. Zhang, "Making Convolutional Networks Shift-Invariant Again" (ICML 2019):
dense evaluation, then blur, then subsample. The residual learning is that of K. He et al., "Deep Residual Learning for
Image Recognition" (CVPR 2016). Read the file from the bottom up.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention, ImageClassifierOutputWithNoAttention

from .configuration_nula import NulaConfig

if TYPE_CHECKING:
    # Never executed. Saving copies the files that the text of this one imports, and a model that is saved or pushed
    # without its processor's and its pipeline's code cannot be loaded by `pipeline(...)`. The others are imported by
    # the pipeline, but from a folder transformers 5.3 loads only what the text of this file itself imports.
    from .batching_nula import images_of  # noqa: F401
    from .image_processing_nula import NulaImageProcessor  # noqa: F401
    from .pipeline_nula import NulaImageClassificationPipeline  # noqa: F401
    from .reading_nula import load_image  # noqa: F401
    from .rgb_nula import to_rgb  # noqa: F401
    from .smoothing_nula import certify  # noqa: F401

MINIMUM_SIDE = 16  # pixels
HEAD = "classifier."  # how the names of the classifier's tensors begin


class NulaBlurPool(nn.Module):
    """Halves height and width behind the binomial low-pass (1, 2, 1)/4 along each axis.

    (1, 2, 1)/4 is two 2-tap averages in a row, so two average pools, the second with stride 2, are exactly this blur
    followed by subsampling, and several times faster on a CPU than a depthwise convolution. Borders are replicated,
    a constant passes unchanged, and a checkerboard (the Nyquist frequency) is removed apart from the border.
    (B, C, H, W) -> (B, C, ceil(H/2), ceil(W/2)).
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # Leaving the padding out of the count averages a border pixel with itself alone: replicate padding.
        features = F.avg_pool2d(features, kernel_size=2, stride=1, padding=1, count_include_pad=False)
        return F.avg_pool2d(features, kernel_size=2, stride=2)


class NulaConvLayer(nn.Module):
    """3x3 convolution, batch normalisation, ReLU, at constant resolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(self.normalization(self.convolution(features)))


class NulaContrastNormalization(nn.Module):
    """Divide each image's deviation from its mean by twice (the deviation's standard deviation + epsilon).

    The mean, of every channel, is kept; the standard deviation is over all values of the image, so that colours keep
    their proportions. Without epsilon the result would not depend on the image's contrast at all; with it, flat images
    stay flat. (B, C, H, W) -> the same.
    """

    def __init__(self, epsilon: float):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # In float32 whatever the autocast: the result decides how bright all features are.
        mean = pixels.mean(dim=(2, 3), keepdim=True)
        centred = pixels - mean
        variance = centred.square().mean(dim=(1, 2, 3), keepdim=True)
        deviation = variance.clamp(min=1e-12).sqrt()  # the square root of 0 has no gradient
        return mean + centred / (2 * (deviation + self.epsilon))


class NulaStem(nn.Module):
    """3x3 convolution with bias, ReLU, dropout, at the input resolution.

    Without batch normalisation, which would lift filters of fine detail, faint in natural images, to the strength of
    coarse ones, and noise with them. The dropout, in training alone, keeps later layers from resting on single pixels.
    """

    def __init__(self, config: NulaConfig):
        super().__init__()
        epsilon = config.contrast_epsilon
        self.contrast = nn.Identity() if epsilon is None else NulaContrastNormalization(epsilon)
        self.convolution = nn.Conv2d(config.num_channels, config.stem_channels, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(config.stem_dropout)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.dropout(F.relu(self.convolution(self.contrast(pixels))))


class NulaResidualLayer(NulaConvLayer):
    """relu(x + BN(conv(x))); the identity on non-negative features at initialisation, where the BN scale is 0."""

    def __init__(self, channels: int):
        super().__init__(channels, channels)
        self.normalization.initial_scale = 0.0  # read by _init_weights

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(features + self.normalization(self.convolution(features)))


class NulaResidualBlock(NulaResidualLayer):
    """relu(x + BN(conv(relu(BN(conv(x)))))), the basic block of He et al., at initialisation the identity likewise."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.inner = NulaConvLayer(channels, channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.relu(features + self.normalization(self.convolution(self.inner(features))))


class NulaStage(nn.Module):
    """Widen at the incoming resolution, blur and halve, then refine by residual layers.

    The non-linear widening comes before the low-pass: fine detail is first turned into features whose presence survives
    the blur, instead of being removed by it.
    """

    def __init__(self, in_channels: int, out_channels: int, depth: int, layer_convolutions: int):
        super().__init__()
        self.widening = NulaConvLayer(in_channels, out_channels)
        self.downsampling = NulaBlurPool()
        layer = NulaResidualBlock if layer_convolutions == 2 else NulaResidualLayer
        self.layers = nn.Sequential(*[layer(out_channels) for _ in range(depth)])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(self.downsampling(self.widening(features)))


class NulaRecomputation:
    """A stage for one gradient checkpoint: called again by the backward pass, it leaves the running statistics alone.

    Batch normalisation in training updates its running statistics in every forward pass, so that computing a stage a
    second time would count its batch twice.
    """

    def __init__(self, stage: NulaStage):
        self.stage = stage
        self.computed = False

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        if not self.computed:
            self.computed = True
            return self.stage(features)
        buffers = {name: buffer.clone() for name, buffer in self.stage.named_buffers()}
        return functional_call(self.stage, buffers, (features,))


class NulaPreTrainedModel(PreTrainedModel):
    config_class = NulaConfig
    base_model_prefix = "nula"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NulaConvLayer", "NulaResidualLayer", "NulaResidualBlock"]  # noqa: RUF012 (the base class's own form)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *arguments: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **options: Any,
    ) -> Any:
        """Load a model as transformers does, but refuse weights that are not all of it.

        transformers fills in random numbers with a warning. A new classifier, for other classes, is had by
        `ignore_mismatched_sizes=True`; whatever else is missing is refused even then.

        Raises:
            ValueError: tensors are missing or have another shape; the message names them.
        """
        model, report = super().from_pretrained(
            pretrained_model_name_or_path,
            *arguments,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which the report then names
            **options,
        )
        problems = sorted(
            f"{name} is missing" for name in report["missing_keys"] if not name.endswith("num_batches_tracked")
        )
        for name, stored, needed in sorted(report["mismatched_keys"]):
            problems.append(f"{name} has shape {tuple(stored)} in place of {tuple(needed)}")
        if ignore_mismatched_sizes:
            problems = [problem for problem in problems if not problem.startswith(HEAD)]
        if problems:
            advice = ""
            if all(problem.startswith(HEAD) for problem in problems):
                advice = " (ignore_mismatched_sizes=True makes a new classifier)"
            rest = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(
                f"the weights of {pretrained_model_name_or_path} do not fit the model{advice}: "
                f"{', '.join(problems[:3])}{rest}."
            )
        return (model, report) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, getattr(module, "initial_scale", 1.0))
            nn.init.zeros_(module.bias)
            nn.init.zeros_(module.running_mean)
            nn.init.ones_(module.running_var)
            nn.init.zeros_(module.num_batches_tracked)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)

    @torch.no_grad()
    def rescale_convolutions(self) -> "NulaPreTrainedModel":
        """Scale each convolution before a batch normalisation to outputs of unit variance; the answers stay the same.

        Call it before fine-tuning, and before an optimiser is made. NULA's own training keeps the weights of these
        convolutions at a root mean square of 0.0015, beside which the step of an ordinary optimiser (about its
        learning rate, for AdamW) is large. Behind a batch normalisation the size of the weights W does not matter but
        for the epsilon (S. Ioffe and C. Szegedy, 2015), and only sets how far a step turns them (T. van Laarhoven, "L2
        Regularization versus Batch and Weight Normalization", 2017). With the running mean m and variance v of each
        channel, and its scale g,

            W' = s W,  m' = s m,  v' = s² v,  g' = g √(s² v + ε) / (s √(v + ε))

        computes the same. Each layer has one s, as in D. Mishkin and J. Matas, "All you need is a good init" (2016),
        where the outputs have variance 1; here s is the nearest power of two, so that W', m' and v' are exact in any
        floating-point type. In training mode a batch's variance takes the place of v, and the outputs are the same as
        far as it is v. A second call changes nothing; nor does the first on weights freshly drawn.

        Returns:
            The model itself, whose parameters and buffers are changed in place.

        Raises:
            ValueError: a convolution's weight is computed from others (by a parametrization or pruning), or a batch
                normalisation keeps no running statistics. Nothing has been changed then.
        """
        layers = {name: module for name, module in self.named_modules() if isinstance(module, NulaConvLayer)}
        for name, layer in layers.items():
            if not isinstance(layer.convolution.weight, nn.Parameter):
                raise ValueError(
                    f"{name}.convolution.weight is computed from other parameters; remove its parametrization or "
                    "pruning first."
                )
            if layer.normalization.running_var is None:
                raise ValueError(f"{name}.normalization must keep running statistics (track_running_stats=True).")
        for layer in layers.values():
            normalization = layer.normalization
            variance, epsilon = normalization.running_var.float(), normalization.eps  # (C,)
            mean = variance.mean()
            # Weights of zero stay zero; beside a smaller variance than that of a normal number, s² would overflow.
            varies = mean >= torch.finfo(torch.float32).tiny
            scale = torch.where(varies, torch.exp2((-mean.log2() / 2).round()), 1.0)
            normalization.weight.mul_(((scale**2 * variance + epsilon) / (variance + epsilon)).sqrt() / scale)
            normalization.running_mean.mul_(scale)
            normalization.running_var.mul_(scale**2)
            layer.convolution.weight.mul_(scale)
        return self


class NulaModel(NulaPreTrainedModel):
    """The network without its classifier: an image embedding of `config.hidden_sizes[-1]` features."""

    _keys_to_ignore_on_load_unexpected = [rf"^{HEAD}"]  # noqa: RUF012 (the base class's own form)

    def __init__(self, config: NulaConfig):
        super().__init__(config)
        self.gradient_checkpointing = False  # set by gradient_checkpointing_enable()
        self.stem = NulaStem(config)
        widths = [config.stem_channels, *config.hidden_sizes]
        self.stages = nn.ModuleList(
            NulaStage(in_channels, out_channels, depth, config.layer_convolutions)
            for in_channels, out_channels, depth in zip(widths, widths[1:], config.depths)
        )
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPoolingAndNoAttention | tuple:
        """
        Args:
            pixel_values: (B, num_channels, H, W) in [-1, 1] as the image processor gives them, H and W at least 16.
            output_hidden_states: also return the features after the stem and after each stage.
            return_dict: False for a plain tuple.

        Returns:
            last_hidden_state (B, C, h, w), pooler_output (B, C) and, if asked for, hidden_states.

        Raises:
            ValueError: pixel_values has another number of axes or channels, or is smaller than 16x16.
        """
        output_hidden_states = (
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must have shape (batch, {self.config.num_channels}, height, width), "
                f"got {tuple(pixel_values.shape)}."
            )
        if min(pixel_values.shape[2:]) < MINIMUM_SIDE:
            raise ValueError(
                f"pixel_values must be at least {MINIMUM_SIDE}x{MINIMUM_SIDE} pixels, got {tuple(pixel_values.shape)}."
            )
        features = self.stem(pixel_values)
        hidden_states = (features,)
        for stage in self.stages:
            if self.gradient_checkpointing and self.training:
                features = self._gradient_checkpointing_func(NulaRecomputation(stage), features)
            else:
                features = stage(features)
            hidden_states += (features,)
        pooled = features.mean(dim=(2, 3))  # (B, C)
        if not return_dict:
            return (features, pooled, hidden_states) if output_hidden_states else (features, pooled)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=features,
            pooler_output=pooled,
            hidden_states=hidden_states if output_hidden_states else None,
        )


class NulaForImageClassification(NulaPreTrainedModel):
    """NULA with a linear classifier on its pooled features: one label an image, out of at least two."""

    def __init__(self, config: NulaConfig):
        super().__init__(config)
        if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
            raise ValueError(
                "NulaForImageClassification gives each image one of at least two labels; got "
                f"num_labels={config.num_labels}, problem_type={config.problem_type!r}."
            )
        # Whoever names other classes by `id2label` alone would otherwise save the old names beside the new ones.
        config.label2id = {label: index for index, label in config.id2label.items()}
        self.nula = NulaModel(config)
        self.classifier = nn.Linear(config.hidden_sizes[-1], config.num_labels)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention | tuple:
        """
        Args:
            pixel_values: (B, num_channels, H, W) in [-1, 1] as the image processor gives them, H and W at least 16.
            labels: (B,) class indices in [0, num_labels), or (B, num_labels) class probabilities; gives the
                cross-entropy as `loss`.
            output_hidden_states: also return the features after the stem and after each stage.
            return_dict: False for a plain tuple.

        Returns:
            logits (B, num_labels), and loss and hidden_states if asked for.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        outputs = self.nula(pixel_values, output_hidden_states=output_hidden_states, return_dict=True)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if not return_dict:
            return tuple(value for value in (loss, logits, outputs.hidden_states) if value is not None)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


NulaModel.register_for_auto_class("AutoModel")
NulaForImageClassification.register_for_auto_class("AutoModelForImageClassification")
