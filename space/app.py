"""NULA v0 and v1 side by side: an image, four perturbations, and what each model says.

`make space` assembles the files of a Hugging Face Space around it, and `make app` starts those with the models of this
checkout.
"""

import argparse
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from transformers import pipeline

from nula.perturbations.appearance import gaussian_noise
from nula.perturbations.sampling import checkerboard, decimate, resize

MODELS = {version: f"MamaPearl/nula-cifar10-robust-{version}" for version in ("v0", "v1")}
REVISION = "v0.1.0"  # of both models: their code runs here, so what a later push brings is not taken unseen
SHOWN = 256  # pixels a side of the picture of what the models see
EXAMPLES = Path(__file__).with_name("examples")
THEME = gr.themes.Default(font=["system-ui", "sans-serif"])  # gradio's own font has holes: "NULA" came in two sizes
INTRODUCTION = """# NULA

An anti-aliased CNN for CIFAR-10's ten classes at 32×32 pixels. v1 is v0 fine-tuned for noise. Perturb an image, and see
which of them keeps its answer.
"""


def perturb(pixels: torch.Tensor, scale: float, halvings: int, epsilon: float, sigma: float) -> torch.Tensor:
    """Pixels (1, 3, 32, 32) in [0, 1], resized down and up, decimated by 2^halvings, with a checkerboard and noise."""
    if scale < 1:
        pixels = resize(pixels, scale, "bilinear")
    if halvings > 0:
        pixels = decimate(pixels, 2**halvings)
    if epsilon > 0:
        pixels = checkerboard(pixels, epsilon)
    if sigma > 0:
        pixels = gaussian_noise(pixels, sigma, torch.Generator().manual_seed(0))
    return pixels


def build_app(models: dict[str, str]) -> gr.Blocks:
    """The app of models by name, each a Hub id or folder."""
    pipes = {
        name: pipeline("image-classification", model=model, revision=REVISION, trust_remote_code=True)
        for name, model in models.items()
    }
    processor = next(iter(pipes.values())).image_processor

    def classify(image: Any, scale: float, halvings: int, epsilon: float, sigma: float) -> list:
        if image is None:
            return [None] * (1 + len(pipes))
        pixels = processor.pixels(image).float() / 255  # of the model's size, not yet normalised
        pixels = perturb(pixels, scale, int(halvings), epsilon, sigma)
        answers = [{entry["label"]: entry["score"] for entry in pipe(pixels[0], top_k=10)} for pipe in pipes.values()]
        side = pixels.shape[-1]
        seen = (255 * pixels[0].permute(1, 2, 0)).round().to(torch.uint8).numpy()
        return [np.kron(seen, np.ones((SHOWN // side, SHOWN // side, 1), dtype=np.uint8)), *answers]

    with gr.Blocks(title="NULA") as app:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", image_mode=None, label="Image", height=SHOWN)
                gr.Examples([[str(file)] for file in sorted(EXAMPLES.glob("*.[jp][pn]g"))], inputs=image)
                sliders = [
                    gr.Slider(0.2, 1.0, 1.0, step=0.05, label="Resize (scale, bilinear down and up)"),
                    gr.Slider(0, 2, 0, step=1, label="Decimation (by two, so many times)"),
                    gr.Slider(0.0, 0.2, 0.0, step=0.01, label="Checkerboard (amplitude)"),
                    gr.Slider(0.0, 0.2, 0.0, step=0.01, label="Gaussian noise (standard deviation)"),
                ]
            with gr.Column():
                seen = gr.Image(
                    elem_id="seen", format="png", label="What the models see, 32×32", height=SHOWN, interactive=False
                )
                with gr.Row():
                    answers = [gr.Label(num_top_classes=5, label=f"NULA {name}", elem_id=name) for name in pipes]
        for control in (image, *sliders):
            control.change(classify, [image, *sliders], [seen, *answers], show_progress="hidden")
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Show v0 and v1 side by side in a browser.")
    for version, model in MODELS.items():
        parser.add_argument(f"--{version}", default=model, help="Hub id or folder (default: %(default)s)")
    parser.add_argument("--port", type=int, default=7860)
    arguments = parser.parse_args()
    app = build_app({version: getattr(arguments, version) for version in MODELS})
    app.launch(server_port=arguments.port, theme=THEME)


if __name__ == "__main__":
    main()
