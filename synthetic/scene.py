"""One photograph of the wide preset with its labels."""

from dataclasses import replace

import cv2
import numpy as np
import torch

from render import rasterize
from util.camera import FOCAL, HALF_CROP

from .animal import Animal, Studio
from .coat import draw_coat, paint_layers
from .colours import mix, thrice, tint
from .fur import KINDS, ragged_outline, strands
from .lens import develop_wide, draw_focus
from .light import draw_light, self_shadow
from .paint import paint_background
from .photograph import Frame, Light, label, photo_plane, render_shadow
from .props import draw_clothes, paint_before
from .surface import bounds, facing, on_faces, unit, vertex_normals
from .wide import draw_wide

SUPERSAMPLE = 2
REAL_BACKGROUND, REAL_FUR = 0.85, 0.6  # fractions of images, where there are photographs
OTHERS = 0.10  # fraction of images with another animal behind
NORMAL, FLOW, LENGTH, SUN, SKY, LAYERS = np.s_[:3], np.s_[3:5], 5, 6, 7, 8  # columns of `_fields`


def choose_wide_frame(rng, plane) -> Frame:
    """A photograph of odd size round the animal (V, 3: image plane of the crop), which may be close
    round it, far away, or cut a large part of it off."""
    side = rng.uniform(140, 270)
    box = Frame(0, 0, 0.0, 0.0, side).to_photo(plane)
    low, high = bounds(box)
    larger = (high - low).max()
    margin = rng.uniform(0.0, 0.5, 4) * rng.uniform(0.1, 1.0) * larger  # left, top, right, bottom
    if rng.random() < 0.24:
        cut = rng.choice(4, p=(0.2, 0.1, 0.2, 0.5))
        extent = (high - low)[cut % 2]
        margin[cut] = -rng.uniform(0.04, 0.45 if cut == 3 else 0.3) * extent
    size = np.clip(np.round(high - low + margin[:2] + margin[2:]), 64, 420).astype(int)
    left, top = margin[:2] - low
    return Frame(int(size[0]), int(size[1]), float(left), float(top), float(side))


def _fields(studio, animal, light, layers):
    """(V, LAYERS + layers) what is interpolated over the skin, in columns as named above."""
    normals = vertex_normals(animal.verts, studio.faces, studio.corner_sums)
    sun = np.ones(len(normals), np.float32)
    if light.sun.max() > 0.3:
        sun = self_shadow(animal.verts, studio.faces, light.direction)
    above = animal.verts @ animal.up
    above -= above.min()
    sky = 1 - 0.5 * np.clip(-(normals @ animal.up), 0, 1) * np.exp(-above / 0.4)
    length = animal.fur.length * studio.coat_length + 0.004
    columns = [normals, studio.flow, np.stack([length, sun, sky], 1)]
    scores = np.stack([layer.score for layer in layers], 1)
    return np.concatenate([*columns, scores], 1).astype(np.float32)


def _samples(face):
    """The covered pixels (N,) and the first covered sample of each (N,), both counted row by row,
    and the fraction of each pixel covered (H, W)."""
    s = SUPERSAMPLE
    covered = (face >= 0).view(np.uint8)
    samples = [covered[i::s, j::s] for i in range(s) for j in range(s)]  # (H, W) each
    count, first = np.zeros((2, *samples[0].shape), np.uint8)
    for sample in reversed(samples):
        count += sample
        first = (1 - sample) * (1 + first)
    pixel = np.flatnonzero(count)
    place = np.arange(face.size, dtype=np.int32).reshape(face.shape)
    corner, within = place[::s, ::s].ravel(), place[:s, :s].ravel()
    sample = corner.take(pixel) + within.take(first.take(pixel))
    return pixel, sample, count * np.float32(1 / s**2)


