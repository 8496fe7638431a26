"""Stage 2: the encoder-decoder graph network that moves each vertex (paper, section 3.3)."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from smal_model import MeshHierarchy
from util.camera import project
from util.errors import InputError

from .graph_layers import GraphLinear, GraphResBlock, VertexGroupNorm
from .outline import STEPS, TOLD, Told
from .outputs import ImageFeatures


def _axis_weights(position, size: int, fine_size: int):
    """Weights (B, N, size) of an axis' pixels, read at `position` after bilinear up-sampling.

    position (B, N) in [-1, 1] from the first pixel's outer edge to the last one's (align_corners
    False), zero outside; fine_size: pixels after up-sampling.
    """
    identity = torch.eye(size, dtype=position.dtype, device=position.device)
    up = F.interpolate(identity[None], fine_size, mode="linear", align_corners=False)[
        0
    ].T  # (fine_size, size)
    up = F.pad(up, (0, 0, 1, 1))  # a row of zeros before the first and after the last pixel
    place = ((position + 1) * fine_size - 1) / 2
    place = place.nan_to_num(-1).clamp(-1, fine_size)  # beyond that all is zero
    low = place.floor()
    fraction = (place - low)[..., None]  # (B, N, 1)
    low = low.long() + 1
    return (1 - fraction) * up[low] + fraction * up[(low + 1).clamp_max(fine_size + 1)]


class Refiner(nn.Module):
    """The mesh-refinement network `graphnet`: offsets `del_v` (B, V, 3) in the rest pose.

    Args:
        hierarchy: of the body's mesh; levels num_downsampling to num_levels - 1 are used.
        feature_channels: of the backbone's maps; the pooled feature has the last one's.
        local_feat: sample the maps at the vertices.
        num_channels: width, a multiple of 16.
        num_downsampling: levels above the network.
        num_levels: levels in use; None: all.
        outline: each vertex of the first level is told of the image's outline (model.outline).
    """

    def __init__(
        self,
        hierarchy: MeshHierarchy,
        feature_channels: list[int],
        local_feat: bool = True,
        num_channels: int = 256,
        num_downsampling: int = 1,
        num_levels: int | None = None,
        outline: bool = False,
    ):
        super().__init__()
        levels = len(hierarchy.sizes)
        num_levels = num_levels or levels
        if not 0 <= num_downsampling < num_levels <= levels:
            raise InputError(
                f"num_downsampling {num_downsampling} and num_layers {num_levels}: expected 0 <= "
                f"num_downsampling < num_layers <= {levels}, the levels of the mesh hierarchy"
            )
        if num_channels % 16:
            reason = "group norm takes 8 channels a group"
            raise InputError(f"num_channels {num_channels}: expected a multiple of 16 ({reason})")
        self.hierarchy = hierarchy
        self.levels = list(range(num_downsampling, num_levels))
        self.feature_channels = list(feature_channels)
        self.local_feat = local_feat
        self.bf16 = False  # run in bfloat16 where gradients are taken
        c, n = num_channels, len(self.levels)
        inputs = 3 + self.feature_channels[-1] + (sum(self.feature_channels) if local_feat else 0)
        self.told = TOLD if outline else 0
        inputs += self.told
        self.lin1 = GraphLinear(inputs, 2 * c)
        self.res1 = GraphResBlock(2 * c, c)
        self.encoder = nn.ModuleList(GraphResBlock(c, c) for _ in self.levels)
        self.decoder = nn.ModuleList(GraphResBlock((i + 1) * c, (i + 1) * c) for i in range(n))
        self.shape = nn.ModuleList(
            [
                GraphResBlock(n * c, 64),
                GraphResBlock(64, 32),
                VertexGroupNorm(32),
                nn.ReLU(),
                GraphLinear(32, 3 + STEPS * outline),
            ]
        )

    def _lift(self, verts, positions, features: ImageFeatures, told: Told | None = None):
        """`lin1` on [told, xyz, pooled feature, local features], not forming these: (B, V', 2c).

        The paper up-samples all maps to the finest one's size, samples every channel at every
        vertex and multiplies. Each step is linear, so they are taken in the cheapest order: the
        columns of the pooled feature once per image instead of once per vertex; a map's columns
        before or after sampling, whichever is less arithmetic; up-sampling and sampling as one
        small product per map. positions (B, V', 2) x right, y down, detached.
        """
        columns = [3, self.feature_channels[-1]] + (
            self.feature_channels if self.local_feat else []
        )
        w_told, w_xyz, w_pooled, *w_maps = self.lin1.W.split([self.told, *columns], 1)
        x = (
            F.linear(verts, w_xyz, self.lin1.b)
            + F.linear(features.pooled.detach(), w_pooled)[:, None]
        )
        if told is not None:
            x = x + F.linear(told.numbers, w_told)
        if not self.local_feat:
            return x
        finest = features.maps[0].shape[-2:]
        for w, feature_map in zip(w_maps, features.maps, strict=True):
            feature_map = feature_map.detach()
            height, width = feature_map.shape[-2:]
            if (height, width) == finest:
                sampled = F.grid_sample(
                    feature_map.to(positions.dtype), positions[:, :, None], align_corners=False
                )  # (B, C, V', 1), zeros outside
                x = x + F.linear(sampled.squeeze(-1).transpose(1, 2), w)
                continue
            rows = _axis_weights(positions[..., 1], height, finest[0])  # (B, V', h)
            cols = _axis_weights(positions[..., 0], width, finest[1])  # (B, V', w)
            sample = (rows[..., :, None] * cols[..., None, :]).flatten(2)  # (B, V', h*w)
            pixels = feature_map.flatten(2).transpose(1, 2)  # (B, h*w, C)
            v, c, p, out = verts.shape[1], pixels.shape[2], height * width, w.shape[0]
            if 2 * p * (c + v) * out < v * c * (
                p + 2 * out
            ):  # multiplications, forward and backward; no gradient to the map
                x = x + sample @ F.linear(pixels, w)
            else:
                x = x + F.linear(sample @ pixels, w)
        return x

    def forward(
        self, verts, scale, features: ImageFeatures, told: Told | None = None
    ) -> torch.Tensor:
        """Offsets (B, V, 3) for coarse verts (B, V, 3) in camera space, seen with scale (B, 1).

        told: of the outline, where the network has one.
        """
        with torch.autocast(
            verts.device.type, torch.bfloat16, enabled=self.bf16 and torch.is_grad_enabled()
        ):
            return self._offsets(verts, scale, features, told).to(verts.dtype)

    def _offsets(self, verts, scale, features, told: Told | None):
        h = self.hierarchy
        for level in range(self.levels[0]):
            verts = h.down(verts, level)
        plane = project(verts.detach(), scale.detach())
        positions = torch.stack([plane[..., 0], -plane[..., 1]], -1)  # (B, V', 2) x right, y down
        x = self._lift(verts, positions, features, told)
        x = self.res1(x, partial(h.neighbours, level=self.levels[0]))

        skips = []
        for block, level in zip(self.encoder, self.levels, strict=True):
            if level != self.levels[0]:
                x = h.down(x, level - 1)
            skips.append(x)
            x = block(x, partial(h.neighbours, level=level))

        skips.pop()
        for block, level in zip(self.decoder, reversed(self.levels), strict=True):
            x = block(x, partial(h.neighbours, level=level))
            if level != self.levels[0]:
                x = torch.cat([h.up(x, level - 1), skips.pop()], -1)

        neighbours = partial(h.neighbours, level=self.levels[0])
        layers: Any = self.shape
        block1, block2, norm, _, out = layers
        x = out(norm.relu(block2(block1(x, neighbours), neighbours)))  # (B, V', 3 or more)
        if told is not None:  # and how far each vertex follows the steps to the edge
            x = x[..., :3] + (told.steps @ (x[..., 3:, None] + 1 / STEPS)).squeeze(3)
        for level in reversed(range(self.levels[0])):
            x = h.up(x, level)
        return x
