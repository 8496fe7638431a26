"""Short stage 1 runs on a handful of images, and what they leave."""

import torch

import main
from tests.commands import SMALL


def stage1(data, folder, *more, small=SMALL):
    main.main(
        ["--data_dir", str(data), *small, "--batch_size", "3", "--output_dir", str(folder), *more]
    )


def read_content(path):
    return torch.load(path, weights_only=True)


def epochs(folder):
    return [
        line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("epoch ")
    ]
