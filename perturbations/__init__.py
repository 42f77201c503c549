"""Perturbations of images: pure functions of pixels in [0, 1]."""
