"""The renderer on CUDA devices: Triton kernels; TRITON_INTERPRET=1 runs them, slowly, on the CPU.

1. `_set_up`, a face a lane: the pixels that a face reaches, its three edges as a record of RECORD
   numbers, and a count of the faces that reach each tile of TILE x TILE pixels.
2. `_fill`: the faces of each tile, as one list with the tiles' starts (offsets in int64).
3. `_soft_forward`, `_cover`, `_nearest`: a program a tile runs over its list. The soft product
   needs no order, and a tile stops where all its pixels are opaque.
4. `_soft_backward`: a program a face runs over its pixels and adds its gradient to its corners.

The host waits for the device once a call, for the length of the lists. These take 4 bytes for each
tile that a face reaches: giant faces near the camera reach all of them, so that memory and time
grow with images x faces x tiles at worst. While a CUDA graph is captured nothing can wait: soft
silhouettes then take room for CAPTURED tiles a face, and are NaN at a replay that needs more.

Order within a list and of the gradient's sums is not fixed: two soft silhouettes differ in the last
bits (well below 1e-5), and `torch.use_deterministic_algorithms(True)` refuses them. Coverage and
the nearest faces are the same at each run.
"""

import math
import warnings

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from render import torch_reference as rules
from render.torch_reference import Size

RECORD = 24  # per edge: origin x, y, direction x, y, length, inside; then weighted corner depths

# Launch settings, the best of those timed on an H100 (docs/benchmarks.md).
TILE = 8  # rows and columns of a tile
FACES = 128  # per program of `_set_up` and `_fill`
CHUNK = 32  # faces between two looks at whether a tile is opaque
CAPTURED = 32  # tiles a face has room for in a CUDA graph, in the mean of a batch; bodies need 6
WINDOW = (8, 8)  # rows and columns of a face's pixels at a time, in the backward pass
EXACT = {"num_warps": 4, "enable_fp_fusion": False}
OPTIONS = {  # coverage and faces are not fused, so that they equal the reference
    "_set_up": EXACT,
    "_fill": EXACT,
    "_cover": EXACT,
    "_nearest": EXACT,
    "_soft_forward": {"num_warps": 1, "enable_fp_fusion": True},
    "_soft_backward": {"num_warps": 1, "enable_fp_fusion": True},
}

NO_AREA = tl.constexpr(rules.MIN_DOUBLED_AREA)
SHORT = tl.constexpr(rules.MIN_SQUARED_EDGE)
LIMIT = tl.constexpr(rules.MAX_COORDINATE)
MOST = tl.constexpr(1e30)  # of a product: beyond what changes the silhouette, without overflow
OPAQUE = tl.constexpr(2.0**26)  # a pixel with this product is 1 to the last bit and has no gradient
FAR = tl.constexpr(float("inf"))
FACTOR = tl.constexpr(-2 * math.log(2))  # of a binary logit's gradient by the corners


# Calls from PyTorch


def soft_silhouette(
    verts: Tensor, faces: Tensor, size: Size, sigma: float, blur_radius: float
) -> Tensor:
    """As `render.soft_silhouette`."""
    _check_device(verts)
    _alert_not_deterministic()
    return _SoftSilhouette.apply(verts, faces, size, sigma, blur_radius)


