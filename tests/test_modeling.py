import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAT, ROOT, V2_LIKE, run_without_nula
from hub import Hub
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from nula.configuration_nula import NulaConfig
from nula.image_processing_nula import normalize
from nula.modeling_nula import (
    NulaBlurPool,
    NulaContrastNormalization,
    NulaForImageClassification,
    NulaModel,
    NulaResidualBlock,
)
from nula.records.weights import load_model

SMALL = {"stem_channels": 4, "hidden_sizes": (8, 12), "depths": (1, 0)}


def test_blur_pool_is_the_binomial_filter_then_subsampling():
    blur_pool, side = NulaBlurPool(), 9
    impulses = torch.eye(side * side).view(-1, 1, side, side)
    kernel = torch.tensor([1.0, 2.0, 1.0]) / 4
    padded = F.pad(impulses, (1, 1, 1, 1), mode="replicate")
    expected = F.conv2d(padded, torch.outer(kernel, kernel).view(1, 1, 3, 3), stride=2)
    assert torch.equal(blur_pool(impulses), expected)


def test_blur_pool_sums_to_one_passes_constants_and_stops_the_nyquist_frequency():
    blur_pool = NulaBlurPool()
    impulse = torch.zeros(1, 1, 16, 16)
    impulse[..., 8, 8] = impulse[..., 8, 9] = impulse[..., 9, 8] = impulse[..., 9, 9] = 1.0
    assert blur_pool(impulse).sum() == 1.0  # each of the four phases of the subsampling has a quarter of the mass
    constant = torch.full((2, 3, 17, 20), 0.7)
    assert torch.equal(blur_pool(constant), torch.full((2, 3, 9, 10), 0.7))
    checkerboard = (torch.arange(16).view(-1, 1) + torch.arange(16)).remainder(2).float().view(1, 1, 16, 16) * 2 - 1
    assert blur_pool(checkerboard)[..., 1:, 1:].abs().max() == 0


@pytest.mark.parametrize("settings", [{}, V2_LIKE])
def test_nothing_is_subsampled_without_the_blur(settings):
    config = NulaConfig(**settings)
    model = NulaForImageClassification(config)
    kinds = {type(module).__name__ for module in model.modules() if not list(module.children())}
    assert kinds <= {
        *("Conv2d", "BatchNorm2d", "Dropout", "Linear", "Identity"),
        *("NulaBlurPool", "NulaContrastNormalization"),
    }
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.stride == (1, 1)
            assert module.dilation == (1, 1)
    # Nor by anything between the modules: the traced program holds no slice and no other pooling, its convolutions have
    # stride 1, and a pool of stride 2 only ever follows the pool of stride 1 that makes it a binomial blur.
    graph = torch.export.export(model.eval(), (torch.zeros(2, 3, 32, 32),), strict=False).graph
    calls = [node for node in graph.nodes if node.op == "call_function"]
    layers = {"conv2d", "dropout", "batch_norm", "relu", "avg_pool2d", "add", "mean", "linear"}
    contrast = {"sub", "square", "clamp", "sqrt", "mul", "div"}
    names = [node.target.overloadpacket.__name__ for node in calls]
    assert set(names) == (layers | contrast if settings else layers)
    for name, node in zip(names, calls):
        if name == "conv2d":
            assert len(node.args) < 4 or list(node.args[3]) == [1, 1]  # the stride; 1 where it is left out
    pools = [node for name, node in zip(names, calls) if name == "avg_pool2d"]
    assert [list(node.args[2]) for node in pools] == [[1, 1], [2, 2]] * len(config.depths)
    for average, subsampling in zip(pools[::2], pools[1::2]):
        assert subsampling.args[0] is average
        assert list(average.args[1]) == list(subsampling.args[1]) == [2, 2]


