"""Releases of NULA side by side: an image, four perturbations, and what each model says.

`make space` assembles the files of a Hugging Face Space around it, and `nula app` starts those with the models of this
checkout: python app.py NAME=FOLDER ...
"""

import argparse
import html
import io
import json
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from transformers import Pipeline, pipeline

from nula.perturbations.appearance import gaussian_noise
from nula.perturbations.sampling import checkerboard, decimate, resize

MODELS = Path(__file__).with_name("models.json")  # {name: {"model": Hub id, "revision": tag}}
PICTURE_SIDE = 256  # pixels, of the picture of what the models see
EXAMPLES = Path(__file__).with_name("examples")
THEME = gr.themes.Default(font=["system-ui", "sans-serif"])  # gradio's own font has holes: "NULA" came in two sizes
INTRODUCTION = """# NULA

An anti-aliased CNN. Perturb an image, and see which of its releases keeps its answer.
"""


def perturb(pixels: torch.Tensor, scale: float, halvings: int, epsilon: float, sigma: float) -> torch.Tensor:
    """Resize pixels (1, 3, H, W) in [0, 1] down and up, decimate by 2^halvings, add a checkerboard and noise."""
    if scale < 1:
        pixels = resize(pixels, scale, "bilinear")
    if halvings > 0:
        pixels = decimate(pixels, 2**halvings)
    if epsilon > 0:
        pixels = checkerboard(pixels, epsilon)
    if sigma > 0:
        pixels = gaussian_noise(pixels, sigma, torch.Generator().manual_seed(0))
    return pixels


def read(upload: dict[str, Any], pipe: Pipeline) -> torch.Tensor:
    """Return the pixels (1, 3, H, W) in [0, 1], at the model's size, of an uploaded file.

    Raises:
        gr.Error: there is no file, or the pipeline refuses it, for a reason that is shown in the page.
    """
    if upload["path"] is None:
        raise gr.Error("Upload a file: addresses are not read.", print_exception=False)
    content = Path(upload["path"]).read_bytes()  # not by its path, which would be in messages
    try:
        pipe(content)  # whose rules are stricter than Pillow's: some formats would start another program
        with Image.open(io.BytesIO(content)) as image:
            return pipe.image_processor.pixels(image).float() / 255  # not yet normalised
    except (ValueError, TypeError) as error:
        reason = html.escape(f"This image cannot be read: {error}", quote=False)
        raise gr.Error(reason, print_exception=False) from error


def build_app(models: dict[str, dict[str, Any]]) -> gr.Blocks:
    """Build the app of models by name, each with the arguments of `pipeline` that say where it comes from."""
    pipes = {
        name: pipeline("image-classification", trust_remote_code=True, **source) for name, source in models.items()
    }
    first = next(iter(pipes.values()))

    def look_at(upload: dict[str, Any] | None) -> torch.Tensor | gr.Error | None:
        try:
            return None if upload is None else read(upload, first)
        except gr.Error as error:
            return error  # which takes the place of the pixels of the image before

    def classify(
        seen: torch.Tensor | gr.Error | None, scale: float, halvings: int, epsilon: float, sigma: float
    ) -> list:
        if seen is None:
            return [None] * (1 + len(pipes))
        if isinstance(seen, gr.Error):
            raise seen
        pixels = perturb(seen, scale, int(halvings), epsilon, sigma)
        answers = [
            {entry["label"]: entry["score"] for entry in pipe(pixels[0], top_k=pipe.model.config.num_labels)}
            for pipe in pipes.values()
        ]
        shown = (255 * pixels[0].permute(1, 2, 0)).round().to(torch.uint8).numpy()
        enlargement = max(1, PICTURE_SIDE // pixels.shape[-1])
        return [np.kron(shown, np.ones((enlargement, enlargement, 1), dtype=np.uint8)), *answers]

    width, height = first.image_processor.size["width"], first.image_processor.size["height"]

    with gr.Blocks(title="NULA") as app:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="Image", height=PICTURE_SIDE)
                looked_at = gr.State()
                gr.Examples([[str(file)] for file in sorted(EXAMPLES.glob("*.[jp][pn]g"))], inputs=image)
                sliders = [
                    gr.Slider(0.2, 1.0, 1.0, step=0.05, label="Resize (scale, bilinear down and up)"),
                    gr.Slider(0, 2, 0, step=1, label="Decimation (by two, so many times)"),
                    gr.Slider(0.0, 0.2, 0.0, step=0.01, label="Checkerboard (amplitude)"),
                    gr.Slider(0.0, 0.2, 0.0, step=0.01, label="Gaussian noise (standard deviation)"),
                ]
            with gr.Column():
                label = f"What the models see, {width}×{height}"
                seen = gr.Image(elem_id="seen", format="png", label=label, height=PICTURE_SIDE, interactive=False)
                with gr.Row():
                    answers = [gr.Label(num_top_classes=5, label=f"NULA {name}", elem_id=name) for name in pipes]
        asked = {
            "fn": classify,
            "inputs": [looked_at, *sliders],
            "outputs": [seen, *answers],
            "show_progress": "hidden",
        }
        # The upload as it is: gradio would decode it by other rules, and leave the reason of a failure to the log.
        image.change(look_at, image, looked_at, preprocess=False, show_progress="hidden").then(**asked)
        for slider in sliders:
            slider.change(**asked)
    return app


def named_folder(text: str) -> tuple[str, dict[str, Any]]:
    """Read NAME=FOLDER: the name, and where its model comes from.

    Raises:
        argparse.ArgumentTypeError: the text is of another form, or there is no such folder.
    """
    name, _, folder = text.partition("=")
    if not name or not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=FOLDER with the folder of an assembled release")
    return name, {"model": folder}


def port_number(text: str) -> int:
    """Read the number of a port.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer from 1 to {2**16 - 1}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Show releases of NULA side by side in a browser.")
    parser.add_argument(
        "models",
        nargs="*",
        type=named_folder,
        metavar="NAME=FOLDER",
        help="an assembled release and what to call it (default: what models.json names)",
    )
    parser.add_argument("--port", type=port_number, default=7860, help="of this machine (default: %(default)s)")
    arguments = parser.parse_args()
    models = dict(arguments.models)
    if len(models) < len(arguments.models):
        parser.error("each NAME can be given once.")
    try:
        models = models or json.loads(MODELS.read_text(encoding="utf-8"))
        build_app(models).launch(server_port=arguments.port, theme=THEME)
    except (OSError, ValueError) as error:  # a folder that holds no model; a port that is taken
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    main()