class _SoftSilhouette(torch.autograd.Function):
    @staticmethod
    def forward(ctx, verts, faces, size, sigma, blur_radius):
        scale = math.sqrt(math.log2(math.e) / sigma)  # makes squared lengths binary logits
        limit = blur_radius * scale**2
        product = verts.new_empty(len(verts), *size)
        with torch.cuda.device_of(verts):
            lists = _Lists(verts, faces, size, math.sqrt(blur_radius), scale)
            if product.numel():
                arrays = lists.records, lists.starts, lists.entries, product
                numbers = len(faces), *size, *lists.grid, limit, TILE, CHUNK, RECORD
                _soft_forward[(lists.tiles,)](*arrays, *numbers, **OPTIONS["_soft_forward"])
            if lists.overflow is not None:
                product.masked_fill_(lists.overflow, math.nan)
        ctx.save_for_backward(verts, lists.faces, lists.records, lists.boxes, product)
        ctx.size, ctx.limit = size, limit
        return 1 - 1 / product

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_silhouette):
        verts, faces, records, boxes, product = ctx.saved_tensors
        grad = torch.zeros_like(verts, memory_format=torch.contiguous_format)
        if len(boxes):
            with torch.cuda.device_of(verts):
                arrays = records, boxes, faces, product, grad_silhouette.contiguous(), grad
                numbers = len(faces), verts.shape[1], *ctx.size, ctx.limit, *WINDOW, RECORD
                _soft_backward[(len(boxes),)](*arrays, *numbers, **OPTIONS["_soft_backward"])
        return grad, None, None, None, None


def coverage(verts: Tensor, faces: Tensor, size: Size, supersample: int) -> Tensor:
    """As `render.coverage`."""
    _check_device(verts)
    fine = (size[0] * supersample, size[1] * supersample)
    covered = torch.zeros((len(verts), *fine), dtype=torch.uint8, device=verts.device)
    with torch.cuda.device_of(verts):
        lists = _Lists(verts, faces, fine, 0.0, 0.0)
        if covered.numel():
            numbers = verts.shape[1], *fine, *lists.grid, TILE
            _cover[(lists.tiles,)](*lists.mesh, covered, *numbers, **OPTIONS["_cover"])
    samples = covered.view(-1, size[0], supersample, size[1], supersample)
    return samples.to(verts.dtype).mean((2, 4))


