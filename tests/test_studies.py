"""The studies against closed forms: Jacobians, spectra, the line between two models, null-space attacks."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import aslinearoperator
from scipy.stats import norm
from torch import nn
from torch.nn import functional as F

from nula.configuration_nula import CIFAR10_LABELS
from nula.evaluation.classifiers import load_classifier, of_function
from nula.evaluation.curvature import loss_hessian, power_iteration, spectrum_ends
from nula.evaluation.interpolation import interpolate, shape_along, with_new_statistics
from nula.evaluation.jacobian import jacobian_norms, require_evaluation_mode
from nula.evaluation.null_space import PROJECTIONS, attack
from nula.evaluation.studies import basin, certified
from nula.evaluation.studies.curvature import curvature
from nula.evaluation.studies.null_space import null_space_table
from nula.evaluation.studies.sensitivity import sensitivity
from nula.perturbations.sampling import decimate, resize


@pytest.fixture
def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()


@pytest.fixture
def classifier(tiny_folder):
    return load_classifier(str(tiny_folder), CIFAR10_LABELS, torch.device("cpu"))


def test_the_jacobian_of_a_linear_model_is_its_weight(linear, pixels):
    norms = jacobian_norms(linear, pixels, batch_size=5)
    assert norms.shape == (16,)
    torch.testing.assert_close(norms, linear[1].weight.norm().expand(16))


def test_jacobian_norms_are_those_of_single_images(classifier, pixels):
    norms = jacobian_norms(classifier, pixels, batch_size=7)
    jacobian = torch.func.jacrev(classifier)(pixels[3:4])
    torch.testing.assert_close(norms[3], jacobian.norm(), rtol=1e-4, atol=0)


def test_derivatives_in_training_mode_or_half_precision_are_refused(classifier, pixels):
    labels = torch.zeros(16, dtype=torch.long)
    require_evaluation_mode(classifier)
    classifier.model.nula.stages[0].widening.normalization.train()
    with pytest.raises(ValueError, match=r"eval mode; model\.nula\.stages\.0\.widening\.normalization is in training"):
        loss_hessian(classifier, pixels, labels)
    with pytest.raises(ValueError, match=r"float32 throughout; model\.nula\.stem.* is torch\.bfloat16"):
        shape_along(classifier.eval().bfloat16(), {}, [])


def test_the_hessian_of_a_linear_classifier(pixels):
    """Of softmax cross-entropy in the logits' bias alone: diag(p) − p pᵀ, averaged over the batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).eval()
    model[1].weight.requires_grad_(False)
    labels = torch.arange(16) % 10
    hessian = loss_hessian(model, pixels, labels)
    p = model(pixels).softmax(dim=1).detach()
    expected = (torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)).mean(dim=0).numpy()
    np.testing.assert_allclose(hessian @ np.eye(10, dtype=np.float32), expected, atol=1e-6)
    values = np.linalg.eigvalsh(expected)
    ends = spectrum_ends(hessian, tolerance=1e-4)
    assert (ends.smallest, ends.largest) == pytest.approx((values[0], values[-1]), abs=1e-5)


@pytest.mark.parametrize(("values", "dominant"), [((-1.0, 0.5, 2.0, 3.0), 3.0), ((-4.0, 0.1, 1.0, 3.0), -4.0)])
def test_power_iteration_finds_the_largest_size_and_lanczos_both_ends(values, dominant):
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))[0]
    matrix = aslinearoperator(rotation @ np.diag(values) @ rotation.T)
    power = power_iteration(matrix, iterations=200, tolerance=1e-6)
    assert power.eigenvalue == pytest.approx(dominant, abs=1e-5)
    assert power.converged
    assert power.iterations < 200
    ends = spectrum_ends(matrix)
    assert (ends.smallest, ends.largest) == pytest.approx((values[0], values[-1]))


def test_lanczos_says_that_it_did_not_converge():
    ends = spectrum_ends(aslinearoperator(np.diag(np.linspace(1, 1.01, 400))), iterations=1, tolerance=1e-12)
    assert (ends.smallest, ends.largest) == (None, None)


def test_power_iteration_says_that_it_did_not_converge():
    power = power_iteration(aslinearoperator(np.diag([-2.0, 2.0, 1.0])), iterations=30)
    assert not power.converged
    assert power.iterations == 30
    assert power.residual > 0.1


