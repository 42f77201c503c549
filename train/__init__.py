"""Training: a script and a recipe for each version, and the one run behind them."""
