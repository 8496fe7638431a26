"""Shaded colour images of meshes: smooth normals, one light and a sky, on the z-buffer."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from render import rasterize

CLAY = (0.87, 0.76, 0.67)
LIGHT = (
    -0.45,
    0.70,
    -0.60,
)  # towards the light, camera space: from the upper left, on the viewer's side


@torch.no_grad()
def shade(
    verts_plane: Tensor,
    faces: Tensor,
    normals: Tensor,
    image_size: int | tuple[int, int],
    color: Sequence[float] | Tensor = CLAY,
    supersample: int = 2,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Shade meshes with Lambert light and a sky that is brighter above. No gradient.

    Args:
        verts_plane: (B, V, 3) image plane x right, y up, and depth: what `render.rasterize` takes.
        faces: (F, 3), shared by the batch; both sides are lit alike.
        normals: (B, V, 3) unit, camera space: x right, y up, z away from the viewer.
        image_size: S or (H, W), in pixels.
        color: RGB in [0, 1]: one colour (3,), or one for each vertex (V, 3) or (B, V, 3).
        supersample: samples per pixel and axis, at least 1.
        backend: as in `render.rasterize`.

    Returns:
        rgb (B, H, W, 3) in [0, 1], the mean over the covered samples and 0 where there are none,
        and alpha (B, H, W), the covered fraction: rgb * alpha + background * (1 - alpha).

    Raises:
        ValueError: where normals or color has another shape.
    """
    batch, count = verts_plane.shape[:2]
    if normals.shape != verts_plane.shape:
        expected, found = tuple(verts_plane.shape), tuple(normals.shape)
        raise ValueError(f"normals must have the shape of verts_plane, {expected}, found {found}")
    color = torch.as_tensor(color, dtype=normals.dtype, device=normals.device)
    if tuple(color.shape) not in ((3,), (count, 3), (batch, count, 3)):
        found = tuple(color.shape)
        raise ValueError(f"color must have the shape (3,), (V, 3) or (B, V, 3), found {found}")
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    nearest = rasterize(verts_plane, faces, (height * supersample, width * supersample), backend)
    colors = color.expand(batch, count, 3)

    sums = normals.new_zeros(batch, height * width, 4)  # red, green, blue, covered
    for b in range(batch):
        row, column = (nearest.face[b] >= 0).nonzero(as_tuple=True)  # (N,) samples that see a face
        corners = faces[nearest.face[b, row, column]].long()  # (N, 3)
        bary = nearest.bary[b, row, column, :, None].to(normals.dtype)  # (N, 3, 1)
        first, second, third = verts_plane[b, :, :2][corners].unbind(1)  # (N, 2) each
        edge, other = second - first, third - first
        turn = edge[:, :1] * other[:, 1:] - edge[:, 1:] * other[:, :1]  # (N, 1) > 0: faces away
        normal = normalize((normals[b][corners] * bary).sum(1), dim=1) * -turn.sign()  # (N, 3)
        lit = (colors[b][corners] * bary).sum(1) * _light(normal)  # (N, 3)
        pixel = row // supersample * width + column // supersample
        sums[b].index_add_(0, pixel, torch.cat([lit.clamp(0, 1), torch.ones_like(lit[:, :1])], 1))
    rgb = sums[..., :3] / sums[..., 3:].clamp(min=1)
    alpha = sums[..., 3] / supersample**2
    return rgb.view(batch, height, width, 3), alpha.view(batch, height, width)


def _light(normal: Tensor) -> Tensor:
    """Brightness of a matt surface by its normal: (N, 3) camera space -> (N, 1)."""
    direction = normalize(normal.new_tensor(LIGHT), dim=0)
    key = (normal @ direction).clamp(min=0)
    sky = 0.5 + 0.5 * normal[:, 1]  # 0 facing down, 1 facing up
    facing = 0.7 + 0.3 * normal[:, 2].abs()  # a little darker towards the outline
    return ((0.32 + 0.24 * sky + 0.66 * key) * facing)[:, None]
