"""Light from dawn to flash for the wide preset."""

import cv2
import numpy as np
import torch

from render import rasterize

from .colours import step
from .photograph import Light
from .surface import bounds, cross, facing

KINDS = {  # how often each is drawn
    "sun": 0.28, "low sun": 0.12, "overcast": 0.22, "window": 0.14, "lamp": 0.10, "flash": 0.08,
    "backlit": 0.06,
}  # fmt: skip
SHADOW_MAP = 96  # side, pixels


def draw_light(rng, up) -> tuple[str, Light]:
    """A kind of light and the light, for a scene whose up (3,) is given in camera space."""
    kind = rng.choice(list(KINDS), p=list(KINDS.values()))
    side = rng.standard_normal(3)
    side -= (side @ up) * up
    side /= np.linalg.norm(side)
    warmth, height, sun, sky, ground = 0.0, rng.uniform(0.5, 2.0), 0.5, 0.5, 0.3
    if kind == "sun":
        warmth, sun, sky, ground = rng.uniform(-0.2, 1.0), rng.uniform(0.6, 1.1), 0.38, 0.22
    elif kind == "low sun":
        warmth, height = rng.uniform(1.5, 3.5), rng.uniform(0.12, 0.45)
        sun, sky, ground = rng.uniform(0.5, 1.0), rng.uniform(0.25, 0.4), 0.18
    elif kind == "overcast":
        warmth, sun, sky, ground = rng.uniform(-1, 0.3), rng.uniform(0, 0.15), 0.75, 0.35
    elif kind == "window":
        height, sun = rng.uniform(0.2, 0.9), rng.uniform(0.3, 0.7)
        sky, ground = rng.uniform(0.25, 0.5), 0.25
    elif kind == "lamp":
        warmth, sun = rng.uniform(1.0, 4.0), rng.uniform(0.2, 0.5)
        sky, ground = rng.uniform(0.4, 0.6), 0.35
    elif kind == "backlit":
        side = np.array([rng.normal(0, 0.4), 0, 1.0]) - up * up[2]
        height, sun, sky, ground = rng.uniform(0.2, 0.8), rng.uniform(0.8, 1.3), 0.36, 0.25
    direction = height * up + side
    if kind == "flash":  # beside the lens
        direction = np.array([rng.normal(0, 0.08), rng.uniform(0, 0.2), -1.0])
        sun, sky, ground = rng.uniform(0.6, 1.0), rng.uniform(0.1, 0.3), 0.12
    warm = np.array([1.0, 0.94, 0.84]) ** warmth
    level = rng.uniform(0.85, 1.15)
    parts = direction / np.linalg.norm(direction), level * sun * warm, level * sky / warm**0.4
    light = Light(*(p.astype(np.float32) for p in (*parts, level * ground * warm)))
    return str(kind), light


def self_shadow(verts, faces, direction) -> np.ndarray:
    """(V,) 1 where the sun reaches the skin, 0 where the body is before it, soft between.

    Args:
        verts: (V, 3) camera space, body units.
        faces: (F, 3), turned outwards.
        direction: (3,) to the sun.
    """
    across = cross(direction, (0.31, 0.17, 0.93))
    across /= np.sqrt(across @ across)
    basis = np.stack([across, cross(direction, across), -direction], 1)  # depth away from it
    p = verts @ basis
    low, high = bounds(p)
    nearest, low, high = low[2], low[:2], high[:2]
    size = (high - low).max() * 1.04
    plane = np.empty_like(p, dtype=np.float32)
    for axis in range(2):
        plane[:, axis] = (p[:, axis] - (low[axis] + high[axis]) / 2) * (2 / size)
    plane[:, 2] = p[:, 2] - nearest + 1
    lit = torch.from_numpy(facing(plane, faces))
    depth = rasterize(torch.from_numpy(plane)[None], lit, (SHADOW_MAP, SHADOW_MAP))
    nearest = depth.depth[0].numpy()
    nearest = np.where(depth.face[0].numpy() >= 0, nearest, 1e3).astype(np.float32)
    column = ((plane[:, 0] + 1) / 2 * SHADOW_MAP).astype(np.int32)
    row = ((1 - plane[:, 1]) / 2 * SHADOW_MAP).astype(np.int32)
    limit = SHADOW_MAP - 1
    nearest = cv2.erode(nearest, np.ones((2, 2), np.uint8))
    before = nearest[np.clip(row, 0, limit), np.clip(column, 0, limit)]
    return step(before + 0.07 - plane[:, 2], 0.03).astype(np.float32)
