"""Second-order shape of the loss in parameter space: the ends of the Hessian's spectrum.

Power iteration, as published, finds the eigenvalue of largest size, which may be a negative one; Lanczos finds both
ends. Algorithms here know a symmetric matrix only as a scipy LinearOperator.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch.nn import functional as F

from nula.evaluation.jacobian import require_evaluation_mode


@dataclass(frozen=True, kw_only=True)
class PowerIteration:
    """The signed Rayleigh quotient of the last vector v, ‖Hv − λv‖ / |λ|, and whether that came below the tolerance."""

    eigenvalue: float
    residual: float
    iterations: int
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """The smallest and the largest eigenvalue; None where Lanczos did not converge to its tolerance."""

    smallest: float | None
    largest: float | None


def loss_hessian(classifier: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> LinearOperator:
    """The Hessian of the mean cross-entropy on a batch with respect to all parameters, by its products with vectors.

    `classifier` maps `pixels` (B, ...) to logits and must be in eval mode and float32 (ValueError otherwise). The graph
    of the gradient is built once and kept as long as the operator; a product is one backward pass through it.
    """
    require_evaluation_mode(classifier)
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    loss = F.cross_entropy(classifier(pixels), labels)
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, create_graph=True)])

    def product(vector: np.ndarray) -> np.ndarray:
        direction = torch.as_tensor(vector.reshape(-1), dtype=gradient.dtype, device=gradient.device)
        parts = torch.autograd.grad(gradient, parameters, direction, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts]).cpu().numpy()

    return LinearOperator((gradient.numel(),) * 2, matvec=product, dtype=np.float32)


def power_iteration(
    matrix: LinearOperator, *, iterations: int = 50, tolerance: float = 1e-2, seed: int = 0
) -> PowerIteration:
    """The eigenvalue of largest absolute value of a symmetric matrix, from a random vector.

    Stops at a residual below `tolerance`. Two eigenvalues of equal size and opposite sign keep it from converging,
    and `converged` says so.
    """
    vector = np.random.default_rng(seed).standard_normal(matrix.shape[0]).astype(matrix.dtype)
    vector /= np.linalg.norm(vector)
    done, residual = 0, np.inf
    while done < iterations and residual >= tolerance:
        image = matrix @ vector
        eigenvalue = float(vector @ image)
        residual = float(np.linalg.norm(image - eigenvalue * vector) / max(abs(eigenvalue), 1e-12))
        vector = image / max(np.linalg.norm(image), 1e-12)
        done += 1
    return PowerIteration(eigenvalue=eigenvalue, residual=residual, iterations=done, converged=residual < tolerance)


def spectrum_ends(matrix: LinearOperator, *, iterations: int = 30, tolerance: float = 1e-2, seed: int = 0) -> Spectrum:
    """Both ends of a symmetric matrix's spectrum by Lanczos (ARPACK), to a relative `tolerance`."""
    start = np.random.default_rng(seed).standard_normal(matrix.shape[0]).astype(matrix.dtype)
    try:
        values = eigsh(matrix, k=2, which="BE", v0=start, tol=tolerance, maxiter=iterations, return_eigenvectors=False)
    except ArpackNoConvergence:
        return Spectrum(smallest=None, largest=None)
    return Spectrum(smallest=float(values.min()), largest=float(values.max()))
