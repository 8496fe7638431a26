"""Triangle meshes to images: soft silhouettes with gradients, hard coverage, and the nearest faces.

    silhouette = soft_silhouette(verts, faces, 224)  # (B, 224, 224), differentiable
    covered = coverage(verts, faces, 224)            # (B, 224, 224), covered fraction of each pixel
    nearest = rasterize(verts, faces, (480, 640))    # .face, .depth, .bary

Vertices lie in the image plane, as `util.camera.project` gives them: x right, y up, both in [-1, 1]
where visible, and depth. Row 0 of an image is its top; pixel (r, c) of an H x W image has its
centre at x = (2c + 1)/W - 1, y = 1 - (2r + 1)/H. `sigma` and `blur_radius` are in squared units of
that plane. Both sides of a face are seen.

Backends compute the same thing: "torch" (plain PyTorch on any device, the readable reference),
"numba" (CPU), "triton" (CUDA) and "pytorch3d" (where that package is installed). "auto" takes
Triton on CUDA, Numba on the CPU where it is installed, and plain PyTorch elsewhere and for float64,
which only plain PyTorch computes in. A backend is imported when it is first used. `check` compares
a backend with plain PyTorch on a device before work starts; "auto" does so on a CUDA device when it
is first used there, and falls back to plain PyTorch, with a warning that says why.

Soft silhouettes of "triton" differ in the last bits from run to run, and raise an error under
`torch.use_deterministic_algorithms(True)`; the other backends repeat themselves. Indices of faces
are checked once for a tensor, and again after it was written to in place.

What counts, on every backend:
  - a face is left out, with zero gradient, when a coordinate of its corners is not finite or
    exceeds 1e9 in magnitude, or when its doubled area in the image plane is at most 1e-8;
  - a face does not count at a pixel where its depth there (barycentrics clipped to the triangle) is
    negative, so faces behind the camera are left out (PyTorch3D leaves out, as a whole, every face
    with a corner of depth below 1e-8);
  - a pixel is inside a face where all its barycentrics are > 0; outside, a face counts only where
    the squared distance to its nearest edge is below `blur_radius`; an edge with squared length at
    most 1e-8 counts as its end point;
  - of faces at the same depth the first is the nearest;
  - meshes outside the image, no faces and an empty batch give empty images and zero gradients.
"""

import importlib
import importlib.util
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

BACKENDS = {  # name: (module of this package, package that it needs)
    "torch": ("torch_reference", "torch"),
    "numba": ("numba_cpu", "numba"),
    "triton": ("triton_cuda", "triton"),
    "pytorch3d": ("pytorch3d", "pytorch3d"),
}


