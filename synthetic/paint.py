"""Painted surroundings: grounds, walls, things behind and in front of the animal."""

import cv2
import numpy as np

from .colours import fur_colour, grain, mix, noise, random_colour, step, thrice, through, tint
from .surface import bounds


def paint_ground(rng, height: int, width: int, horizon: float, top: int = 0) -> np.ndarray:
    """(H - top, W, 3) grass, boards, tiles, carpet, sand, snow or asphalt, drawn together towards
    the horizon's row: the rows from `top` on of a photograph (H, W)."""
    shape = height - top, width
    kinds = ["grass", "boards", "tiles", "carpet", "plain"]
    kind = rng.choice(kinds, p=[0.34, 0.18, 0.13, 0.15, 0.2])
    rough = noise(rng, *shape, rng.uniform(3, 8), 4)
    away = np.maximum(np.arange(top, height, dtype=np.float32) - horizon, 0) / height + 0.15
    depth = (1 / away)[:, None] * np.ones(width, np.float32)
    across = np.arange(width, dtype=np.float32) - width * rng.uniform(0.2, 0.8)
    across = across[None] / width * depth
    if kind == "grass":
        blade = cv2.blur(grain(rng, *shape), (1, int(rng.integers(4, 10)))) * 1.6
        base = mix(np.array((0.22, 0.36, 0.10)), np.array((0.50, 0.48, 0.20)), rng.random())
        return tint(base, 1 + 0.16 * rough + 0.30 * blade)
    if kind == "plain":
        sand, snow, asphalt = (0.76, 0.66, 0.48), (0.88, 0.90, 0.94), (0.36, 0.36, 0.37)
        options = (sand, snow, asphalt, (0.60, 0.57, 0.52), (0.42, 0.32, 0.22))
        base = np.array(options[rng.integers(len(options))], np.float32) * rng.uniform(0.85, 1.1)
        fine = rng.uniform(0.02, 0.09) * grain(rng, *shape)
        return tint(base, 1 + 0.08 * rough + fine)
    base = random_colour(rng, (0.25, 0.2, 0.15), (0.75, 0.65, 0.6), 0.6)
    if kind == "carpet":
        other = random_colour(rng)
        figure = step(noise(rng, *shape, rng.uniform(6, 14), 2) - 0.5, 0.15)
        figure = figure * rng.uniform(0.1, 0.7)
        rough = 1 + 0.10 * grain(rng, *shape) + 0.05 * rough
        return mix(base, other, figure) * thrice(rough)
    angle, size = rng.uniform(-0.6, 0.6), rng.uniform(3, 8)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    u = (cos * across + sin * depth) * size
    v = (cos * depth - sin * across) * size
    if kind == "boards":
        u, v = u * 1.5, v * 0.25
    column = np.floor(u)
    row = np.floor(v + 0.37 * column)
    board = (column.astype(np.int32) * 31 + row.astype(np.int32) * 17) % 997
    shade = rng.uniform(0.8, 1.15, 997).astype(np.float32)[board]
    from_joint = 1.0 if kind == "boards" else np.abs(v - np.round(v))
    groove = np.minimum(np.abs(u - np.round(u)), from_joint) < 0.04
    shade *= np.where(groove, np.float32(0.6), np.float32(1)) * (1 + 0.06 * rough)
    return tint(base, shade)


def paint_wall(rng, height: int, width: int) -> np.ndarray:
    """(H, W, 3) sky, leaves, a plain, striped or brick wall, or shelves."""
    kinds = ["sky", "leaves", "plain", "stripes", "bricks", "shelves"]
    kind = rng.choice(kinds, p=[0.18, 0.26, 0.24, 0.1, 0.12, 0.1])
    rough = noise(rng, height, width, rng.uniform(2, 5), 3)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    if kind == "sky":
        sky = mix(
            np.array((0.45, 0.62, 0.88)),
            np.array((0.85, 0.88, 0.92)),
            np.broadcast_to(y / height, (height, width)),
        )
        return mix(sky, (0.93, 0.93, 0.94), step(rough - 0.4, 0.6) * rng.uniform(0.2, 0.9))
    if kind == "leaves":
        fine = noise(rng, height, width, rng.uniform(10, 26), 3)
        base = mix(np.array((0.10, 0.20, 0.06)), np.array((0.42, 0.46, 0.22)), rng.random())
        return tint(base, np.clip(1 + 0.35 * rough + 0.45 * fine, 0.15, 2.6))
    base = random_colour(rng, (0.2, 0.2, 0.2), (0.92, 0.92, 0.92), 0.8)
    fall = rng.normal(0, 0.15) * (x / width - 0.5), rng.normal(0, 0.15) * (y / height - 0.5)
    plain = tint(base, 1 + 0.05 * rough + fall[0] + fall[1])
    if kind == "plain":
        return plain
    size = rng.uniform(0.05, 0.18) * max(height, width)
    if kind == "stripes":
        slope = rng.choice((0.0, 0.0, 1.0, rng.normal()))
        other = random_colour(rng)
        stripe = np.sin((x + slope * y) * 2 * np.pi / size) - rng.uniform(-0.6, 0.6)
        return mix(plain, other, step(stripe, 0.1) * rng.uniform(0.2, 0.9))
    row = np.floor(y / size * 2)
    column = np.floor(x / size + 0.5 * (row % 2))
    if kind == "bricks":
        gap = np.abs(y / size * 2 - row - 0.5) > 0.44
        gap = gap | (np.abs(x / size + 0.5 * (row % 2) - column - 0.5) > 0.47)
        brick = (row * 37 + column * 11).astype(np.int32) % 997
        shade = rng.uniform(0.75, 1.2, 997).astype(np.float32)[brick]
        brick = mix(np.array((0.55, 0.28, 0.20)), base, rng.random())
        brick = tint(brick, shade * (1 + 0.1 * rough))
        brick[gap] = base * 0.9
        return brick
    colours = rng.uniform(0.1, 0.7, (997, 1)) + rng.normal(0, 0.12, (997, 3))
    colours = colours.astype(np.float32)
    shelf = y / size / 1.4
    book = np.floor(shelf) * 53 + np.floor(x / size * rng.uniform(3, 6))
    board = np.abs(shelf - np.round(shelf)) < 0.06
    shelves = colours.take(book.astype(np.int32) % 997, 0)
    shelves[board[:, 0]] = base * 0.7
    return np.clip(shelves, 0.03, 1)


