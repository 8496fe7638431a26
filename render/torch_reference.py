"""The renderer in plain PyTorch: any device, float32 or float64, every face at every pixel that it reaches.

It is the readable reference that the other backends are compared with. Work goes in chunks of (face, pixel) pairs: a pair
is a face and a pixel of its bounding box, widened by the reach of the blur. Chunks are recomputed in the backward pass, so
memory stays at PAIRS_PER_CHUNK pairs whatever the sizes; pairs are counted in int64.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MIN_DOUBLED_AREA = 1e-8  # faces of this doubled area or less are left out
MIN_SQUARED_EDGE = 1e-8  # edges of this squared length or less count as their end point
MAX_COORDINATE = 1e9  # faces with a coordinate beyond this, or not finite, are left out
PAIRS_PER_CHUNK = 2**18


def soft_silhouette(verts: Tensor, faces: Tensor, size: tuple[int, int], sigma: float, blur_radius: float) -> Tensor:
    """(B, V, 3), (F, 3) -> (B, H, W); see `render.soft_silhouette`."""

    def add_chunk(mesh: Tensor, pair_face: Tensor, row: Tensor, column: Tensor) -> Tensor:
        corners = mesh[faces[pair_face]]  # (P, 3, 3)
        points = _pixel_centres(row, column, size, mesh)  # (P, 2)
        weights = _edge_functions(points, corners)  # (P, 3)
        inside = (weights > 0).all(1)
        squared = _squared_distance(points, corners[..., :2])  # (P,)
        counts = (inside | (squared < blur_radius)) & (_clipped_depth(weights, corners) >= 0)
        logit = torch.where(inside, squared, -squared) / sigma
        terms = torch.nn.functional.softplus(logit) * counts  # -log(1 - sigmoid(logit))
        return mesh.new_zeros(size[0] * size[1]).index_add(0, row * size[1] + column, terms)  # (H*W,)

    pictures = [verts.new_zeros(0, *size) + verts[:0].sum()]  # the sum of nothing keeps empty pictures differentiable
    for mesh in verts:
        total = mesh.new_zeros(size[0] * size[1]) + mesh[:0].sum()
        for pair_face, row, column in _pairs(mesh, faces, size, blur_radius**0.5):
            total = total + checkpoint(add_chunk, mesh, pair_face, row, column, use_reentrant=False, preserve_rng_state=False)
        pictures.append(-torch.expm1(-total).view(1, *size))
    return torch.cat(pictures)


def coverage(verts: Tensor, faces: Tensor, size: tuple[int, int], supersample: int) -> Tensor:
    """(B, V, 3), (F, 3) -> (B, H, W); see `render.coverage`."""
    height, width = size[0] * supersample, size[1] * supersample
    pictures = verts.new_zeros(len(verts), *size)
    for picture, mesh in zip(pictures, verts, strict=True):
        covered = mesh.new_zeros(height * width)
        for pair_face, row, column in _pairs(mesh, faces, (height, width), 0.0):
            corners = mesh[faces[pair_face]]  # (P, 3, 3)
            weights = _edge_functions(_pixel_centres(row, column, (height, width), mesh), corners)  # (P, 3)
            counts = (weights > 0).all(1) & (_clipped_depth(weights, corners) >= 0)
            covered[(row * width + column)[counts]] = 1
        picture.copy_(covered.view(size[0], supersample, size[1], supersample).mean((1, 3)))
    return pictures


def rasterize(verts: Tensor, faces: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """(B, V, 3), (F, 3) -> face (B, H, W), depth (B, H, W), bary (B, H, W, 3); see `render.rasterize`."""
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
            pixel, pair_face, pair_depth = (row * size[1] + column)[counts], pair_face[counts], pair_depth[counts]
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
    """(..., 3, 3) corners of faces -> (...) bool: False for faces that are left out (not finite, or of no area)."""
    finite = (corners.abs() <= MAX_COORDINATE).flatten(-2).all(-1)
    return finite & (_doubled_area(corners).abs() > MIN_DOUBLED_AREA)


def pixel_box(corners: Tensor, size: tuple[int, int], reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pixels of each face's bounding box, widened by `reach`: (F, 3, 3) -> first row, first column, height, width, (F,) int64.

    Faces that are left out, or wholly outside the picture, have no pixels.
    """
    limits = []
    for axis, count in ((1, size[0]), (0, size[1])):
        low, high = corners[..., axis].amin(-1) - reach, corners[..., axis].amax(-1) + reach
        if axis == 1:
            low, high = -high, -low  # rows run downwards
        first = ((low + 1) * count / 2 - 0.501).ceil().clamp(0, count)  # a thousandth of a pixel against rounding
        last = ((high + 1) * count / 2 - 0.499).floor().clamp(-1, count - 1)
        limits.append((first, (last - first + 1).clamp(min=0)))
    usable = usable_faces(corners)
    (row, height), (column, width) = (
        (torch.where(usable, first, 0).long(), torch.where(usable, extent, 0).long()) for first, extent in limits
    )
    return row, column, height, width


def _pairs(mesh: Tensor, faces: Tensor, size: tuple[int, int], reach: float) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Candidate pairs of one mesh (V, 3), in order of faces: yields face, row, column, each (P,) int64."""
    first_row, first_column, height, width = pixel_box(mesh.detach()[faces], size, reach)
    counts = height * width  # (F,)
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(faces) else 0
    for start in range(0, total, PAIRS_PER_CHUNK):
        pair = torch.arange(start, min(start + PAIRS_PER_CHUNK, total), device=mesh.device)  # (P,)
        face = torch.searchsorted(ends, pair, right=True)
        offset = pair - (ends - counts)[face]
        yield face, first_row[face] + offset // width[face], first_column[face] + offset % width[face]


def _pixel_centres(row: Tensor, column: Tensor, size: tuple[int, int], like: Tensor) -> Tensor:
    """(P,), (P,) -> (P, 2) x, y in the image plane."""
    x = (2 * column + 1).to(like.dtype) / size[1] - 1
    y = 1 - (2 * row + 1).to(like.dtype) / size[0]
    return torch.stack([x, y], 1)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _doubled_area(corners: Tensor) -> Tensor:
    """(..., 3, 2 or 3) -> (...), positive for corners in counter-clockwise order."""
    return -_cross(corners[..., 0, :2] - corners[..., 1, :2], corners[..., 2, :2] - corners[..., 1, :2])


def _edge_functions(points: Tensor, corners: Tensor) -> Tensor:
    """(P, 2), (P, 3, 3) -> (P, 3): barycentrics times the doubled area, all positive inside whatever the face's turn."""
    a, b, c = corners.detach()[..., :2].unbind(1)
    weights = torch.stack([_cross(c - b, points - b), _cross(a - c, points - c), _cross(b - a, points - a)], 1)
    return weights * _doubled_area(corners.detach()).sign()[:, None]


def _clipped_depth(weights: Tensor, corners: Tensor) -> Tensor:
    """Depth at the point of the face that clipping the barycentrics to the triangle gives: (P, 3), (P, 3, 3) -> (P,)."""
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
        along = along.clamp(0, 1).masked_fill(short, 1)  # share of the edge at the nearest point
        away = offset - along[:, None] * edge
        distances.append((away * away).sum(1))
    return torch.minimum(torch.minimum(distances[0], distances[1]), distances[2])