def test_contrast_is_taken_out_of_the_input_and_the_mean_is_kept():
    pixels = torch.rand(4, 3, 16, 16) * 2 - 1
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    normalization = NulaContrastNormalization(1e-6)
    out = normalization(pixels)
    torch.testing.assert_close(normalization(mean + 0.3 * (pixels - mean)), out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.mean(dim=(2, 3), keepdim=True), mean)
    torch.testing.assert_close((out - mean).square().mean(dim=(1, 2, 3)).sqrt(), torch.full((4,), 0.5))
    tint = torch.tensor([0.2, -0.1, 0.4]).view(3, 1, 1)
    torch.testing.assert_close(normalization(pixels + tint), out + tint)
    black = torch.full((2, 3, 16, 16), -1.0, requires_grad=True)
    NulaContrastNormalization(0.1)(black).sum().backward()
    assert black.grad.isfinite().all()
    flat = torch.full((1, 3, 16, 16), 0.7) + 0.001 * torch.randn(1, 3, 16, 16)
    assert (NulaContrastNormalization(0.1)(flat) - 0.7).abs().max() < 0.03  # stays flat


def test_size_and_cost():
    model = NulaForImageClassification(NulaConfig()).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 5_058_410
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert counter.get_total_flops() / 2 == 145_332_064  # multiply-adds


def test_dropout_acts_behind_the_stem_in_training_alone():
    model = NulaForImageClassification(NulaConfig(stem_dropout=0.25))
    pixels = torch.rand(8, 3, 32, 32)
    kept = model.eval().nula.stem(pixels)
    dropped = model.train().nula.stem(pixels)
    zeroed = (dropped == 0) & (kept > 0)
    assert (zeroed.sum() / (kept > 0).sum()).item() == pytest.approx(0.25, abs=0.02)
    torch.testing.assert_close(dropped[~zeroed], kept[~zeroed] / 0.75)


def test_a_residual_block_is_the_basic_block_and_begins_as_the_identity():
    block = NulaResidualBlock(4).eval()
    features = torch.rand(2, 4, 8, 8)
    nn.init.zeros_(block.normalization.weight)
    assert torch.equal(block(features), features)
    nn.init.ones_(block.normalization.weight)
    scale = (1 + block.normalization.eps) ** -0.5
    inner = F.relu(scale * block.inner.convolution(features))
    torch.testing.assert_close(block(features), F.relu(features + scale * block.convolution(inner)))


def test_initialisation_covers_parameters_and_buffers(tiny_model):
    for module in tiny_model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.unique().tolist() == [getattr(module, "initial_scale", 1.0)]
            assert module.bias.abs().max() == 0
            assert module.running_mean.abs().max() == 0
            assert module.running_var.unique().tolist() == [1.0]
    assert tiny_model.nula.stem.convolution.bias.abs().max() == 0
    residual = tiny_model.nula.stages[0].layers[0]
    features = torch.rand(2, 8, 4, 4)
    assert torch.equal(residual(features), features)
    weight = NulaForImageClassification(NulaConfig()).nula.stages[3].layers[0].convolution.weight
    assert weight.std().item() == pytest.approx((2 / (496 * 9)) ** 0.5, rel=0.01)  # He et al. 2015, fan-out


def test_outputs(tiny_model, pixels):
    inputs, labels = normalize(pixels[:4]), torch.tensor([0, 1, 2, 3])
    outputs = tiny_model(inputs, labels=labels, output_hidden_states=True)
    assert [tuple(state.shape[1:]) for state in outputs.hidden_states] == [
        (4, 32, 32),
        (8, 16, 16),
        (12, 8, 8),
        (16, 4, 4),
    ]
    assert outputs.loss == F.cross_entropy(outputs.logits, labels)
    embedding = tiny_model.nula(inputs).pooler_output
    assert torch.equal(embedding, outputs.hidden_states[-1].mean((2, 3)))
    assert torch.equal(tiny_model.classifier(embedding), outputs.logits)
    as_tuple = tiny_model(inputs, labels=labels, return_dict=False)
    assert len(as_tuple) == 2
    assert torch.equal(as_tuple[1], outputs.logits)