def random_outline(rng, centre, size) -> np.ndarray:
    """(N, 2) x, y of a random shape: an ellipse, a box or a lump.

    Args:
        rng: the random numbers.
        centre: (2,) x, y.
        size: (2,) half width and half height.
    """
    kind = rng.integers(3)
    if kind == 1:
        corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * rng.uniform(0.85, 1.0, (4, 2))
    else:
        angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        radius = np.ones(28)
        if kind == 2:
            waves = 0.25 * np.sin(angle[:, None] * (1, 2, 3) + rng.uniform(0, 6, 3))
            radius = 1 + waves @ rng.normal(0, 0.5, 3)
        corner = np.stack([np.cos(angle), np.sin(angle)], 1) * radius[:, None]
    turned = rng.normal(0, 0.15)
    turn = np.array(((np.cos(turned), -np.sin(turned)), (np.sin(turned), np.cos(turned))))
    return turn.dot((corner * size).T).T + centre


def paint_thing(rng, image, polygon, light_from) -> np.ndarray:
    """Fills a polygon with a shaded texture, in place.

    Args:
        rng: the random numbers.
        image: (H, W, 3).
        polygon: (N, 2) x, y in pixels.
        light_from: -1 or 1, the side of the light.

    Returns:
        (H, W) its mask in [0, 1].
    """
    height, width = image.shape[:2]
    where = np.zeros((height, width), np.float32)
    low, high = polygon.min(0), np.maximum(polygon.max(0), polygon.min(0) + 1)
    left, top = np.clip(low - 3, 0, (width, height)).astype(int)  # smooth edges are wider
    right, bottom = np.clip(high + 4, 0, (width, height)).astype(int)
    window, size = np.s_[top:bottom, left:right], (bottom - top, right - left)
    if min(size) < 1:
        return where
    mask = np.zeros(size, np.uint8)
    corners = np.round((polygon - (left, top)) * 16).astype(np.int32)
    cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA, 4)
    where[window] = mask * np.float32(1 / 255)
    x = (np.arange(left, right, dtype=np.float32) - low[0]) / (high[0] - low[0]) - 0.5
    y = (np.arange(top, bottom, dtype=np.float32) - low[1]) / (high[1] - low[1]) - 0.5
    shade = 1 - rng.uniform(0.1, 0.6) * y[:, None] - rng.uniform(0.1, 0.5) * light_from * x[None]
    strength = rng.uniform(0.03, 0.18)
    cells = rng.uniform(4, 40) * max(size) / max(height, width)
    texture = strength * noise(rng, *size, cells, 2)
    furry = rng.random() < 0.35
    base = fur_colour(rng) if furry else random_colour(rng, (0.08,) * 3, (0.9,) * 3, 0.9)
    part, shown = image[window], tint(base, np.clip(shade + texture, 0.2, 1.5))
    part += thrice(where[window]) * (shown - part)
    return where


