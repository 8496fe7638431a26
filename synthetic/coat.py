"""The colours of a coat: patterns, markings, eyes and nose, as layers over the rest pose."""

from dataclasses import dataclass

import numpy as np

from smal_model import joints

from .colours import DARK, FUR, LIGHT, fur_colour, mix, step, waves
from .skeleton import EYE, NOSE

PATTERNS = {  # how often each is drawn
    "plain": 0.24, "saddle": 0.18, "patches": 0.20, "brindle": 0.10, "points": 0.12, "spots": 0.08,
    "merle": 0.08,
}  # fmt: skip


@dataclass
class Layer:
    """Covers what is below it where its score is above 0."""

    score: np.ndarray  # (V,)
    soft: float  # half width of its edge, in units of the score
    colour: np.ndarray  # (3,)
    kind: str = "fur"  # or `skin`, `cloth`


def draw_coat(rng, studio) -> tuple[np.ndarray, list[Layer]]:
    """Draws a coat with eyes, nose and mouth.

    Args:
        rng: the random numbers.
        studio: the body (`animal.Studio`).

    Returns:
        The base colour (3,) and the layers over it, the lowest first.
    """
    x, y, z = p = studio.axes
    head = studio.followers(joints.HEAD, joints.MOUTH)
    ears = studio.followers(joints.LEFT_EAR, joints.RIGHT_EAR)
    tail = studio.followers(*joints.TAIL)
    muzzle = np.minimum(x - 0.77, head - 0.5)
    back = z - 0.10 - 0.10 * np.clip((x - 0.30) / 0.3, 0, 1.5)  # above 0: the upper half
    large, small = waves(rng, p, 0.28), waves(rng, p, 0.10)
    layers = []

    def fur(*names):
        return fur_colour(rng, names)

    def layer(score, soft, c, kind="fur"):
        layers.append(Layer(score, soft, np.asarray(c), kind))

    pattern = rng.choice(list(PATTERNS), p=list(PATTERNS.values()))
    if pattern == "plain":
        base = fur(*FUR)
        layer(-back - 0.08 + 0.03 * large, 0.12, mix(base, fur(*LIGHT), rng.uniform(0, 0.5)))
    elif pattern == "saddle":
        base = fur(*LIGHT)
        score = back - rng.uniform(-0.05, 0.05) + 0.05 * large - 0.3 * head
        layer(score, rng.uniform(0.02, 0.06), fur(*DARK))
    elif pattern == "patches":
        base = fur("white", "cream", "white")
        layer(large - rng.uniform(-0.2, 0.7), 0.08, fur(*DARK, "tan", "golden"))
    elif pattern == "brindle":
        base = fur("tan", "sable", "golden", "chestnut")
        stripe = np.sin(x * rng.uniform(40, 70) + 2.2 * small + 8 * back)
        layer(stripe - rng.uniform(-0.1, 0.4), 0.5, fur("black", "chocolate"))
    elif pattern == "points":
        base = fur("black", "chocolate", "blue", "black")
        light = fur("tan", "golden", "chestnut")
        layer(-z - rng.uniform(0.2, 0.34) + 0.03 * large, 0.03, light)
        layer(muzzle, 0.02, light)
        brow = np.sqrt((x - 0.750) ** 2 + (np.abs(y) - 0.045) ** 2 + (z - 0.428) ** 2)
        layer(0.020 - brow, 0.006, light)
        layer(np.minimum(x - 0.36, 0.12 - z) - 0.01, 0.03, light)
    elif pattern == "spots":
        base = fur("white", "cream")
        layer(small - rng.uniform(0.7, 1.1), 0.1, fur("black", "chocolate", "chestnut"))
    else:
        base = fur("grey", "blue", "sable")
        layer(small + 0.6 * large - 0.5, 0.3, fur("black", "chocolate"))
        layer(-small - 1.2, 0.3, fur("cream", "white"))
    white = fur("white", "cream")
    if rng.random() < 0.3:  # socks
        layer(-z - rng.uniform(0.36, 0.47) + 0.015 * large, 0.012, white)
    if rng.random() < 0.3:  # chest
        layer(np.minimum(x - 0.27, 0.08 - z) + 0.02 * large - 0.03, 0.03, white)
    if rng.random() < 0.2:  # blaze
        middle = rng.uniform(0.015, 0.035) - np.abs(y) + 0.004 * large
        layer(middle - 2 * np.clip(0.62 - x, 0, 1) - np.clip(0.34 - z, 0, 1), 0.006, white)
    if rng.random() < 0.25:  # dark or light muzzle
        layer(muzzle + 0.01 * large, 0.02, fur("black", "chocolate", "white"))
    if rng.random() < 0.35:  # ears
        layer(ears - 0.5, 0.15, fur("black", "chocolate", "chestnut", "tan", "sable"))
    if rng.random() < 0.2:  # tip of the tail
        layer(np.minimum(-x - rng.uniform(0.85, 1.0), tail - 0.5), 0.03, white)
    if rng.random() < 0.22:  # collar
        along = (x - rng.uniform(0.47, 0.51)) * 0.82 + (z - 0.28) * 0.57
        off_neck = studio.followers(joints.NECK) + head < 0.4
        layer(0.018 - np.abs(along) - off_neck, 0.002, rng.uniform(0.05, 0.9, 3), "cloth")
    if rng.random() < 0.5:  # inside of the ears, which opens to the front
        forward = studio.rest_normals @ np.array([0.8, 0, -0.2], np.float32)
        pink = mix(base, (0.75, 0.52, 0.47), 0.6)
        layer(np.where(ears > 0.6, forward - 0.35, -1), 0.15, pink, "skin")
    mouth = 0.287 + 0.10 * np.clip(0.80 - x, 0, 1)
    score = 0.008 - np.abs(z - mouth) - 3 * np.clip(0.735 - x, 0, 1) - (head < 0.5)
    layer(score, 0.005, base * 0.25, "skin")
    for side in (1, -1):
        dx, dy, dz = x - EYE[0], y - side * EYE[1], z - EYE[2]
        from_eye = np.sqrt(dx * dx + dy * dy + dz * dz)
        layer(0.018 - from_eye, 0.004, fur("black", "chocolate") * 0.4, "skin")
    nose = ((x - NOSE[0] + 0.018) / 0.030) ** 2
    nose += ((y - NOSE[1]) / 0.031) ** 2 + ((z - NOSE[2] - 0.004) / 0.024) ** 2
    layer(1 - np.sqrt(nose), 0.12, np.array((0.06, 0.05, 0.05)), "skin")
    return base, layers


def paint_layers(paint, layers: list[Layer], scores) -> None:
    """Paints layers over colours (N, 3), in place; scores: (N, layers) at the same places."""
    for layer, score in zip(layers, np.ascontiguousarray(scores.T), strict=True):
        there = np.flatnonzero(score > -layer.soft)
        part = step(score.take(there), layer.soft)
        paint[there] = mix(paint.take(there, 0), layer.colour, part)
