"""Keypoints as heat maps, and what the coarse network makes of them; beside the paper, optional."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from smal_model.joints import MIRRORED, NUM_KEYPOINTS
from util.camera import HALF_CROP

WIDTH = 96  # channels of the feature pyramid
HIDDEN = 512  # of the regressors
PER_KEYPOINT = 3  # numbers: x, y, confidence
SHARPNESS = 3.0  # of the softmax that gives the places: the mean of two peaks is at neither


class Keypoints(NamedTuple):
    """Where an image shows the keypoints.

    maps: (B, 20, H, W) logits; a softmax over places of SHARPNESS times them is a distribution.
    xy: (B, 20, 2) its mean, x right, y up, in [-1, 1] inside the crop (util.camera).
    confidence: (B, 20) in (0, 1], 1 where the distribution is one place.
    variance: (B, 20) of it, mean of both axes.
    pyramid: (B, WIDTH, H, W) the features that the maps are made of.
    """

    maps: torch.Tensor
    xy: torch.Tensor
    confidence: torch.Tensor
    variance: torch.Tensor
    pyramid: torch.Tensor

    @property
    def flat(self) -> torch.Tensor:
        """(B, 60) places and confidences as the regressors take them; no gradient reaches maps."""
        return torch.cat([self.xy, self.confidence[..., None]], -1).flatten(1).detach()


def cell_centres(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """(H W, 2) x right, y up in [-1, 1] of the cells' centres, row by row."""
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) * (2 / width) - 1
    y = 1 - (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) * (2 / height)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).flatten(
        0, 1
    )


def _mixed(channels: int) -> nn.Sequential:
    """A 5 x 5 neighbourhood, each channel by itself, then all channels at a place."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    )


class KeypointMaps(nn.Module):
    """A feature pyramid (Lin et al., CVPR 2017) over strides 32, 16, 8 with a map a keypoint.

    Args:
        channels: of the backbone's four maps, finest first.
    """

    def __init__(self, channels: list[int]):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, WIDTH, 1) for c in channels[1:])
        self.mix = nn.ModuleList(_mixed(WIDTH) for _ in channels[1:])
        self.maps = nn.Conv2d(WIDTH, NUM_KEYPOINTS, 1)

    def forward(self, features: list[torch.Tensor]) -> Keypoints:
        """Keypoints of the backbone's four maps (B, C_i, H_i, W_i)."""
        x = None
        for lateral, mix, level in zip(
            reversed(self.lateral), reversed(self.mix), reversed(features[1:]), strict=True
        ):
            y = lateral(level)
            x = mix(y if x is None else y + F.interpolate(x, y.shape[2:]))  # (B, WIDTH, H, W)
        assert x is not None
        return keypoints_in(self.maps(x).float(), x)  # stride 8


def keypoints_in(maps: torch.Tensor, pyramid: torch.Tensor) -> Keypoints:
    """The keypoints of heat maps (B, 20, H, W), logits."""
    places = (SHARPNESS * maps.flatten(2)).softmax(-1)  # (B, 20, H W)
    centres = cell_centres(maps.shape[2], maps.shape[3], maps)
    xy = places @ centres
    variance = (places @ centres.pow(2) - xy.pow(2)).mean(-1).clamp_min(1e-4)
    return Keypoints(maps, xy, places.pow(2).sum(-1).sqrt(), variance, pyramid)


def mirrored(maps: torch.Tensor) -> torch.Tensor:
    """The heat maps (B, 20, H, W) of a mirrored image as those of the image."""
    return torch.stack([maps[:, k] for k in MIRRORED], 1).flip(-1)


def mean_of_maps(maps: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Logits (B, 20, H, W) of the mean of the distributions of two heat maps."""
    likely = (part.flatten(2).log_softmax(-1) for part in (maps, others))
    return torch.logaddexp(*likely).view_as(maps) - math.log(2)


def keypoint_weights(labels: torch.Tensor, has_label: torch.Tensor) -> torch.Tensor:
    """(B, 20) what each keypoint counts in `map_loss`; labels and has_label as there."""
    inside = ((labels[..., :2] - HALF_CROP).abs() <= HALF_CROP).all(-1)
    seen = labels[..., 2] > 0
    weight = torch.where(seen, inside.to(labels.dtype), 0.1)
    return weight * has_label[:, None]


def map_loss(maps: torch.Tensor, labels: torch.Tensor, has_label: torch.Tensor) -> torch.Tensor:
    """Cross entropy of heat maps and Gaussians of one cell about the visible keypoints.

    Keypoints that are not visible are to spread over the crop, at a tenth of the weight.

    Args:
        maps: (B, 20, H, W) logits.
        labels: (B, 20, 3) row, column, visible, pixels of the crop.
        has_label: (B,) bool, images that count.

    Returns:
        (2,): the weighted sum, and the sum of weights.
    """
    height, width = maps.shape[2:]
    half = HALF_CROP
    xy = torch.stack([labels[..., 1] / half - 1, 1 - labels[..., 0] / half], -1)  # (B, 20, 2)
    seen = labels[..., 2] > 0
    cells = cell_centres(height, width, maps)  # (H W, 2)
    x, y = (cells - xy[:, :, None]).unbind(-1)  # (B, 20, H W)
    squared = (x * (width / 2)) ** 2 + (y * (height / 2)) ** 2  # in cells
    target = (-0.5 * squared).softmax(-1)  # (B, 20, H W)
    target = torch.where(seen[..., None], target, 1 / (height * width))
    entropy = -(target * maps.flatten(2).log_softmax(-1)).sum(-1)  # (B, 20)
    weight = keypoint_weights(labels, has_label)
    return torch.stack([(weight * entropy).sum(), weight.sum()])


def regressor(inputs: int, outputs: int) -> nn.Sequential:
    """Two hidden layers; the answer starts near 0."""
    last = nn.Linear(HIDDEN, outputs)
    nn.init.normal_(last.weight, 0, 1e-3)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.LayerNorm(HIDDEN),
        nn.ReLU(inplace=True),
        nn.Linear(HIDDEN, HIDDEN),
        nn.LayerNorm(HIDDEN),
        nn.ReLU(inplace=True),
        last,
    )
