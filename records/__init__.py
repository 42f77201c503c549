"""What the files of a release say: weights, training, results and how they came about."""
