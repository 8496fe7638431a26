"""Triangle meshes to pictures: soft silhouettes with gradients, hard coverage, and the nearest face at each pixel.

    silhouette = soft_silhouette(verts, faces, 224)         # (B, 224, 224), differentiable
    covered = coverage(verts, faces, 224)                   # (B, 224, 224), share of each pixel that is covered
    nearest = rasterize(verts, faces, (480, 640))           # .face, .depth, .bary

Vertices lie in the image plane, as `util.camera.project` gives them: x right, y up, both in [-1, 1] where visible, and
depth. Row 0 of a picture is its top; pixel (r, c) of an H x W picture has its centre at x = (2c + 1)/W - 1,
y = 1 - (2r + 1)/H. `sigma` and `blur_radius` are in squared units of that plane. Both sides of a face are seen.

Backends compute the same thing: "torch" (plain PyTorch on any device, the readable reference), "numba" (CPU), "triton"
(CUDA) and "pytorch3d" (where that package is installed). "auto" takes Triton on CUDA, Numba on the CPU where it is
installed, and plain PyTorch elsewhere and for float64, which only plain PyTorch computes in. A backend is imported when
it is first used.

What counts, on every backend:
  - a face is left out, with zero gradient, when a coordinate of its corners is not finite or exceeds 1e9 in magnitude,
    or when its doubled area in the image plane is at most 1e-8;
  - a face does not count at a pixel where its depth there (barycentrics clipped to the triangle) is negative, so faces
    behind the camera are left out (PyTorch3D leaves out, as a whole, every face with a corner of depth below 1e-8);
  - a pixel is inside a face where all its barycentrics are > 0; outside, a face counts only where the squared distance
    to its nearest edge is below `blur_radius`; an edge with squared length at most 1e-8 counts as its end point;
  - of faces at the same depth the first is the nearest;
  - meshes outside the picture, no faces and an empty batch give empty pictures and zero gradients.
"""

import importlib
import importlib.util
import math
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

BACKENDS = {  # name: (module of this package, package that it needs)
    "torch": ("torch_reference", "torch"),
    "numba": ("numba_cpu", "numba"),
    "triton": ("triton_cuda", "triton"),
    "pytorch3d": ("pytorch3d", "pytorch3d"),
}


@dataclass
class Rasterization:
    """The nearest face at each pixel centre. Empty pixels hold -1 in every field. Not differentiable.

    face: (B, H, W) int64, index into the faces
    depth: (B, H, W), depth of that face there, linear in the image plane
    bary: (B, H, W, 3), barycentric coordinates in the image plane, in the order of the face's corners
    """

    face: Tensor
    depth: Tensor
    bary: Tensor


