"""The same three functions over PyTorch3D's mesh rasterizer, for comparison.

PyTorch3D keeps the nearest faces of each pixel in memory; here it keeps as many as any pixel can
need, so that nothing is cut off. Two things differ from the other backends: it leaves out, as a
whole, faces with a corner of depth below 1e-8, and soft silhouettes are only possible for square
images, since its distances are in square pixels. On CUDA it keeps at most 150 faces a pixel.
"""

import torch
from pytorch3d.renderer.mesh.rasterize_meshes import rasterize_meshes
from pytorch3d.structures import Meshes
from torch import Tensor

from render.torch_reference import Size, pixel_box, usable_faces

MAX_ENTRIES = 2**26  # images x pixels x faces_per_pixel in one call, 28 bytes each


def soft_silhouette(
    verts: Tensor,
    faces: Tensor,
    size: Size,
    sigma: float,
    blur_radius: float,
    faces_per_pixel: int | None = None,
) -> Tensor:
    """As `render.soft_silhouette`; faces_per_pixel: None means as many as are needed."""
    if size[0] != size[1]:
        raise ValueError(f"soft silhouettes of 'pytorch3d' need a square image_size, found {size}")
    images = [verts.new_zeros(0, *size) + verts[:0].sum()]
    for group, _, face, _, _, squared in _calls(verts, faces, size, blur_radius, faces_per_pixel):
        terms = torch.nn.functional.softplus(-squared / sigma) * (face >= 0)  # (G, H, W, K)
        images.append(-torch.expm1(-terms.sum(3)) + verts[group][:0].sum())
    return torch.cat(images)


def coverage(verts: Tensor, faces: Tensor, size: Size, supersample: int) -> Tensor:
    """As `render.coverage`."""
    face, _, _ = rasterize(verts, faces, (size[0] * supersample, size[1] * supersample))
    samples = (face >= 0).to(verts.dtype).view(-1, size[0], supersample, size[1], supersample)
    return samples.mean((2, 4))


def rasterize(verts: Tensor, faces: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """As `render.rasterize`: face, depth, bary."""
    face = torch.full((len(verts), *size), -1, dtype=torch.int64, device=verts.device)
    depth = verts.new_full((len(verts), *size), -1)
    bary = verts.new_full((len(verts), *size, 3), -1)
    for group, kept, packed, group_depth, group_bary, _ in _calls(verts, faces, size, 0.0, 1):
        face[group] = torch.where(packed >= 0, kept[packed.clamp(min=0)], -1)[..., 0]
        depth[group], bary[group] = group_depth[..., 0], group_bary[..., 0, :]
    return face, depth, bary


def _calls(
    verts: Tensor, faces: Tensor, size: Size, blur_radius: float, faces_per_pixel: int | None
):
    """Run the rasterizer over groups of images that fit MAX_ENTRIES.

    Yields the group (a slice), the original index of its faces, and PyTorch3D's (G, H, W, K) faces
    (into those), depths, barycentrics (G, H, W, K, 3) and squared distances, negative inside.
    """
    stretch = [-max(1, size[1] / size[0]), max(1, size[0] / size[1]), 1]  # its x points left
    corners = verts.detach()[:, faces.long()]  # (B, F, 3, 3)
    usable = usable_faces(corners) if corners.numel() else corners.new_zeros(corners.shape[:2]) > 0
    if faces_per_pixel is None:
        reached = zip(corners, usable, strict=True)
        faces_per_pixel = max(
            (_most_faces(c[u], size, blur_radius**0.5) for c, u in reached), default=1
        )
    if verts.is_cuda and faces_per_pixel > 150:
        raise ValueError(
            f"PyTorch3D keeps at most 150 faces a pixel on CUDA and this image needs "
            f"{faces_per_pixel}: use 'auto'"
        )
    step = max(1, MAX_ENTRIES // (size[0] * size[1] * faces_per_pixel))
    for start in range(0, len(verts), step):
        group = slice(start, min(start + step, len(verts)))
        kept = usable[group].nonzero()[:, 1]  # (N,), faces of all images, one after another
        if not len(kept):
            empty = verts.new_full((group.stop - start, *size, 1), -1)
            bary = empty[..., None].expand(-1, -1, -1, -1, 3)
            yield group, kept.new_full((1,), -1), empty.long(), empty, bary, empty
            continue
        meshes = Meshes(
            [v * verts.new_tensor(stretch) for v in verts[group]],
            [faces[u].long() for u in usable[group]],
        )
        fragments = rasterize_meshes(
            meshes,
            size,
            blur_radius,
            faces_per_pixel,
            max_faces_per_bin=len(kept),
            clip_barycentric_coords=True,
        )
        yield group, kept, *fragments


def _most_faces(corners: Tensor, size: Size, reach: float) -> int:
    """The most bounding boxes of faces (F, 3, 3) that one pixel lies in."""
    row, column, height, width = pixel_box(corners, size, reach)
    counts = torch.zeros((size[0] + 1) * (size[1] + 1), dtype=torch.int64, device=corners.device)
    for rows, columns, sign in ((0, 0, 1), (height, 0, -1), (0, width, -1), (height, width, 1)):
        at = (row + rows) * (size[1] + 1) + column + columns
        counts.index_add_(0, at, torch.full_like(at, sign))
    return max(1, int(counts.view(size[0] + 1, size[1] + 1).cumsum(0).cumsum(1).max()))