def test_other_sizes_are_accepted_and_impossible_inputs_named(tiny_model):
    assert tiny_model(torch.zeros(1, 3, 16, 16)).logits.shape == (1, 10)
    assert tiny_model(torch.zeros(1, 3, 17, 40)).logits.shape == (1, 10)
    with pytest.raises(ValueError, match=r"at least 16x16 pixels, got \(1, 3, 15, 32\)"):
        tiny_model(torch.zeros(1, 3, 15, 32))
    with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\), got \(1, 1, 32, 32\)"):
        tiny_model(torch.zeros(1, 1, 32, 32))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        tiny_model(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("settings", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
def test_other_problems_are_refused(settings):
    with pytest.raises(ValueError, match="one of at least two labels; got num_labels"):
        NulaForImageClassification(NulaConfig(hidden_sizes=(8,), depths=(0,), **settings))


def test_per_sample_jacobians(either_model, pixels):
    inputs = normalize(pixels[:2])

    def logits(image):
        return either_model(image.unsqueeze(0)).logits[0]

    jacobians = torch.func.vmap(torch.func.jacrev(logits))(inputs)  # (2, 10, 3, 32, 32)
    step = torch.zeros_like(inputs[0])
    step[1, 10, 20] = 1.0
    _, slope = torch.func.jvp(logits, (inputs[1],), (step,))
    torch.testing.assert_close(jacobians[1, :, 1, 10, 20], slope)


def test_compile_export_bfloat16_and_channels_last(either_model, pixels):
    inputs = normalize(pixels)
    with torch.no_grad():
        expected = either_model(inputs).logits
        compiled = torch.compile(either_model, backend="aot_eager", fullgraph=True)(inputs).logits
        torch.testing.assert_close(compiled, expected)
        batch = torch.export.Dim("batch", min=2, max=64)
        program = torch.export.export(either_model, (inputs[:3],), dynamic_shapes=({0: batch},), strict=False)
        torch.testing.assert_close(program.module()(inputs).logits, expected)
        channels_last = either_model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(channels_last(inputs.to(memory_format=torch.channels_last)).logits, expected)
        half = either_model.to(torch.bfloat16)(inputs.bfloat16()).logits
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_golden_logits_of_the_released_weights(version, pixels):
    model = NulaForImageClassification.from_pretrained(ROOT / "releases" / version).eval()
    with torch.no_grad():
        logits = model(normalize(pixels)).logits
    with np.load(ROOT / "releases" / version / "results" / "golden.npz") as golden:
        np.testing.assert_allclose(logits.numpy(), golden["logits"], atol=1e-4)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_neither_gradients_nor_statistics(either_model, pixels, reentrant):
    """Of two batches in a row: the second backward pass would meet statistics that the first has counted twice."""
    for module in either_model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)  # else the residual layers have no gradient
    either_model.train()
    state = {name: value.clone() for name, value in either_model.state_dict().items()}

    def train() -> dict[str, torch.Tensor]:
        either_model.load_state_dict(state)
        either_model.zero_grad()
        for seed, batch in enumerate(normalize(pixels).split(8)):
            torch.manual_seed(seed)
            either_model(batch, labels=torch.arange(8)).loss.backward()
        gradients = {f"gradient of {name}": value.grad.clone() for name, value in either_model.named_parameters()}
        return gradients | {name: value.clone() for name, value in either_model.named_buffers()}

    expected = train()
    assert expected["nula.stages.2.layers.0.normalization.num_batches_tracked"] == 2
    calls = []
    for stage in either_model.nula.stages:
        stage.register_forward_pre_hook(lambda *_: calls.append("stage"))
    either_model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert either_model.is_gradient_checkpointing
    checkpointed = train()
    assert len(calls) == 12  # each stage twice for each batch
    assert checkpointed.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(expected[name], checkpointed[name])] == []

    calls.clear()
    either_model.gradient_checkpointing_disable()
    train()
    assert len(calls) == 6
    either_model.gradient_checkpointing_enable()
    calls.clear()
    either_model.eval()(normalize(pixels)).logits.sum().backward()
    assert len(calls) == 3  # evaluation computes nothing twice


