"""The renderer on the CPU: Numba kernels over images and bands of rows within an image.

The product of 1 + exp(-d / sigma) over the faces (d: squared distance in the plane, negative
inside) is one pass over the faces; the silhouette is 1 - 1 / product. A face touches the pixels of
its bounding box widened by the reach of the blur. The backward pass repeats the distances and sums
each face's gradient over its pixels, so only the product is kept: arrays are (B, H, W) or of the
vertices' size.

Both passes work on GROUP faces at a time, in loops that the compiler turns into vector
instructions: `_set_up` over the faces; then, face by face, `_factors` over all pixels of the box,
one row after another without gaps, or `_pull` over those that are not opaque, copied together from
lists that are made once for each row.

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
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

from render import torch_reference
from render.torch_reference import MAX_COORDINATE, MIN_DOUBLED_AREA, MIN_SQUARED_EDGE, Size

LANES = 16  # pixels copied together; rows are padded by as many
F, U = np.float32, np.uint64  # unsigned indices need no check for negative ones
ZERO, ONE, FAR = F(0), F(1), F(np.inf)
LIMIT, NO_AREA, SHORT = F(MAX_COORDINATE), F(MIN_DOUBLED_AREA), F(MIN_SQUARED_EDGE)
MOST = F(1e30)  # of a product: far beyond what still changes the silhouette, and no overflow
WHOLE, SIGN = F(1.5 * 2**23), np.int32(-(2**31))  # added, rounds; the sign's bit
OPAQUE = F(2**26)  # a pixel with this product is 1 to the last bit and has no gradient
STEP, GROUP, ROOM = 32, U(32), 1024  # faces, and pixels of them, that are worked on together
VECTOR, HALF = (ir.VectorType(ir.FloatType(), lanes) for lanes in (LANES, LANES // 2))


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
        units = _units(sigma, blur_radius)

        def work(b: int, band: int, top: int, bottom: int) -> None:
            arrays = mesh[b], corners, product[b], silhouette[b]
            _soft_forward(*arrays, top, bottom, units)

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
        units = _units(sigma, blur_radius)

        def work(b: int, band: int, top: int, bottom: int) -> None:
            arrays = mesh[b], corners, product[b], upstream[b], grad[b, band]
            _soft_backward(*arrays, top, bottom, units)

        _distribute(work, len(mesh), size[0], bands)
        grad_verts = np.zeros(verts.shape, np.float32)
        np.multiply(grad.sum(1), F(-size[1] / math.log2(math.e)), out=grad_verts[..., :2])
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
    threads = torch.get_num_threads()
    wanted = 2 * threads if threads > 1 else 1
    return max(1, min(math.ceil(wanted / max(images, 1)), height // 8))


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
def _gather(verts, faces, face, height, top, bottom, reach, owners, corners):
    """Corners of the next faces that may reach rows top to bottom - 1; their number, the end."""
    high = ONE - F(2 * top) / F(height) + reach
    low = ONE - F(2 * bottom) / F(height) - reach
    count = U(0)
    while face < len(faces) and count < GROUP:
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        yi, yj, yk = verts[i, 1], verts[j, 1], verts[k, 1]
        if not ((yi > high and yj > high and yk > high) or (yi < low and yj < low and yk < low)):
            owners[count] = face
            corners[count], corners[GROUP + count] = verts[i, 0], yi
            corners[U(2) * GROUP + count], corners[U(3) * GROUP + count] = verts[i, 2], verts[j, 0]
            corners[U(4) * GROUP + count], corners[U(5) * GROUP + count] = yj, verts[j, 2]
            corners[U(6) * GROUP + count], corners[U(7) * GROUP + count] = verts[k, 0], yk
            corners[U(8) * GROUP + count] = verts[k, 2]
            count += U(1)
        face += 1
    return count, face


@exact
def _edge(x, y, from_x, from_y, short_x, short_y, turn, scale, short):
    """An edge of vector x, y in columns as numbers e, in scaled units.

    Away from it, inside positive: e0 x + e1 y + e2. Along it, from its middle: e1 x - e0 y + e3,
    from -e4 to e4, as a fraction e5 along + e6. e7: its length, in columns.
    """
    squared = x * x + y * y
    length = np.sqrt(squared)
    factor = turn * scale / length if length > ZERO else ZERO
    x, y = F(0.5) * x, F(0.5) * y
    is_short = squared <= short  # counts as its end point
    middle_x, middle_y = short_x if is_short else from_x + x, short_y if is_short else from_y + y
    across_x, across_y = F(-2) * factor * y, F(2) * factor * x
    away = -(across_x * middle_x + across_y * middle_y)
    along = across_x * middle_y - across_y * middle_x
    half = ZERO if is_short else F(0.5) * length * scale
    part = ZERO if is_short else turn / (length * scale)
    last = ONE if is_short else F(0.5)
    return across_x, across_y, away, along, half, part, last, length


@exact
def _store(table, n, e):
    """Write the numbers of an edge of face n."""
    table[n], table[1 * STEP + n], table[2 * STEP + n] = e[0], e[1], e[2]
    table[3 * STEP + n], table[4 * STEP + n], table[5 * STEP + n] = e[3], e[4], e[5]
    table[6 * STEP + n], table[7 * STEP + n] = e[6], e[7]


@exact
def _set_up(corners, count, size, band, reach, scale, boxes, table):
    """Boxes (first row, end row, first column, end column) and edges of faces; numbers of a kind
    lie together. Faces that are left out get no rows.

    Edges are in columns, x right and y up (pixels, in square images), from the left edge of the
    box's first pixel, at the height of its centre.
    """
    half_height, half_width = F(size[0]) / F(2), F(size[1]) / F(2)
    top, bottom, width = F(band[0]), F(band[1]), F(size[1])
    margin = F(0.501)  # 0.001 against rounding
    row_height, scale, short = half_width / half_height, scale / half_width, SHORT * half_width**2
    for n in range(np.int64(count)):
        xi, yi, zi = corners[n], corners[STEP + n], corners[2 * STEP + n]
        xj, yj, zj = corners[3 * STEP + n], corners[4 * STEP + n], corners[5 * STEP + n]
        xk, yk, zk = corners[6 * STEP + n], corners[7 * STEP + n], corners[8 * STEP + n]
        usable = (abs(xi) <= LIMIT) & (abs(yi) <= LIMIT) & (abs(zi) <= LIMIT)
        usable &= (abs(xj) <= LIMIT) & (abs(yj) <= LIMIT) & (abs(zj) <= LIMIT)
        usable &= (abs(xk) <= LIMIT) & (abs(yk) <= LIMIT) & (abs(zk) <= LIMIT)
        area = (yi - yj) * (xk - xj) - (xi - xj) * (yk - yj)
        usable &= abs(area) > NO_AREA
        high, low = max(yi, max(yj, yk)) + reach, min(yi, min(yj, yk)) - reach
        left, right = min(xi, min(xj, xk)) - reach, max(xi, max(xj, xk)) + reach
        first = min(max(np.ceil((ONE - high) * half_height - margin), top), bottom)
        end = min(max(np.floor((ONE - low) * half_height + margin), top), bottom)
        left = min(max(np.ceil((ONE + left) * half_width - margin), ZERO), width)
        right = min(max(np.floor((ONE + right) * half_width + margin), ZERO), width)
        first, left = first if usable else top, left if usable else ZERO
        boxes[n] = first
        boxes[STEP + n] = end if usable else top
        boxes[2 * STEP + n] = left
        boxes[3 * STEP + n] = right if usable else ZERO
        turn = ONE if area > ZERO else -ONE
        ax, ay = (xj - xi) * half_width, (yj - yi) * half_width
        cx, cy = (xk - xi) * half_width, (yk - yi) * half_width
        from_x = xi * half_width + (half_width - left)
        from_y = yi * half_width - (half_height - first - F(0.5)) * row_height
        jx, jy, kx, ky = from_x + ax, from_y + ay, from_x + cx, from_y + cy
        a = _edge(ax, ay, from_x, from_y, jx, jy, turn, scale, short)
        b = _edge(cx - ax, cy - ay, jx, jy, kx, ky, turn, scale, short)
        c = _edge(cx, cy, from_x, from_y, kx, ky, -turn, scale, short)
        _store(table, n, a)
        _store(table, 8 * STEP + n, b)
        _store(table, 16 * STEP + n, c)


@exact
def _pieces(boxes, count, n, row, room, pieces):
    """Pieces of faces, of whole rows, that fit in `room` pixels, from a face and row on.

    A piece is first row, end row, first column, end column, where its pixels start, and the face.
    """
    done, pixels = 0, U(0)
    while n < count:
        first, end = max(U(boxes[n]), row), U(boxes[GROUP + n])
        left, right = U(boxes[U(2) * GROUP + n]), U(boxes[U(3) * GROUP + n])
        if first < end and left < right:
            across = right - left
            down = min(end - first, (room - pixels) // across)
            if down == U(0):
                break
            piece = pieces[done]
            piece[0], piece[1], piece[2], piece[3] = first, first + down, left, right
            piece[4], piece[5] = pixels, n
            pixels += (down * across + U(7)) // U(8) * U(8)
            done += 1
            if first + down < end:
                row = first + down
                break
        n, row = n + U(1), U(0)
    return done, n, row


@fast
def _near(edge, x, y):
    """Distance from an edge's line, and squared distance from the edge."""
    away = edge[0] * x + (edge[1] * y + edge[2])
    past = max(abs(edge[1] * x + (edge[3] - edge[0] * y)) - edge[4], ZERO)
    return away, away * away + past * past


