"""Models in files: the checkpoints of runs, those released with the paper, and exported models."""
