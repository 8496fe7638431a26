"""Strong changes of colour and content, on the device, of a batch that is there already."""

from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from util.images import IMAGENET_MEAN, IMAGENET_STD

NUM_DRAWS = 24  # random numbers an image
PATCHES = 3


def strong_change(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Changes light, colour, sharpness and grain, and covers parts with parts of elsewhere.

    Args:
        images: (B, 3, S, S), ImageNet-normalised.
        draws: (B, NUM_DRAWS) uniform in [0, 1); an image depends on its own alone.

    Returns:
        (B, 3, S, S), the labels still hold.
    """
    size, device = images.shape[-1], images.device
    mean, std = _normalization(device)
    draws = draws.to(images)
    u = [column[:, None, None, None] for column in draws.unbind(1)]
    x = _covered(images, draws) * std + mean  # [0, 1] where not saturated
    grey = x.mean(1, keepdim=True)
    saturation = torch.where(u[0] < 0.1, 0.0, 0.4 + 1.2 * u[1])
    x = grey + saturation * (x - grey)
    level = x.mean((1, 2, 3), keepdim=True)
    x = level + (0.5 + u[2]) * (x - level)  # contrast
    x = (x * (0.6 + 0.8 * u[3])).clamp(0, 1) ** torch.exp2(1.4 * u[4] - 0.7)  # light, gamma
    half = F.interpolate(x, (size // 2, size // 2), mode="bilinear")
    soft = F.interpolate(half, (size, size), mode="bilinear")
    x = torch.where(u[5] < 0.3, soft + (x - soft) * u[6], x)
    x = x + torch.where(u[8] < 0.4, 0.08 * u[9], 0.0) * _grain(draws[:, 7::16], size)
    return (x.clamp(0, 1) - mean) / std


@lru_cache
@torch.inference_mode(False)  # whoever asks first, others may need gradients
def _normalization(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """ImageNet's mean and deviation (3, 1, 1), copied to a device once."""
    values = IMAGENET_MEAN, IMAGENET_STD
    mean, std = (torch.from_numpy(v)[:, None, None].to(device) for v in values)
    return mean, std


@lru_cache
@torch.inference_mode(False)
def _noise(side: int, device: torch.device) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.standard_normal((side, side), np.float32)).to(device)


def _grain(draws: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 1, S, S) normal noise: the windows at draws (B, 2) of one larger square."""
    places = torch.arange(size, device=draws.device)
    start = (draws * size).long()[..., None] + places  # (B, 2, S)
    noise = _noise(2 * size, draws.device)
    return noise[start[:, 0, :, None], start[:, 1, None]][:, None]


def _covered(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Up to PATCHES rectangles of each image hold another place of that image, mirrored."""
    size = images.shape[-1]
    places = torch.arange(size, device=images.device)
    row, column = places[:, None], places  # (S, 1), (S,)
    source = (size * row + column).expand(len(images), size, size)
    some = draws[:, 10, None, None] < 0.6
    for patch in range(PATCHES):
        a, b, c, d = draws[:, 11 + 4 * patch : 15 + 4 * patch, None, None].unbind(1)  # (B, 1, 1)
        height, width = ((size * (0.06 + 0.22 * v)).long() for v in (a, 1 - a * b))
        top, left = (c * (size - height)).long(), (d * (size - width)).long()
        other_top, other_left = (b * (size - height)).long(), (a * (size - width)).long()
        inside = (row >= top) & (row < top + height) & (column >= left) & (column < left + width)
        other_row, other_column = row - top + other_top, other_left + left + width - 1 - column
        source = torch.where(inside & some, size * other_row + other_column, source)
    index = source.flatten(1)[:, None].expand(-1, 3, -1)  # (B, 3, S S)
    return images.flatten(2).gather(2, index).unflatten(2, (size, size))
