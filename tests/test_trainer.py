"""Fine-tuning the payload by transformers' Trainer, as a stranger does: remote code, in a process without `nula`."""

import json

import pytest
import torch
from conftest import run_without_nula
from safetensors.torch import load_file

WEIGHTS = "model.safetensors"

FINE_TUNE = """
import json
import numpy as np, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, Trainer, TrainingArguments, pipeline
from transformers.trainer_utils import get_last_checkpoint

payload, options = sys.argv[1], json.loads(sys.argv[2])
NAMES = ["red", "green", "blue"]
torch.manual_seed(0)
rows = []
for index in range(16):
    picture = np.random.default_rng(index).integers(0, 128, (40, 48, 3), dtype=np.uint8)
    picture[..., index % 3] += 127
    rows.append({"picture": picture, "label": index % 3})
processor = AutoImageProcessor.from_pretrained(payload, trust_remote_code=True)


def load():
    return AutoModelForImageClassification.from_pretrained(
        payload, trust_remote_code=True, num_labels=3, id2label=dict(enumerate(NAMES)), ignore_mismatched_sizes=True
    )


def collate(rows):
    inputs = processor([row["picture"] for row in rows], return_tensors="pt")
    return {**inputs, "labels": torch.tensor([row["label"] for row in rows])}


def accuracy(predictions):
    return {"accuracy": float((predictions.predictions.argmax(axis=1) == predictions.label_ids).mean())}


def trainer(folder):
    arguments = TrainingArguments(
        folder, max_steps=9, per_device_train_batch_size=4, per_device_eval_batch_size=5, learning_rate=2e-4,
        eval_strategy="steps", eval_steps=3, save_steps=3, logging_steps=1, load_best_model_at_end=True,
        metric_for_best_model="accuracy", remove_unused_columns=False, use_cpu=True, report_to=[], disable_tqdm=True,
        **options,
    )
    return Trainer(load(), arguments, data_collator=collate, train_dataset=rows, eval_dataset=rows,
                   processing_class=processor, compute_metrics=accuracy)


straight = trainer("straight")
straight.train()
resumed = trainer("resumed")
resumed.train(resume_from_checkpoint="straight/checkpoint-6")
resumed.save_model("mine")
processor.save_pretrained("mine")
classify = pipeline("image-classification", model="mine", trust_remote_code=True)
print(json.dumps({
    "losses": [entry["loss"] for entry in straight.state.log_history if "loss" in entry],
    "accuracy": straight.evaluate()["eval_accuracy"],
    "best": resumed.state.best_model_checkpoint,
    "answers": [[entry["label"] for entry in answer] for answer in classify([row["picture"] for row in rows])],
}))
"""


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}])
def test_the_trainer_fits_resumes_and_saves(payload, tmp_path, options):
    output = run_without_nula(FINE_TUNE, tmp_path, payload, json.dumps(options))
    found = json.loads(output.splitlines()[-1])
    assert min(found["losses"][-3:]) < 0.7 * found["losses"][0]
    assert found["accuracy"] == 1.0
    for index, answer in enumerate(found["answers"]):
        assert set(answer) == {"red", "green", "blue"}
        assert answer[0] == ("red", "green", "blue")[index % 3]

    begun = load_file(payload / "model.safetensors")
    straight, resumed = (load_file(tmp_path / run / "checkpoint-9" / WEIGHTS) for run in ("straight", "resumed"))
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    tracked = "nula.stages.0.widening.normalization.num_batches_tracked"
    batches = 9 * options.get("gradient_accumulation_steps", 1)  # each counted once, computed twice or not
    assert straight[tracked] - begun[tracked] == batches
    best, saved = load_file(tmp_path / found["best"] / WEIGHTS), load_file(tmp_path / "mine" / WEIGHTS)
    assert all(torch.equal(best[name], saved[name]) for name in best)
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    assert config["label2id"] == {"red": 0, "green": 1, "blue": 2}
