"""One photograph of an animal with its labels: frame, light, rendering, lens and JPEG."""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

from render import coverage, rasterize
from smal_model import joints

from .animal import Animal, Studio
from .coat import draw_coat, paint_layers
from .colours import grain, merged, mix, thrice, through, tint
from .paint import paint_background, paint_front
from .surface import bounds, facing, on_faces, unit, vertex_normals

SUPERSAMPLE = 2
HIDDEN_BEHIND = 0.29  # a joint so far behind the nearest hair (body units) is hidden by the animal


@dataclass
class Frame:
    """Where the crop's square lies in the photograph; all in pixels."""

    width: int
    height: int
    left: float
    top: float
    side: float

    def to_photo(self, plane) -> np.ndarray:
        """Image plane of the crop (N, 2 or more) to the photograph (N, 2) x, y, whole at edges."""
        right, down = (plane[:, 0] + 1) / 2, (1 - plane[:, 1]) / 2
        return np.stack([self.left + right * self.side, self.top + down * self.side], 1)


def photo_plane(xy, depth, width: int, height: int) -> np.ndarray:
    """Places (N, 2) x, y in pixels, depths (N,) to the image plane (N, 3) that `render` takes."""
    plane = [2 * xy[:, 0] / width - 1, 1 - 2 * xy[:, 1] / height, depth]
    return np.stack(plane, 1).astype(np.float32)


def choose_frame(rng, plane) -> Frame:
    """A photograph of odd size round the animal (V, 3: image plane of the crop); now and then its
    edge cuts a part of the animal off."""
    side = rng.uniform(150, 250)
    box = Frame(0, 0, 0.0, 0.0, side).to_photo(plane)
    low, high = bounds(box)
    larger = (high - low).max()
    margin = rng.uniform(0.03, 0.55, 4) * rng.uniform(0.3, 1.0) * larger  # left, top, right, bottom
    if rng.random() < 0.12:
        margin[rng.integers(4)] = -rng.uniform(0.04, 0.16) * larger
    size = np.maximum(np.round(high - low + margin[:2] + margin[2:]), 64).astype(int)
    left, top = margin[:2] - low
    return Frame(int(size[0]), int(size[1]), float(left), float(top), float(side))


@dataclass
class Light:
    """Direction to the sun (3,) in camera space; colours (3,) of sun, sky and ground light."""

    direction: np.ndarray
    sun: np.ndarray
    sky: np.ndarray
    ground: np.ndarray

    def on(self, normals, up) -> np.ndarray:
        """(N, 3) light that falls on surfaces with these unit normals (N, 3); up (3,)."""
        lambert = np.clip((normals @ self.direction + 0.15) / 1.15, 0, 1)
        above = 0.5 + 0.5 * (normals @ up)
        return tint(self.sun, lambert) + mix(self.ground, self.sky, above)

    def under(self, colour, part=0.2) -> "Light":
        """The light drawn towards what the surroundings' mean colour (3,) says of it."""
        level = np.clip(0.6 + 1.1 * colour.mean(), 0.6, 1.3)
        tint = (colour / max(float(colour.mean()), 0.02)) ** part * level
        sun, sky, ground = (
            (c * tint).astype(np.float32) for c in (self.sun, self.sky, self.ground)
        )
        return Light(self.direction, sun, sky, ground)


def choose_light(rng, up) -> Light:
    """A light for a scene whose up (3,) is given in camera space."""
    side = rng.standard_normal(3)
    side[2] -= 0.7  # more often from the viewer's side
    side -= (side @ up) * up
    direction = rng.uniform(0.5, 1.6) * up + side / np.linalg.norm(side)
    warm = np.array([1.0, 0.96, 0.9]) ** rng.uniform(-0.6, 1.8)
    strength = rng.uniform(0.35, 0.95)
    ambient = rng.uniform(0.40, 0.62)
    unit = direction / np.linalg.norm(direction)
    parts = unit, strength * warm, ambient / warm, 0.55 * ambient * warm
    return Light(*(part.astype(np.float32) for part in parts))


def _paint_coat(rng, studio, normals, corner, weight):
    """Colour (N, 3) and unit normal (N, 3) at places given by faces' corners and weights."""
    base, layers = draw_coat(rng, studio)
    scores = np.stack([layer.score for layer in layers], 1)
    fields = np.concatenate([normals, scores], 1).astype(np.float32)
    at = on_faces(fields, corner, weight)  # (N, 3 + layers)
    normal = unit(at[:, :3])
    paint = np.tile(base.astype(np.float32), (len(corner), 1))
    paint_layers(paint, layers, at[:, 3:])
    return paint, normal


