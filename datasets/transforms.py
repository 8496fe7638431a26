"""From an image and its labels to the 224-pixel crop, and the changes made to it in training.

A crop is a square of 1.2 x the larger side of the animal's box around the box's centre. Labels
always live in the 224-pixel crop; only the network's input may have another size, and is resampled
from the same cut of the image.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from smal_model.joints import MIRRORED, NUM_KEYPOINTS
from util.camera import CROP
from util.images import normalize

from .masks import UNSURE

FAR = 1e6  # pixels; a joint beyond is no place
BOX_MARGIN = 1.2  # side of the crop / larger side of the box
MOST_SCALE = 1.25  # of `draw_augmentation`


@dataclass(frozen=True)
class Augmentation:
    """What happens to one crop; the defaults change nothing."""

    scale: float = 1.0  # multiplies the crop's side: above 1 the animal looks smaller
    angle: float = 0.0  # degrees, clockwise as seen
    gain: tuple[float, float, float] | None = None  # multiplies red, green and blue
    flip: bool = False  # mirrors left and right, after the turn


def draw_augmentation(rng: np.random.Generator, augment: bool, flip: bool) -> Augmentation:
    """Draws the published augmentation.

    Args:
        rng: gives the same numbers whatever is switched on.
        augment: scale N(1, 0.25) in [0.75, 1.25], turn N(0, 30) in [-60, 60] degrees (none with
            probability 0.6) and gain U(0.6, 1.4) per channel.
        flip: a mirror image with probability 0.5.
    """
    # Everything is drawn whether used or not, so that one option does not change another's numbers.
    scale = float(np.clip(rng.normal(1.0, 0.25), 0.75, MOST_SCALE))
    angle = float(np.clip(rng.normal(0.0, 30.0), -60.0, 60.0))
    turned = rng.random() >= 0.6
    red, green, blue = (float(g) for g in rng.uniform(0.6, 1.4, 3))
    mirrored = bool(rng.random() < 0.5)
    if not augment:
        return Augmentation(flip=flip and mirrored)
    return Augmentation(scale, angle if turned else 0.0, (red, green, blue), flip and mirrored)


def box_center_and_side(box) -> tuple[np.ndarray, float]:
    """Centre (2,) x, y of a box (x, y, w, h) and the side of its crop, both in pixels."""
    x, y, w, h = (float(v) for v in box)
    return np.array([x + w / 2, y + h / 2]), BOX_MARGIN * max(w, h)


def crop_bounds(center: np.ndarray, side: float) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one pixel (2,) x, y, rounded towards zero: may be a pixel off square."""
    low = np.trunc(center - side / 2).astype(int)
    high = np.trunc(center + side / 2).astype(int)
    return low, np.maximum(high, low + 1)


def reach(box, augment: bool, width: int, height: int) -> tuple[int, int, int, int]:
    """The part of an image that crops of a box may show.

    Args:
        box: (x, y, w, h), pixels of the image.
        augment: whether the crop is scaled and turned as `draw_augmentation` does.
        width, height: of the image, pixels.

    Returns:
        First column and row, last plus one column and row.
    """
    center, side = box_center_and_side(box)
    half = side / 2 * (MOST_SCALE * math.sqrt(2) if augment else 1) + 2  # two pixels to blend with
    low = np.clip(np.floor(center - half), 0, [width - 1, height - 1]).astype(int)
    high = np.clip(np.ceil(center + half), low + 1, [width, height]).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def cut(
    image: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    center: np.ndarray,
    angle: float,
    fill: int,
    size: int | None = None,
) -> np.ndarray:
    """Cuts a rectangle out of an image.

    Args:
        image: (H, W) or (H, W, 3).
        low, high: (2,) x, y, first and last-plus-one pixel; may lie outside the image.
        center: (2,) x, y, the point around which the image is turned first.
        angle: degrees, clockwise as seen.
        fill: value of the pixels outside the image.
        size: side in pixels to which a turned rectangle is resized in the same resampling.
    """
    extent = high - low
    if angle:
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        back = np.array([[cos, sin], [-sin, cos]])  # from the cut to the image
        step = np.ones(2) if size is None else extent / size  # pixels of the cut
        first = (step - 1) / 2  # where the first pixel's centre lies in the cut
        shift = center + back @ (low + first - center)
        return cv2.warpAffine(
            image,
            np.column_stack([back * step, shift]),
            (size, size) if size else tuple(int(v) for v in extent),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(fill,) * 3,
        )
    width, height = (int(v) for v in extent)
    out = np.full((height, width) + image.shape[2:], fill, image.dtype)
    x0, y0 = np.maximum(low, 0)
    x1, y1 = np.minimum(high, image.shape[1::-1])
    if x1 > x0 and y1 > y0:
        out[y0 - low[1] : y1 - low[1], x0 - low[0] : x1 - low[0]] = image[y0:y1, x0:x1]
    return out


