"""Heat maps of the keypoints once more, knowing a body that fits the first ones; optional."""

import torch
from torch import nn
from torch.nn import functional as F

from smal_model.joints import NUM_KEYPOINTS

from .keypoint_maps import WIDTH, Keypoints, cell_centres

CHANNELS = 128
BLOCKS = 4
NORM_GROUPS = 8
NEAR = 1.5  # cells of the heat maps: standard deviation of the bumps where the body's keypoints are


class _Block(nn.Module):
    """A 7 x 7 neighbourhood, each channel by itself, then all channels at a place; residual."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False),
            nn.GroupNorm(NORM_GROUPS, channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x):
        return x + self.layers(x)


class SecondLook(nn.Module):
    """Corrects heat maps by where a body has its keypoints; at first it changes nothing.

    A map alone cannot tell the left leg from the right one where the body's side is in doubt; the
    body that fits all maps together has decided that. No gradient reaches what it sees.
    """

    def __init__(self):
        super().__init__()
        seen = WIDTH + 2 * NUM_KEYPOINTS + 1
        self.first = nn.Conv2d(seen, CHANNELS, 1)
        self.blocks = nn.Sequential(*(_Block(CHANNELS) for _ in range(BLOCKS)))
        self.norm = nn.GroupNorm(NORM_GROUPS, CHANNELS)
        self.last = nn.Conv2d(CHANNELS, NUM_KEYPOINTS, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self, keypoints: Keypoints, outline: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """(B, 20, H, W) logits.

        Args:
            keypoints: as the image shows them at first.
            outline: (B, H', W') logits of the animal's mask.
            places: (B, 20, 2) of a body's keypoints, x right, y up, in [-1, 1] inside the crop.
        """
        maps = keypoints.maps.detach()
        height, width = maps.shape[2:]
        likely = maps.flatten(2).log_softmax(-1).view_as(maps)
        inside = F.adaptive_avg_pool2d(outline.detach().sigmoid()[:, None], (height, width))
        apart = cell_centres(height, width, maps) - places.detach()[:, :, None]  # (B, 20, H W, 2)
        x, y = apart.unbind(-1)
        cells = (x * (width / 2)) ** 2 + (y * (height / 2)) ** 2  # squared
        bumps = (-cells / (2 * NEAR**2)).exp().view_as(maps)
        seen = [keypoints.pyramid.detach(), likely / 10, bumps, inside]
        x = self.blocks(self.first(torch.cat(seen, 1)))
        return maps + self.last(F.relu(self.norm(x)))
