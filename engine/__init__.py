"""What runs: options, data loading, losses, the training loop, evaluation, checkpoints, run folders."""