def _quieter(rng, base, layers):
    """The layers without clothes, in colours nearer to each other; now and then one alone."""
    if rng.random() < 0.25:
        return [layer for layer in layers if layer.kind == "skin"]
    part = rng.uniform(0, 0.7) if rng.random() < 0.6 else 0.0
    return [
        replace(layer, colour=mix(layer.colour, base, part)) if layer.kind == "fur" else layer
        for layer in layers
        if layer.kind != "cloth"
    ]


def _colours(rng, studio, animal, at, layers, base, tile):
    """(N, 3) unlit colours and (N,) where cloth is; at: (N, LAYERS + layers) fields."""
    offset = rng.integers(0, 256, 2)
    if tile is None:
        paint, shown = np.tile(base.astype(np.float32), (len(at), 1)), list(range(len(layers)))
    else:
        paint = strands(tile, at[:, FLOW], offset) * np.float32(1 / 255)
        markings = rng.random() < 0.3
        shown = [i for i, layer in enumerate(layers) if markings or layer.kind != "fur"]
    _, contrast, _ = KINDS[animal.fur.kind]
    texture = strands(studio.strands[animal.fur.kind], at[:, FLOW], offset)
    strength = rng.uniform(*contrast) * (1.0 if tile is None else 0.4)
    paint = paint * thrice(1 + np.float32(strength) * texture)
    paint_layers(paint, [layers[i] for i in shown], at[:, [LAYERS + i for i in shown]])
    cloth = [LAYERS + i for i, layer in enumerate(layers) if layer.kind == "cloth"]
    dressed = (at[:, cloth] > 0).any(1) if cloth else np.zeros(len(at), bool)
    return np.clip(paint, 0, 1), dressed


def render_furry(rng, studio: Studio, animal: Animal, frame: Frame, light: Light, photos=None):
    """The lit animal over the photograph, its outline broken by fur.

    Args:
        rng: the random numbers.
        studio: the body.
        animal: what to render.
        frame: the photograph.
        light: the scene's.
        photos: `photos.Photos` for real fur, or None.

    Returns:
        Colour (H, W, 3), fraction of each pixel covered (H, W), and depth of the nearest skin
        (H, W), infinite where there is none.
    """
    size = np.array((frame.width, frame.height))
    rgb, alpha = np.zeros((*size[::-1], 3), np.float32), np.zeros(size[::-1], np.float32)
    nearest = np.full(size[::-1], np.inf, np.float32)
    plane = animal.plane
    xy = frame.to_photo(plane)
    zoom = FOCAL * (1 + animal.scale) / (HALF_CROP * plane[:, 2].mean()) * frame.side / 2
    tip = 1.6 * animal.fur.length * zoom + 3  # pixels in a body unit; beyond the skin
    least, greatest = bounds(xy)
    low = np.clip(np.floor(least - tip).astype(int), 0, size - 1)
    high = np.clip(np.ceil(greatest + tip).astype(int), low + 1, size)
    w, h = (int(n) for n in high - low)
    s = SUPERSAMPLE
    flat = photo_plane(xy - low, plane[:, 2], w, h)
    faces = facing(flat, studio.faces)
    fragments = rasterize(torch.from_numpy(flat)[None], torch.from_numpy(faces), (h * s, w * s))
    face = fragments.face[0].numpy()
    pixel, sample, cover = _samples(face)
    if not len(pixel):
        return rgb, alpha, nearest
    base, layers = draw_coat(rng, studio)
    layers = _quieter(rng, base, layers) + draw_clothes(rng, studio)
    tile = photos.draw_fur(rng) if photos and rng.random() < REAL_FUR else None
    corner = faces.take(face.take(sample), 0)  # (N, 3)
    weight = fragments.bary.numpy().reshape(-1, 3).take(sample, 0)  # (N, 3)
    fields = _fields(studio, animal, light, layers)
    at = on_faces(fields, corner, weight)  # (N, LAYERS + layers)
    normal = unit(at[:, NORMAL])
    at[:, FLOW] *= np.float32(zoom * rng.uniform(0.6, 1.3))  # pixels
    paint, dressed = _colours(rng, studio, animal, at, layers, base, tile)
    lambert = np.clip((normal @ light.direction + 0.15) / 1.15, 0, 1) * at[:, SUN]
    above = 0.5 + 0.5 * (normal @ animal.up.astype(np.float32))
    ambient = mix(light.ground, light.sky, above) * thrice(at[:, SKY])
    edge = np.clip(1 + normal[:, 2], 0, 1) ** 3  # fur shines where it is seen along the skin
    lit = paint * (tint(light.sun, lambert) + ambient)
    lit += tint(light.sky, np.float32(rng.uniform(0, 0.12)) * edge)

    own_rgb, own_alpha = np.zeros((h, w, 3), np.float32), cover
    own_rgb.reshape(-1, 3)[pixel] = lit
    length = np.zeros((h, w), np.float32)
    ragged = KINDS[animal.fur.kind][2] * zoom
    np.put(length, pixel, np.where(dressed, 0, at[:, LENGTH] * ragged))
    down = -animal.up[:2] * (1, -1)
    ragged_outline(rng, own_rgb, own_alpha, length, -down * rng.uniform(-0.7, 0.1))
    window = np.s_[low[1] : high[1], low[0] : high[0]]
    rgb[window], alpha[window] = own_rgb, own_alpha
    z = np.full((h, w), np.inf, np.float32)
    np.put(z, pixel, fragments.depth.numpy().take(sample))
    nearest[window] = z
    return rgb, alpha, nearest