def render_animal(rng, studio: Studio, animal: Animal, frame: Frame, xy, depth, light: Light):
    """The lit animal over the photograph.

    Args:
        rng: the random numbers.
        studio: the body.
        animal: what to render.
        frame: the photograph.
        xy: (V, 2) the animal's vertices in the photograph, pixels.
        depth: (V,) body units.
        light: the scene's.

    Returns:
        Colour (H, W, 3), fraction of each pixel covered (H, W), and depth of the nearest skin
        (H, W), infinite where there is none.
    """
    height, width = frame.height, frame.width
    rgb, alpha = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)
    nearest = np.full((height, width), np.inf, np.float32)
    least, greatest = bounds(xy)
    low = np.clip(np.floor(least).astype(int) - 1, 0, (width - 1, height - 1))
    high = np.clip(np.ceil(greatest).astype(int) + 1, low + 1, (width, height))
    w, h = (int(n) for n in high - low)
    s = SUPERSAMPLE
    flat = photo_plane(xy - low, depth, w, h)
    faces = facing(flat, studio.faces)
    fragments = rasterize(torch.from_numpy(flat)[None], torch.from_numpy(faces), (h * s, w * s))
    face, bary = fragments.face[0].numpy(), fragments.bary[0].numpy()
    seen = np.flatnonzero(face >= 0)  # (N,) samples
    if not len(seen):
        return rgb, alpha, nearest
    normals = vertex_normals(animal.verts, studio.faces, studio.corner_sums)
    corner = faces.take(face.take(seen), 0)  # (N, 3)
    weight = bary.reshape(-1, 3).take(seen, 0)  # (N, 3)
    paint, normal = _paint_coat(rng, studio, normals, corner, weight)
    hair = grain(rng, h * s, w * s)
    hair = cv2.blur(hair, (1, 5) if rng.random() < 0.7 else (4, 2)).take(seen)
    paint = np.clip(paint * thrice(1 + rng.uniform(0.05, 0.25) * hair), 0, 1)
    edge = np.clip(1 + normal[:, 2], 0, 1) ** 3  # fur shines where it is seen along the skin
    lit = paint * light.on(normal, animal.up.astype(np.float32))
    lit += tint(light.sky, rng.uniform(0, 0.12) * edge)

    samples = np.zeros((h * s, w * s, 3), np.float32)
    samples.reshape(-1, 3)[seen] = lit
    mean, covered = (
        cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA)
        for part in (samples, (face >= 0).astype(np.float32))
    )
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    rgb[window] = mean / thrice(np.maximum(covered, 1 / s**2))
    alpha[window] = covered
    z = np.where(face >= 0, fragments.depth[0].numpy(), np.inf)
    for i in range(s):
        for j in range(s):
            np.minimum(nearest[window], z[i::s, j::s], out=nearest[window])
    return rgb, alpha, nearest


def render_shadow(studio: Studio, animal: Animal, frame: Frame, light: Light) -> np.ndarray:
    """(H, W) how much of the sun the animal takes from the ground under its lowest point."""
    up = animal.up
    above = animal.verts @ up - (animal.verts @ up).min()
    fallen = animal.verts - above[:, None] / (light.direction @ up) * light.direction
    feet = (animal.verts - above[:, None] * up)[above < 0.25]
    plane = animal.project(np.concatenate([fallen, feet]))
    xy, half = frame.to_photo(plane), np.array((frame.width, frame.height)) // 2
    flat = photo_plane(xy, plane[:, 2], frame.width, frame.height)[: len(fallen)]
    width, height = (int(n) for n in np.maximum(half, 1))  # half the size: a shadow is soft
    lit = torch.from_numpy(facing(flat, studio.faces))
    dark = coverage(torch.from_numpy(flat)[None], lit, (height, width), 1)[0].numpy()
    # Where little light comes under the body the ground is darker, whatever the sun does.
    spots = np.zeros((height, width), np.float32)
    places = np.floor(xy[len(fallen) :] / 2).astype(int)
    places = places[((places >= 0) & (places < (width, height))).all(1)]
    spots[places[:, 1], places[:, 0]] = 1
    spots = np.clip(cv2.GaussianBlur(spots, (0, 0), frame.side * 0.01) * 1.5, 0, 0.8)
    dark = np.maximum(cv2.GaussianBlur(dark, (0, 0), frame.side * 0.004), spots)
    return cv2.resize(dark, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR)


