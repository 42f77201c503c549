"""What only a GPU shows; `pytest -m gpu` runs these alone, and they are skipped where there is none."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import SAMPLE, unaugmented

from nula.configuration_nula import NulaConfig
from nula.data import Split, load_split
from nula.evaluation.classifiers import load_classifier
from nula.evaluation.measuring import evaluate, table_rows
from nula.image_processing_nula import NulaImageProcessor
from nula.modeling_nula import NulaForImageClassification
from nula.pipeline_nula import NulaImageClassificationPipeline
from nula.records.weights import weights_sha256
from nula.train.loop import train
from nula.train.recipe import V2, Recipe
from nula.train.run import READ_EVERY, Run, RunSettings

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

DEVICES = ("cpu", "cuda")
STILL = replace(unaugmented(V2), batch_size=64)  # a GPU draws other numbers than a CPU


@pytest.fixture(autouse=True)
def _exact():
    """Products in float32, and accelerate's device chosen anew in each test."""
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends.cudnn, "allow_tf32", False)
        patch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def data() -> Split:
    return load_split(str(SAMPLE), "train")


def small_v2() -> NulaForImageClassification:
    torch.manual_seed(0)
    fields = {"stem_channels": 24, "hidden_sizes": (16, 24, 32), "depths": (1, 1, 1), "stem_dropout": 0.0}
    return NulaForImageClassification(NulaConfig(**fields, layer_convolutions=2, contrast_epsilon=0.05))


def run_on(device: str, data: Split, folder: Path, recipe: Recipe, **options: object) -> NulaForImageClassification:
    AcceleratorState._reset_state(reset_partial_state=True)
    resume = options.pop("resume", False)
    settings = RunSettings(recipe=recipe, output_dir=folder, **options)
    return train(small_v2(), data, Accelerator(cpu=device == "cpu"), settings, resume=resume)[0].cpu()


def test_a_training_step_is_that_of_the_cpu(data, tmp_path):
    on_cpu, on_gpu = (run_on(device, data, tmp_path / device, STILL, max_steps=1) for device in DEVICES)
    start, other = small_v2().state_dict(), on_gpu.state_dict()
    moved = 0.0
    for name, tensor in on_cpu.state_dict().items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-3 * max(tensor.abs().max().item(), 1e-3))
        moved = max(moved, (tensor - start[name]).abs().max().item())
    assert moved > 1e-3


def test_a_run_resumes_on_the_gpu(data, tmp_path):
    recipe = replace(V2, batch_size=64)
    whole = run_on("cuda", data, tmp_path / "whole", recipe, max_steps=8, checkpoint_steps=4)
    run_on("cuda", data, tmp_path / "parts", recipe, max_steps=4)
    resumed = run_on("cuda", data, tmp_path / "parts", recipe, max_steps=8, resume=True)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_steps_do_not_wait_for_the_device(data, tmp_path):
    settings = RunSettings(recipe=replace(V2, batch_size=16, views=2, consistency_weight=4.0), output_dir=tmp_path)
    run = Run(small_v2(), data, Accelerator(mixed_precision="bf16"), settings)
    run.start()
    statuses = [run.step() for _ in range(READ_EVERY)]  # tables are copied to the device in the first one
    try:
        torch.cuda.set_sync_debug_mode("error")
        statuses += [run.step() for _ in range(READ_EVERY - 1)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [status is None for status in statuses] == [True] * 9 + [False] + [True] * 9
    assert statuses[9].steps == READ_EVERY
    assert sum(statuses[9].operators) == 2 * 16 * READ_EVERY


def test_a_compiled_run_is_compiled_and_resumes(data, tmp_path):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    recipe = replace(V2, batch_size=64)

    def compiled(folder: Path, max_steps: int, resume: bool = False) -> NulaForImageClassification:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(mixed_precision="bf16", dynamo_backend="inductor")
        settings = RunSettings(recipe=recipe, output_dir=folder, max_steps=max_steps)
        return train(small_v2(), data, accelerator, settings, resume=resume)[0].cpu()

    whole = compiled(tmp_path / "whole", 8)
    compiled(tmp_path / "parts", 4)
    resumed = compiled(tmp_path / "parts", 8, resume=True)
    frames = torch._dynamo.utils.counters["frames"]
    assert frames["ok"] == frames["total"] > 0
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, rtol=0.05, atol=5e-3)


def test_the_pipeline_takes_tensors_of_the_gpu(data, tmp_path):
    small_v2().save_pretrained(tmp_path)
    images = data.images[:8].permute(0, 3, 1, 2).float() / 255
    scores = []
    for device in DEVICES:
        model = NulaForImageClassification.from_pretrained(tmp_path)
        pipe = NulaImageClassificationPipeline(model=model, image_processor=NulaImageProcessor(), device=device)
        answers = pipe(list(images.to(device)), top_k=10)
        scores.append([{answer["label"]: answer["score"] for answer in each} for each in answers])
    for on_cpu, on_gpu in zip(*scores, strict=True):
        assert on_gpu == pytest.approx(on_cpu, abs=1e-4)


def test_the_table_is_that_of_the_cpu(data, tmp_path):
    run_on("cpu", data, tmp_path / "run", replace(V2, batch_size=64), max_steps=20).save_pretrained(tmp_path)
    NulaImageProcessor().save_pretrained(tmp_path)
    tables = []
    for device in DEVICES:
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=device == "cpu")
        classifier = load_classifier(str(tmp_path), data.names, accelerator.device)
        tables.append(evaluate(classifier, data, table_rows(seed=0), accelerator, provenance={}).accuracies())
    on_cpu, on_gpu = tables
    assert max(on_cpu.values()) > 15  # it has learnt something that could be lost
    assert on_gpu == pytest.approx(on_cpu, abs=1.0)  # of 320 images, three may be on the brink


def test_a_run_measures_its_share_of_the_peak(data, tmp_path):
    settings = RunSettings(recipe=replace(STILL, cosine_epochs=1), output_dir=tmp_path)
    model, log = train(small_v2(), data, Accelerator(mixed_precision="bf16"), settings)
    assert log["peak_share"] > 0
    assert log["images_per_second"] > 0
    model.save_pretrained(tmp_path)
    assert len(weights_sha256(tmp_path)) == 64
