"""The page of the benchmarks, from their results alone: python -m nula.benchmarks.tables rewrites README.md here."""

import json
import statistics
from pathlib import Path

from nula.benchmarks.fine_tuning import AS_IT_IS, RESCALED
from nula.benchmarks.forms import MODEL
from nula.benchmarks.pipeline import BARE, OUR_PROCESSOR, OURS
from nula.benchmarks.timing import ratio
from nula.records.provenance import HEAD_KEPT, HEAD_NEW

FOLDER = Path(__file__).parent
MEMORY = ("memory-before.json", "memory.json")  # of the version before open images were counted, and of this one
PIPELINES = ("pipeline.json", "pipeline-xeon.json")  # one for each machine; the second was made with earlier weights


def pipeline_table(record: dict) -> str:
    """How many times as long as the bare model each pipeline takes, and the faster stock one as ours."""
    names = [name for name in next(iter(next(iter(record["seconds"].values())).values())) if name != BARE]
    head = ["batch", "input", f"{BARE}, images/s", *names, f"faster stock processor / {OURS}"]
    lines = [f"| {' | '.join(head)} |", "|--:|---|" + "--:|" * (2 + len(names))]
    for batch_size, kinds in record["seconds"].items():
        for kind, seconds in kinds.items():
            speed = record["images"] / statistics.median(seconds[BARE])
            ratios = " | ".join(f"{ratio(seconds, name, BARE):.2f}" for name in names)
            lines.append(f"| {batch_size} | {kind} | {speed:.0f} | {ratios} | {faster_than_stock(seconds):.2f} |")
    return "\n".join(lines)


def faster_than_stock(seconds: dict[str, list[float]]) -> float:
    """How many times as long as our pipeline the stock one takes with the fastest of transformers' own processors."""
    return min(ratio(seconds, name, OURS) for name in seconds if name not in (BARE, OURS, OUR_PROCESSOR))


def start_up_table(record: dict) -> str:
    times = {name: statistics.median(seconds) for name, seconds in record["start_up_seconds"].items()}
    return "\n".join(["| a new process | seconds |", "|---|--:|", *(f"| {n} | {t:.1f} |" for n, t in times.items())])


def forms_table(record: dict) -> str:
    """Size, speed beside the model's own, and accuracy of each form."""
    sizes = list(record["seconds"])
    head = " | ".join(f"time at batch {batch_size}" for batch_size in sizes)
    lines = [f"| form | MB | {head} | accuracy in percent |", "|---|--:|" + "--:|" * (len(sizes) + 1)]
    for name, size in record["bytes"].items():
        ratios = " | ".join(f"{ratio(seconds, name, MODEL):.2f}" for seconds in record["seconds"].values())
        lines.append(f"| {name} | {size / 1e6:.1f} | {ratios} | {record['accuracy'][name]:.2f} |")
    return "\n".join(lines)


def memory_table(before: dict, now: dict) -> str:
    """Memory beside the loaded model's, and seconds, of so many large images."""
    lines = ["| files | images | before, MB | now, MB | before, s | now, s |", "|---|--:|--:|--:|--:|--:|"]
    for kind, counts in now["taken"].items():
        for count in filter(int, counts):
            figures = [record["taken"][kind][count] for record in (before, now)]
            empty = [record["taken"][kind]["0"]["bytes"] for record in (before, now)]
            megabytes = " | ".join(f"{(taken['bytes'] - base) / 1e6:,.0f}" for taken, base in zip(figures, empty))
            seconds = " | ".join(f"{taken['seconds']:.1f}" for taken in figures)
            lines.append(f"| {kind} | {count} | {megabytes} | {seconds} |")
    return "\n".join(lines)


