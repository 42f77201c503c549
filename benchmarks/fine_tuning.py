"""Accuracy after fine-tuning on two classes by transformers' Trainer, of a model as it is and rescaled.

python -m nula.benchmarks.fine_tuning --model releases/v1 writes benchmarks/fine_tuning.json, of which
python -m nula.benchmarks.tables makes a part of benchmarks/README.md.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import Trainer, TrainingArguments

from nula.benchmarks.timing import machine
from nula.data import SIDE, DataSource, Split, add_data_arguments, to_pixels
from nula.image_processing_nula import normalize
from nula.modeling_nula import NulaForImageClassification
from nula.records.provenance import HEAD_KEPT, HEAD_NEW, command_again
from nula.records.weights import class_names, load_model, weights_sha256
from nula.train.net import name_classes, new_head

CLASSES = ("cat", "dog")
IMAGES = 2000  # of training, the first of these classes
EPOCHS, BATCH_SIZE = 3, 32
OPTIMIZERS = (("adamw_torch", 5e-5), ("adamw_torch", 2e-4), ("adamw_torch", 1e-3), ("sgd", 1e-2))  # with their rates
AS_IT_IS, RESCALED = "as it is", "rescaled"

Inputs = tuple[torch.Tensor, torch.Tensor]  # normalised pixels (N, 3, H, W) and labels (N,), places in CLASSES


def inputs_of(split: Split, count: int | None = None) -> Inputs:
    """Take the first `count` images of CLASSES, all unless given."""
    places = torch.tensor([CLASSES.index(name) if name in CLASSES else -1 for name in split.names])
    chosen = (places[split.labels] >= 0).nonzero()[:count, 0]
    return normalize(to_pixels(split.images[chosen])), places[split.labels[chosen]]


def load_start(source: str, weights: str, head: str) -> NulaForImageClassification:
    """Load a model of CLASSES alone, with its own rows of the head or a new one."""
    model = load_model(source)
    if weights == RESCALED:
        model.rescale_convolutions()
    own = model.classifier
    new_head(model, len(CLASSES))
    if head == HEAD_KEPT:
        rows = [class_names(model).index(name) for name in CLASSES]
        model.classifier.weight = nn.Parameter(own.weight[rows].detach())
        model.classifier.bias = nn.Parameter(own.bias[rows].detach())
    name_classes(model.config, CLASSES)
    return model


def fine_tune(model: NulaForImageClassification, inputs: Inputs, optimizer: str, rate: float, bf16: bool) -> None:
    """Train by transformers' Trainer, with its defaults but for what is named here."""
    rows = [{"pixel_values": image, "labels": label} for image, label in zip(*inputs, strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            optim=optimizer,
            learning_rate=rate,
            num_train_epochs=EPOCHS,
            per_device_train_batch_size=BATCH_SIZE,
            bf16=bf16,
            use_cpu=not torch.accelerator.is_available(),  # said aloud, or bf16 is refused there
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model.to(memory_format=torch.channels_last), settings, train_dataset=rows).train()


@torch.inference_mode()
def accuracy(model: NulaForImageClassification, inputs: Inputs) -> float:
    """Percent of right answers."""
    pixels, labels = inputs
    model.eval()
    answers = torch.cat([model(batch.to(model.device)).logits.argmax(dim=1).cpu() for batch in pixels.split(250)])
    return 100 * (answers == labels).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m nula.benchmarks.fine_tuning", description="Measure fine-tuning.")
    parser.add_argument("--model", required=True, help="Hub id, or folder of a release")
    add_data_arguments(parser)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/fine_tuning.json"))
    parser.add_argument("--bf16", action="store_true", help="train in mixed precision")
    arguments = parser.parse_args()
    source = DataSource.of(arguments)
    train, test = inputs_of(source.train(SIDE), IMAGES), inputs_of(source.test(SIDE))
    runs: list[dict[str, Any]] = []
    cases = [
        (weights, head, *o) for weights in (AS_IT_IS, RESCALED) for head in (HEAD_KEPT, HEAD_NEW) for o in OPTIMIZERS
    ]
    for weights, head, optimizer, rate in tqdm(cases, desc="fine-tuning", unit="run"):
        torch.manual_seed(0)
        model = load_start(arguments.model, weights, head)
        fine_tune(model, train, optimizer, rate, arguments.bf16)
        run = {"weights": weights, "head": head, "optimizer": optimizer, "learning_rate": rate}
        runs.append(run | {"accuracy": accuracy(model, test)})
    record = {
        "command": command_again("python -m nula.benchmarks.fine_tuning", sys.argv[1:]),
        "weights_sha256": weights_sha256(arguments.model),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": machine(),
        "classes": CLASSES,
        "images": len(train[1]),
        "test_images": len(test[1]),
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "accuracy_before": accuracy(load_start(arguments.model, AS_IT_IS, HEAD_KEPT), test),
        "runs": runs,
    }
    arguments.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
