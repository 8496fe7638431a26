"""The animal's outline as a map, and what it tells each vertex; beside the paper, optional."""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from smal_model import SMAL, MeshHierarchy
from smal_model.lbs import rodrigues
from smal_model.mesh import vertex_normals
from util.camera import FOCAL, HALF_CROP, project

WIDTH = 16  # channels of the head
BLURS = (1, 5, 13)  # cells of stride 4; widths of the averages in which a vertex sees the outline
SHARP = 5  # of them, that in which the outline's edge is looked for
SURE = 0.125  # slope of the outline, a cell, from which on its edge is near
RIM = 0.35  # cosine of normal and line of sight within which a vertex is on the body's outline
FARTHEST = 0.15  # way to the edge, half crops
SMOOTHING = (2, 6)  # means over neighbours, of the ways to the edge
STEPS = len(SMOOTHING)
TOLD = 4 * len(BLURS) + 11 + 3 * STEPS  # numbers a vertex


class OutlineMap(nn.Module):
    """A map of stride 4 from the finest features and the pyramid of the keypoints.

    Args:
        finest: channels of the backbone's finest map. pyramid: channels of the pyramid.
    """

    def __init__(self, finest: int, pyramid: int):
        super().__init__()
        self.fine = nn.Conv2d(finest, WIDTH, 3, padding=1)
        self.coarse = nn.Conv2d(pyramid, WIDTH, 1)
        self.last = nn.Conv2d(WIDTH, 1, 3, padding=1)

    def forward(self, finest: torch.Tensor, pyramid: torch.Tensor) -> torch.Tensor:
        """(B, H, W) logits of the animal, of maps (B, finest, H, W) and (B, pyramid, h, w)."""
        x = F.interpolate(self.coarse(pyramid), finest.shape[2:], mode="bilinear")
        return self.last(F.relu(x + self.fine(finest))).squeeze(1).float()


def outline_loss(logits, mask, mask_weight) -> torch.Tensor:
    """Binary cross entropy of an outline and a mask.

    Args:
        logits: (B, H, W).
        mask, mask_weight: (B, H', W') in [0, 1], and what a pixel counts.

    Returns:
        (2,): the weighted sum over cells, and the sum of weights.
    """
    size = logits.shape[1:]
    weight = F.adaptive_avg_pool2d(mask_weight, size)  # (B, H, W)
    inside = F.adaptive_avg_pool2d(mask * mask_weight, size) / weight.clamp_min(1e-6)
    entropy = F.binary_cross_entropy_with_logits(logits, inside, weight, reduction="sum")
    return torch.stack([entropy, weight.sum()])


