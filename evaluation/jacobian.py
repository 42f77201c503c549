"""First-order sensitivity: the Frobenius norm of the Jacobian of the logits with respect to the pixels."""

from collections.abc import Callable

import torch


def require_evaluation_mode(model: torch.nn.Module) -> None:
    """Raise ValueError unless `model` is in eval mode and computes in float32 throughout.

    In training mode batch normalisation mixes the images of a batch, and dropout is random: derivatives would be of
    another function. In lower precision, TensorFloat-32 of NVIDIA GPUs included, second derivatives are noise.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"the model must be in eval mode; {training[0]} is in training mode.")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"the model must be float32 throughout; {name} is {tensor.dtype}.")
        if torch.is_autocast_enabled(tensor.device.type):
            raise ValueError("derivatives must be computed in float32; autocast is on.")
        if tensor.device.type == "cuda" and (torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32):
            raise ValueError(
                "derivatives must be computed in float32; set torch.backends.cudnn.allow_tf32 and "
                "torch.backends.cuda.matmul.allow_tf32 to False."
            )


def jacobian_norms(
    classifier: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, batch_size: int = 50
) -> torch.Tensor:
    """‖∂ logits / ∂ pixels‖_F of each image, exactly, in logits per unit of pixel value.

    `pixels` (N, 3, H, W) in [0, 1] to (N,). One backward pass for each class, over a whole batch at once, which gives
    the Jacobian of each image only where images do not interact: `require_evaluation_mode` of the model first.
    """
    return torch.cat([_norms(classifier, batch) for batch in pixels.split(batch_size)])


def _norms(classifier: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    logits, backward = torch.func.vjp(classifier, pixels)[:2]
    basis = torch.eye(logits.shape[1], device=pixels.device, dtype=logits.dtype)
    rows = torch.func.vmap(lambda row: backward(row.expand_as(logits))[0])(basis)  # (classes, B, 3, H, W)
    norms: torch.Tensor = rows.square().sum(dim=(0, 2, 3, 4)).sqrt().detach()
    return norms