def develop(rng, image) -> bytes:
    """What lens, sensor and file do to light (H, W, 3) in about [0, 1]: the bytes of a JPEG."""
    height, width = image.shape[:2]
    image = through(rng.uniform(0.85, 1.12) * rng.uniform(0.94, 1.06, 3), image)
    if rng.random() < 0.3:  # darker corners
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None]
        image *= thrice((1 - rng.uniform(0.05, 0.3) * (x * x + y * y) / 2).astype(np.float32))
    blur = rng.random()
    if blur < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.3))
    elif blur < 0.27:
        length = int(rng.integers(3, 7))
        image = cv2.blur(image, (length, 1) if rng.random() < 0.7 else (1, length))
    strength = np.float32(rng.uniform(0.002, 0.03))
    image = image + strength * merged([grain(rng, height, width) for _ in range(3)])
    bright = np.flatnonzero(image > 0.7)  # keeps some drawing
    np.put(image, bright, 0.7 + 0.3 * np.tanh((image.take(bright) - 0.7) / 0.3))
    # Pure white counts as outside the photograph in the published protocol: stay below it.
    image = np.clip(image * 255, 0, 249).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()


def _label_keypoints(plane, frame, nearest, covered):
    """(24, 3) x, y (whole at pixel centres) and whether visible; 0 where not.

    plane: (41, 3) joints in the crop's image plane; nearest, covered: (H, W), see `photograph`.
    """
    labels = np.zeros((24, 3))
    plane = plane[list(joints.KEYPOINT_JOINTS)]
    xy = frame.to_photo(plane)
    pixel, size = np.floor(xy).astype(int), np.array((frame.width, frame.height))
    inside = ((pixel >= 0) & (pixel < size)).all(1)
    column, row = np.clip(pixel, 0, size - 1).T
    nearer = plane[:, 2] < nearest[row, column] + HIDDEN_BEHIND
    visible = inside & nearer & (covered[row, column] < 0.5)
    places = np.column_stack([np.round(xy - 0.5, 3), np.ones(len(xy))])
    labels[: len(places)][visible] = places[visible]
    return labels


def label(animal: Animal, frame: Frame, mask, nearest, covered, slack) -> tuple[dict, dict]:
    """Labels and ground truth of a photograph.

    Args:
        animal: what it shows.
        frame: the photograph.
        mask: (H, W) bool, where the animal is seen.
        nearest: (H, W) depth of the nearest skin, body units.
        covered: (H, W) in [0, 1], what is before the animal.
        slack: (4,) how far the box is beyond the mask (left, top, right, bottom), as fractions of
            the mask's larger side.

    Returns:
        The entry of StanfordExtra's JSON list without its `img_path`, and the ground truth's arrays
        (docs/synthetic.md).
    """
    row, column = np.nonzero(mask)
    low, high = np.array([column.min(), row.min()]), np.array([column.max(), row.max()]) + 1
    slack = slack * (high - low).max()
    low = np.clip(np.round(low - slack[:2]), 0, None)
    high = np.clip(np.round(high + slack[2:]), low + 2, (frame.width, frame.height))
    entry = {
        "img_width": frame.width,
        "img_height": frame.height,
        "joints": _label_keypoints(animal.joints_plane, frame, nearest, covered).tolist(),
        "img_bbox": [int(n) for n in (*low, *(high - low))],
        "is_multiple_dogs": False,
        "seg": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode(),
    }
    ground_truth = {
        "verts": animal.verts,
        "joints": animal.joints,
        "scale": np.float32(animal.scale),
        "crop_square": np.array([frame.left, frame.top, frame.side], np.float32),
        **animal.parameters,
        "del_v": animal.parameters["del_v"].astype(np.float16),
    }
    return entry, ground_truth


def photograph(rng, studio: Studio, animal: Animal, photos=None) -> tuple[bytes, dict, dict]:
    """Photographs an animal.

    Args:
        rng: the random numbers.
        studio: the body.
        animal: what to photograph.
        photos: not used; other presets take real photographs.

    Returns:
        The JPEG's bytes, the entry of StanfordExtra's JSON list without its `img_path`, and the
        ground truth's arrays (docs/synthetic.md).
    """
    plane = animal.plane  # (V, 3)
    frame = choose_frame(rng, plane)
    xy = frame.to_photo(plane)
    light = choose_light(rng, animal.up)
    rgb, alpha, nearest = render_animal(rng, studio, animal, frame, xy, plane[:, 2], light)

    image = paint_background(rng, xy, (frame.height, frame.width), animal.up, light)
    shadow = render_shadow(studio, animal, frame, light)
    image *= thrice(1 - np.float32(rng.uniform(0.25, 0.6)) * shadow)
    image = mix(image, rgb, alpha)
    covered = paint_front(rng, image, alpha >= 0.5, np.sign(light.direction[0]))
    mask = (alpha >= 0.5) & (covered < 0.5)  # (H, W)

    slack = rng.uniform(-0.01, 0.03, 4)
    entry, ground_truth = label(animal, frame, mask, nearest, covered, slack)
    return develop(rng, image), entry, ground_truth
