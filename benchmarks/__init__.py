"""How fast the pipeline and the exported forms are."""
