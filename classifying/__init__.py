"""`nula classify`: images that a command line names, and their answers in a form for people or programs."""
