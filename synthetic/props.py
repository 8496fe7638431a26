"""Collars, leads, clothes, hands, toys and furniture, on and before animals of the wide preset."""

import cv2
import numpy as np

from smal_model import joints

from .coat import Layer
from .colours import mix, random_colour, thrice, tint
from .paint import paint_front, paint_thing, random_outline
from .skeleton import LEGS

SKIN = ((0.86, 0.66, 0.54), (0.72, 0.50, 0.38), (0.50, 0.33, 0.23), (0.32, 0.21, 0.15))


def draw_clothes(rng, studio) -> list[Layer]:
    """Now and then a collar, a bandana, a harness or a coat, as layers over the skin."""
    x, y, z = studio.axes
    neck = studio.followers(joints.NECK, joints.HEAD, joints.MOUTH)
    legs = studio.followers(*(joint for leg in LEGS for joint in leg))
    along = (x - rng.uniform(0.46, 0.53)) * 0.82 + (z - 0.28) * 0.57
    colour = random_colour(rng, (0.02,) * 3, (0.95,) * 3, 0.3)
    layers = []

    def cloth(score, soft, c=colour):
        layers.append(Layer(score, soft, np.asarray(c), "cloth"))

    kind = rng.random()
    off_neck = neck < 0.4
    if kind < 0.30:
        cloth(rng.uniform(0.010, 0.030) - np.abs(along) - off_neck, 0.002)
    elif kind < 0.34:  # bandana: a band with a corner on the breast
        corner = np.clip(0.35 - np.abs(y) * 3, 0, 1) * np.clip((0.25 - z) * 4, 0, 1) * 0.10
        cloth(0.035 + corner - np.abs(along) - (x < 0.3), 0.003)
    elif kind < 0.39:  # harness: a band round the chest, a strap over the breast
        band = np.abs(x - 0.12) + (legs > 0.5)
        cloth(rng.uniform(0.014, 0.028) - band, 0.003)
        strap = np.abs(z - 0.05 - 0.25 * (x - 0.12)) + 2 * np.clip(0.12 - x, 0, 1)
        cloth(rng.uniform(0.014, 0.026) - strap - off_neck * (x > 0.5) - (neck > 0.6), 0.003)
    elif kind < 0.45:  # a coat over the back, with stripes or not
        low, end = rng.uniform(-0.12, 0.06), rng.uniform(-0.48, -0.2)
        score = np.minimum.reduce([x - end, 0.40 - x, z - low]) - 1.0 * (legs > 0.75)
        cloth(score, 0.006)
        if rng.random() < 0.5:
            stripe = np.sin(x * rng.uniform(25, 60)) * 0.05
            cloth(np.minimum(score, stripe), 0.006, random_colour(rng))
    return layers


def _polyline(mask, points, thickness):
    points = np.round(np.array(points) * 16).astype(np.int32)
    cv2.polylines(mask, [points], False, 255, max(1, round(thickness)), cv2.LINE_AA, 4)


def _cover(image, mask, colour, shade=1.0):
    cover = mask.astype(np.float32) / 255
    image += thrice(cover) * (np.asarray(colour, np.float32) * shade - image)
    return cover


def paint_lead(rng, image, neck, extent) -> np.ndarray:
    """A lead from the neck (2,) x, y to an edge, in place; returns what it covers (H, W)."""
    height, width = image.shape[:2]
    end = np.array([rng.choice((-5, width + 5)), rng.uniform(-0.2, 0.5) * height])
    if rng.random() < 0.5:
        end = np.array([neck[0] + rng.normal(0, 0.5) * width, -5])
    sag = (neck + end) / 2 + (0, rng.uniform(0, 0.35) * extent)
    t = np.linspace(0, 1, 16)[:, None]
    curve = (1 - t) ** 2 * neck + 2 * t * (1 - t) * sag + t**2 * end
    mask = np.zeros((height, width), np.uint8)
    _polyline(mask, curve, rng.uniform(0.006, 0.02) * extent)
    return _cover(image, mask, random_colour(rng, (0.02,) * 3, (0.9,) * 3, 0.4))