def paint_background(rng, xy, size, up, light) -> np.ndarray:
    """Wall, things and ground behind an animal.

    Args:
        rng: the random numbers.
        xy: (V, 2) the animal's vertices, pixels.
        size: height and width, pixels.
        up: (3,) the world's up in camera space.
        light: `photograph.Light`.

    Returns:
        (H, W, 3) float32.
    """
    height, width = size
    low, high = bounds(xy)
    tilt = max(float(-up[2]), 0.0)  # how much the camera looks down
    above = rng.uniform(0.05, 0.5) + 2.2 * tilt * rng.uniform(0.6, 1.2)
    horizon = high[1] - (high[1] - low[1]) * above
    soft = rng.uniform(0.5, 0.02 * height + 1)
    # The ground is seen from row `top` on, the wall down to `bottom`.
    top = int(np.clip(horizon - soft, 0, height - 1))
    ground = paint_ground(rng, height, width, horizon, top)
    light_from = np.sign(light.direction[0])
    if horizon <= 0:
        image = ground
    else:
        bottom = int(np.clip(horizon + soft + 1, top + 1, height))
        wall = paint_wall(rng, bottom, width)
        for _ in range(rng.integers(0, 4)):  # furniture, bushes, other things behind
            half = rng.uniform(0.06, 0.35, 2) * (width, height)
            place = (rng.uniform(0, width), horizon - rng.uniform(-0.1, 0.9) * half[1])
            paint_thing(rng, wall, random_outline(rng, place, half), light_from)
        rows = np.arange(top, bottom, dtype=np.float32) - horizon
        part = np.broadcast_to(step(rows, soft)[:, None], (bottom - top, width))
        both = mix(wall[top:], ground[: bottom - top], part)
        image = np.concatenate([wall[:top], both, ground[bottom - top :]])
    for _ in range(rng.integers(0, 3)):  # things on the ground, behind or beside
        half = rng.uniform(0.03, 0.16, 2) * max(width, height)
        farthest = min(max(horizon, 0), height * 0.8)
        place = (rng.uniform(0, width), rng.uniform(farthest, height))
        paint_thing(rng, image, random_outline(rng, place, half), light_from)
    lit = 0.45 + 0.55 * (light.sky + 0.7 * light.sun)
    image = through(lit, np.clip(image, 0, 1.2))
    if rng.random() < 0.6:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 3.5))
    return image


def paint_front(rng, image, animal_mask, light_from) -> np.ndarray:
    """Now and then puts something in front of the animal, in place, leaving most of it visible.

    Args:
        rng: the random numbers.
        image: (H, W, 3).
        animal_mask: (H, W) bool.
        light_from: -1 or 1, the side of the light.

    Returns:
        (H, W) what it covers, in [0, 1].
    """
    height, width = image.shape[:2]
    covered = np.zeros((height, width), np.float32)
    row, column = np.nonzero(animal_mask)
    if rng.random() > 0.25 or not len(row):
        return covered
    before = image.copy()
    at = rng.integers(len(row))
    place = np.array([column[at], row[at]], np.float64)
    extent = max(np.ptp(row), np.ptp(column))
    kind = rng.choice(["thing", "pole", "tufts"], p=[0.45, 0.25, 0.3])
    if kind == "thing":
        half = rng.uniform(0.06, 0.2, 2) * extent
        polygon = random_outline(rng, place + (0, 0.1 * extent), half)
        covered = paint_thing(rng, image, polygon, light_from)
    elif kind == "pole":
        half, lean = rng.uniform(0.015, 0.05) * extent, rng.normal(0, 0.06) * height
        x, bottom = place[0], height + 5
        corners = [
            [x - half + lean, -5],
            [x + half + lean, -5],
            [x + half - lean, bottom],
            [x - half - lean, bottom],
        ]
        covered = paint_thing(rng, image, np.array(corners), light_from)
    else:
        foot = row.max(), column.min(), column.max()
        covered = _paint_tufts(rng, image, foot, extent)
    if (animal_mask & (covered > 0.5)).sum() > 0.3 * animal_mask.sum():
        image[:] = before
        return np.zeros((height, width), np.float32)
    return covered


def _paint_tufts(rng, image, foot, extent):
    """Grass before the feet, in place. foot: lowest row, leftmost and rightmost column."""
    green = mix(np.array((0.20, 0.34, 0.10)), np.array((0.5, 0.46, 0.2)), rng.random())
    bottom = foot[0] + rng.uniform(-0.02, 0.08, 60) * extent
    x = rng.uniform(foot[1], foot[2], 60)
    top = x + rng.normal(0, 0.04, 60) * extent, bottom - rng.uniform(0.06, 0.20, 60) * extent
    corners = [np.stack(corner, 1) for corner in ((x - 1.3, bottom), (x + 1.3, bottom), top)]
    blades = np.round(np.stack(corners, 1) * 16).astype(np.int32)  # (60, 3, 2) sixteenths
    mask, shade = (np.zeros(image.shape[:2], np.uint8) for _ in range(2))
    for blade, level in zip(blades, rng.integers(110, 255, 60), strict=True):
        cv2.fillPoly(mask, [blade], 255, cv2.LINE_AA, 4)
        cv2.fillPoly(shade, [blade], int(level), cv2.LINE_AA, 4)
    covered = mask.astype(np.float32) / 255
    colours = tint(green, shade.astype(np.float32) / 180)
    image += thrice(covered) * (colours - image)
    return covered
