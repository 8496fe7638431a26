"""Whether features of vertices (B, V, C) go through Triton's kernels (`util.triton_vertices`).

Plain PyTorch copies such features into other layouts and to float32 and back at each sparse product
and norm, which takes most of the refiner's time on a GPU.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

TYPES = torch.float32, torch.bfloat16, torch.float16
CLOSE = 1e-4  # of the largest: how far results may be from plain PyTorch's


def kernels_for(x: Tensor) -> ModuleType | None:
    """`util.triton_vertices` where its kernels take `x` and work on its device, else None."""
    return _working(x.device) if x.is_cuda and x.dtype in TYPES else None


@lru_cache
def _working(device: torch.device) -> ModuleType | None:
    """The kernels, compared with plain PyTorch; None, with a warning, where they differ or fail."""
    if importlib.util.find_spec("triton") is None:
        return None
    try:
        module = importlib.import_module("util.triton_vertices")
        with torch.autocast(device.type, enabled=False), torch.inference_mode(False):
            wrong = compare(module, device)
    except Exception as error:  # of a compiler, a driver, a folder: plain PyTorch needs none
        wrong = f"they stop with {type(error).__name__}: {str(error).strip()[:500]}"
    if not wrong:
        return module
    start = f"the refiner's Triton kernels do not work on {device}"
    warnings.warn(f"{start}: {wrong}; using plain PyTorch instead", stacklevel=2)
    return None


def compare(module: ModuleType, device: torch.device | str) -> str | None:
    """What is wrong with the kernels on a device, as words; None where nothing is."""
    random = torch.Generator().manual_seed(2)
    x = torch.randn(2, 150, 48, generator=random).to(device)
    weight, bias = torch.rand(2, 48, generator=random).to(device).sub(0.3)
    dense = torch.rand(70, 150, generator=random).sub(0.95).clamp_min(0).to(device)
    filled = dense > 0
    parts = F.pad(filled.sum(1).cumsum(0), (1, 0)), filled.nonzero()[:, 1], dense[filled]
    upstream = torch.linspace(-1, 1, x.numel(), device=device).view_as(x)

    def differ(ours: Tensor, plain: Tensor) -> bool:
        return not bool((ours - plain).abs().max() <= CLOSE * plain.abs().max())

    def gradients(function: Callable) -> tuple[Tensor, ...]:
        given = [value.detach().clone().requires_grad_() for value in (x, weight, bias)]
        with torch.enable_grad():
            return torch.autograd.grad(function(*given), given, upstream)

    if differ(module.sparse_product(parts, 70, x), (dense.double() @ x.double()).float()):
        return "sparse products are wrong"
    if differ(module.norm_relu(x, weight, bias, 1e-5), _plain_norm_relu(x, weight, bias)):
        return "group norms are wrong"
    found, expected = gradients(partial(module.norm_relu, eps=1e-5)), gradients(_plain_norm_relu)
    if any(map(differ, found, expected)):
        return "gradients of group norms are wrong"
    return None


def _plain_norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = x.shape[2] // 8
    return F.relu(F.group_norm(x.transpose(1, 2), groups, weight, bias)).transpose(1, 2)