def paint_hand(rng, image, place, extent) -> np.ndarray:
    """An arm from an edge with a hand on the animal at (2,) x, y, in place; returns its cover."""
    height, width = image.shape[:2]
    angle = rng.uniform(-np.pi, 0.3)
    way = np.array([np.cos(angle), np.sin(angle)])  # towards the edge
    thick = rng.uniform(0.05, 0.10) * extent
    skin = mix(np.array(SKIN[rng.integers(4)]), SKIN[rng.integers(4)], rng.random())
    arm, hand = np.zeros((2, height, width), np.uint8)
    wrist = place + way * 1.6 * thick
    _polyline(arm, [wrist, place + way * 2 * (height + width)], 1.3 * thick)
    centre = tuple(int(n) for n in np.round(place * 16))
    axes = (int(16 * 1.1 * thick), int(16 * 0.7 * thick))
    cv2.ellipse(hand, centre, axes, np.degrees(angle), 0, 360, 255, -1, cv2.LINE_AA, 4)
    for finger in np.linspace(-0.55, 0.55, 4) + rng.normal(0, 0.08):
        turn = np.array([[np.cos(finger), -np.sin(finger)], [np.sin(finger), np.cos(finger)]])
        start = place - turn @ way * 0.5 * thick
        _polyline(hand, [start, start - turn @ way * rng.uniform(1.0, 1.5) * thick], 0.38 * thick)
    sleeve = random_colour(rng) if rng.random() < 0.6 else skin
    shade = rng.uniform(0.6, 1.0)
    covered = _cover(image, arm, sleeve, shade)
    edges = cv2.GaussianBlur(hand, (0, 0), 0.12 * thick + 0.5)
    light = 0.72 + 0.28 * (edges.astype(np.float32) / 255)
    return np.maximum(covered, _cover(image, hand, tint(skin, light), shade))


def paint_furniture(rng, image, rows, light_from) -> np.ndarray:
    """A board, a table's edge or bars before the animal, in place; rows: its first and last."""
    height, width = image.shape[:2]
    tilt, extent = rng.normal(0, 0.05) * width, rows[1] - rows[0]
    if rng.random() < 0.7:  # covers what is below (or right of) an edge
        top = rows[1] - rng.uniform(0.08, 0.38) * extent
        corners = [
            (-5, top - tilt),
            (width + 5, top + tilt),
            (width + 5, height + 5),
            (-5, height + 5),
        ]
        return paint_thing(rng, image, np.array(corners), light_from)
    covered = np.zeros((height, width), np.float32)
    gap = rng.uniform(0.14, 0.3) * extent
    for x in np.arange(rng.uniform(0, gap), width, gap):
        half = gap * rng.uniform(0.05, 0.12)
        corners = [(x - half, -5), (x + half, -5), (x + half, height + 5), (x - half, height + 5)]
        covered = np.maximum(covered, paint_thing(rng, image, np.array(corners), light_from))
    return covered


def paint_before(rng, image, mask, places, light_from) -> np.ndarray:
    """Things before the animal, in place, that leave most of it visible.

    Args:
        rng: the random numbers.
        image: (H, W, 3) float32.
        mask: (H, W) bool, the animal.
        places: (41, 2) joints in the photograph, pixels.
        light_from: -1 or 1, the side of the light.

    Returns:
        (H, W) what they cover, in [0, 1].
    """
    covered = np.zeros(mask.shape, np.float32)
    row, column = np.nonzero(mask)
    if not len(row):
        return covered
    extent = float(max(np.ptp(row), np.ptp(column)))
    kind = rng.random()
    before = image.copy() if kind < 0.34 else image
    if kind < 0.10:
        covered = paint_lead(rng, image, places[joints.NECK], extent)
    elif kind < 0.16:
        at = rng.integers(len(row))
        covered = paint_hand(rng, image, np.array([column[at], row[at]], float), extent)
    elif kind < 0.22:
        covered = paint_furniture(rng, image, (row.min(), row.max()), light_from)
    elif kind < 0.25:  # a toy in the mouth
        chin = places[len(joints.NAMES) + 1] + rng.normal(0, 0.01, 2) * extent
        size = rng.uniform(0.03, 0.07) * extent * rng.uniform(0.6, 1.4, 2)
        covered = paint_thing(rng, image, random_outline(rng, chin, size), light_from)
    elif kind < 0.34:
        return paint_front(rng, image, mask, light_from)
    if (mask & (covered > 0.5)).sum() > 0.45 * mask.sum():
        image[:] = before
        covered[:] = 0
    return covered