def test_interpolation_mixes_parameters_and_statistics(classifier, tiny_folder):
    end = load_classifier(str(tiny_folder), CIFAR10_LABELS, torch.device("cpu"))
    with torch.no_grad():
        for tensor in (*end.parameters(), *(b for b in end.buffers() if b.is_floating_point())):
            tensor.add_(1.0)
    half = interpolate(classifier, end, 0.5)
    assert not half.training
    for name, tensor in half.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, classifier.state_dict()[name] + 0.5)
    assert (interpolate(classifier, end, -9).model.nula.stem.convolution.weight < -8).all()
    assert interpolate(classifier, end, -9).model.nula.stages[0].widening.normalization.running_var.min() == 0
    with pytest.raises(ValueError, match="same architecture"):
        interpolate(classifier, nn.Linear(2, 2), 0.5)


def test_statistics_measured_anew_are_those_of_the_images():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).eval()
    images = torch.rand(8, 3, 4, 4)
    renewed = with_new_statistics(model, images, batch_size=4)
    assert not renewed.training
    torch.testing.assert_close(renewed[1].running_mean, images.mean(dim=(0, 2, 3)))
    assert model[1].running_mean.abs().max() == 0


def test_slope_and_curvature_along_a_line(linear, pixels):
    labels = torch.arange(16) % 10
    direction = {name: torch.randn_like(parameter) * 0.01 for name, parameter in linear.named_parameters()}
    shape = shape_along(linear, direction, [(pixels, labels), (pixels[:8], labels[:8])])
    logits = linear(pixels).detach()
    change = pixels.flatten(1) @ direction["1.weight"].T + direction["1.bias"]  # of the logits, for α = 1
    p = logits.softmax(dim=1)
    slope = ((p - F.one_hot(labels, 10)) * change).sum(dim=1)
    curvature = (p * change.square()).sum(dim=1) - (p * change).sum(dim=1).square()
    assert shape.slopes == pytest.approx([slope.mean().item(), slope[:8].mean().item()], rel=1e-4)
    assert shape.curvatures == pytest.approx([curvature.mean().item(), curvature[:8].mean().item()], rel=1e-3)


