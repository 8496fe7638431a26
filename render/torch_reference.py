"""The renderer in plain PyTorch, on any device, in float32 or float64.

It is the readable reference that the other backends are compared with. Work goes in chunks of
(face, pixel) pairs: a pair is a face and a pixel of its bounding box, widened by the reach of the
blur. Chunks are recomputed in the backward pass, so memory stays at that of a chunk whatever
the sizes; pairs are counted in int64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MIN_DOUBLED_AREA = 1e-8  # faces of this doubled area or less are left out
MIN_SQUARED_EDGE = 1e-8  # edges of this squared length or less count as their end point
MAX_COORDINATE = 1e9  # faces with a coordinate beyond this, or not finite, are left out
PAIRS_PER_CHUNK = 2**18  # 16 times as many on CUDA

Size = tuple[int, int]  # height and width, in pixels


def soft_silhouette(
    verts: Tensor, faces: Tensor, size: Size, sigma: float, blur_radius: float
) -> Tensor:
    """As `render.soft_silhouette`."""

    def add_chunk(mesh: Tensor, pair_face: Tensor, row: Tensor, column: Tensor) -> Tensor:
        corners = mesh[faces[pair_face]]  # (P, 3, 3)
        points = _pixel_centres(row, column, size, mesh)  # (P, 2)
        weights = _edge_functions(points, corners)  # (P, 3)
        inside = (weights > 0).all(1)
        squared = _squared_distance(points, corners[..., :2])  # (P,)
        counts = (inside | (squared < blur_radius)) & (_clipped_depth(weights, corners) >= 0)
        logit = torch.where(inside, squared, -squared) / sigma
        terms = torch.nn.functional.softplus(logit) * counts  # -log(1 - sigmoid(logit))
        return mesh.new_zeros(size[0] * size[1]).index_add(0, row * size[1] + column, terms)

    images = [verts.new_zeros(0, *size) + verts[:0].sum()]  # + nothing: keeps its gradient
    for mesh in verts:
        total = mesh.new_zeros(size[0] * size[1]) + mesh[:0].sum()
        for pair in _pairs(mesh, faces, size, blur_radius**0.5):
            total = total + checkpoint(
                add_chunk, mesh, *pair, use_reentrant=False, preserve_rng_state=False
            )
        images.append(-torch.expm1(-total).view(1, *size))
    return torch.cat(images)


def coverage(verts: Tensor, faces: Tensor, size: Size, supersample: int) -> Tensor:
    """As `render.coverage`."""
    height, width = size[0] * supersample, size[1] * supersample
    images = verts.new_zeros(len(verts), *size)
    for image, mesh in zip(images, verts, strict=True):
        covered = mesh.new_zeros(height * width)
        for pair_face, row, column in _pairs(mesh, faces, (height, width), 0.0):
            corners = mesh[faces[pair_face]]  # (P, 3, 3)
            points = _pixel_centres(row, column, (height, width), mesh)  # (P, 2)
            weights = _edge_functions(points, corners)  # (P, 3)
            counts = (weights > 0).all(1) & (_clipped_depth(weights, corners) >= 0)
            covered[(row * width + column)[counts]] = 1
        image.copy_(covered.view(size[0], supersample, size[1], supersample).mean((1, 3)))
    return images


def rasterize(verts: Tensor, faces: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """As `render.rasterize`: face, depth, bary."""
    face = faces.new_full((len(verts), size[0] * size[1]), -1, dtype=torch.int64)
    depth = verts.new_full((len(verts), size[0] * size[1]), -1)
    bary = verts.new_full((len(verts), size[0] * size[1], 3), -1)
    for b, mesh in enumerate(verts):
        nearest = mesh.new_full((size[0] * size[1],), float("inf"))
        for pair_face, row, column in _pairs(mesh, faces, size, 0.0):
            corners = mesh[faces[pair_face]]  # (P, 3, 3)
            weights = _edge_functions(_pixel_centres(row, column, size, mesh), corners)  # (P, 3)
            pair_depth = _clipped_depth(weights, corners)
            counts = (weights > 0).all(1) & (pair_depth >= 0)
            pixel = (row * size[1] + column)[counts]
            pair_face, pair_depth = pair_face[counts], pair_depth[counts]
            chunk_nearest = nearest.scatter_reduce(0, pixel, pair_depth, "amin")
            first = pair_depth == chunk_nearest[pixel]
            chunk_face = face.new_full((len(nearest),), len(faces))
            chunk_face.scatter_reduce_(0, pixel[first], pair_face[first], "amin")
            face[b] = torch.where(chunk_nearest < nearest, chunk_face, face[b])
            nearest = chunk_nearest
        seen = (face[b] >= 0).nonzero()[:, 0]
        corners = mesh[faces[face[b, seen]]]  # (P, 3, 3)
        points = _pixel_centres(seen // size[1], seen % size[1], size, mesh)
        weights = _edge_functions(points, corners)  # (P, 3)
        depth[b, seen] = nearest[seen]
        bary[b, seen] = weights / weights.sum(1, keepdim=True)
    return face.view(-1, *size), depth.view(-1, *size), bary.view(-1, *size, 3)


def usable_faces(corners: Tensor) -> Tensor:
    """Which faces count (finite, with an area): corners (..., 3, 3) -> (...) bool."""
    finite = (corners.abs() <= MAX_COORDINATE).flatten(-2).all(-1)
    return finite & (_doubled_area(corners).abs() > MIN_DOUBLED_AREA)


def pixel_box(corners: Tensor, size: Size, reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels of each face's bounding box; none for faces that are left out or outside the image.

    Args:
        corners: (..., 3, 3), image plane and depth.
        size: (H, W), in pixels.
        reach: distance by which the box is widened, in the image plane.

    Returns:
        First row, first column, height and width, each (...) int64.
    """
    limits = []
    for axis, count in ((1, size[0]), (0, size[1])):
        low, high = corners[..., axis].amin(-1) - reach, corners[..., axis].amax(-1) + reach
        if axis == 1:
            low, high = -high, -low  # rows run downwards
        first = ((low + 1) * count / 2 - 0.501).ceil().clamp(0, count)  # 0.001 against rounding
        last = ((high + 1) * count / 2 - 0.499).floor().clamp(-1, count - 1)
        limits.append((first, (last - first + 1).clamp(min=0)))
    usable = usable_faces(corners)
    (row, height), (column, width) = (
        [torch.where(usable, value, 0).long() for value in pair] for pair in limits
    )
    return row, column, height, width


