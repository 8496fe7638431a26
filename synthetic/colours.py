"""Colours and random fields that coats, things and grounds share."""

from functools import lru_cache

import cv2
import numpy as np

FUR = {
    "black": (0.07, 0.065, 0.065), "chocolate": (0.23, 0.14, 0.09), "chestnut": (0.42, 0.22, 0.11),
    "tan": (0.66, 0.45, 0.25), "golden": (0.80, 0.60, 0.34), "cream": (0.88, 0.80, 0.66),
    "white": (0.92, 0.91, 0.88), "grey": (0.42, 0.42, 0.44), "blue": (0.28, 0.31, 0.35),
    "sable": (0.50, 0.36, 0.24),
}  # fmt: skip
GRAIN = 1024  # side of the white noise that `grain` takes parts of, pixels; photographs are smaller
DARK, LIGHT = (
    ("black", "chocolate", "chestnut", "grey", "blue"),
    ("tan", "golden", "cream", "white"),
)


def noise(rng, height: int, width: int, cells: float, octaves: int = 3) -> np.ndarray:
    """Smooth random field, mean about 0, deviation about 1.

    Args:
        rng: the random numbers.
        height: pixels.
        width: pixels.
        cells: lumps along the longer side, of the coarsest octave.
        octaves: each of lumps half as large as the one before.

    Returns:
        (H, W) float32.
    """
    out: np.ndarray = np.zeros((2, 2), np.float32)
    weight, longer = 1.2, max(height, width)
    for _ in range(octaves):  # each on its own small grid: only the sum is drawn in full
        size = [max(2, min(n, int(np.ceil(cells * n / longer)) + 2)) for n in (height, width)]
        out = cv2.resize(out, size[::-1], interpolation=cv2.INTER_CUBIC)
        out += weight * rng.standard_normal(size, dtype=np.float32)
        cells, weight = cells * 2, weight * 0.55
    return cv2.resize(out, (width, height), interpolation=cv2.INTER_CUBIC)


@lru_cache(1)
def _white_noise():
    return np.random.default_rng(0).standard_normal((GRAIN, GRAIN), dtype=np.float32)


def grain(rng, height: int, width: int) -> np.ndarray:
    """(H, W) float32 white noise of deviation 1, to read only: a random part of one large field,
    since drawing each pixel's would take longer than all else that is painted with it."""
    field = _white_noise()
    top, left = (rng.integers(GRAIN - n + 1) for n in (height, width))
    return field[top : top + height, left : left + width]


def waves(rng, points, length: float, count: int = 18) -> np.ndarray:
    """(N,) smooth random field over points (3, N), lumps of about `length`, deviation 1."""
    k = (rng.standard_normal((3, count)) / length * 1.6).astype(np.float32)
    phase = rng.uniform(0, 2 * np.pi, count).astype(np.float32)
    angles = k.T @ points + phase[:, None]  # (count, N)
    return np.cos(angles).sum(0) * np.sqrt(2 / count)


def merged(planes) -> np.ndarray:
    """(..., 3) float32 of three planes (...)."""
    if not planes[0].size:
        return np.stack(planes, -1)
    return cv2.merge(planes).reshape(*planes[0].shape, 3)  # numpy is slow on rows of three


def tint(colour, level) -> np.ndarray:
    """(..., 3) a colour (3,) times levels (...), float32."""
    return merged([level * np.float32(channel) for channel in colour])


def through(filter, image) -> np.ndarray:
    """An image (..., 3) whose channels are multiplied by a filter's (3,), float32."""
    return merged([image[..., k] * np.float32(filter[k]) for k in range(3)])


def thrice(level) -> np.ndarray:
    """(..., 3) levels (...), float32, for each of three channels."""
    return merged([level] * 3)


def mix(a, b, t) -> np.ndarray:
    """a where t is 0, b where it is 1; colours (3,) or (..., 3), t (...)."""
    a, b, t = (np.asarray(value, np.float32) for value in (a, b, t))
    if not t.ndim:
        return a + t * (b - a)
    if a.ndim == b.ndim > 1:
        return a + thrice(t) * (b - a)
    return merged([a[..., k] + t * (b[..., k] - a[..., k]) for k in range(3)])


def step(x, soft) -> np.ndarray:
    """0 below -soft, 1 above soft, smooth between."""
    t = np.minimum(np.maximum(x / (2 * soft) + 0.5, 0), 1)  # np.clip is slow on short arrays
    return t * t * (3 - 2 * t)


def random_colour(rng, low=(0.1, 0.1, 0.1), high=(0.9, 0.9, 0.9), grey=0.5) -> np.ndarray:
    """(3,) random colour between two, drawn towards grey by a random part of `grey`."""
    c = rng.uniform(low, high)
    return (c + grey * rng.random() * (c.mean() - c)).astype(np.float32)


def fur_colour(rng, names=tuple(FUR)) -> np.ndarray:
    """(3,) one of the named colours, a little varied."""
    named = np.array(FUR[names[rng.integers(len(names))]])
    return np.clip(named * rng.uniform(0.85, 1.15) + rng.normal(0, 0.015, 3), 0.03, 0.95)
