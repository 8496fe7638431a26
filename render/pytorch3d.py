"""The same three functions over PyTorch3D's mesh rasterizer, for comparison.

PyTorch3D keeps the nearest faces of each pixel in memory; here it is given as many places as any pixel can need, so that
nothing is cut off. Two things differ from the other backends: it leaves out, as a whole, faces with a corner of depth
below 1e-8, and soft silhouettes are only possible for square pictures, since its distances are in square pixels. On CUDA
it has at most 150 places.
"""

import torch
from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
from pytorch3d.structures import Meshes
from torch import Tensor

from render.torch_reference import pixel_box, usable_faces

MAX_PLACES = 2**26  # image x pixel x place entries in one call, 28 bytes each


def soft_silhouette(
    verts: Tensor,
    faces: Tensor,
    size: tuple[int, int],
    sigma: float,
    blur_radius: float,
    faces_per_pixel: int | None = None,
) -> Tensor:
    """(B, V, 3), (F, 3) -> (B, H, W); see `render.soft_silhouette`. faces_per_pixel: None means as many as are needed."""
    if size[0] != size[1]:
        raise ValueError(f"the renderer backend 'pytorch3d' makes soft silhouettes of square pictures only, found {size}")
    pictures = [verts.new_zeros(0, *size) + verts[:0].sum()]
    for group, _, faces_of_pixel, _, _, squared in _calls(verts, faces, size, blur_radius, faces_per_pixel):
        terms = torch.nn.functional.softplus(-squared / sigma) * (faces_of_pixel >= 0)  # (G, H, W, K)
        pictures.append(-torch.expm1(-terms.sum(3)) + verts[group][:0].sum())
    return torch.cat(pictures)


def coverage(verts: Tensor, faces: Tensor, size: tuple[int, int], supersample: int) -> Tensor:
    """(B, V, 3), (F, 3) -> (B, H, W); see `render.coverage`."""
    face, _, _ = rasterize(verts, faces, (size[0] * supersample, size[1] * supersample))
    samples = (face >= 0).to(verts.dtype).view(-1, size[0], supersample, size[1], supersample)
    return samples.mean((2, 4))


def rasterize(verts: Tensor, faces: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(B, V, 3), (F, 3) -> face (B, H, W), depth (B, H, W), bary (B, H, W, 3); see `render.rasterize`."""
    face = torch.full((len(verts), *size), -1, dtype=torch.int64, device=verts.device)
    depth, bary = verts.new_full((len(verts), *size), -1), verts.new_full((len(verts), *size, 3), -1)
    for group, kept, packed, group_depth, group_bary, _ in _calls(verts, faces, size, 0.0, 1):
        face[group] = torch.where(packed >= 0, kept[packed.clamp(min=0)], -1)[..., 0]
        depth[group], bary[group] = group_depth[..., 0], group_bary[..., 0, :]
    return face, depth, bary


def _calls(verts: Tensor, faces: Tensor, size: tuple[int, int], blur_radius: float, places: int | None):
    """Run the rasterizer over groups of images that fit MAX_PLACES.

    Yields the group (a slice), the original index of its faces, and PyTorch3D's (G, H, W, K) faces (into those), depths,
    barycentrics (G, H, W, K, 3) and squared distances, negative inside.
    """
    stretch = verts.new_tensor([-max(1, size[1] / size[0]), max(1, size[0] / size[1]), 1])  # its x points left
    corners = verts.detach()[:, faces.long()]  # (B, F, 3, 3)
    usable = usable_faces(corners) if corners.numel() else corners.new_zeros(corners.shape[:2], dtype=torch.bool)
    if places is None:
        places = max((_most_faces(c[u], size, blur_radius**0.5) for c, u in zip(corners, usable, strict=True)), default=1)
    if verts.is_cuda and places > 150:
        raise ValueError(f"PyTorch3D keeps at most 150 faces a pixel on CUDA and this picture needs {places}: use 'auto'")
    step = max(1, MAX_PLACES // (size[0] * size[1] * places))
    for start in range(0, len(verts), step):
        group = slice(start, min(start + step, len(verts)))
        kept = usable[group].nonzero()[:, 1]  # (N,), faces of all images, one after another
        if not len(kept):
            shape = (group.stop - start, *size, 1)
            empty = verts.new_full(shape, -1)
            yield group, kept.new_full((1,), -1), empty.long(), empty, verts.new_full((*shape, 3), -1), empty
            continue
        meshes = Meshes([v * stretch for v in verts[group]], [faces[u].long() for u in usable[group]])
        yield (
            group,
            kept,
            *rasterize_meshes(meshes, size, blur_radius, places, max_faces_per_bin=len(kept), clip_barycentric_coords=True),
        )


def _most_faces(corners: Tensor, size: tuple[int, int], reach: float) -> int:
    """The most bounding boxes of faces (F, 3, 3) that one pixel lies in: no pixel needs more places."""
    row, column, height, width = pixel_box(corners, size, reach)
    counts = torch.zeros((size[0] + 1) * (size[1] + 1), dtype=torch.int64, device=corners.device)
    for rows, columns, sign in ((0, 0, 1), (height, 0, -1), (0, width, -1), (height, width, 1)):
        place = (row + rows) * (size[1] + 1) + column + columns
        counts.index_add_(0, place, torch.full_like(place, sign))
    return max(1, int(counts.view(size[0] + 1, size[1] + 1).cumsum(0).cumsum(1).max()))
