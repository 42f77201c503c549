"""What a card says of the parts of a recipe that not every version has."""

from collections.abc import Mapping
from typing import Any


def mix_sentences(recipe: Mapping[str, Any]) -> str:
    """Return sentences on the settings of training.json's `recipe` that are in use, each with a space behind it.

    A record may lack settings that were added after it was made; they were then not in use.
    """
    told = []
    if recipe.get("augmix_share"):
        told.append(
            f"Between the crop and that, a share of {recipe['augmix_share']} of each batch went through AugMix's "
            "chains (rotation, shear, translation, autocontrast, equalize, posterize, solarize; D. Hendrycks et al., "
            "ICLR 2020)."
        )
    if recipe.get("channel_mixing_probability"):
        told.append(
            f"With probability {recipe['channel_mixing_probability']} an image was pulled towards a random mixture "
            "of its channels, of which the row of grayscale images is an example."
        )
    if recipe.get("noise_probability"):
        low, high = recipe["noise_sigma"]
        told.append(
            f"With probability {recipe['noise_probability']} normal noise of σ from {low} to {high} was "
            f"added{_sparse(recipe)}."
        )
    if recipe.get("cutout_probability"):
        size = recipe["cutout_size"]
        told.append(
            f"With probability {recipe['cutout_probability']} a gray square of {size}×{size} pixels hid a part."
        )
    if told:
        told.append(
            "Of the common corruptions the training knows noise, blur, resampling and low saturation, in these forms."
        )
    if recipe.get("views", 1) > 1 and recipe["consistency_weight"]:
        told.append(
            f"Each image was shown in {recipe['views']} such augmentations at once, and the loss had the Jensen-"
            f"Shannon divergence of the answers to them beside it, times {recipe['consistency_weight']}."
        )
    if recipe.get("whitening_epsilon"):
        told.append(
            "The stem's filters are principal components of the images' 3×3 patches, scaled to responses of variance 1 "
            f"(ε = {recipe['whitening_epsilon']}), and were not trained."
        )
    return "".join(f"{sentence} " for sentence in told)


def _sparse(recipe: Mapping[str, Any]) -> str:
    share = recipe.get("noise_sparse_share")
    return f", in {share} of these cases to one value in four with twice that σ, near impulse noise" if share else ""
