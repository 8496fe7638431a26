"""Real photographs as surroundings and fur of synthetic animals."""

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from util.errors import InputError

from .colours import mix, thrice
from .fur import TILE

LONGEST = 360  # photographs are read at this longest side, pixels
KEPT = 256  # photographs in memory, of about 0.8 MB each with all that is made of them
AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION  # as masks and boxes are
ENDINGS = {".jpg", ".jpeg", ".png"}


class Photos:
    """The photographs of a folder, with masks of the animals where the folder has them.

    The folder is Oxford-IIIT Pet (`images/`, `annotations/trimaps/`), StanfordExtra (`Images/`,
    `StanfordExtra_v12.json`; the training split where there is one), or holds photographs without
    animals. No pixel of a masked animal is ever background.
    """

    def __init__(self, folder):
        folder = self.folder = Path(folder)
        trimaps, extra = folder / "annotations" / "trimaps", folder / "StanfordExtra_v12.json"
        self.sources: list[tuple] = []  # (photograph, trimap or entries with masks or None)
        self.lists = [extra] if extra.is_file() and not trimaps.is_dir() else []
        if trimaps.is_dir():
            for path in sorted((folder / "images").glob("*.jpg")):
                if (trimaps / f"{path.stem}.png").is_file():
                    self.sources.append((path, trimaps / f"{path.stem}.png"))
        elif extra.is_file():
            entries = json.loads(extra.read_text())
            split = folder / "train_stanford_StanfordExtra_v12.npy"
            chosen = np.load(split).tolist() if split.is_file() else range(len(entries))
            once: dict[str, list] = {}
            for entry in (entries[i] for i in chosen):
                once.setdefault(entry["img_path"], []).append(entry)
            for path, same in sorted(once.items()):
                if (folder / "Images" / path).is_file():
                    self.sources.append((folder / "Images" / path, same))
        elif folder.is_dir():
            found = (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in ENDINGS)
            self.sources = [(path, None) for path in found]
        if not self.sources:
            raise InputError(f"{folder} holds no photographs (.jpg, .png); give a folder that does")
        self.read = lru_cache(KEPT)(self._read)
        self.clean = lru_cache(KEPT)(self._clean)
        self.tile = lru_cache(KEPT)(self._tile)

    def digest(self) -> str:
        """A short name of the photographs and masks that are read, by file names and sizes."""
        files = [f for source in self.sources for f in source if isinstance(f, Path)] + self.lists
        listed = [f"{f.relative_to(self.folder)} {f.stat().st_size}" for f in files]
        return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self.sources)

    def _mask(self, source, size):
        """(H, W) uint8 at the photograph's size (height, width): 0 background, 1 animal, 2 edge."""
        if isinstance(source, Path):
            trimap = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE | AS_STORED)
            if trimap is None or trimap.shape != tuple(size):
                raise InputError(f"{source} is no trimap of its photograph's size; remove it")
            return np.array((0, 1, 0, 2), np.uint8).take(np.minimum(trimap, 3))
        mask = np.zeros(size, np.uint8)
        for entry in source or ():
            if not entry.get("seg"):
                continue
            code = {"size": [entry["img_height"], entry["img_width"]], "counts": entry["seg"]}
            one = coco_mask.decode(code)
            if one.shape != mask.shape:
                found = f"{entry['img_path']}: its mask is not of the photograph's size"
                raise InputError(f"{self.folder}, {found}; remove its entry from the list")
            mask |= one
        return mask

    def _read(self, index):
        """Photograph (H, W, 3) uint8 RGB and the mask of its animals (H, W), see `_mask`."""
        path, source = self.sources[index]
        masked = AS_STORED if source else 0  # what no mask belongs to is turned upright
        photo = cv2.imread(str(path), cv2.IMREAD_COLOR | masked)
        if photo is None:
            raise InputError(f"{path} is not a readable photograph; remove it")
        mask = self._mask(source, photo.shape[:2])
        zoom = min(1.0, LONGEST / max(photo.shape[:2]))
        if zoom < 1:
            size = tuple(max(8, round(n * zoom)) for n in photo.shape[1::-1])
            photo = cv2.resize(photo, size, interpolation=cv2.INTER_AREA)
            mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        return cv2.cvtColor(photo, cv2.COLOR_BGR2RGB), mask

    def _clean(self, index):
        """(H, W, 3) uint8 RGB photograph without its animals."""
        photo, mask = self.read(index)
        return fill_holes(photo, mask > 0)

    def _tile(self, index):
        """(TILE, TILE, 3) uint8 fur of a photograph without its shading, mirrored at edges; None
        where the mask is too small."""
        photo, mask = self.read(index)
        inner = np.pad((mask == 1).astype(np.uint8), 1)
        half = cv2.distanceTransform(inner, cv2.DIST_C, 3)[1:-1, 1:-1]
        row, column = np.unravel_index(half.argmax(), half.shape)
        r = int(half[row, column]) - 1
        if r < 14:
            return None
        r = min(r, TILE // 4)
        patch = photo[row - r : row + r, column - r : column + r].astype(np.float32) / 255
        shade = cv2.GaussianBlur(patch.mean(2), (0, 0), r / 2.5)
        patch = patch * (max(float(shade.mean()), 0.05) / np.maximum(shade, 0.05))[..., None] ** 0.7
        missing = TILE // 2 - len(patch)
        quarter = np.pad(patch, ((0, missing), (0, missing), (0, 0)), mode="symmetric")
        half_tile = np.concatenate([quarter, quarter[::-1]])
        tile = np.concatenate([half_tile, half_tile[:, ::-1]], 1)
        return np.clip(255 * tile, 5, 255).astype(np.uint8)

    def draw_fur(self, rng, tries: int = 4):
        """(TILE, TILE, 3) uint8 fur of a random photograph; None where none of `tries` has any."""
        for _ in range(tries):
            tile = self.tile(int(rng.integers(len(self))))
            if tile is not None:
                return tile
        return None

    def draw_background(self, rng, size, box) -> np.ndarray:
        """Surroundings for an animal, which often takes the place of the photograph's own.

        Args:
            rng: the random numbers.
            size: height and width, pixels.
            box: (2, 2) the animal's least and greatest x, y, pixels.

        Returns:
            (H, W, 3) float32 in [0, 1].
        """
        index = int(rng.integers(len(self)))
        clean, (_, mask) = self.clean(index), self.read(index)
        height, width = size
        least = max(height / clean.shape[0], width / clean.shape[1])  # covers the image
        column, row = np.nonzero(mask.any(0))[0], np.nonzero(mask.any(1))[0]
        if len(row) and rng.random() < 0.55:
            low, high = np.array([column[0], row[0]]), np.array([column[-1], row[-1]]) + 1.0
            zoom = (box[1] - box[0]).max() / (high - low).max() * rng.uniform(0.8, 1.25)
            zoom = max(zoom, 0.75 * least)
            place = (box[0] + box[1]) / 2 - zoom * (low + high) / 2
            place[1] = box[1][1] - zoom * high[1]  # the ground stays where it was
        else:
            zoom = least * rng.uniform(1.0, 2.5)
            spare = np.array([width, height]) - zoom * np.array(clean.shape[1::-1])
            place = spare * rng.random(2)
        matrix = np.array([[zoom, 0, place[0]], [0, zoom, place[1]]])
        if rng.random() < 0.5:
            matrix[0] = -matrix[0]
            matrix[0, 2] += box[0][0] + box[1][0]  # mirrored about the animal
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        warped = cv2.warpAffine(
            clean, matrix, (width, height), flags=how, borderMode=cv2.BORDER_REFLECT_101
        )
        return warped.astype(np.float32) / 255


def fill_holes(photo, hole) -> np.ndarray:
    """(H, W, 3) uint8 with a hole (H, W) filled from around: each row mirrored at the hole's edges,
    and smooth colours where that would show the hole again."""
    if not hole.any():
        return photo
    grown = cv2.dilate(hole.astype(np.uint8), np.ones((7, 7), np.uint8))
    hole = grown > 0
    width = photo.shape[1]
    column = np.arange(width, dtype=np.int32)
    left = np.maximum.accumulate(np.where(hole, -width, column), 1)  # the last known column
    right = np.minimum.accumulate(np.where(hole, 2 * width, column)[:, ::-1], 1)[:, ::-1]
    pixel = np.flatnonzero(hole)
    row, column = np.divmod(pixel, width)
    left, right = left.take(pixel), right.take(pixel)
    source = 2 * np.where(column - left < right - column, left, right) - column
    inside = row * width + np.clip(source, 0, width - 1)
    mirrored = (source >= 0) & (source < width) & ~hole.take(inside)
    pixel, inside = pixel[mirrored], inside[mirrored]
    known = 1 - hole.astype(np.float32)
    seen = np.zeros(hole.shape, np.float32)
    colours = photo.astype(np.float32)
    colours.reshape(-1, 3)[pixel] = photo.reshape(-1, 3).take(inside, 0)
    np.put(known, pixel, 0.7)
    np.put(seen, pixel, 1)
    filled = mix(_spread(colours, known), colours, cv2.blur(seen, (9, 9)) * seen)
    return cv2.copyTo(np.clip(filled, 0, 255).astype(np.uint8), grown, photo.copy())


def _spread(colours, known):
    """(H, W, 3) colours spread from where they are known (weights (H, W)) over all, as a pyramid of
    means; its finest level is not used, for only what is smooth is wanted."""
    levels: list[tuple] = [(colours * thrice(known), known)]
    while min(levels[-1][1].shape) > 2:
        size = tuple(max(1, n // 2) for n in levels[-1][1].shape[::-1])
        levels.append(tuple(cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in levels[-1]))
    out = levels[-1][0] / thrice(np.maximum(levels[-1][1], 1e-3))
    for colour, weight in reversed(levels[1:-1]):
        own = colour / thrice(np.maximum(weight, 1e-3))
        below = cv2.resize(out, weight.shape[::-1], interpolation=cv2.INTER_LINEAR)
        out = mix(below, own, np.clip(weight * 2, 0, 1))
    return cv2.resize(out, known.shape[::-1], interpolation=cv2.INTER_LINEAR)
