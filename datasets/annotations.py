"""Reading a list of annotated images and finding the entries that cannot be used."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from smal_model.joints import NUM_KEYPOINTS
from util.errors import InputError

from .images import read_image
from .transforms import box_center_and_side, crop_bounds

KEYS = ("img_path", "img_width", "img_height", "joints", "img_bbox", "seg")
MOST_PIXELS = 2**28  # of an image
MANY = 500  # from this many images on, checking them shows a progress bar


@dataclass(frozen=True)
class Problem:
    """Why an entry cannot be used: its position in the list, its name and what is wrong."""

    index: int
    name: str
    problem: str


def read_list(path: Path) -> list:
    """Reads the JSON list of annotations."""
    if not path.is_file():
        raise InputError(
            f"{path} is missing: the data folder must hold the data set (data/README.md says how)"
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not readable as JSON ({error}): download it again") from error
    if not isinstance(entries, list):
        found = type(entries).__name__
        raise InputError(f"{path} holds a {found}, expected a list: download it again")
    return entries


def read_split(path: Path, num_entries: int) -> np.ndarray:
    """Reads the positions (N,) in a list of `num_entries` that a split file names."""
    if not path.is_file():
        raise InputError(f"{path} is missing: the split's indices belong beside the JSON list")
    try:
        indices = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path} is not a NumPy array of indices ({error}): download it again"
        ) from error
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise InputError(
            f"{path} must hold a one-dimensional array of whole numbers: download it again"
        )
    wrong = indices[(indices < 0) | (indices >= num_entries)]
    if len(wrong):
        raise InputError(
            f"{path} names entry {wrong[0]}, but the list holds {num_entries} entries (0 to "
            f"{num_entries - 1}): the JSON list and the split must be of the same version"
        )
    return indices.astype(np.int64)


def image_folder(folder: Path) -> Path:
    """`folder`/Images, or images as some users have it."""
    for name in ("Images", "images"):
        if (folder / name).is_dir():
            return folder / name
    raise InputError(
        f"{folder / 'Images'} is missing: put the data set's images there (data/README.md)"
    )


def entry_name(entry) -> str:
    """`<breed>_<file without ending>` of an entry, or a question mark where it names no file."""
    path = entry.get("img_path") if isinstance(entry, dict) else None
    return "_".join(Path(path).with_suffix("").parts) if isinstance(path, str) and path else "?"


def read_mask(entry: dict) -> np.ndarray:
    """The animal's mask (H, W), uint8 0 or 1; ValueError where the run lengths do not fit."""
    seg = entry["seg"]
    # Each character holds six bits from "0" on, the highest set where the number goes on. The
    # decoder does not check that, and reads past the end of a text that is cut off.
    if not all("0" <= c <= "o" for c in seg) or (ord(seg[-1]) - ord("0")) & 32:
        raise ValueError("run lengths are damaged or cut off")
    size = [int(entry["img_height"]), int(entry["img_width"])]
    return coco_mask.decode({"size": size, "counts": seg.encode()})


def read_joints(entry: dict) -> np.ndarray:
    """The first 20 keypoints (20, 3) of an entry: x, y in pixels of the image, visible."""
    return np.asarray(entry["joints"], dtype=np.float64)[:NUM_KEYPOINTS]


def labels_problem(entry) -> str | None:
    """What is wrong with an entry, as far as the list alone tells; None where all is well."""
    if not isinstance(entry, dict):
        return f"entry is {type(entry).__name__}, not an object"
    missing = [key for key in KEYS if key not in entry]
    if missing:
        return "lacks " + ", ".join(missing)
    if entry_name(entry) == "?":
        return "img_path names no file"
    if Path(entry["img_path"]).is_absolute() or ".." in Path(entry["img_path"]).parts:
        return f"img_path {entry['img_path']} leads out of the folder of images"
    try:
        joints = np.asarray(entry["joints"], dtype=np.float64)
        box = np.asarray(entry["img_bbox"], dtype=np.float64)
        width, height = int(entry["img_width"]), int(entry["img_height"])
    except (TypeError, ValueError, OverflowError):
        return "joints, img_bbox or the image's size are not numbers"
    if joints.ndim != 2 or len(joints) < NUM_KEYPOINTS or joints.shape[1] != 3:
        return f"joints have shape {joints.shape}, expected (24, 3)"
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        return f"image of {width} x {height} pixels"
    return box_problem(box, width, height) or mask_problem(entry, box)


def box_problem(box: np.ndarray, width: int, height: int) -> str | None:
    """What is wrong with a box (x, y, w, h) in an image of this size."""
    if box.shape != (4,) or not np.isfinite(box).all():
        return "img_bbox is not four numbers"
    if min(box[2:]) <= 0 or max(box[2:]) < 2:
        return f"box without area ({box[2]:g} x {box[3]:g})"
    inside = np.minimum(box[:2] + box[2:], [width, height]) - np.maximum(box[:2], 0)  # (2,) x, y
    if min(inside) <= 0 or inside.prod() < 0.5 * box[2:].prod():
        place = f"x {box[0]:g}, y {box[1]:g}, {box[2]:g} x {box[3]:g} in {width} x {height}"
        return f"box outside the image ({place})"
    return None


def mask_problem(entry: dict, box: np.ndarray) -> str | None:
    """What is wrong with an entry's mask."""
    if not isinstance(entry["seg"], str) or not entry["seg"]:
        return "empty mask"
    try:
        mask = read_mask(entry)
    except (ValueError, UnicodeError, MemoryError) as error:
        return f"mask cannot be decoded ({error})"
    if not mask.any():
        return "empty mask"
    low, high = crop_bounds(*box_center_and_side(box))
    low = np.maximum(low, 0)
    if not mask[low[1] : high[1], low[0] : high[0]].any():
        return "mask lies outside the box"
    return None


def image_problem(entry: dict, images: Path) -> str | None:
    """What is wrong with an entry's image file; None where all is well."""
    path = images / entry["img_path"]
    if not path.is_file():
        return f"image missing ({path})"
    try:
        height, width = read_image(path).shape[:2]
    except InputError as error:
        return f"image unreadable: {error}"
    if (width, height) != (int(entry["img_width"]), int(entry["img_height"])):
        listed = f"{entry['img_width']} x {entry['img_height']}"
        return f"image is {width} x {height}, the list says {listed}"
    return None


def find_problems(entries: list, indices: np.ndarray, images: Path) -> list[Problem]:
    """Finds the entries that cannot be used.

    Args:
        entries: the whole list of annotations.
        indices: (N,), positions in it to check.
        images: folder of the images.

    Returns:
        In the order of `indices`, at most one problem each.
    """

    def check(index: int) -> str | None:
        return labels_problem(entries[index]) or image_problem(entries[index], images)

    with ThreadPoolExecutor() as pool:
        found = pool.map(check, indices)
        bar = tqdm(
            found, "checking images", len(indices), leave=False, disable=len(indices) <= MANY
        )
        checked = zip(indices, bar, strict=True)
        return [Problem(int(i), entry_name(entries[i]), p) for i, p in checked if p]
