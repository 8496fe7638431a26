"""What runs: options, loaders, losses, the loop, evaluation, checkpoints, prediction."""
