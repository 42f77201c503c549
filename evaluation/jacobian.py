"""First-order sensitivity: the Frobenius norm of the Jacobian of the logits with respect to the pixels."""

from collections.abc import Callable

import torch


def require_evaluation_mode(model: torch.nn.Module) -> None:
    """Raise ValueError unless `model` is in eval mode and float32 throughout.

    In training mode batch normalisation mixes the images of a batch, and dropout is random: derivatives would be of
    another function. In half precision second derivatives are noise.
    """
    training = [name or type(model).__name__ for name, module in model.named_modules() if module.training]
    if training:
        raise ValueError(f"the model must be in eval mode; {training[0]} is in training mode.")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"the model must be float32 throughout; {name} is {parameter.dtype}.")


def jacobian_norms(
    classifier: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, batch_size: int = 50
) -> torch.Tensor:
    """‖∂ logits / ∂ pixels‖_F of each image, exactly: (N, 3, H, W) in [0, 1] to (N,), in logits per unit of pixel value.

    One backward pass for each class, over a whole batch at once, which is the Jacobian of each image only where the
    images do not interact: `require_evaluation_mode` of the model behind `classifier`.
    """
    norms = []
    for batch in pixels.split(batch_size):
        logits, backward = torch.func.vjp(classifier, batch)
        basis = torch.eye(logits.shape[1], device=batch.device, dtype=logits.dtype)
        rows = torch.func.vmap(lambda row: backward(row.expand_as(logits))[0])(basis)  # (classes, B, 3, H, W)
        norms.append(rows.square().sum(dim=(0, 2, 3, 4)).sqrt().detach())
    return torch.cat(norms)