def _other_animal(rng, studio, frame, light, photos):
    """Colour (H, W, 3) and cover (H, W) of another animal further away."""
    other = studio.place([draw_wide(rng, studio)])[0]
    zoom = rng.uniform(0.45, 0.95)
    aside = rng.choice((-1, 1)) * rng.uniform(0.3, 0.7) * frame.side
    side = zoom * frame.side
    left = frame.left + (frame.side - side) / 2 + aside
    top = frame.top + (frame.side - side) * rng.uniform(0.4, 0.9)
    away = Frame(frame.width, frame.height, left, top, side)
    return render_furry(rng, studio, other, away, light, photos)[:2]


def photograph_wide(rng, studio: Studio, animal: Animal, photos=None) -> tuple[bytes, dict, dict]:
    """Photographs an animal; see `photograph.photograph`. photos: `photos.Photos` or None."""
    frame = choose_wide_frame(rng, animal.plane)
    size = frame.height, frame.width
    xy = frame.to_photo(animal.plane)
    _, light = draw_light(rng, animal.up)
    real = photos and rng.random() < REAL_BACKGROUND
    if real:
        image = photos.draw_background(rng, size, np.stack(bounds(xy)))
        light = light.under(image.mean((0, 1)))
    else:
        image = paint_background(rng, xy, size, animal.up, light).astype(np.float32)
    several = bool(rng.random() < OTHERS)
    if several:
        rgb, alpha = _other_animal(rng, studio, frame, light, photos)
        several = bool((alpha > 0.5).sum() > 50)
        image = mix(image, rgb, alpha)
    focus = draw_focus(rng, 0.65 if real else 0.35)
    if focus:
        image = cv2.GaussianBlur(image, (0, 0), focus)
    rgb, alpha, nearest = render_furry(rng, studio, animal, frame, light, photos)
    shade = rng.uniform(0.25, 0.6) * min(1.0, 0.4 + float(light.sun.max()))
    image *= thrice(1 - np.float32(shade) * render_shadow(studio, animal, frame, light))
    image = mix(image, rgb, alpha)
    places = frame.to_photo(animal.joints_plane)
    covered = paint_before(rng, image, alpha >= 0.5, places, np.sign(light.direction[0]) or 1)
    mask = (alpha >= 0.5) & (covered < 0.5)
    slack = rng.normal(0.01, 0.035, 4) if rng.random() < 0.85 else rng.uniform(-0.05, 0.3, 4)
    entry, ground_truth = label(animal, frame, mask, nearest, covered, slack)
    entry["is_multiple_dogs"] = several
    return develop_wide(rng, image), entry, ground_truth