def fine_tuning_table(record: dict) -> str:
    """Accuracy after each optimiser and rate, from the weights as they are and rescaled, with the head kept and new."""
    columns = [(weights, head) for weights in (AS_IT_IS, RESCALED) for head in (HEAD_KEPT, HEAD_NEW)]
    found: dict[tuple[str, float], dict] = {}
    for run in record["runs"]:
        row = found.setdefault((run["optimizer"], run["learning_rate"]), {})
        row[run["weights"], run["head"]] = run["accuracy"]
    head = " | ".join(f"{weights}, head {head}" for weights, head in columns)
    lines = [f"| optimiser | learning rate | {head} |", "|---|--:|" + "--:|" * len(columns)]
    for (optimizer, rate), accuracies in found.items():
        shown = " | ".join(f"{accuracies[column]:.2f}" for column in columns)
        lines.append(f"| `{optimizer}` | {rate:g} | {shown} |")
    return "\n".join(lines)


def what_was_tuned(record: dict) -> str:
    """Say on what the accuracies of fine-tuning are, and what was done."""
    return f"""Accuracy in percent on the {record["test_images"]:,} test images of {" and ".join(record["classes"])},
after fine-tuning on {record["images"]:,} training images of them by transformers' Trainer with its defaults,
{record["epochs"]} epochs at batch {record["batch_size"]}; from the released weights as they are, and after
`rescale_convolutions()`. One run each. The release itself has {record["accuracy_before"]:.2f} when it chooses between
these classes alone; its own training images included theirs."""


def page(pipelines: list[dict], forms: dict, fine_tuning: dict, memory: tuple[dict, dict]) -> str:
    def told(record: dict) -> str:
        machine = record["machine"]
        libraries = (name for name in ("torch", "transformers", "torchvision", "onnxruntime") if name in machine)
        return (
            f"{machine['threads']} threads on {machine['cores']} cores of {machine['processor']}, "
            f"{', '.join(f'{name} {machine[name]}' for name in libraries)}, {record['date']}: `{record['command']}`"
        )

    side = memory[1]["side"]
    decoded = 4 * side**2 / 1e6
    started = "From starting Python to the first answer:"
    measured = "\n\n".join(
        part for record in pipelines for part in (pipeline_table(record), started, start_up_table(record), told(record))
    )
    return f"""# Benchmarks

Written by `python -m nula.benchmarks.tables` from [fine_tuning.json](fine_tuning.json), [forms.json](forms.json),
[memory.json](memory.json), [memory-before.json](memory-before.json), [pipeline.json](pipeline.json) and
[pipeline-xeon.json](pipeline-xeon.json), which is of another machine and of earlier weights of the same net.
Candidates take turns within one run; a figure is the median over the turns.

## The pipeline

How many times as long as the bare model on prepared batches each pipeline takes for {pipelines[0]["images"]} images.
The bare model is laid out channels_last, as NULA's pipeline has it; the stock pipeline has the model as it is loaded,
and transformers' ViTImageProcessor, on Pillow and on torchvision. JPEG files are of 256×256 pixels, all other images
of 32×32.

{measured}

## Forms

Time beside the model itself (1.00) for {forms["images"]} images, and accuracy on {forms["test_images"]:,} test images.
`nula export` writes those of torch.export and ONNX.

{forms_table(forms)}

{told(forms)}

## Fine-tuning

{what_was_tuned(fine_tuning)}

{fine_tuning_table(fine_tuning)}

{told(fine_tuning)}

## Memory

What a process takes at most for files of {side}×{side} pixels, beside what it takes with the model loaded: before (of
commit c13782e), when eight threads decoded and made five copies, and now. Decoded, one image takes {decoded:.0f} MB, or
half of that in gray of 16 bits.

{memory_table(*memory)}

{told(memory[1])}
"""


def load_records() -> tuple[list[dict], dict, dict, tuple[dict, dict]]:
    """The committed records: of the pipeline on each machine, the forms, fine-tuning, and memory before and now."""
    names = (*PIPELINES, "forms.json", "fine_tuning.json", *MEMORY)
    *pipelines, forms, fine_tuning, before, now = (json.loads((FOLDER / name).read_text()) for name in names)
    return pipelines, forms, fine_tuning, (before, now)


def main() -> None:
    (FOLDER / "README.md").write_text(page(*load_records()), encoding="utf-8")


if __name__ == "__main__":
    main()
