"""The renderer on the CPU: Numba kernels over images and bands of rows within an image.

The product of 1 + exp(-d / sigma) over the faces (d: squared distance in the plane, negative
inside) is one pass over the faces; the silhouette is 1 - 1 / product. A face touches the pixels of
its bounding box widened by the reach of the blur, LANES pixels of a row at a time, which the
compiler turns into vector instructions. The backward pass repeats the distances and sums each
face's gradient over its pixels, so only the product is kept: arrays are (B, H, W) or of the
vertices' size.

Each piece of work (an image and a band of rows) is one serial call without the interpreter lock,
taken from a queue by the calling thread and by helpers of a thread pool, as many as
`torch.get_num_threads()`. Any thread may call, autograd's included; no OpenMP or Numba threading
layer is involved. Equal thread counts give equal results to the last bit.

Compiled code is kept between runs beside this file, or in the user's cache folder (or
NUMBA_CACHE_DIR) where this one is read-only; where there is neither, each run compiles anew.
"""

import math
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from render import torch_reference
from render.torch_reference import MAX_COORDINATE, MIN_DOUBLED_AREA, MIN_SQUARED_EDGE, Size

LANES = 16  # pixels computed together; rows are padded by as many
F = np.float32
ZERO, ONE, FAR = F(0), F(1), F(np.inf)
LIMIT, NO_AREA, SHORT = F(MAX_COORDINATE), F(MIN_DOUBLED_AREA), F(MIN_SQUARED_EDGE)
MOST = F(1e30)  # of a product: far beyond what still changes the silhouette, and no overflow
OPAQUE = F(2**26)  # a pixel with this product is 1 to the last bit and has no gradient


def _jit(**options) -> Callable:
    def decorate(function: Callable) -> Callable:
        try:
            return njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:  # no folder that can be written to
            return njit(nogil=True, error_model="numpy", **options)(function)

    return decorate


exact = _jit(fastmath=False)  # not the caller's setting
fast = _jit(fastmath={"nnan", "ninf", "nsz", "contract"})  # sums keep their order
reorder = _jit(fastmath=True)


# Calls from PyTorch


def soft_silhouette(
    verts: Tensor, faces: Tensor, size: Size, sigma: float, blur_radius: float
) -> Tensor:
    """As `render.soft_silhouette`."""
    return _SoftSilhouette.apply(verts, faces, size, sigma, blur_radius)


class _SoftSilhouette(torch.autograd.Function):
    @staticmethod
    def forward(ctx, verts, faces, size, sigma, blur_radius):
        mesh, corners = _arrays(verts, faces)
        silhouette = np.empty((len(mesh), *size), np.float32)
        product = np.empty((len(mesh), size[0], size[1] + LANES), np.float32)
        scale, reach, limit = _units(sigma, blur_radius)

        def work(b: int, band: int, top: int, bottom: int) -> None:
            arrays = mesh[b], corners, product[b], silhouette[b]
            _soft_forward(*arrays, top, bottom, scale, reach, limit)

        _distribute(work, len(mesh), size[0], _bands(len(mesh), size[0]))
        ctx.save_for_backward(verts, faces, torch.from_numpy(product))
        ctx.settings = size, sigma, blur_radius
        return torch.from_numpy(silhouette)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_silhouette):
        verts, faces, product = ctx.saved_tensors
        size, sigma, blur_radius = ctx.settings
        mesh, corners = _arrays(verts, faces)
        product, upstream = product.numpy(), grad_silhouette.contiguous().numpy()
        bands = _bands(len(mesh), size[0])
        grad = np.zeros((len(mesh), bands, verts.shape[1], 2), np.float32)
        scale, reach, limit = _units(sigma, blur_radius)

        def work(b: int, band: int, top: int, bottom: int) -> None:
            arrays = mesh[b], corners, product[b], upstream[b], grad[b, band]
            _soft_backward(*arrays, top, bottom, scale, reach, limit)

        _distribute(work, len(mesh), size[0], bands)
        grad_verts = np.zeros(verts.shape, np.float32)
        np.multiply(grad.sum(1), F(-2 * math.log(2)), out=grad_verts[..., :2])
        for b in np.flatnonzero(~np.isfinite(upstream.sum((1, 2)))):  # the kernel knows no NaN
            with torch.enable_grad():
                plain = verts[b : b + 1].detach().requires_grad_()
                silhouette = torch_reference.soft_silhouette(plain, faces, *ctx.settings)
                grad_verts[b] = torch.autograd.grad(silhouette, plain, grad_silhouette[b : b + 1])[
                    0
                ]
        return torch.from_numpy(grad_verts), None, None, None, None