def rasterize(verts: Tensor, faces: Tensor, size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """As `render.rasterize`: face, depth, bary."""
    _check_device(verts)
    face = torch.full((len(verts), *size), -1, dtype=torch.int64, device=verts.device)
    depth = verts.new_full((len(verts), *size), -1)
    bary = verts.new_full((len(verts), *size, 3), -1)
    with torch.cuda.device_of(verts):
        lists = _Lists(verts, faces, size, 0.0, 0.0)
        if face.numel():
            results = face, depth, bary
            numbers = verts.shape[1], *size, *lists.grid, TILE
            _nearest[(lists.tiles,)](*lists.mesh, *results, *numbers, **OPTIONS["_nearest"])
    return face, depth, bary


class _Lists:
    """The faces that reach each tile of each image.

    grid: tiles down and across; tiles: their number in the batch
    starts: (tiles + 1,) int64, where each tile's faces start in `entries`
    entries: (N,) int32, faces
    boxes: (B*F, 4) int32, first and end row, first and end column
    records: (B*F, RECORD), where `scale` is not 0
    overflow: () bool, whether N is too small, in a CUDA graph; else None
    """

    def __init__(self, verts: Tensor, faces: Tensor, size: Size, reach: float, scale: float):
        verts, self.faces = verts.detach().contiguous(), faces.int().contiguous()
        self.grid = (triton.cdiv(size[0], TILE), triton.cdiv(size[1], TILE))
        self.tiles = len(verts) * self.grid[0] * self.grid[1]
        total = len(verts) * len(faces)
        self.boxes = torch.empty((total, 4), dtype=torch.int32, device=verts.device)
        self.records = verts.new_empty(total if scale else 0, RECORD)
        counts = torch.zeros(self.tiles + 1, dtype=torch.int64, device=verts.device)
        programs = (triton.cdiv(total, FACES),)
        if total:
            arrays = verts, self.faces, self.boxes, self.records, counts
            numbers = total, len(faces), verts.shape[1], *size, *self.grid, reach, scale
            constants = scale != 0, TILE, FACES, RECORD
            _set_up[programs](*arrays, *numbers, *constants, **OPTIONS["_set_up"])
        self.starts, self.overflow = counts.cumsum(0) - counts, None
        if scale and verts.is_cuda and torch.cuda.is_current_stream_capturing():
            room = total * CAPTURED
            self.overflow = self.starts[-1] > room
            self.starts.clamp_(max=room)
        else:
            room = int(self.starts[-1])
        self.entries = torch.empty(room, dtype=torch.int32, device=verts.device)
        if room:
            lists = self.boxes, self.starts.clone(), self.entries
            sizes = room, total, len(faces), *self.grid, TILE, FACES
            _fill[programs](*lists, *sizes, **OPTIONS["_fill"])
        self.mesh = verts, self.faces, self.starts, self.entries


def _check_device(verts: Tensor) -> None:
    interpreted = not isinstance(_set_up, triton.JITFunction)
    if verts.is_cuda and interpreted:
        raise ValueError(
            "the renderer backend 'triton' would crawl in Triton's interpreter, since the variable "
            "TRITON_INTERPRET was set when it was imported: unset it"
        )
    if not verts.is_cuda and not interpreted:
        raise ValueError(
            f"the renderer backend 'triton' needs CUDA tensors, found verts on {verts.device}; "
            "use 'auto'"
        )


def _alert_not_deterministic() -> None:
    if torch.are_deterministic_algorithms_enabled():
        alert = (
            "soft silhouettes of the renderer backend 'triton' are not deterministic, and "
            "torch.use_deterministic_algorithms was asked for: use the backend 'torch'"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(alert)
        warnings.warn(alert, stacklevel=3)


# Kernels


@triton.jit
def _doubled_area(xi, yi, xj, yj, xk, yk):
    return (yi - yj) * (xk - xj) - (xi - xj) * (yk - yj)


@triton.jit
def _store_edge(record, start_x, start_y, end_x, end_y, inside, scale, there):
    """Write one edge, a short one as its end point with a length of 0; returns the length."""
    x, y = end_x - start_x, end_y - start_y
    squared = x * x + y * y
    length = tl.sqrt(squared)
    factor = tl.where(length > 0, scale / tl.where(length > 0, length, 1.0), 0.0)
    short = squared <= SHORT
    tl.store(record, tl.where(short, end_x, start_x), mask=there)
    tl.store(record + 1, tl.where(short, end_y, start_y), mask=there)
    tl.store(record + 2, x * factor, mask=there)
    tl.store(record + 3, y * factor, mask=there)
    tl.store(record + 4, tl.where(short, 0.0, length * scale), mask=there)
    tl.store(record + 5, inside, mask=there)
    return length


@triton.jit(do_not_specialize=["total"])
def _set_up(
    verts, faces, boxes, records, counts, total, num_faces, num_verts, height, width,
    tiles_down, tiles_across, reach, scale,
    SOFT: tl.constexpr, TILE: tl.constexpr, FACES: tl.constexpr, RECORD: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * FACES + tl.arange(0, FACES)  # image * F + face
    there = n < total
    image = n // num_faces
    face = faces + (n - image * num_faces) * 3
    i = verts + (image * num_verts + tl.load(face, mask=there, other=0)) * 3
    j = verts + (image * num_verts + tl.load(face + 1, mask=there, other=0)) * 3
    k = verts + (image * num_verts + tl.load(face + 2, mask=there, other=0)) * 3
    xi, yi, zi = tl.load(i, there, 0.0), tl.load(i + 1, there, 0.0), tl.load(i + 2, there, 0.0)
    xj, yj, zj = tl.load(j, there, 0.0), tl.load(j + 1, there, 0.0), tl.load(j + 2, there, 0.0)
    xk, yk, zk = tl.load(k, there, 0.0), tl.load(k + 1, there, 0.0), tl.load(k + 2, there, 0.0)
    usable = there & (tl.abs(xi) <= LIMIT) & (tl.abs(yi) <= LIMIT) & (tl.abs(zi) <= LIMIT)
    usable = usable & (tl.abs(xj) <= LIMIT) & (tl.abs(yj) <= LIMIT) & (tl.abs(zj) <= LIMIT)
    usable = usable & (tl.abs(xk) <= LIMIT) & (tl.abs(yk) <= LIMIT) & (tl.abs(zk) <= LIMIT)
    xi, yi, xj = tl.where(usable, xi, 0.0), tl.where(usable, yi, 0.0), tl.where(usable, xj, 0.0)
    yj, xk, yk = tl.where(usable, yj, 0.0), tl.where(usable, xk, 0.0), tl.where(usable, yk, 0.0)
    area = _doubled_area(xi, yi, xj, yj, xk, yk)
    usable = usable & (tl.abs(area) > NO_AREA)

    low_x = tl.minimum(xi, tl.minimum(xj, xk)) - reach
    high_x = tl.maximum(xi, tl.maximum(xj, xk)) + reach
    low_y = tl.minimum(yi, tl.minimum(yj, yk)) - reach
    high_y = tl.maximum(yi, tl.maximum(yj, yk)) + reach
    first_row = tl.ceil((1 - high_y) * (height / 2) - 0.501)  # 0.001 against rounding
    end_row = tl.floor((1 - low_y) * (height / 2) + 0.501)
    first_column = tl.ceil((1 + low_x) * (width / 2) - 0.501)
    end_column = tl.floor((1 + high_x) * (width / 2) + 0.501)
    first_row = tl.minimum(tl.maximum(first_row, 0.0), height * 1.0).to(tl.int32)
    end_row = tl.minimum(tl.maximum(end_row, 0.0), height * 1.0).to(tl.int32)
    first_column = tl.minimum(tl.maximum(first_column, 0.0), width * 1.0).to(tl.int32)
    end_column = tl.minimum(tl.maximum(end_column, 0.0), width * 1.0).to(tl.int32)
    usable = usable & (first_row < end_row) & (first_column < end_column)
    end_row = tl.where(usable, end_row, first_row)
    end_column = tl.where(usable, end_column, first_column)
    tl.store(boxes + n * 4, first_row, mask=there)
    tl.store(boxes + n * 4 + 1, end_row, mask=there)
    tl.store(boxes + n * 4 + 2, first_column, mask=there)
    tl.store(boxes + n * 4 + 3, end_column, mask=there)

    if SOFT:
        inside = tl.where(area > 0, 1.0, -1.0)
        record = records + n * RECORD
        length_a = _store_edge(record, xi, yi, xj, yj, inside, scale, there)
        length_b = _store_edge(record + 6, xj, yj, xk, yk, inside, scale, there)
        length_c = _store_edge(record + 12, xi, yi, xk, yk, -inside, scale, there)
        tl.store(record + 18, zk * length_a, mask=there)
        tl.store(record + 19, zi * length_b, mask=there)
        tl.store(record + 20, zj * length_c, mask=there)

    down, across = first_row // TILE, first_column // TILE
    rows = tl.where(usable, (end_row + TILE - 1) // TILE - down, 0)
    columns = tl.where(usable, (end_column + TILE - 1) // TILE - across, 0)
    for row in range(0, tl.max(rows)):
        for column in range(0, tl.max(columns)):
            tile = (image * tiles_down + down + row) * tiles_across + across + column
            reached = (row < rows) & (column < columns)
            tl.atomic_add(counts + tile, tl.full([FACES], 1, tl.int64), reached, "relaxed")


@triton.jit(do_not_specialize=["room", "total"])
def _fill(
    boxes, cursors, entries, room, total, num_faces, tiles_down, tiles_across,
    TILE: tl.constexpr, FACES: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * FACES + tl.arange(0, FACES)
    there = n < total
    image = n // num_faces
    first_row, end_row = tl.load(boxes + n * 4, there, 0), tl.load(boxes + n * 4 + 1, there, 0)
    first_column = tl.load(boxes + n * 4 + 2, there, 0)
    end_column = tl.load(boxes + n * 4 + 3, there, 0)
    usable = (first_row < end_row) & (first_column < end_column)
    down, across = first_row // TILE, first_column // TILE
    rows = tl.where(usable, (end_row + TILE - 1) // TILE - down, 0)
    columns = tl.where(usable, (end_column + TILE - 1) // TILE - across, 0)
    for row in range(0, tl.max(rows)):
        for column in range(0, tl.max(columns)):
            reached = (row < rows) & (column < columns)
            tile = (image * tiles_down + down + row) * tiles_across + across + column
            place = tl.atomic_add(cursors + tile, tl.full([FACES], 1, tl.int64), reached, "relaxed")
            reached = reached & (place < room)
            tl.store(entries + place, (n - image * num_faces).to(tl.int32), mask=reached)


@triton.jit
def _tile_pixels(tile, height, width, tiles_down, tiles_across, TILE: tl.constexpr):
    """A tile's image; its pixels' offset into (B, H, W), whether there, and plane coordinates."""
    image, place = tile // (tiles_down * tiles_across), tile % (tiles_down * tiles_across)
    row = (place // tiles_across) * TILE + tl.arange(0, TILE)[:, None]
    column = (place % tiles_across) * TILE + tl.arange(0, TILE)[None, :]
    x, y = _centres(row, column, height, width)
    there = (row < height) & (column < width)
    return image, (image * height + row) * width + column, there, x, y


@triton.jit
def _centres(row, column, height, width):
    """Plane coordinates of pixel centres, divided as the reference divides."""
    x = tl.div_rn((2 * column + 1).to(tl.float32), width * 1.0) - 1
    return x, 1 - tl.div_rn((2 * row + 1).to(tl.float32), height * 1.0)


@triton.jit
def _place(edge, x, y):
    """A pixel by an edge, scaled: away from its line (inside > 0), along it, past it, squared."""
    dx, dy = x - tl.load(edge), y - tl.load(edge + 1)
    ux, uy = tl.load(edge + 2), tl.load(edge + 3)
    away = tl.load(edge + 5) * (ux * dy - uy * dx)
    along = ux * dx + uy * dy
    nearest = tl.minimum(tl.maximum(along, 0.0), tl.load(edge + 4))
    past = along - nearest
    return away, nearest, past, away * away + past * past


@triton.jit
def _odds(record, away_a, away_b, away_c, squared, limit):
    """exp(logit) of a face at pixels, 0 where it does not count, and whether they are inside."""
    inside = tl.minimum(away_a, tl.minimum(away_b, away_c)) > 0
    deep = tl.maximum(away_a, 0.0) * tl.load(record + 18)
    deep += tl.maximum(away_b, 0.0) * tl.load(record + 19)
    deep += tl.maximum(away_c, 0.0) * tl.load(record + 20)
    logit = tl.minimum(tl.maximum(tl.where(inside, squared, -squared), -100.0), 25.0)
    counts = (inside | (squared < limit)) & (deep >= 0)
    return tl.where(counts, tl.exp2(logit), 0.0), inside


@triton.jit
def _soft_forward(
    records, starts, entries, product, num_faces, height, width, tiles_down, tiles_across, limit,
    TILE: tl.constexpr, CHUNK: tl.constexpr, RECORD: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    image, offset, there, x, y = _tile_pixels(tile, height, width, tiles_down, tiles_across, TILE)
    records += image * num_faces * RECORD
    result = tl.where(there, 1.0, MOST)
    entry, end = tl.load(starts + tile), tl.load(starts + tile + 1)
    least = tl.min(result)
    while (entry < end) & (least < OPAQUE):
        for e in range(entry, tl.minimum(entry + CHUNK, end)):
            record = records + tl.load(entries + e) * RECORD
            away_a, _, _, squared_a = _place(record, x, y)
            away_b, _, _, squared_b = _place(record + 6, x, y)
            away_c, _, _, squared_c = _place(record + 12, x, y)
            squared = tl.minimum(squared_a, tl.minimum(squared_b, squared_c))
            odds, _ = _odds(record, away_a, away_b, away_c, squared, limit)
            result = tl.minimum(result * (1 + odds), MOST)
        least = tl.min(result)
        entry += CHUNK
    tl.store(product + offset, result, mask=there)


@triton.jit
def _pull(edge, away, nearest, past):
    """From an edge's nearest point to the pixel, scaled twice, and its place along it, 0 to 1."""
    ux, uy = tl.load(edge + 2), tl.load(edge + 3)
    length, inside = tl.load(edge + 4), tl.load(edge + 5)
    part = tl.where(length > 0, nearest / tl.where(length > 0, length, 1.0), 1.0)
    return past * ux - away * inside * uy, past * uy + away * inside * ux, part


@triton.jit
def _soft_backward(
    records, boxes, faces, product, upstream, grad, num_faces, num_verts, height, width, limit,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RECORD: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    image = n // num_faces
    record = records + n * RECORD
    first_row, end_row = tl.load(boxes + n * 4), tl.load(boxes + n * 4 + 1)
    first_column, end_column = tl.load(boxes + n * 4 + 2), tl.load(boxes + n * 4 + 3)
    xi = tl.zeros([ROWS, COLUMNS], tl.float32)
    yi, xj, yj, xk, yk = xi, xi, xi, xi, xi
    for top in range(first_row, end_row, ROWS):
        for left in range(first_column, end_column, COLUMNS):
            row = top + tl.arange(0, ROWS)[:, None]
            column = left + tl.arange(0, COLUMNS)[None, :]
            there = (row < end_row) & (column < end_column)
            offset = (image * height + row) * width + column
            whole = tl.load(product + offset, mask=there, other=MOST)
            weight = tl.load(upstream + offset, mask=there, other=0.0) / whole
            weight = tl.where((whole < OPAQUE) | ~(tl.abs(weight) < FAR), weight, 0.0)
            if tl.max((weight != 0).to(tl.int32)) > 0:  # NaN too, which reaches the gradient
                x, y = _centres(row, column, height, width)
                away_a, nearest_a, past_a, squared_a = _place(record, x, y)
                away_b, nearest_b, past_b, squared_b = _place(record + 6, x, y)
                away_c, nearest_c, past_c, squared_c = _place(record + 12, x, y)
                squared = tl.minimum(squared_a, tl.minimum(squared_b, squared_c))
                odds, inside = _odds(record, away_a, away_b, away_c, squared, limit)
                weight = weight * tl.where(inside, 1.0, -1.0) * odds / (1 + odds)
                at_a = squared_a == squared
                at_b = (squared_b == squared) & (squared_a != squared)
                pull_ax, pull_ay, part_a = _pull(record, away_a, nearest_a, past_a)
                pull_bx, pull_by, part_b = _pull(record + 6, away_b, nearest_b, past_b)
                pull_cx, pull_cy, part_c = _pull(record + 12, away_c, nearest_c, past_c)
                part = tl.where(at_a, part_a, tl.where(at_b, part_b, part_c))
                pull_x = weight * tl.where(at_a, pull_ax, tl.where(at_b, pull_bx, pull_cx))
                pull_y = weight * tl.where(at_a, pull_ay, tl.where(at_b, pull_by, pull_cy))
                at_start = 1 - part
                # Edges a: i to j, b: j to k, c: i to k.
                xi += tl.where(at_b, 0.0, at_start * pull_x)
                yi += tl.where(at_b, 0.0, at_start * pull_y)
                xj += tl.where(at_a, part * pull_x, tl.where(at_b, at_start * pull_x, 0.0))
                yj += tl.where(at_a, part * pull_y, tl.where(at_b, at_start * pull_y, 0.0))
                xk += tl.where(at_a, 0.0, part * pull_x)
                yk += tl.where(at_a, 0.0, part * pull_y)
    if (first_row < end_row) & (first_column < end_column):
        face = faces + (n - image * num_faces) * 3
        i = grad + (image * num_verts + tl.load(face)) * 3
        j = grad + (image * num_verts + tl.load(face + 1)) * 3
        k = grad + (image * num_verts + tl.load(face + 2)) * 3
        tl.atomic_add(i, tl.sum(xi) * FACTOR, sem="relaxed")
        tl.atomic_add(i + 1, tl.sum(yi) * FACTOR, sem="relaxed")
        tl.atomic_add(j, tl.sum(xj) * FACTOR, sem="relaxed")
        tl.atomic_add(j + 1, tl.sum(yj) * FACTOR, sem="relaxed")
        tl.atomic_add(k, tl.sum(xk) * FACTOR, sem="relaxed")
        tl.atomic_add(k + 1, tl.sum(yk) * FACTOR, sem="relaxed")


@triton.jit
def _weights(verts, face, x, y, there):
    """Barycentrics times |doubled area|, depth and whether inside, of a face of the image."""
    i = verts + tl.load(face, there, 0) * 3
    j = verts + tl.load(face + 1, there, 0) * 3
    k = verts + tl.load(face + 2, there, 0) * 3
    xi, yi, zi = tl.load(i, there, 0.0), tl.load(i + 1, there, 0.0), tl.load(i + 2, there, 0.0)
    xj, yj, zj = tl.load(j, there, 0.0), tl.load(j + 1, there, 0.0), tl.load(j + 2, there, 0.0)
    xk, yk, zk = tl.load(k, there, 0.0), tl.load(k + 1, there, 0.0), tl.load(k + 2, there, 0.0)
    inside = tl.where(_doubled_area(xi, yi, xj, yj, xk, yk) > 0, 1.0, -1.0)
    u = inside * ((xk - xj) * (y - yj) - (yk - yj) * (x - xj))
    v = inside * ((xi - xk) * (y - yk) - (yi - yk) * (x - xk))
    w = inside * ((xj - xi) * (y - yi) - (yj - yi) * (x - xi))
    whole = u + v + w
    depth = tl.div_rn(u * zi + v * zj + w * zk, tl.where(whole == 0, 1.0, whole))
    return u, v, w, depth, (u > 0) & (v > 0) & (w > 0) & (depth >= 0)


@triton.jit
def _cover(
    verts, faces, starts, entries, covered, num_verts, height, width, tiles_down, tiles_across,
    TILE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    image, offset, there, x, y = _tile_pixels(tile, height, width, tiles_down, tiles_across, TILE)
    verts += image * num_verts * 3
    result = tl.zeros([TILE, TILE], tl.int32)
    for e in range(tl.load(starts + tile), tl.load(starts + tile + 1)):
        _, _, _, _, seen = _weights(verts, faces + tl.load(entries + e) * 3, x, y, True)
        result = tl.where(seen, 1, result)
    tl.store(covered + offset, result.to(tl.uint8), mask=there)


@triton.jit
def _nearest(
    verts, faces, starts, entries, face, depth, bary, num_verts, height, width, tiles_down,
    tiles_across, TILE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0).to(tl.int64)
    image, offset, there, x, y = _tile_pixels(tile, height, width, tiles_down, tiles_across, TILE)
    verts += image * num_verts * 3
    nearest = tl.full([TILE, TILE], FAR, tl.float32)
    owner = tl.full([TILE, TILE], -1, tl.int32)
    for e in range(tl.load(starts + tile), tl.load(starts + tile + 1)):
        n = tl.load(entries + e)
        _, _, _, z, seen = _weights(verts, faces + n * 3, x, y, True)
        closer = seen & ((z < nearest) | ((z == nearest) & (n < owner)))
        nearest, owner = tl.where(closer, z, nearest), tl.where(closer, n, owner)
    seen = there & (owner >= 0)
    u, v, w, _, _ = _weights(verts, faces + tl.maximum(owner, 0) * 3, x, y, seen)
    whole = tl.where(seen, u + v + w, 1.0)
    tl.store(face + offset, owner.to(tl.int64), mask=seen)
    tl.store(depth + offset, nearest, mask=seen)
    tl.store(bary + offset * 3, u / whole, mask=seen)
    tl.store(bary + offset * 3 + 1, v / whole, mask=seen)
    tl.store(bary + offset * 3 + 2, w / whole, mask=seen)