def soft_silhouette(
    verts: Tensor,
    faces: Tensor,
    image_size: int | tuple[int, int],
    sigma: float = 1e-4,
    blur_radius: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Soft silhouette 1 - prod(1 - sigmoid(-d / sigma)) over all faces near a pixel, differentiable by x and y of `verts`.

    d is the squared distance in the image plane to the face's nearest edge, negative inside the face.

    verts: (B, V, 3) float32 (or float64 with "torch"), x right, y up, depth
    faces: (F, 3) int32 or int64, shared by the batch
    image_size: S or (H, W), in pixels
    sigma: softness, > 0, in squared units of the image plane
    blur_radius: faces farther than this (squared distance) do not count; None means log(1/1e-4 - 1) * sigma
    Returns (B, H, W) in [0, 1]. Raises ValueError or TypeError, naming the argument, on wrong shapes, types or values.
    """
    size = _check(verts, faces, image_size)
    if not (math.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a finite number above 0, found {sigma}")
    if blur_radius is None:
        blur_radius = math.log(1 / 1e-4 - 1) * sigma
    if not (math.isfinite(blur_radius) and blur_radius >= 0):
        raise ValueError(f"blur_radius must be None or a finite number of at least 0, found {blur_radius}")
    return _load(choose_backend(backend, verts), verts).soft_silhouette(verts, faces, size, float(sigma), float(blur_radius))


def coverage(
    verts: Tensor, faces: Tensor, image_size: int | tuple[int, int], supersample: int = 2, backend: str = "auto"
) -> Tensor:
    """Share of each pixel that the mesh covers: hard coverage at `supersample` times the size, averaged. No gradient.

    Arguments as in `soft_silhouette`; supersample is at least 1. Returns (B, H, W) in [0, 1], type of `verts`.
    """
    size = _check(verts, faces, image_size)
    if isinstance(supersample, bool) or not isinstance(supersample, int) or supersample < 1:
        raise ValueError(f"supersample must be a whole number of at least 1, found {supersample!r}")
    with torch.no_grad():
        return _load(choose_backend(backend, verts), verts).coverage(verts.detach(), faces, size, supersample)


def rasterize(verts: Tensor, faces: Tensor, image_size: int | tuple[int, int], backend: str = "auto") -> Rasterization:
    """The nearest face at each pixel centre, with its depth and barycentrics. No gradient.

    Arguments as in `soft_silhouette`. Returns a `Rasterization`.
    """
    size = _check(verts, faces, image_size)
    with torch.no_grad():
        return Rasterization(*_load(choose_backend(backend, verts), verts).rasterize(verts.detach(), faces, size))


def choose_backend(backend: str, verts: Tensor) -> str:
    """The name of the backend that `backend` stands for with these vertices: "auto" is resolved, others are checked."""
    if backend == "auto":
        fast = "triton" if verts.is_cuda else "numba"
        single = verts.dtype == torch.float32
        return fast if single and verts.device.type in ("cpu", "cuda") and _installed(BACKENDS[fast][1]) else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"unknown renderer backend {backend!r}: expected one of auto, {', '.join(BACKENDS)}")
    return backend


@lru_cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _load(name: str, verts: Tensor) -> ModuleType:
    module, package = BACKENDS[name]
    if not _installed(package):
        raise ModuleNotFoundError(
            f"the renderer backend {name!r} needs the package {package}, which is not installed: install it or choose "
            f"another backend (auto, {', '.join(BACKENDS)})"
        )
    if name != "torch" and verts.dtype != torch.float32:
        raise TypeError(f"the renderer backend {name!r} computes in float32, found verts of type {verts.dtype}; use 'torch'")
    if name == "numba" and verts.device.type != "cpu":
        raise ValueError(f"the renderer backend 'numba' needs CPU tensors, found verts on {verts.device}; use 'auto'")
    return importlib.import_module(f"{__name__}.{module}")


def _check(verts: Tensor, faces: Tensor, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Refuse wrong arguments by name; returns (H, W)."""
    for name, value in (("verts", verts), ("faces", faces)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch tensor, found {type(value).__name__}")
    if verts.dim() != 3 or verts.shape[2] != 3:
        raise ValueError(f"verts must have the shape (B, V, 3), found {tuple(verts.shape)}")
    if verts.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"verts must be float32 or float64, found {verts.dtype}")
    if faces.dim() != 2 or faces.shape[1] != 3:
        raise ValueError(f"faces must have the shape (F, 3), shared by the batch, found {tuple(faces.shape)}")
    if faces.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"faces must be int32 or int64, found {faces.dtype}")
    if faces.device != verts.device:
        raise ValueError(f"verts and faces must be on one device, found {verts.device} and {faces.device}")
    if faces.numel():
        lowest, highest = (int(x) for x in faces.aminmax())
        if lowest < 0 or highest >= verts.shape[1]:
            raise ValueError(f"faces must index the {verts.shape[1]} vertices, found indices {lowest} to {highest}")
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    whole = isinstance(size, (tuple, list)) and all(isinstance(n, int) and not isinstance(n, bool) for n in size)
    if not whole or len(size) != 2 or min(size) < 1:
        raise ValueError(f"image_size must be a whole number above 0 or a pair (H, W) of them, found {image_size!r}")
    return size[0], size[1]
