"""Fur: strands over the skin and tips that break the outline."""

import cv2
import numpy as np

from .colours import mix, step

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
    return texture.reshape(TILE * TILE, *texture.shape[2:]).take(row * TILE + column, 0)


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
    height, width = alpha.shape
    pixel = np.flatnonzero((distance > 0) & (distance < longest))
    row, column = (n.astype(np.float32) for n in np.divmod(pixel, width))
    d, way_x, way_y = (field.take(pixel) for field in (distance, slope_x, slope_y))  # outwards
    steep = np.maximum(np.sqrt(way_x * way_x + way_y * way_y), 0.3)
    way_x, way_y = way_x / steep + np.float32(lean[0]), way_y / steep + np.float32(lean[1])

    def inwards(far):
        x = np.clip(np.rint(column - way_x * far), 0, width - 1)
        y = np.clip(np.rint(row - way_y * far), 0, height - 1)
        return (y * width + x).astype(np.int32)

    # A strand's noise belongs to its root, so that it is one strand from root to tip.
    noise = rng.random((height, width), dtype=np.float32)
    noise = np.clip(0.6 * noise + 1.1 * cv2.blur(noise, (3, 3)) - 0.35, 0, 1)
    root = inwards(d)
    start = length.take(root)
    soft = 0.35 + 0.12 * start
    cover = step((0.15 + 0.85 * noise.take(root)) * start - d + 0.5 * soft, soft)
    inside = inwards(d + 2)
    grown = np.flatnonzero((cover > 0) & (alpha.take(inside) > 0.5))
    pixel, inside, cover = pixel[grown], inside[grown], cover[grown]
    old = alpha.take(pixel)
    new = np.maximum(old, cover)
    colours = rgb.reshape(-1, 3)  # a view
    colours[pixel] = mix(colours[pixel], colours[inside], (new - old) / np.maximum(new, 1e-6))
    np.put(alpha, pixel, new)