def _pairs(
    mesh: Tensor, faces: Tensor, size: Size, reach: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Candidate pairs of one mesh (V, 3), in order of faces: face, row, column, each (P,) int64."""
    first_row, first_column, height, width = pixel_box(mesh.detach()[faces], size, reach)
    counts = height * width  # (F,)
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(faces) else 0
    chunk = PAIRS_PER_CHUNK * (16 if mesh.is_cuda else 1)
    for start in range(0, total, chunk):
        pair = torch.arange(start, min(start + chunk, total), device=mesh.device)  # (P,)
        face = torch.searchsorted(ends, pair, right=True)
        offset = pair - (ends - counts)[face]
        row, column = offset // width[face], offset % width[face]
        yield face, first_row[face] + row, first_column[face] + column


def _pixel_centres(row: Tensor, column: Tensor, size: Size, like: Tensor) -> Tensor:
    """(P,), (P,) -> (P, 2) x, y in the image plane."""
    x = (2 * column + 1).to(like.dtype) / size[1] - 1
    y = 1 - (2 * row + 1).to(like.dtype) / size[0]
    return torch.stack([x, y], 1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _doubled_area(corners: Tensor) -> Tensor:
    """(..., 3, 2 or 3) -> (...), positive for corners in counter-clockwise order."""
    a, b, c = corners[..., :2].unbind(-2)
    return -_cross(a - b, c - b)


def _edge_functions(points: Tensor, corners: Tensor) -> Tensor:
    """Barycentrics times |doubled area|, positive inside: (P, 2), (P, 3, 3) -> (P, 3)."""
    a, b, c = corners.detach()[..., :2].unbind(1)
    weights = [_cross(c - b, points - b), _cross(a - c, points - c), _cross(b - a, points - a)]
    return torch.stack(weights, 1) * _doubled_area(corners.detach()).sign()[:, None]


def _clipped_depth(weights: Tensor, corners: Tensor) -> Tensor:
    """Depth where clipping the barycentrics to the triangle leads: (P, 3), (P, 3, 3) -> (P,)."""
    clipped = weights.clamp(min=0)
    return (clipped * corners.detach()[..., 2]).sum(1) / clipped.sum(1)


def _squared_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Squared distance to the nearest edge: (P, 2), (P, 3, 2) -> (P,)."""
    distances = []
    for start, end in ((0, 1), (0, 2), (1, 2)):
        edge = corners[:, end] - corners[:, start]  # (P, 2)
        offset = points - corners[:, start]
        squared_length = (edge * edge).sum(1)
        short = squared_length <= MIN_SQUARED_EDGE
        along = (offset * edge).sum(1) / squared_length.masked_fill(short, 1)
        along = along.clamp(0, 1).masked_fill(short, 1)  # fraction of the edge
        away = offset - along[:, None] * edge
        distances.append((away * away).sum(1))
    return torch.minimum(torch.minimum(distances[0], distances[1]), distances[2])