@pytest.mark.parametrize("epsilon", [2 / 255, 8 / 255])
@pytest.mark.parametrize("projection", ["box", "decimation", "free"])
def test_an_attack_stays_in_its_null_space_and_raises_the_loss(classifier, pixels, projection, epsilon):
    pixels = pixels.clone()
    pixels[0], pixels[1] = 0.0, 1.0  # where half of every change would be clamped away
    labels = classifier(pixels).argmax(dim=1)
    attacked = attack(classifier, pixels, labels, epsilon, projection, steps=5)
    delta = attacked - pixels
    assert delta.abs().max() <= epsilon + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert torch.equal(attacked, attacked.clamp(0, 1))
    downsample = {"box": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear"), "decimation": decimate}
    if projection in downsample:
        torch.testing.assert_close(downsample[projection](attacked), downsample[projection](pixels), atol=1e-6, rtol=0)
        if projection == "box":
            torch.testing.assert_close(
                resize(attacked, 0.5, "bilinear"), resize(pixels, 0.5, "bilinear"), atol=1e-6, rtol=0
            )
    before, after = (F.cross_entropy(classifier(images), labels) for images in (pixels, attacked))
    assert after > before
    assert delta[2:].abs().amax(dim=(1, 2, 3)).min() > epsilon / 2


@pytest.mark.parametrize("projection", ["box", "decimation"])
def test_a_gradient_of_one_sign_is_followed_within_the_null_space(projection):
    """A linear classifier whose gradient is positive everywhere, so that its mere signs have no part in `box`."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight[0] = -model[1].weight[0].abs()
        model[1].weight[1] = 0
    pixels, labels = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.long)
    delta = attack(model, pixels, labels, 0.1, projection) - pixels
    weight = -model[1].weight.detach()[0].view(3, 8, 8)
    if projection == "box":
        blocks = nn.functional.pixel_unshuffle(weight, 2).view(3, 4, 4, 4)
        ranked = blocks.sort(dim=1).values
        best = 0.1 * (ranked[:, 2:].sum() - ranked[:, :2].sum())  # +ε on the two largest of a block, −ε on the others
    else:
        best = 0.1 * (weight.sum() - weight[:, ::2, ::2].sum())
    assert (weight * delta[0]).sum().item() >= 0.95 * best.item()  # signs alone would gain nothing in `box`


def test_the_box_projection_is_the_nearest_point():
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(2, 3, 4, 4, generator=generator)
    low, high = -torch.rand(2, 3, 4, 4, generator=generator), torch.rand(2, 3, 4, 4, generator=generator)
    nearest = PROJECTIONS["box"](delta, low, high)
    assert F.avg_pool2d(nearest, 2).abs().max() < 1e-6
    assert (nearest >= low).all()
    assert (nearest <= high).all()
    # The variational inequality of a projection: no feasible point lies in the direction of what was cut off.
    for _ in range(50):
        other = PROJECTIONS["box"](torch.randn(2, 3, 4, 4, generator=generator), low, high)
        assert ((delta - nearest) * (other - nearest)).sum() <= 1e-4


def test_the_studies_run_on_small_models(classifier, linear, test_split):
    few, device = test_split.first(20), torch.device("cpu")
    norms = sensitivity(classifier, few, device, (0.0, 0.1))["norms"]
    assert {sigma: len(values) for sigma, values in norms.items()} == {"0.0": 20, "0.1": 20}
    assert norms["0.0"] != norms["0.1"]
    eigenvalues = curvature(classifier, few, device, (0.0,), subsets=2)["eigenvalues"]["0.0"]
    assert len(eigenvalues) == 2
    for one in eigenvalues:
        assert one["lanczos"]["smallest"] - 1e-2 <= one["power_iteration"]["eigenvalue"]
        assert one["lanczos"]["largest"] >= one["power_iteration"]["eigenvalue"] - 1e-2
    with pytest.raises(ValueError, match="20 images cannot be cut into 3 equal subsets"):
        curvature(classifier, few, device, (0.0,), subsets=3)
    table = null_space_table(of_function(linear, 10).eval(), few, device, {})
    assert table.rows[:4] == ("clean", "free ε = 2/255", "free ε = 4/255", "free ε = 8/255")
    assert table.predictions.shape == (10, 20)
    right = dict(zip(table.rows, (table.predictions == table.labels).sum(axis=1)))
    for projection in PROJECTIONS:
        assert right[f"{projection} ε = 8/255"] <= right["clean"]
    assert (table.predictions[1:] != table.predictions[0]).any()


def test_the_basin_is_measured_from_start_to_end(classifier, test_split, train_split, tiny_folder, monkeypatch):
    few, device = test_split.first(20), torch.device("cpu")
    end = load_classifier(str(tiny_folder), CIFAR10_LABELS, device)
    with torch.no_grad():
        end.model.classifier.weight.add_(1e-3 * torch.randn(end.model.classifier.weight.shape))
        end.model.nula.stages[0].widening.normalization.running_mean.add_(1.0)  # not part of Δθ
    monkeypatch.setattr(basin, "LINE_BATCH", 10)
    path = basin.path_table((classifier, end), few, train_split.first(20), device, {})
    assert path.predictions.shape == (9 * 2 * 3, 20)
    clean = few.images.permute(0, 3, 1, 2).float() / 255
    for alpha, model in ((0.0, classifier), (1.0, end)):
        row = path.rows.index(basin.path_row(basin.UNPERTURBED, basin.INTERPOLATED, alpha))
        assert path.predictions[row].tolist() == model(clean).argmax(dim=1).tolist()
    renewed = path.rows.index(basin.path_row(basin.UNPERTURBED, basin.MEASURED_ANEW, 0.0))
    model = with_new_statistics(classifier, train_split.first(20).images.permute(0, 3, 1, 2).float() / 255)
    assert path.predictions[renewed].tolist() == model(clean).argmax(dim=1).tolist()
    result = basin.shapes(classifier, end, few, device)
    assert set(result["shapes"]) == set(basin.CONDITIONS)
    for shape in result["shapes"].values():
        changes = np.array(shape["loss"]["end"]) - np.array(shape["loss"]["start"])
        predicted = np.array(shape["slopes"]) + np.array(shape["curvatures"]) / 2
        np.testing.assert_allclose(changes, predicted, atol=1e-5)
        assert np.abs(changes).min() > 1e-6


def test_what_is_certified_is_kept_for_each_image(classifier, test_split, monkeypatch):
    monkeypatch.setattr(certified, "CERTIFIED_SIGMAS", (0.01, 0.5))
    data = test_split.first(3)
    result = certified.certified(classifier, data, torch.device("cpu"), draws=50, confidence=0.99)
    assert result["truth"] == data.labels.tolist()
    for sigma, found in result["certificates"].items():
        for label, bound, radius in zip(found["labels"], found["bounds"], found["radii"], strict=True):
            assert (label is None) == (bound <= 0.5)
            assert radius == pytest.approx(float(sigma) * norm.ppf(bound) if bound > 0.5 else 0)
    plain = classifier(data.images.permute(0, 3, 1, 2).float() / 255).argmax(1).tolist()
    weak = result["certificates"]["0.01"]["labels"]
    assert any(label is not None for label in weak)
    assert all(label in (None, answer) for label, answer in zip(weak, plain))
    assert result == certified.certified(classifier, data, torch.device("cpu"), draws=50, confidence=0.99)
