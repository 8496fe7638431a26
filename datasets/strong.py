"""Strong changes of colour and content, on the device, of a batch that is there already."""

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
    mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    size = images.shape[-1]
    columns = draws.to(images).unbind(1)
    u = [column[:, None, None, None] for column in columns]
    x = _covered(images, draws.cpu().numpy()) * std + mean  # [0, 1] where not saturated
    grey = x.mean(1, keepdim=True)
    saturation = torch.where(u[0] < 0.1, 0.0, 0.4 + 1.2 * u[1])
    x = grey + saturation * (x - grey)
    level = x.mean((1, 2, 3), keepdim=True)
    x = level + (0.5 + u[2]) * (x - level)  # contrast
    x = (x * (0.6 + 0.8 * u[3])).clamp(0, 1) ** torch.exp2(1.4 * u[4] - 0.7)  # light, gamma
    half = F.interpolate(x, (size // 2, size // 2), mode="bilinear")
    soft = F.interpolate(half, (size, size), mode="bilinear")
    x = torch.where(u[5] < 0.3, soft + (x - soft) * u[6], x)
    grain = torch.stack([_grain(float(n), size) for n in columns[7]]).to(x)
    x = x + torch.where(u[8] < 0.4, 0.08 * u[9], 0.0) * grain
    return (x.clamp(0, 1) - mean) / std


def _grain(draw: float, size: int) -> torch.Tensor:
    rng = np.random.default_rng(int(draw * 2**24))
    return torch.from_numpy(rng.standard_normal((1, size, size), np.float32))


def _covered(images: torch.Tensor, draws: np.ndarray) -> torch.Tensor:
    """Up to PATCHES rectangles of each image hold another place of that image, mirrored."""
    out, size = images.clone(), images.shape[-1]
    for image, (changed, row) in enumerate(zip(out, draws, strict=True)):
        for patch in range(PATCHES if row[10] < 0.6 else 0):
            a, b, c, d = row[11 + 4 * patch : 15 + 4 * patch]
            height, width = (int(size * (0.06 + 0.22 * v)) for v in (a, 1 - a * b))
            top, left = int(c * (size - height)), int(d * (size - width))
            other_top, other_left = int(b * (size - height)), int(a * (size - width))
            piece = images[
                image, :, other_top : other_top + height, other_left : other_left + width
            ]
            changed[:, top : top + height, left : left + width] = piece.flip(-1)
    return out
