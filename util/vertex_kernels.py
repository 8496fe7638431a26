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

GROUP = 8  # channels of a group of the norm
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}  # to plain PyTorch's float32, of the largest


def kernels_for(x: Tensor) -> ModuleType | None:
    """`util.triton_vertices` where its kernels take `x` and work on its device, else None."""
    return _working(x.device) if x.is_cuda and x.dtype in CLOSE else None


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
    exact = torch.randn(2, 150, 64, generator=random).to(device)
    weight, bias = torch.rand(2, 64, generator=random).to(device).sub(0.3)
    dense = torch.rand(70, 150, generator=random).sub(0.95).clamp_min(0).to(device)
    filled = dense > 0
    parts = F.pad(filled.sum(1).cumsum(0), (1, 0)), filled.nonzero()[:, 1], dense[filled]
    product = (dense.double() @ exact.double()).float()
    upstream = torch.linspace(-1, 1, exact.numel(), device=device).view_as(exact)

    def gradients(function: Callable, x: Tensor) -> tuple[Tensor, ...]:
        given = [value.detach().clone().requires_grad_() for value in (x, weight, bias)]
        with torch.enable_grad():
            return torch.autograd.grad(function(*given), given, upstream.to(x.dtype))

    for kind, close in CLOSE.items():

        def differ(ours: Tensor, plain: Tensor, close=close) -> bool:
            return not bool((ours.float() - plain).abs().max() <= close * plain.abs().max())

        x, plain = exact.to(kind), exact.to(kind).float()
        if differ(module.sparse_product(parts, 70, x), product):
            return f"sparse products of {kind} are wrong"
        if differ(module.norm_relu(x, weight, bias, 1e-5), _plain_norm_relu(plain, weight, bias)):
            return f"group norms of {kind} are wrong"
        found = gradients(partial(module.norm_relu, eps=1e-5), x)
        if any(map(differ, found, gradients(_plain_norm_relu, plain))):
            return f"gradients of group norms of {kind} are wrong"
    return None


def _plain_norm_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups = x.shape[2] // GROUP
    return F.relu(F.group_norm(x.transpose(1, 2), groups, weight, bias)).transpose(1, 2)
