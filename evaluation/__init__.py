"""Measurement of a classifier under the named perturbations."""
