"""What a run refuses: data and settings that do not go together, weights that are not finite or not the same."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import str_to_bool

from nula.data import Split
from nula.train.recipe import Recipe

UNSUPPORTED = {  # what accelerate's launcher and its configuration file may ask for, by the variable that says so
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism configuration",
}


def check_environment() -> None:
    """Check that nothing is asked of accelerate by which a run would differ from its recipe.

    Raises:
        ValueError: gradients are to be accumulated, a plugin shards the model, or the mixed precision is not bf16.
    """
    where = "; it comes from the command line of `accelerate launch`, the environment or `accelerate config`."
    for variable, plugin in UNSUPPORTED.items():
        if os.environ.get(variable, "") and str_to_bool(os.environ[variable]):
            raise ValueError(f"{variable}={os.environ[variable]}: training with {plugin} is not supported{where}")
    variable = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    if os.environ.get(variable, "1") != "1":
        raise ValueError(
            f"{variable}={os.environ[variable]}: gradients are of one batch each, whose size --recipe batch_size=... "
            f"sets{where}"
        )
    _check_precision(os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))


def _check_precision(precision: str) -> None:
    if precision not in ("no", "bf16"):
        reason = ", as two optimisers would share its scaler" if precision == "fp16" else ""
        raise ValueError(f"mixed precision {precision} is not supported{reason}; take bf16 or no.")


def check_agreement(model: torch.nn.Module, accelerator: Accelerator) -> None:
    """Raise RuntimeError unless all processes hold the same parameters, to the bit."""
    with torch.no_grad():
        parameters = torch.cat([parameter.flatten() for parameter in model.parameters()])
    gathered = accelerator.gather(parameters.unsqueeze(0))
    if not (gathered == gathered[0]).all():
        raise RuntimeError("the processes ended with different parameters.")


def check_setting(data: Split, accelerator: Accelerator, recipe: Recipe) -> None:
    """Raise ValueError where data, processes and recipe do not go together."""
    count, processes = len(data.labels), accelerator.num_processes
    if recipe.batch_size % processes:
        raise ValueError(f"batch_size {recipe.batch_size} cannot be shared evenly by {processes} processes.")
    if count < recipe.batch_size:
        raise ValueError(
            f"{count} images are fewer than one batch of {recipe.batch_size}; give --recipe batch_size={count} or less."
        )
    _check_precision(accelerator.mixed_precision)
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            f"gradients of {accelerator.gradient_accumulation_steps} batches would be accumulated, must be of one: set "
            "the recipe's batch_size."
        )
    side = square_images(data).shape[1]
    if recipe.crop_padding >= side:
        allowed = f"an integer 0 to {side - 1}"
        raise ValueError(f"recipe {recipe.name!r}: crop_padding is {recipe.crop_padding}, must be {allowed}.")
    occurring = data.labels.unique().tolist()
    if len(occurring) == 1:
        name = data.names[occurring[0]]
        raise ValueError(f"all {count} training images are of the class {name!r}; at least two classes must occur.")


def square_images(data: Split) -> torch.Tensor:
    """Return the images as one array (N, H, H, 3); ValueError where they are not of one square size."""
    if isinstance(data.images, list) or data.images.shape[1] != data.images.shape[2]:
        shape = "several sizes" if isinstance(data.images, list) else "one size that is not square"
        raise ValueError(f"the training images are of {shape}; load them with an image_size, for one square size.")
    return data.images


def check_finite(model: torch.nn.Module, step: int) -> None:
    """Raise FloatingPointError where a weight or a batch statistic is not finite after step `step`."""
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise FloatingPointError(
            f"after step {step} weights or batch statistics are not finite; the last checkpoint is from before it."
        )