def slopes(outline: torch.Tensor, blur: int) -> torch.Tensor:
    """(B, 3, H, W): a smoothed outline, above 0 inside, and its slopes a cell, right and up.

    Args:
        outline: (B, H, W) logits. blur: odd width in cells of the mean that is taken twice.
    """
    inside = outline.sigmoid()[:, None] - 0.5  # (B, 1, H, W)
    for _ in range(2 if blur > 1 else 0):
        inside = F.avg_pool2d(inside, blur, 1, blur // 2, count_include_pad=False)
    wide = F.pad(inside, (1, 1, 1, 1), mode="replicate")
    x = (wide[:, :, 1:-1, 2:] - wide[:, :, 1:-1, :-2]) / 2
    y = (wide[:, :, :-2, 1:-1] - wide[:, :, 2:, 1:-1]) / 2
    return torch.cat([inside, x, y], 1)


def edge_at(inside: torch.Tensor, plane: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `slopes` (B, 3, H, W) are at projected vertices: (B, V', 1) and (B, V', 2).

    Args:
        plane: (B, V', 2 or more) x right, y up, in [-1, 1] inside the crop.
    """
    places = torch.stack([plane[..., 0], -plane[..., 1]], -1)[:, :, None]  # y down
    places = places.nan_to_num()  # of which the gradient would end the process on a CPU
    seen = F.grid_sample(inside, places, padding_mode="border", align_corners=False)
    value, slope = seen.squeeze(3).mT.split([1, 2], 2)
    return value, slope


class Told(NamedTuple):
    """What the outline tells the vertices.

    numbers: (B, V', TOLD) of about 1: the outline and its slopes at three sharpnesses; whether the
        vertex is on the body's outline and the edge is near; the line of sight; the normal in
        camera space; the place at rest; the log of a body unit's size in the image; ten times the
        steps.
    steps: (B, V', 3, STEPS) offsets that take the body's outline to the edge, in two smoothnesses.
    """

    numbers: torch.Tensor
    steps: torch.Tensor


class VertexOutline(nn.Module):
    """What the outline tells each vertex of a level.

    Offsets are of the rest pose, and the image is of the posed body: a slope of the outline is
    given as its derivative by the vertex's offset, through the bones that carry the vertex.

    Args:
        smal: the body.
        hierarchy: of its mesh.
        level: of the hierarchy.
    """

    weights: torch.Tensor
    template: torch.Tensor

    def __init__(self, smal: SMAL, hierarchy: MeshHierarchy, level: int):
        super().__init__()
        self.smal, self.hierarchy, self.level = smal, hierarchy, level
        for name in ("weights", "template"):  # (V', J), (V', 3)
            constant = self._down(getattr(smal, name)[None])[0]
            self.register_buffer(name, constant, persistent=False)

    def _down(self, x: torch.Tensor) -> torch.Tensor:
        for level in range(self.level):
            x = self.hierarchy.down(x, level)
        return x

    @torch.no_grad()
    def forward(self, outline, verts, scale, pose, logscale=None) -> Told:
        """See Told.

        Args:
            outline: (B, H, W) logits.
            verts: (B, V, 3) in camera space. scale: (B, 1).
            pose: (B, 3 J). logscale: (B, 6) or None.
        """
        normals = self._down(vertex_normals(verts, self.smal.faces))  # (B, V', 3)
        plane = project(self._down(verts), scale)  # (B, V', 3)
        size = (FOCAL * (1 + scale[:, None]) / (HALF_CROP * plane[..., 2:])).clamp(1e-2, 1e2)
        bones = rodrigues(pose.unflatten(1, (-1, 3)))  # (B, J, 3, 3)
        bones = self.smal.transforms(bones, bones.new_zeros(bones.shape[:3]), logscale)[..., :3]
        turns = (self.weights @ bones.flatten(2)).unflatten(2, (3, 3))  # (B, V', 3, 3)
        by_x, by_y, by_depth = turns.unbind(2)  # (B, V', 3) each, by the offset

        cells = outline.shape[2] / 2, outline.shape[1] / 2  # of half a crop, x and y
        # 1, but for scaled limbs
        stretch = (by_x.square() + by_y.square()).sum(2, keepdim=True) / 2
        rim = torch.exp(-((normals[..., 2:] / RIM) ** 2))  # (B, V', 1)
        values, tilts, ways = [], [by_depth], []
        for blur in BLURS:
            value, slope = edge_at(slopes(outline, blur), plane)
            x, y = slope.split(1, 2)  # (B, V', 1)
            values.append(2 * value)
            tilts.append(2 * blur * (x * by_x + y * by_y))
            if blur == SHARP:
                steep = x.square() + y.square()
                way = -value / (steep + SURE**2)  # damped Newton's step
                way = torch.cat([way * x / cells[0], way * y / cells[1]], 2)  # in half crops
                way = way * (FARTHEST / way.norm(dim=2, keepdim=True).clamp_min(FARTHEST))
                way = (way[..., :1] * by_x + way[..., 1:] * by_y) / (size * stretch.clamp_min(1e-2))
                sure = rim * steep / (steep + SURE**2)
                values.append(sure)
                ways = self._smooth(way, sure)
        rest = self.template.expand(len(verts), -1, -1)
        steps = [10 * way for way in ways]
        numbers = torch.cat([*values, *tilts, normals, rest, size.log(), *steps], -1)
        return Told(numbers, torch.stack(ways, -1))

    def held(self, del_v: torch.Tensor, pose: torch.Tensor) -> torch.Tensor:
        """Offsets (B, V, 3) that turn with the body, as offsets of `SMAL.forward`; pose (B, 3 J).

        There the root joint is a mean of the moved vertices: what they move it by is not turned.
        An offset that all vertices share is not turned either, and puts it right.
        """
        root = (self.smal.J_regressor[0] @ del_v)[..., None]  # (B, 3, 1)
        turned = rodrigues(pose[:, :3]) @ root
        return del_v + (turned - root).mT

    def _smooth(self, way, sure):
        """Means of ways (B, V', 3) over neighbours that are sure, by how many means were taken."""
        sums = torch.cat([way * sure, sure], 2)
        smooth = []
        for count in range(1, max(SMOOTHING) + 1):
            sums = self.hierarchy.neighbours(sums, self.level)
            if count in SMOOTHING:
                smooth.append(sums[..., :3] / (sums[..., 3:] + 0.02))
        return smooth
