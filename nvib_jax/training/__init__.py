"""Training: the run, its state and step, checkpoints, and what guards them."""