def coverage(verts: Tensor, faces: Tensor, size: Size, supersample: int) -> Tensor:
    """As `render.coverage`."""
    mesh, corners = _arrays(verts, faces)
    covered = np.empty((len(mesh), *size), np.float32)
    columns, rows = _centres(size[1] * supersample), -_centres(size[0] * supersample)

    def work(b: int, band: int, top: int, bottom: int) -> None:
        _cover(mesh[b], corners, columns, rows, covered[b], top, bottom, supersample)

    _distribute(work, len(mesh), size[0], _bands(len(mesh), size[0]))
    return torch.from_numpy(covered)


def rasterize(verts: Tensor, faces: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """As `render.rasterize`: face, depth, bary."""
    mesh, corners = _arrays(verts, faces)
    face = np.empty((len(mesh), *size), np.int64)
    depth = np.empty((len(mesh), *size), np.float32)
    bary = np.empty((len(mesh), *size, 3), np.float32)
    columns, rows = _centres(size[1]), -_centres(size[0])

    def work(b: int, band: int, top: int, bottom: int) -> None:
        _nearest(mesh[b], corners, columns, rows, face[b], depth[b], bary[b], top, bottom)

    _distribute(work, len(mesh), size[0], _bands(len(mesh), size[0]))
    return torch.from_numpy(face), torch.from_numpy(depth), torch.from_numpy(bary)


def _arrays(verts: Tensor, faces: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return verts.detach().contiguous().numpy(), faces.long().contiguous().numpy()


def _centres(count: int) -> np.ndarray:
    """Plane coordinates of pixel centres, padded: (count + LANES,) float32."""
    return (2 * np.arange(count + LANES) + 1).astype(np.float32) / F(count) - ONE


def _units(sigma: float, blur_radius: float) -> tuple[np.float32, np.float32, np.float32]:
    """Factor that makes squared lengths binary logits; reach of the blur; its square, scaled."""
    scale = F(math.sqrt(math.log2(math.e) / sigma))
    return scale, F(math.sqrt(blur_radius)), F(blur_radius * float(scale) ** 2)


# Distribution over threads

_pools: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive a fork


def _bands(images: int, height: int) -> int:
    """Bands of rows per image: so many that threads end together, none below eight rows."""
    return max(1, min(math.ceil(3 * torch.get_num_threads() / max(images, 1)), height // 8))


def _distribute(
    work: Callable[[int, int, int, int], None], images: int, height: int, bands: int
) -> None:
    """Call work(image, band, first row, end row) for each image and band, on all threads."""
    edges = [height * band // bands for band in range(bands + 1)]
    queue = deque(
        (b, band, edges[band], edges[band + 1]) for b in range(images) for band in range(bands)
    )

    def drain() -> None:
        while True:
            try:
                piece = queue.popleft()
            except IndexError:
                return
            work(*piece)

    helpers = []
    if len(queue) > 1 and torch.get_num_threads() > 1:
        pool = _pools.get(os.getpid())
        if pool is None:
            pool = _pools.setdefault(os.getpid(), ThreadPoolExecutor(os.cpu_count(), "render"))
        helpers = [pool.submit(drain) for _ in range(min(torch.get_num_threads(), len(queue)) - 1)]
    drain()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


# Kernels: float32 throughout, one image, rows top to bottom - 1


@exact
def _box(verts, i, j, k, height, width, top, bottom, reach):
    """First and end row and column of a face's pixels; empty for faces that are left out."""
    xi, yi, xj, yj = verts[i, 0], verts[i, 1], verts[j, 0], verts[j, 1]
    xk, yk = verts[k, 0], verts[k, 1]
    high = ONE - F(2 * top) / F(height) + reach
    low = ONE - F(2 * bottom) / F(height) - reach
    if (yi > high and yj > high and yk > high) or (yi < low and yj < low and yk < low):
        return 0, 0, 0, 0
    for corner in (i, j, k):
        for axis in range(3):
            if not abs(verts[corner, axis]) <= LIMIT:
                return 0, 0, 0, 0
    half_height, half_width = F(height) / F(2), F(width) / F(2)
    margin = F(0.501)  # 0.001 against rounding
    first_row = math.ceil((ONE - (max(yi, yj, yk) + reach)) * half_height - margin)
    end_row = math.floor((ONE - (min(yi, yj, yk) - reach)) * half_height + margin)
    first_column = math.ceil((ONE + (min(xi, xj, xk) - reach)) * half_width - margin)
    end_column = math.floor((ONE + (max(xi, xj, xk) + reach)) * half_width + margin)
    if not abs(_doubled_area(verts, i, j, k)) > NO_AREA:
        return 0, 0, 0, 0
    return max(first_row, top), min(end_row, bottom), max(first_column, 0), min(end_column, width)


@exact
def _doubled_area(verts, i, j, k):
    x, y = verts[j, 0], verts[j, 1]
    return (verts[i, 1] - y) * (verts[k, 0] - x) - (verts[i, 0] - x) * (verts[k, 1] - y)


@exact
def _edge(verts, start, end, turn, scale):
    """Origin x, y, scaled direction x, y and length, 1 / length, inside (+-1), unscaled length.

    A short edge counts as its end point: its origin, with a length of 0 (and 1 / length of 0).
    """
    x, y = verts[end, 0] - verts[start, 0], verts[end, 1] - verts[start, 1]
    squared = x * x + y * y
    length = np.sqrt(squared)
    factor = scale / length if length > ZERO else ZERO
    if squared <= SHORT:
        return verts[end, 0], verts[end, 1], x * factor, y * factor, ZERO, ZERO, turn, length
    origin_x, origin_y, scaled = verts[start, 0], verts[start, 1], length * scale
    return origin_x, origin_y, x * factor, y * factor, scaled, ONE / scaled, turn, length


@fast
def _place(edge, x, y):
    """A point by an edge, scaled: distance from its line, positive inside, and along it."""
    dx, dy = x - edge[0], y - edge[1]
    return edge[6] * (edge[2] * dy - edge[3] * dx), edge[2] * dx + edge[3] * dy


@fast
def _power_of_two(x):
    """2**x to 1e-7 of itself, for -100 <= x <= 100."""
    whole = np.int32(x + F(127.5))
    part = x - (F(whole) - F(127))  # -0.5 to 0.5
    value = F(0.0013276470) * part + F(0.0096755410)
    value = value * part + F(0.0555071346)
    value = value * part + F(0.2402212024)
    value = value * part + F(0.6931469440)
    value = value * part + F(1.0000001192)
    return value * np.int32(whole << np.int32(23)).view(np.float32)


@fast
def _soft_forward(verts, faces, product, silhouette, top, bottom, scale, reach, limit):
    height, width = silhouette.shape
    step = F(2) / F(width)
    product[top:bottom] = ONE
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        box = _box(verts, i, j, k, height, width, top, bottom, reach)
        first_row, end_row, first_column, end_column = box
        if first_row >= end_row or first_column >= end_column:
            continue
        turn = ONE if _doubled_area(verts, i, j, k) > ZERO else -ONE
        a, b = _edge(verts, i, j, turn, scale), _edge(verts, j, k, turn, scale)
        c = _edge(verts, i, k, -turn, scale)
        # Depth of the corner across each edge, times the edge's length.
        za, zb, zc = verts[k, 2] * a[7], verts[i, 2] * b[7], verts[j, 2] * c[7]
        for row in range(first_row, end_row):
            y = ONE - F(2 * row + 1) / F(height)
            for column in range(first_column, end_column, LANES):
                x = F(2 * column + 1) / F(width) - ONE
                side_a, along_a = _place(a, x, y)
                side_b, along_b = _place(b, x, y)
                side_c, along_c = _place(c, x, y)
                window = product[row, column : column + LANES]
                for lane in range(LANES):
                    dx = F(lane) * step
                    na = side_a - a[6] * a[3] * dx
                    nb = side_b - b[6] * b[3] * dx
                    nc = side_c - c[6] * c[3] * dx
                    ta, tb, tc = along_a + a[2] * dx, along_b + b[2] * dx, along_c + c[2] * dx
                    ea = ta - min(max(ta, ZERO), a[4])
                    eb = tb - min(max(tb, ZERO), b[4])
                    ec = tc - min(max(tc, ZERO), c[4])
                    squared = min(na * na + ea * ea, min(nb * nb + eb * eb, nc * nc + ec * ec))
                    inside = min(na, min(nb, nc)) > ZERO
                    logit = squared if inside else -squared
                    odds = _power_of_two(min(max(logit, F(-100)), F(25)))
                    deep = max(na, ZERO) * za + max(nb, ZERO) * zb + max(nc, ZERO) * zc
                    counts = (inside | (squared < limit)) & (deep >= ZERO)
                    window[lane] = min(window[lane] * (ONE + (odds if counts else ZERO)), MOST)
    for row in range(top, bottom):
        for column in range(width):
            silhouette[row, column] = ONE - ONE / product[row, column]


@reorder
def _total(sums, quantity):
    total = ZERO
    for lane in range(LANES):
        total += sums[quantity * LANES + lane]
    return total


@exact
def _add_edge(grad, start, end, edge, sums, quantity):
    """Add an edge's gradient to its corners, from sums over pixels of w n, w e, w n t, w e t."""
    origin = end if edge[4] == ZERO else start
    n, e = _total(sums, quantity), _total(sums, quantity + 1)
    nt, et = _total(sums, quantity + 2) * edge[5], _total(sums, quantity + 3) * edge[5]
    ux, uy, vx, vy = (
        edge[2],
        edge[3],
        -edge[6] * edge[3],
        edge[6] * edge[2],
    )  # along the edge, and to the inside
    far_x, far_y = vx * nt + ux * et, vy * nt + uy * et
    grad[origin, 0] += vx * n + ux * e - far_x
    grad[origin, 1] += vy * n + uy * e - far_y
    grad[end, 0] += far_x
    grad[end, 1] += far_y


@fast
def _soft_backward(verts, faces, product, upstream, grad, top, bottom, scale, reach, limit):
    height, width = upstream.shape
    step = F(2) / F(width)
    # Gradient by a pixel's logits over their sigmoids, 0 where opaque; and which blocks have any.
    weight = np.zeros((bottom - top, width + LANES), np.float32)
    alive = np.zeros((bottom - top, width // LANES + 2), np.bool_)
    for row in range(top, bottom):
        for column in range(width):
            if product[row, column] < OPAQUE and product[row, column] > ONE:
                weight[row - top, column] = upstream[row, column] / product[row, column]
                alive[row - top, column // LANES] |= upstream[row, column] != ZERO
    sums = np.empty(13 * LANES, np.float32)  # by quantity and lane; the last is the window's weight
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        box = _box(verts, i, j, k, height, width, top, bottom, reach)
        first_row, end_row, first_column, end_column = box
        if first_row >= end_row or first_column >= end_column:
            continue
        turn = ONE if _doubled_area(verts, i, j, k) > ZERO else -ONE
        a, b = _edge(verts, i, j, turn, scale), _edge(verts, j, k, turn, scale)
        c = _edge(verts, i, k, -turn, scale)
        za, zb, zc = verts[k, 2] * a[7], verts[i, 2] * b[7], verts[j, 2] * c[7]
        for quantity in range(12 * LANES):
            sums[quantity] = ZERO
        for row in range(first_row, end_row):
            y = ONE - F(2 * row + 1) / F(height)
            for column in range(first_column, end_column, LANES):
                if not (alive[row - top, column // LANES] or alive[row - top, column // LANES + 1]):
                    continue
                x = F(2 * column + 1) / F(width) - ONE
                side_a, along_a = _place(a, x, y)
                side_b, along_b = _place(b, x, y)
                side_c, along_c = _place(c, x, y)
                window = weight[row - top, column : column + LANES]
                for lane in range(LANES):
                    sums[12 * LANES + lane] = window[lane]
                for lane in range(LANES):
                    dx = F(lane) * step
                    na = side_a - a[6] * a[3] * dx
                    nb = side_b - b[6] * b[3] * dx
                    nc = side_c - c[6] * c[3] * dx
                    ta, tb, tc = along_a + a[2] * dx, along_b + b[2] * dx, along_c + c[2] * dx
                    pa, pb = min(max(ta, ZERO), a[4]), min(max(tb, ZERO), b[4])
                    pc = min(max(tc, ZERO), c[4])
                    ea, eb, ec = ta - pa, tb - pb, tc - pc
                    da, db, dc = na * na + ea * ea, nb * nb + eb * eb, nc * nc + ec * ec
                    squared = min(da, min(db, dc))
                    inside = min(na, min(nb, nc)) > ZERO
                    logit = squared if inside else -squared
                    odds = _power_of_two(min(max(logit, F(-100)), F(25)))
                    deep = max(na, ZERO) * za + max(nb, ZERO) * zb + max(nc, ZERO) * zc
                    counts = (inside | (squared < limit)) & (deep >= ZERO)
                    w = sums[12 * LANES + lane] * odds / (ONE + odds)
                    w = (w if inside else -w) if counts else ZERO
                    wa = w if da == squared else ZERO
                    wb = w if (db == squared) & (da != squared) else ZERO
                    wc = w if (db != squared) & (da != squared) else ZERO
                    sums[lane] += wa * na
                    sums[LANES + lane] += wa * ea
                    sums[2 * LANES + lane] += wa * na * pa
                    sums[3 * LANES + lane] += wa * ea * pa
                    sums[4 * LANES + lane] += wb * nb
                    sums[5 * LANES + lane] += wb * eb
                    sums[6 * LANES + lane] += wb * nb * pb
                    sums[7 * LANES + lane] += wb * eb * pb
                    sums[8 * LANES + lane] += wc * nc
                    sums[9 * LANES + lane] += wc * ec
                    sums[10 * LANES + lane] += wc * nc * pc
                    sums[11 * LANES + lane] += wc * ec * pc
        _add_edge(grad, i, j, a, sums, 0)
        _add_edge(grad, j, k, b, sums, 4)
        _add_edge(grad, i, k, c, sums, 8)


@exact
def _lines(verts, i, j, k):
    """Per edge across from corners i, j, k: start x, y and vector x, y, inside positive."""
    turn = ONE if _doubled_area(verts, i, j, k) > ZERO else -ONE
    xi, yi, xj, yj = verts[i, 0], verts[i, 1], verts[j, 0], verts[j, 1]
    xk, yk = verts[k, 0], verts[k, 1]
    return (
        (xj, yj, turn * (xk - xj), turn * (yk - yj)),
        (xk, yk, turn * (xi - xk), turn * (yi - yk)),
        (xi, yi, turn * (xj - xi), turn * (yj - yi)),
    )


@exact
def _weight(line, x, y):
    """Barycentric times |doubled area|; not fused: exactly 0 where the reference has 0."""
    return line[2] * (y - line[1]) - line[3] * (x - line[0])


@exact
def _cover(verts, faces, columns, rows, covered, top, bottom, supersample):
    height, width = len(rows) - LANES, len(columns) - LANES
    first, end = top * supersample, bottom * supersample
    samples = np.zeros((end - first, width + LANES), np.float32)
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        box = _box(verts, i, j, k, height, width, first, end, ZERO)
        first_row, end_row, first_column, end_column = box
        if first_row >= end_row or first_column >= end_column:
            continue
        p, q, r = _lines(verts, i, j, k)
        zi, zj, zk = verts[i, 2], verts[j, 2], verts[k, 2]
        for row in range(first_row, end_row):
            y = rows[row]
            for column in range(first_column, end_column, LANES):
                window = samples[row - first, column : column + LANES]
                xs = columns[column : column + LANES]
                for lane in range(LANES):
                    x = xs[lane]
                    u, v, w = _weight(p, x, y), _weight(q, x, y), _weight(r, x, y)
                    seen = (u > ZERO) & (v > ZERO) & (w > ZERO)
                    seen &= u * zi + v * zj + w * zk >= ZERO
                    window[lane] = ONE if seen else window[lane]
    part = ONE / F(supersample * supersample)
    for row in range(top, bottom):
        for column in range(covered.shape[1]):
            total = ZERO
            for y in range(supersample):
                for x in range(supersample):
                    total += samples[row * supersample + y - first, column * supersample + x]
            covered[row, column] = total * part


@exact
def _nearest(verts, faces, columns, rows, face, depth, bary, top, bottom):
    height, width = face.shape
    nearest = np.full((bottom - top, width + LANES), FAR)
    owner = np.full((bottom - top, width + LANES), np.int32(-1))
    for f in range(len(faces)):
        i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
        box = _box(verts, i, j, k, height, width, top, bottom, ZERO)
        first_row, end_row, first_column, end_column = box
        if first_row >= end_row or first_column >= end_column:
            continue
        p, q, r = _lines(verts, i, j, k)
        zi, zj, zk = verts[i, 2], verts[j, 2], verts[k, 2]
        for row in range(first_row, end_row):
            y = rows[row]
            for column in range(first_column, end_column, LANES):
                closest = nearest[row - top, column : column + LANES]
                ids = owner[row - top, column : column + LANES]
                xs = columns[column : column + LANES]
                for lane in range(LANES):
                    x = xs[lane]
                    u, v, w = _weight(p, x, y), _weight(q, x, y), _weight(r, x, y)
                    z = (u * zi + v * zj + w * zk) / (u + v + w)
                    seen = (u > ZERO) & (v > ZERO) & (w > ZERO)
                    seen &= (z >= ZERO) & (z < closest[lane])
                    closest[lane] = z if seen else closest[lane]
                    ids[lane] = np.int32(f) if seen else ids[lane]
    for row in range(top, bottom):
        for column in range(width):
            f = owner[row - top, column]
            face[row, column] = f
            depth[row, column] = nearest[row - top, column] if f >= 0 else -ONE
            u = v = w = -ONE
            if f >= 0:
                p, q, r = _lines(verts, faces[f, 0], faces[f, 1], faces[f, 2])
                x, y = columns[column], rows[row]
                u, v, w = _weight(p, x, y), _weight(q, x, y), _weight(r, x, y)
                total = u + v + w
                u, v, w = u / total, v / total, w / total
            bary[row, column, 0], bary[row, column, 1], bary[row, column, 2] = u, v, w