FEATURES = """
import json
from PIL import Image
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
torch.set_num_threads(1)


def features(name, path):
    "Of the image by AutoModel, by the pipeline, and by the classifier's own network; and what loading reports."
    model, report = AutoModel.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
    classifier, of_classifier = AutoModelForImageClassification.from_pretrained(
        name, trust_remote_code=True, output_loading_info=True, ignore_mismatched_sizes=True)  # or a new head
    processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
    extract = pipeline("image-feature-extraction", model=name, trust_remote_code=True)
    inputs = processor(Image.open(path), return_tensors="pt")
    with torch.no_grad():
        found = [model.eval()(**inputs).pooler_output, torch.tensor(extract(path, pool=True)),
                 classifier.eval().nula(**inputs).pooler_output]
    reports = [[sorted(of[key]) for key in ("missing_keys", "unexpected_keys")] for of in (report, of_classifier)]
    return model, processor, extract, {"features": [value.tolist() for value in found], "reports": reports}


"""
SAVE = """
name, path = sys.argv[1:]
model, processor, extract, found = features(name, path)
model.save_pretrained("bare")
processor.save_pretrained("bare")
classifier = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True)
classifier.save_pretrained("classifier")
processor.save_pretrained("classifier")
extract.save_pretrained("extractor")
pipeline("image-classification", model=name, trust_remote_code=True).save_pretrained("pipeline")
print(json.dumps(found))
"""
LOAD = """
*names, path = sys.argv[1:]
print(json.dumps([features(name, path)[-1] for name in names]))
"""
HEAD = ["classifier.bias", "classifier.weight"]


def auto_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / "config.json").read_text())["auto_map"]


def test_auto_model_gives_the_features_of_every_copy(payload, tmp_path):
    original = json.loads(run_without_nula(FEATURES + SAVE, tmp_path, payload, CAT))
    by_model, by_pipeline, by_classifier = original["features"]
    assert np.shape(by_model) == (1, 496)
    assert by_model == by_pipeline == by_classifier
    assert original["reports"] == [[[], []], [[], []]]
    folders = [tmp_path / name for name in ("classifier", "pipeline", "bare", "extractor")]
    copies = json.loads(run_without_nula(FEATURES + LOAD, tmp_path, *folders, CAT))
    without_head = original | {"reports": [[[], []], [HEAD, []]]}
    assert copies == [original, original, without_head, without_head]
    assert [auto_map(folder) for folder in folders] == [auto_map(payload)] * 4


FINE_TUNE = """
from transformers import AutoImageProcessor, AutoModelForImageClassification
import torch
name, theirs = sys.argv[1:]
model, processor = (kind.from_pretrained(name, trust_remote_code=True)
                    for kind in (AutoModelForImageClassification, AutoImageProcessor))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model.train()(torch.randn(4, 3, 32, 32), labels=torch.arange(4)).loss.backward()
optimizer.step()
model.push_to_hub(theirs)
processor.push_to_hub(theirs)
"""
UPLOAD = """
from huggingface_hub import HfApi
HfApi().create_repo(sys.argv[2])
HfApi().upload_folder(repo_id=sys.argv[2], folder_path=sys.argv[1])
"""