@fast
def _nearest_point(edge, x, y):
    """As `_near`, and the edge's point that is nearest: where along it, and the way from there."""
    away = edge[0] * x + (edge[1] * y + edge[2])
    along = edge[1] * x + (edge[3] - edge[0] * y)
    at = min(max(along, -edge[4]), edge[4])
    past = along - at
    way_x, way_y = away * edge[0] + past * edge[1], away * edge[1] - past * edge[0]
    return away, away * away + past * past, at * edge[5] + edge[6], way_x, way_y


def _window(context, builder, array_type, array, index, vector=VECTOR):
    """Pointer to numbers of a 1-D array, as many as the vector has."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


@intrinsic
def _copy(typing, target, to, source, start):
    """Copy LANES / 2 numbers between 1-D arrays; indices are not checked."""

    def generate(context, builder, signature, arguments):
        source = _window(context, builder, signature.args[2], *arguments[2:], HALF)
        target = _window(context, builder, signature.args[0], *arguments[:2], HALF)
        builder.store(builder.load(source, align=4), target, align=4)
        return context.get_dummy_value()

    return types.void(target, to, source, start), generate


@intrinsic
def _multiply(typing, target, to, source, start, count, most):
    """Multiply the first `count` of LANES numbers, up to `most`; indices are not checked."""

    def generate(context, builder, signature, arguments):
        source = _window(context, builder, signature.args[2], *arguments[2:4])
        target = _window(context, builder, signature.args[0], *arguments[:2])
        old, factor = builder.load(target, align=4), builder.load(source, align=4)
        most, one = _spread(builder, arguments[5]), ir.Constant(VECTOR, [1.0] * LANES)
        count = _spread(builder, builder.trunc(arguments[4], ir.IntType(32)))
        lane = ir.Constant(count.type, list(range(LANES)))
        factor = builder.select(builder.icmp_signed("<", lane, count), factor, one)
        new = builder.fmul(old, factor)
        new = builder.select(builder.fcmp_ordered("<", new, most), new, most)
        builder.store(new, target, align=4)
        return context.get_dummy_value()

    return types.void(target, to, source, start, count, most), generate


def _spread(builder, value):
    """A vector of LANES equal numbers."""
    vector = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    vector = builder.insert_element(vector, value, ir.Constant(ir.IntType(32), 0))
    lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(vector, vector, lanes)


@fast
def _power_of_two(x):
    """2**x to 1e-7 of itself, for -100 <= x <= 100."""
    whole = x + WHOLE
    part = x - (whole - WHOLE)  # -0.5 to 0.5
    value = F(0.0013276470) * part + F(0.0096755410)
    value = value * part + F(0.0555071346)
    value = value * part + F(0.2402212024)
    value = value * part + F(0.6931469440)
    value = value * part + F(1.0000001192)
    exponent = np.int32(F(whole).view(np.int32) << np.int32(23))
    return np.int32(F(value).view(np.int32) + exponent).view(np.float32)


@fast
def _signed(number, sign):
    """A number, its sign changed where another is negative."""
    bits = F(number).view(np.int32) ^ np.int32(F(sign).view(np.int32) & SIGN)
    return np.int32(bits).view(np.float32)


@fast
def _odds(away_a, away_b, away_c, squared, limit):
    """exp(logit) of a face at a pixel, 0 where it does not count, and a number that is negative
    outside the face."""
    sign = min(away_a, min(away_b, away_c))
    logit = _signed(min(squared, F(100)), sign)
    return _power_of_two(logit) if logit > -limit else ZERO, sign


@fast
def _edge_of(t, n):
    """The numbers of one edge of face n."""
    near = t[n], t[GROUP + n], t[U(2) * GROUP + n], t[U(3) * GROUP + n]
    n += U(4) * GROUP
    return near + (t[n], t[GROUP + n], t[U(2) * GROUP + n], t[U(3) * GROUP + n])


@fast
def _edges_of(table, n):
    step = U(8) * GROUP
    return _edge_of(table, n), _edge_of(table, step + n), _edge_of(table, step + step + n)


@fast
def _place(middle, across, part, row_height, y):
    """Coordinates of pixel middle - 1/2 of a box with so many columns (part: 1 / columns), whose
    first row is at y."""
    row = np.floor(middle * part)
    return middle - row * across, y - row * row_height


@fast
def _factors(factors, start, count, middles, across, row_height, top, table, face, limit):
    """1 + exp(logit) of a face at the pixels of a box, from factors[start] on."""
    a, b, c = _edges_of(table, face)
    part = ONE / across
    for n in range(count):
        x, y = _place(middles[n], across, part, row_height, top)
        away_a, squared_a = _near(a, x, y)
        away_b, squared_b = _near(b, x, y)
        away_c, squared_c = _near(c, x, y)
        squared = min(squared_a, min(squared_b, squared_c))
        odds, _ = _odds(away_a, away_b, away_c, squared, limit)
        factors[start + n] = ONE + odds


@fast
def _behind(a, b, c, depths, x, y):
    """Whether a face is behind the camera at a pixel, or at its point that is nearest there."""
    depth = max(_near(a, x, y)[0], ZERO) * a[7] * depths[2]
    depth += max(_near(b, x, y)[0], ZERO) * b[7] * depths[0]
    return depth + max(_near(c, x, y)[0], ZERO) * c[7] * depths[1] < ZERO


@exact
def _work_space():
    """Faces, their corners, boxes and edges, and pieces of them, for GROUP faces at a time."""
    group = int(GROUP)
    owners, corners = np.empty(group, np.int64), np.zeros(9 * group, np.float32)
    boxes, table = np.zeros(4 * group, np.float32), np.zeros(24 * group, np.float32)
    return owners, corners, boxes, table, np.empty((group, 6), np.uint64)


@fast
def _soft_forward(verts, faces, product, silhouette, top, bottom, units):
    height, width = silhouette.shape
    scale, reach, limit = units
    lanes, stride = U(LANES), U(product.shape[1])
    room = U((max(ROOM, width) + 7) // 8 * 8)
    factors, product = np.empty(room + U(8) * GROUP, np.float32), product.reshape(-1)
    middles = np.arange(len(factors)).astype(np.float32) + F(0.5)
    product[U(top) * stride : U(bottom) * stride] = ONE
    owners, corners, boxes, table, pieces = _work_space()
    row_height = F(width) / F(height)
    face, faces_here, n, row = 0, U(0), U(0), U(0)
    while True:
        if n == faces_here:
            faces_here, face = _gather(
                verts, faces, face, height, top, bottom, reach, owners, corners
            )
            if faces_here == U(0):
                break
            _set_up(corners, faces_here, (height, width), (top, bottom), reach, scale, boxes, table)
            n = U(0)
        count, n, row = _pieces(boxes, faces_here, n, row, room, pieces)
        for piece in range(count):
            first, end, left, right, start, f = pieces[piece]
            pixels = ((end - first) * (right - left) + U(7)) // U(8) * U(8)
            y = (boxes[f] - F(np.int32(first))) * row_height
            across = F(np.int32(right - left))
            _factors(factors, start, pixels, middles, across, row_height, y, table, f, limit)
            depths = corners[U(2) * GROUP + f], corners[U(5) * GROUP + f], corners[U(8) * GROUP + f]
            if min(depths) < ZERO:
                a, b, c = _edges_of(table, f)
                for pixel in range(pixels):
                    x, low = _place(middles[pixel], across, ONE / across, row_height, y)
                    if _behind(a, b, c, depths, x, low):
                        factors[start + pixel] = ONE
        for piece in range(count):
            first, end, left, right, start, _ = pieces[piece]
            for line in range(first, end):
                for column in range(left, right, lanes):
                    at = line * stride + column
                    _multiply(product, at, factors, start + (column - left), right - column, MOST)
                start += right - left
    for line in range(top, bottom):
        for column in range(width):
            silhouette[line, column] = ONE - ONE / product[U(line) * stride + U(column)]


@reorder
def _pull(xs, ys, weights, start, count, origin, table, face, limit):
    """Sums over pixels of the pull at a face, and of its parts at corners j and k: x, y each."""
    a, b, c = _edges_of(table, face)
    sum_x = sum_y = jx = jy = kx = ky = ZERO
    for n in range(start, start + count):
        x, y = xs[n] - origin[0], ys[n] - origin[1]
        away_a, squared_a, part_a, way_ax, way_ay = _nearest_point(a, x, y)
        away_b, squared_b, part_b, way_bx, way_by = _nearest_point(b, x, y)
        away_c, squared_c, part_c, way_cx, way_cy = _nearest_point(c, x, y)
        squared = min(squared_a, min(squared_b, squared_c))
        odds, sign = _odds(away_a, away_b, away_c, squared, limit)
        weight = _signed(weights[n] * odds / (ONE + odds), sign)
        in_a, in_b = squared_a == squared, squared_b == squared
        way_x, way_y, j, k = way_cx, way_cy, ZERO, part_c
        if in_b:
            way_x, way_y, j, k = way_bx, way_by, ONE - part_b, part_b
        if in_a:
            way_x, way_y, j, k = way_ax, way_ay, part_a, ZERO
        to_x, to_y = weight * way_x, weight * way_y
        sum_x += to_x
        sum_y += to_y
        jx += j * to_x
        jy += j * to_y
        kx += k * to_x
        ky += k * to_y
    return sum_x, sum_y, jx, jy, kx, ky


@fast
def _soft_backward(verts, faces, product, upstream, grad, top, bottom, units):
    height, width = upstream.shape
    scale, reach, limit = units
    # Per row, the pixels that are not opaque: place and weight (gradient by a pixel's logits over
    # their sigmoids), and where those of each column start.
    top_row, stride, row_height = U(top), U(width + LANES), F(width) / F(height)
    area = U(bottom - top) * stride
    places, weights = np.zeros(area, np.float32), np.zeros(area, np.float32)
    heights, before = np.zeros(area, np.float32), np.empty(area, np.uint64)
    for line in range(top, bottom):
        start = at = (U(line) - top_row) * stride
        for column in range(width):
            before[start + U(column)] = at
            whole = product[line, column]
            places[at], heights[at] = F(column) + F(0.5), -F(line) * row_height
            weights[at] = upstream[line, column] / whole
            alive = whole < OPAQUE and whole > ONE and upstream[line, column] != ZERO
            at += U(alive)
        before[start + U(width)] = at
    room = U((max(ROOM, width) + 7) // 8 * 8)
    space = room + U(8) * GROUP + U(LANES)
    xs, ys, ws = (
        np.zeros(space, np.float32),
        np.zeros(space, np.float32),
        np.zeros(space, np.float32),
    )
    owners, corners, boxes, table, pieces = _work_space()
    face, faces_here, n, row = 0, U(0), U(0), U(0)
    while True:
        if n == faces_here:
            faces_here, face = _gather(
                verts, faces, face, height, top, bottom, reach, owners, corners
            )
            if faces_here == U(0):
                break
            _set_up(corners, faces_here, (height, width), (top, bottom), reach, scale, boxes, table)
            n = U(0)
        count, n, row = _pieces(boxes, faces_here, n, row, room, pieces)
        for piece in range(count):
            first, end, left, right, start, _ = pieces[piece]
            to = start
            for line in range(first, end):
                offset = (line - top_row) * stride
                begin, last = before[offset + left], before[offset + right]
                for at in range(begin, last, U(LANES // 2)):
                    _copy(xs, to + (at - begin), places, at)
                    _copy(ys, to + (at - begin), heights, at)
                    _copy(ws, to + (at - begin), weights, at)
                to += last - begin
            for lane in range(U(8)):
                ws[to + lane] = ZERO
            pieces[piece, 0] = (to - start + U(7)) // U(8) * U(8)
        for piece in range(count):
            pixels, _, _, _, start, f = pieces[piece]
            if pixels == U(0):
                continue
            origin = boxes[U(2) * GROUP + f], -boxes[f] * row_height
            depths = corners[U(2) * GROUP + f], corners[U(5) * GROUP + f], corners[U(8) * GROUP + f]
            if min(depths) < ZERO:
                a, b, c = _edges_of(table, f)
                for at in range(start, start + pixels):
                    if _behind(a, b, c, depths, xs[at] - origin[0], ys[at] - origin[1]):
                        ws[at] = ZERO
            dx, dy, jx, jy, kx, ky = _pull(xs, ys, ws, start, pixels, origin, table, f, limit)
            f = owners[f]
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            grad[i, 0] += dx - jx - kx
            grad[i, 1] += dy - jy - ky
            grad[j, 0] += jx
            grad[j, 1] += jy
            grad[k, 0] += kx
            grad[k, 1] += ky


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