@dataclass
class Rasterization:
    """The nearest face at each pixel centre; empty pixels hold -1 in every field. No gradient.

    Attributes:
        face: (B, H, W) int64, index into the faces.
        depth: (B, H, W), depth of that face there, linear in the image plane.
        bary: (B, H, W, 3), barycentrics in the image plane, in the order of the face's corners.
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
    """Soft silhouette 1 - prod(1 - sigmoid(-d / sigma)) over all faces near each pixel.

    d is the squared distance in the image plane to the face's nearest edge, negative inside the
    face. Differentiable by x and y of `verts`.

    Args:
        verts: (B, V, 3) float32 (or float64 with "torch"), image plane: x right, y up, and depth.
        faces: (F, 3) int32 or int64, shared by the batch.
        image_size: S or (H, W), in pixels.
        sigma: softness, > 0, in squared units of the image plane.
        blur_radius: squared distance where faces end to count; None: log(1/1e-4 - 1) * sigma.
        backend: "auto" or a key of BACKENDS.

    Returns:
        (B, H, W) in [0, 1].

    Raises:
        ValueError, TypeError: naming the argument, on wrong shapes, types or values.
    """
    size = _check(verts, faces, image_size)
    _require(math.isfinite(sigma) and sigma > 0, "sigma", "a finite number above 0", sigma)
    if blur_radius is None:
        blur_radius = math.log(1 / 1e-4 - 1) * sigma
    good = math.isfinite(blur_radius) and blur_radius >= 0
    _require(good, "blur_radius", "None or a finite number of at least 0", blur_radius)
    module = _load(backend, verts)
    return module.soft_silhouette(verts, faces, size, float(sigma), float(blur_radius))


def coverage(
    verts: Tensor,
    faces: Tensor,
    image_size: int | tuple[int, int],
    supersample: int = 2,
    backend: str = "auto",
) -> Tensor:
    """Covered fraction of each pixel: hard coverage at `supersample` times the size, averaged.

    Args:
        verts: (B, V, 3) float32 (or float64 with "torch"), image plane: x right, y up, and depth.
        faces: (F, 3) int32 or int64, shared by the batch.
        image_size: S or (H, W), in pixels.
        supersample: samples per pixel and axis, at least 1.
        backend: "auto" or a key of BACKENDS.

    Returns:
        (B, H, W) in [0, 1], dtype of `verts`, no gradient.
    """
    size = _check(verts, faces, image_size)
    _require(_whole(supersample), "supersample", "a whole number of at least 1", supersample)
    with torch.no_grad():
        return _load(backend, verts).coverage(verts.detach(), faces, size, supersample)


def rasterize(
    verts: Tensor, faces: Tensor, image_size: int | tuple[int, int], backend: str = "auto"
) -> Rasterization:
    """The nearest face at each pixel centre, with its depth and barycentrics. No gradient.

    Args:
        verts: (B, V, 3) float32 (or float64 with "torch"), image plane: x right, y up, and depth.
        faces: (F, 3) int32 or int64, shared by the batch.
        image_size: S or (H, W), in pixels.
        backend: "auto" or a key of BACKENDS.
    """
    size = _check(verts, faces, image_size)
    with torch.no_grad():
        return Rasterization(*_load(backend, verts).rasterize(verts.detach(), faces, size))


def choose_backend(backend: str, verts: Tensor) -> str:
    """The backend that `backend` stands for with these vertices: "auto" is resolved."""
    if backend == "auto":
        name = _fastest(verts)
        if name == "triton" and (name, verts.device) not in _faults:
            check(verts.device)
        return "torch" if _faults.get((name, verts.device)) else name
    if backend not in BACKENDS:
        names = ", ".join(BACKENDS)
        raise ValueError(f"unknown renderer backend {backend!r}: expected one of auto, {names}")
    return backend


def _fastest(verts: Tensor) -> str:
    name = {"cuda": "triton", "cpu": "numba"}.get(verts.device.type, "torch")
    return name if verts.dtype == torch.float32 and _installed(BACKENDS[name][1]) else "torch"


def check(device: torch.device | str, backend: str = "auto") -> str:
    """Compare a backend with plain PyTorch on a device, in a few small scenes, once per device.

    Args:
        device: where the vertices will be.
        backend: "auto" or a key of BACKENDS; "torch" and "pytorch3d" are only imported.

    Returns:
        The backend to use; "torch", with a warning that says why, where that of "auto" fails.

    Raises:
        ModuleNotFoundError: if the backend's package is not installed.
        RuntimeError: if the backend fails and is not "auto", or leaves the device unusable.
    """
    verts = torch.zeros(0, 3, 3, device=device)
    name = _fastest(verts) if backend == "auto" else backend
    if name not in ("numba", "triton"):
        _load(name, verts)
        return name
    if (name, verts.device) not in _faults:
        try:
            module = _load(name, verts)
        except Exception as error:  # installed, and cannot be imported
            if backend != "auto" and isinstance(error, ModuleNotFoundError | ValueError):
                raise
            start = f"the renderer backend {name!r} does not work on {verts.device}: it stops with "
            reason = f"{type(error).__name__}: {str(error).strip()[:500]}"
            _faults[name, verts.device] = start + reason
        else:
            _faults[name, verts.device] = _fault(name, module, verts.device)
    fault = _faults[name, verts.device]
    if fault and backend != "auto":
        raise RuntimeError(fault)
    if fault:
        warnings.warn(f"{fault}; using 'torch' instead", stacklevel=2)
    return "torch" if fault else name


_faults: dict[tuple[str, torch.device], str | None] = {}  # what `check` found; None: no fault


def _fault(name: str, module: ModuleType, device: torch.device) -> str | None:
    """What is wrong with a backend on a device, as a sentence."""
    from render.self_check import compare

    start = f"the renderer backend {name!r} does not work on {device}: it "
    try:
        wrong = compare(module, device)
    except Exception as error:  # of a compiler, a driver, a folder: plain PyTorch needs none
        wrong = f"stops with {type(error).__name__}: {str(error).strip()[:500]}"
        try:
            torch.zeros(1, device=device).cpu()
        except RuntimeError as failure:  # after an illegal access nothing works in this process
            raise RuntimeError(f"{start}{wrong}, and leaves the device unusable") from failure
    return wrong and start + wrong


@lru_cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _load(backend: str, verts: Tensor) -> ModuleType:
    name = choose_backend(backend, verts)
    module, package = BACKENDS[name]
    start = f"the renderer backend {name!r}"
    if not _installed(package):
        raise ModuleNotFoundError(
            f"{start} needs the package {package}, which is not installed: install it or choose "
            f"another backend (auto, {', '.join(BACKENDS)})"
        )
    if name != "torch" and verts.dtype != torch.float32:
        raise TypeError(f"{start} computes in float32, found verts of {verts.dtype}; use 'torch'")
    if name == "numba" and verts.device.type != "cpu":
        raise ValueError(f"{start} needs CPU tensors, found verts on {verts.device}; use 'auto'")
    return importlib.import_module(f"{__name__}.{module}")


def _check(verts: Tensor, faces: Tensor, image_size: int | tuple[int, int]) -> tuple[int, int]:
    """Refuse wrong arguments by name; returns (H, W)."""
    for name, value in (("verts", verts), ("faces", faces)):
        _require(isinstance(value, Tensor), name, "a torch tensor", type(value), TypeError)
    right = verts.dim() == 3 and verts.shape[2] == 3
    _require(right, "verts", "of shape (B, V, 3)", tuple(verts.shape))
    right = verts.dtype in (torch.float32, torch.float64)
    _require(right, "verts", "float32 or float64", verts.dtype, TypeError)
    right = faces.dim() == 2 and faces.shape[1] == 3
    _require(right, "faces", "of shape (F, 3), shared by the batch", tuple(faces.shape))
    right = faces.dtype in (torch.int32, torch.int64)
    _require(right, "faces", "int32 or int64", faces.dtype, TypeError)
    _require(faces.device == verts.device, "faces", f"on {verts.device} as verts", faces.device)
    if faces.numel():
        lowest, highest = _range(faces)
        right = lowest >= 0 and highest < verts.shape[1]
        found = f"{lowest} to {highest}"
        _require(right, "faces", f"indices of the {verts.shape[1]} vertices", found)
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    right = isinstance(size, (tuple, list)) and len(size) == 2 and all(map(_whole, size))
    _require(right, "image_size", "a whole number above 0 or a pair (H, W) of them", image_size)
    return size[0], size[1]


_ranges: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # of faces: version, range


def _range(faces: Tensor) -> tuple[int, int]:
    """Lowest and highest index, read from the device once for each tensor and version of it."""
    if faces.is_inference():  # has no version
        return tuple(torch.stack(faces.aminmax()).tolist())
    version, value = _ranges.get(faces, (None, None))
    if version != faces._version:
        value = tuple(torch.stack(faces.aminmax()).tolist())
        _ranges[faces] = faces._version, value
    return value


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _require(right: bool, name: str, expected: str, found: object, error: type = ValueError):
    if not right:
        raise error(f"{name} must be {expected}, found {found}")