def test_auto_model_loads_a_copy_that_was_pushed_from_the_hub_alone(payload, tmp_path, monkeypatch):
    bare = tmp_path / "payload"
    shutil.copytree(payload, bare, ignore=shutil.ignore_patterns("*.md", "figures", "examples"))
    with Hub() as hub:
        names = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_write"}
        for key, value in {**names, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(key, value)
        run_without_nula(UPLOAD, tmp_path, bare, "owner/ours")
        [released] = json.loads(run_without_nula(FEATURES + LOAD, tmp_path, "owner/ours", CAT))
        run_without_nula(FINE_TUNE, tmp_path, "owner/ours", "owner/theirs")
        del hub.repositories["owner/ours"]
        shutil.rmtree(os.environ["HF_HOME"])
        [tuned] = json.loads(run_without_nula(FEATURES + LOAD, tmp_path, "owner/theirs", CAT))
    assert released["reports"] == tuned["reports"] == [[[], []], [[], []]]
    by_model, by_pipeline, by_classifier = tuned["features"]
    assert by_model == by_pipeline == by_classifier
    assert by_model != released["features"][0]
    config = json.loads(hub_file(hub, "owner/theirs", "config.json"))
    assert config["auto_map"] == auto_map(payload)


def hub_file(hub: Hub, repository: str, name: str) -> bytes:
    return hub.repositories[repository].commits[-1].files[name]


def stored(folder, change) -> None:
    """A small model in `folder`, whose tensors `change` has changed."""
    NulaForImageClassification(NulaConfig(**SMALL)).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", [NulaForImageClassification, NulaModel])
def test_weights_that_lack_tensors_are_refused(tmp_path, kind):
    stored(tmp_path, lambda weights: weights.pop("nula.stem.convolution.weight"))
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match=r"the model: (nula\.)?stem\.convolution\.weight is missing\.$"):
            kind.from_pretrained(tmp_path, **options)


def test_weights_of_another_shape_are_refused(tmp_path):
    stored(tmp_path, lambda weights: weights.update({"nula.stem.convolution.bias": torch.zeros(7)}))
    message = r"nula\.stem\.convolution\.bias has shape \(7,\) in place of \(\d+,\)\.$"
    for options in ({}, {"ignore_mismatched_sizes": True}):
        with pytest.raises(ValueError, match=message):
            NulaForImageClassification.from_pretrained(tmp_path, **options)


def test_a_new_classifier_is_made_where_it_is_asked_for(tmp_path):
    NulaForImageClassification(NulaConfig(**SMALL)).save_pretrained(tmp_path)
    message = r"\(ignore_mismatched_sizes=True makes .*\): classifier\.bias has shape \(10,\) in place of \(3,\)"
    with pytest.raises(ValueError, match=message):
        NulaForImageClassification.from_pretrained(tmp_path, num_labels=3)
    model = NulaForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert model.classifier.out_features == 3
    NulaModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "body")
    with pytest.raises(ValueError, match=r"classifier\.bias is missing, classifier\.weight is missing"):
        NulaForImageClassification.from_pretrained(tmp_path / "body")
    made = NulaForImageClassification.from_pretrained(tmp_path / "body", ignore_mismatched_sizes=True)
    assert torch.equal(made.nula.stem.convolution.weight, model.nula.stem.convolution.weight)


def test_what_was_loaded_is_told_of_where_it_is_asked_for(tmp_path):
    stored(tmp_path, lambda weights: weights.update(spare=torch.zeros(1)))
    model, report = NulaForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, NulaForImageClassification)
    assert set(report["unexpected_keys"]) == {"spare"}
    with pytest.warns(UserWarning, match="hold more than the model has: spare"):
        load_model(tmp_path)


def test_the_pipeline_refuses_weights_that_lack_tensors(payload, tmp_path):
    shutil.copytree(payload, tmp_path / "cut")
    weights = load_file(payload / "model.safetensors")
    weights.pop("nula.stem.convolution.weight")
    save_file(weights, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    code = """
from transformers import pipeline
try:
    pipeline("image-classification", model=sys.argv[1], trust_remote_code=True)
except Exception as error:
    print("nula.stem.convolution.weight is missing" in str(error))
"""
    assert run_without_nula(code, tmp_path, tmp_path / "cut").strip().splitlines()[-1] == "True"
