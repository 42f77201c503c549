"""Training of v0 and its fine-tuning into v1."""
