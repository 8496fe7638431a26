"""Reading a list of annotated photographs and finding the entries that cannot be used."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from smal_model.joints import NUM_KEYPOINTS

from .transforms import box_center_and_side, crop_bounds

KEYS = ("img_path", "img_width", "img_height", "joints", "img_bbox", "seg")
MOST_PIXELS = 2**28  # of a photograph
MANY = 500  # from this many photographs on, checking them shows a progress bar


class Problem(NamedTuple):
    """Why an entry cannot be used: its position in the list, its name and one sentence."""

    index: int
    name: str
    problem: str


def read_list(path: Path) -> list:
    """The JSON list of annotations; FileNotFoundError or ValueError, in one sentence, where it is none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: --data_dir must hold the data set (data/README.md says how)")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable as JSON ({error}): download it again") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} must hold a list of annotations, found {type(entries).__name__}: download it again")
    return entries


def read_split(path: Path, num_entries: int) -> np.ndarray:
    """The positions (N,) in a list of `num_entries` that a split file names."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the split's indices belong beside the JSON list")
    try:
        indices = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is not a NumPy array of indices ({error}): download it again") from error
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise ValueError(f"{path} must hold a one-dimensional array of whole numbers: download it again")
    wrong = indices[(indices < 0) | (indices >= num_entries)]
    if len(wrong):
        raise ValueError(
            f"{path} names entry {wrong[0]}, but the list holds {num_entries} entries (0 to {num_entries - 1}): "
            "the JSON list and the split must be of the same version"
        )
    return indices.astype(np.int64)


def image_folder(folder: Path) -> Path:
    """`folder`/Images, or images as some users have it."""
    for name in ("Images", "images"):
        if (folder / name).is_dir():
            return folder / name
    raise FileNotFoundError(f"{folder / 'Images'} is missing: put the data set's photographs there (data/README.md)")


def entry_name(entry) -> str:
    """`<breed>_<file without ending>` of an entry, or a question mark where it names no file."""
    path = entry.get("img_path") if isinstance(entry, dict) else None
    return "_".join(Path(path).with_suffix("").parts) if isinstance(path, str) and path else "?"


def read_image(path: Path) -> np.ndarray:
    """The photograph (H, W, 3), uint8 red green blue, as stored (an orientation tag turns nothing).

    Raises OSError naming the file where it is missing, unreadable or truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}") from error
    # OpenCV returns what it could decode of a truncated file, the rest grey: look for the end marker first.
    jpeg_cut_off = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")
    png_cut_off = data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]
    if jpeg_cut_off or png_cut_off:
        raise OSError(f"{path} is truncated ({len(data)} bytes)")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # no bytes at all, or a header that promises too many pixels
        image = None
    if image is None:
        raise OSError(f"{path} is not a readable picture ({len(data)} bytes)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_mask(entry: dict) -> np.ndarray:
    """The animal's mask (H, W), uint8 0 or 1, from the entry's run lengths; ValueError where they do not fit."""
    seg = entry["seg"]
    # Each character holds six bits from "0" on, the highest set where the number goes on. The decoder does not check that, and
    # reads past the end of a text that is cut off.
    if not all("0" <= c <= "o" for c in seg) or (ord(seg[-1]) - ord("0")) & 32:
        raise ValueError("run lengths are damaged or cut off")
    size = [int(entry["img_height"]), int(entry["img_width"])]
    return coco_mask.decode({"size": size, "counts": seg.encode()})


def read_joints(entry: dict) -> np.ndarray:
    """The first 20 keypoints (20, 3) of an entry: x, y in pixels of the photograph, visible."""
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
        return "joints, img_bbox or the picture's size are not numbers"
    if joints.ndim != 2 or len(joints) < NUM_KEYPOINTS or joints.shape[1] != 3:
        return f"joints have shape {joints.shape}, expected (24, 3)"
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        return f"picture of {width} x {height} pixels"
    if box.shape != (4,) or not np.isfinite(box).all():
        return "img_bbox is not four numbers"
    if min(box[2:]) <= 0 or max(box[2:]) < 2:
        return f"box without area ({box[2]:g} x {box[3]:g})"
    inside = np.minimum(box[:2] + box[2:], [width, height]) - np.maximum(box[:2], 0)  # (2,) x, y
    if min(inside) <= 0 or inside.prod() < 0.5 * box[2:].prod():
        return f"box outside the picture (x {box[0]:g}, y {box[1]:g}, {box[2]:g} x {box[3]:g} in {width} x {height})"
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
    """What is wrong with an entry's photograph; None where all is well."""
    path = images / entry["img_path"]
    if not path.is_file():
        return f"image missing ({path})"
    try:
        height, width = read_image(path).shape[:2]
    except OSError as error:
        return f"image unreadable: {error}"
    if (width, height) != (int(entry["img_width"]), int(entry["img_height"])):
        return f"image is {width} x {height}, the list says {entry['img_width']} x {entry['img_height']}"
    return None


def find_problems(entries: list, indices: np.ndarray, images: Path) -> list[Problem]:
    """The unusable ones among the entries that `indices` (N,) names, in that order, at most one problem each."""

    def check(index: int) -> str | None:
        return labels_problem(entries[index]) or image_problem(entries[index], images)

    with ThreadPoolExecutor() as pool:
        found = pool.map(check, indices)
        found = list(tqdm(found, "checking photographs", len(indices), leave=False, disable=len(indices) <= MANY))
    return [Problem(int(i), entry_name(entries[i]), p) for i, p in zip(indices, found, strict=True) if p]
