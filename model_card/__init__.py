"""The model card and the files of a release."""