def move_keypoints(
    joints: np.ndarray, center: np.ndarray, side: float, angle: float = 0.0, flip: bool = False
) -> np.ndarray:
    """Moves labels from the image to the 224-pixel crop.

    Args:
        joints: (20, 3) x, y, visible, pixels of the image.
        center: (2,) x, y of the crop's centre in the image.
        side: of the crop in the image, pixels.
        angle: degrees, clockwise as seen, around the centre.
        flip: mirrors left and right, after the turn.

    Returns:
        (20, 3) row, column, visible (0 or 1). Joints that are no place become (0, 0, 0); visible
        ones outside the crop keep their place outside.
    """
    known = np.isfinite(joints).all(1) & (np.abs(joints[:, :2]) < FAR).all(1)  # (20,)
    offset = np.where(known[:, None], joints[:, :2], center) - center  # (20, 2) x, y
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    if angle:
        offset = offset @ np.array([[cos, sin], [-sin, cos]])  # clockwise as seen: y points down
    if flip:
        offset = offset * [-1, 1]
    place = np.trunc(offset * CROP / side + CROP / 2) + 1  # (20, 2)
    visible = known & (np.nan_to_num(joints[:, 2]) > 0)
    out = np.column_stack([place[:, 1], place[:, 0], visible]) * known[:, None]
    return (out[list(MIRRORED)] if flip else out).astype(np.float32)


def make_crop(
    image: np.ndarray,
    box,
    mask: np.ndarray | None = None,
    joints: np.ndarray | None = None,
    img_res: int = CROP,
    augmentation: Augmentation = Augmentation(),
    scored: bool = True,
) -> dict:
    """Makes one crop with its labels.

    Args:
        image: (H, W, 3) uint8, red green blue.
        box: (x, y, w, h), pixels of the image.
        mask: (H, W) uint8, 0, 1 or `UNSURE`; None where it is not labelled.
        joints: (20, 3) x, y, visible, pixels of the image; None where they are not labelled.
        img_res: side S of the network's input, pixels.
        augmentation: what is changed.
        scored: with border_mask and inside, which losses do not read.

    Returns:
        The documented sample without failed, index and name.
    """
    center, side = box_center_and_side(box)
    side = side * augmentation.scale
    low, high = crop_bounds(center, side)
    angle, flip = augmentation.angle, augmentation.flip

    def cut_out(plane: np.ndarray, fill: int, size: int | None = CROP) -> np.ndarray:
        out = cut(plane, low, high, center, angle, fill, size)
        return (cv2.flip(out, 1) if flip else out).astype(np.float32)

    def labels(plane: np.ndarray, fill: int = 0) -> np.ndarray:  # (H, W) of bool to (224, 224)
        plane = plane.astype(np.float32) if angle else plane.view(np.uint8)  # turned: blended
        out = cut_out(plane, fill)
        return out if angle else cv2.resize(out, (CROP, CROP))

    # In [0, 255]; turned pixels are resampled once, where no area is to be averaged.
    pixels = cut_out(image, 255, CROP if img_res == CROP else None)
    planes = {}
    if scored or img_res == CROP:
        crop = cv2.resize(pixels, (CROP, CROP), interpolation=cv2.INTER_LINEAR)
    if scored:
        # Saturated pixels count as outside the image, as in the published protocol; the gain comes
        # after this.
        red, green, blue = cv2.split((crop < 255).view(np.uint8))
        border_mask = cv2.bitwise_and(cv2.bitwise_and(red, green), blue).astype(np.float32)
        if not angle and low.min() >= 0 and (high <= image.shape[1::-1]).all():
            inside = np.ones((CROP, CROP), np.float32)
        else:
            inside = (labels(np.ones(image.shape[:2], bool)) > 0.5).astype(np.float32)
        planes = {"border_mask": torch.from_numpy(border_mask), "inside": torch.from_numpy(inside)}
    if img_res != CROP:
        shrinks = img_res < min(pixels.shape[:2])
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        crop = cv2.resize(pixels, (img_res, img_res), interpolation=method)  # (S, S, 3)

    mask_crop = mask_weight = np.zeros((CROP, CROP), np.float32)
    area = float(box[2]) * float(box[3]) * (CROP / side) ** 2
    if mask is not None:
        mask_crop, mask_weight = labels(mask == 1), np.ones((CROP, CROP), np.float32)
        area = float(torch.from_numpy(mask_crop).sum())
        if (mask == UNSURE).any():  # a pixel counts where nothing of it is unsure
            mask_weight = (labels(mask != UNSURE, fill=1) > 0.999).astype(np.float32)
    places = np.full((NUM_KEYPOINTS, 3), np.nan) if joints is None else joints
    keypoints = move_keypoints(places, center, side, angle, flip)
    return {
        "image": normalize(np.divide(crop, 255, out=crop), augmentation.gain),
        "mask": torch.from_numpy(mask_crop),
        "has_mask": torch.tensor(mask is not None),
        "mask_weight": torch.from_numpy(mask_weight),
        "area": torch.tensor(area, dtype=torch.float32),
        "keypoints": torch.from_numpy(keypoints),
        "has_keypoints": torch.tensor(joints is not None),
        "center": torch.tensor(center, dtype=torch.float32),
        "scale": torch.tensor(side / 200, dtype=torch.float32),
        **planes,
    }
