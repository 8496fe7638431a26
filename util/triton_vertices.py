"""Triton kernels on features of vertices (B, V, C): sparse products, and group norm with ReLU.

Each number is read and written in its own type; sums are in float32. TRITON_INTERPRET=1 runs the
kernels, slowly, on the CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from util.vertex_kernels import GROUP

ROWS = 128  # vertices that a program of the norm takes at a time
MOST = 256  # channels, at most, and
TILE = 1024  # numbers, that a program of the product takes

Parts = tuple[Tensor, Tensor, Tensor]  # of a CSR matrix: starts of its rows, columns, values


def sparse_product(parts: Parts, num_rows: int, x: Tensor) -> Tensor:
    """y[b] = M x[b].

    Args:
        parts: of M (M, N), on the device of x.
        num_rows: M.
        x: (B, N, C).

    Returns:
        (B, M, C), of x' type. No gradient.
    """
    x = x.contiguous()
    batch, num_columns, channels = x.shape
    y = x.new_empty(batch, num_rows, channels)
    width = min(MOST, triton.next_power_of_2(channels))
    height = max(1, TILE // width)
    if y.numel():
        programs = triton.cdiv(num_rows, height), batch, triton.cdiv(channels, width)
        with torch.cuda.device_of(x):
            _product[programs](*parts, x, y, num_rows, num_columns, channels, height, width)
    return y


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """ReLU of group norm over (vertices x GROUP channels).

    Args:
        x: (B, V, C), C a multiple of GROUP.
        weight, bias: (C,) float32.
        eps: added to the variance.

    Returns:
        (B, V, C), of x' type.
    """
    return _NormRelu.apply(x, weight, bias, eps)


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        x = x.contiguous()
        y = torch.empty_like(x)
        batch, num_verts, channels = x.shape
        mean, scale = torch.empty(2, batch, channels, device=x.device)
        ctx.width = next(n for n in (32, 16, 8) if channels % n == 0)
        if y.numel():
            arrays = x, weight, bias, y, mean, scale
            with torch.cuda.device_of(x):
                numbers = num_verts, channels, eps, ROWS, ctx.width, GROUP
                _norm_forward[(channels // ctx.width, batch)](*arrays, *numbers)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, mean, scale = ctx.saved_tensors
        grad, out = grad.contiguous(), torch.empty_like(x)
        batch, num_verts, channels = x.shape
        by_bias, by_weight = torch.zeros(2, batch, channels, device=x.device)
        if x.numel():
            arrays = x, weight, bias, mean, scale, grad, out, by_bias, by_weight
            with torch.cuda.device_of(x):
                numbers = num_verts, channels, ROWS, ctx.width, GROUP
                _norm_backward[(channels // ctx.width, batch)](*arrays, *numbers)
        return out, by_weight.sum(0), by_bias.sum(0), None


@triton.jit
def _product(
    starts, columns, values, x, y, num_rows, num_columns, channels,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)[None, :]
    here = row < num_rows
    entry = tl.load(starts + row, here, 0)
    end = tl.load(starts + row + 1, here, 0)
    total = tl.zeros([HEIGHT, WIDTH], tl.float32)
    for _ in range(0, tl.max(end - entry)):
        there = entry < end
        column = tl.load(columns + entry, there, 0)
        value = tl.load(values + entry, there, 0.0)
        place = (image * num_columns + column[:, None]) * channels + channel
        found = tl.load(x + place, there[:, None] & (channel < channels), 0.0)
        total += value[:, None] * found.to(tl.float32)
        entry += 1
    place = (image * num_rows + row[:, None]) * channels + channel
    total = total.to(y.dtype.element_ty)
    tl.store(y + place, total, here[:, None] & (channel < channels))


@triton.jit
def _over_groups(x, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """The sum over the group of each channel."""
    sums = tl.sum(tl.reshape(x, [WIDTH // GROUP, GROUP]), 1)
    sums = tl.broadcast_to(sums[:, None], [WIDTH // GROUP, GROUP])
    return tl.reshape(sums, [WIDTH])


@triton.jit
def _norm_forward(
    x, weight, bias, y, mean, scale, num_verts, channels, eps,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    place = (image * num_verts + tl.arange(0, ROWS)[:, None]) * channels + channel[None, :]
    count = num_verts * GROUP * 1.0
    total = tl.zeros([WIDTH], tl.float32)
    for first in range(0, num_verts, ROWS):
        there = (first + tl.arange(0, ROWS) < num_verts)[:, None]
        total += tl.sum(tl.load(x + place + first * channels, there, 0.0).to(tl.float32), 0)
    middle = _over_groups(total, WIDTH, GROUP) / count
    total = tl.zeros([WIDTH], tl.float32)
    for first in range(0, num_verts, ROWS):
        there = (first + tl.arange(0, ROWS) < num_verts)[:, None]
        found = tl.load(x + place + first * channels, there, 0.0).to(tl.float32)
        away = tl.where(there, found - middle[None, :], 0.0)
        total += tl.sum(away * away, 0)
    factor = 1 / tl.sqrt(_over_groups(total, WIDTH, GROUP) / count + eps)
    gain, shift = tl.load(weight + channel), tl.load(bias + channel)
    for first in range(0, num_verts, ROWS):
        there = (first + tl.arange(0, ROWS) < num_verts)[:, None]
        found = tl.load(x + place + first * channels, there, 0.0).to(tl.float32)
        out = (found - middle[None, :]) * (factor * gain)[None, :] + shift[None, :]
        out = tl.where(out < 0, 0.0, out).to(y.dtype.element_ty)  # NaN stays
        tl.store(y + place + first * channels, out, there)
    tl.store(mean + image * channels + channel, middle)
    tl.store(scale + image * channels + channel, factor)


@triton.jit
def _before_norm(x, grad, place, there, middle, factor, gain, shift):
    """Normalised numbers, and the gradient by what ReLU takes."""
    unit = (tl.load(x + place, there, 0.0).to(tl.float32) - middle) * factor
    given = tl.load(grad + place, there, 0.0).to(tl.float32)
    return unit, tl.where(unit * gain + shift <= 0, 0.0, given)


@triton.jit
def _norm_backward(
    x, weight, bias, mean, scale, grad, out, by_bias, by_weight, num_verts, channels,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    place = (image * num_verts + tl.arange(0, ROWS)[:, None]) * channels + channel[None, :]
    middle = tl.load(mean + image * channels + channel)[None, :]
    factor = tl.load(scale + image * channels + channel)[None, :]
    gain, shift = tl.load(weight + channel)[None, :], tl.load(bias + channel)[None, :]
    plain, normed = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    for first in range(0, num_verts, ROWS):
        there = (first + tl.arange(0, ROWS) < num_verts)[:, None]
        at = place + first * channels
        unit, given = _before_norm(x, grad, at, there, middle, factor, gain, shift)
        plain += tl.sum(given, 0)
        normed += tl.sum(given * unit, 0)
    tl.store(by_bias + image * channels + channel, plain)
    tl.store(by_weight + image * channels + channel, normed)
    count = num_verts * GROUP * 1.0
    one = tl.load(weight + channel)
    level = (_over_groups(plain * one, WIDTH, GROUP) / count)[None, :]
    slope = (_over_groups(normed * one, WIDTH, GROUP) / count)[None, :]
    for first in range(0, num_verts, ROWS):
        there = (first + tl.arange(0, ROWS) < num_verts)[:, None]
        at = place + first * channels
        unit, given = _before_norm(x, grad, at, there, middle, factor, gain, shift)
        result = factor * (given * gain - level - unit * slope)
        tl.store(out + at, result.to(out.dtype.element_ty), there)
