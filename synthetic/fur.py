"""Fur: strands over the skin and tips that break the outline."""

import cv2
import numpy as np

from .colours import step

TILE = 256  # side of a texture, pixels
# Blur of white noise along and across the strands (pixels), contrast (least, most), how ragged the
# outline is as a fraction of the length.
KINDS = {
    "short": ((2.0, 0.7), (0.02, 0.08), 0.8),
    "long": ((5.0, 0.9), (0.05, 0.17), 1.0),
    "wire": ((2.5, 0.8), (0.08, 0.22), 1.0),
    "woolly": ((2.2, 2.0), (0.08, 0.24), 0.8),
}


def strand_textures() -> dict[str, np.ndarray]:
    """(TILE, TILE) float32 a kind, periodic, mean 0, deviation 1; strands run along the rows."""
    rng = np.random.default_rng(0)
    frequency = np.fft.fftfreq(TILE) * 2 * np.pi
    out = {}
    for kind, ((along, across), _, _) in KINDS.items():
        noise = np.fft.fft2(rng.standard_normal((TILE, TILE)))
        window = np.exp(-0.5 * (frequency[None] * along) ** 2)
        window = window * np.exp(-0.5 * (frequency[:, None] * across) ** 2)
        if kind == "woolly":  # curls: no lumps larger than a few pixels
            square = frequency[None] ** 2 + frequency[:, None] ** 2
            window = window * (1 - np.exp(-square * 40))
        field = np.fft.ifft2(noise * window).real
        out[kind] = ((field - field.mean()) / field.std()).astype(np.float32)
    return out


def strands(texture, flow, offset) -> np.ndarray:
    """Texture at places on the skin.

    Args:
        texture: (TILE, TILE) or (TILE, TILE, 3).
        flow: (N, 2) along and across the strands, pixels of the texture.
        offset: (2,) pixels.

    Returns:
        (N) or (N, 3).
    """
    column, row = ((flow + offset).astype(np.int32) & (TILE - 1)).T
    return texture[row, column]


def ragged_outline(rng, rgb, alpha, length, lean) -> None:
    """Lets tips of fur stand out over the outline, in place.

    Args:
        rng: the random numbers.
        rgb: (H, W, 3) float32 colours, straight.
        alpha: (H, W) float32 in [0, 1].
        length: (H, W) of the tips that start at a pixel of the animal, pixels.
        lean: (2,) x, y, how much the tips lean that way; (0, 1) is down as much as outwards.
    """
    longest = float(length.max(initial=0))
    if longest < 0.7:
        return
    outside = (alpha < 0.5).astype(np.uint8)
    distance = cv2.distanceTransform(outside, cv2.DIST_L2, 3)  # (H, W) pixels to the animal
    smooth = cv2.GaussianBlur(distance, (0, 0), 1.5)
    slope_x, slope_y = (
        cv2.Sobel(smooth, -1, 1, 0, scale=0.125),
        cv2.Sobel(smooth, -1, 0, 1, scale=0.125),
    )
    row, column = np.nonzero((distance > 0) & (distance < longest))
    d = distance[row, column]
    way = np.stack([slope_x[row, column], slope_y[row, column]], 1)  # outwards
    way /= np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 0.3)
    way += np.asarray(lean, np.float32)
    height, width = alpha.shape
    root = np.stack([column, row], 1) - way * d[:, None]
    x = np.clip(np.round(root[:, 0]), 0, width - 1).astype(np.int32)
    y = np.clip(np.round(root[:, 1]), 0, height - 1).astype(np.int32)
    # A strand's noise belongs to its root, so that it is one strand from root to tip.
    noise = rng.random((height, width), dtype=np.float32)
    noise = np.clip(0.6 * noise + 1.1 * cv2.blur(noise, (3, 3)) - 0.35, 0, 1)
    start = length[y, x]
    soft = 0.35 + 0.12 * start
    cover = step((0.15 + 0.85 * noise[y, x]) * start - d + 0.5 * soft, soft)
    inside = np.stack([column, row], 1) - way * (d + 2.0)[:, None]
    x = np.clip(np.round(inside[:, 0]), 0, width - 1).astype(np.int32)
    y = np.clip(np.round(inside[:, 1]), 0, height - 1).astype(np.int32)
    grown = (cover > 0) & (alpha[y, x] > 0.5)
    row, column, x, y, cover = row[grown], column[grown], x[grown], y[grown], cover[grown]
    old, new = alpha[row, column], np.maximum(alpha[row, column], cover)
    part = ((new - old) / np.maximum(new, 1e-6))[:, None]
    rgb[row, column] += part * (rgb[y, x] - rgb[row, column])
    alpha[row, column] = new
