"""Reading a list of annotated images and finding the entries that cannot be used.

An entry is a dict with the keys of StanfordExtra's list: img_path, img_width, img_height, img_bbox
(x, y, w, h), and joints and seg where they are labelled.
"""

import io
import json
import os
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from smal_model.joints import NUM_KEYPOINTS
from util.errors import InputError

from .images import MOST_PIXELS, one_if_large, read_image
from .masks import decode_mask, run_lengths
from .transforms import box_center_and_side, crop_bounds

IMAGE_KEYS = ("img_path", "img_width", "img_height", "img_bbox")
MOST_JOINTS = 24  # of an entry
MOST_LIST_BYTES = 2**27  # of a JSON list or a split
MOST_NAME_BYTES = 200  # of an entry's name: results are files of this name
# What NumPy raises on a damaged array file.
DAMAGED_ARRAY = (ValueError, EOFError, SyntaxError, TypeError, tokenize.TokenError, MemoryError)
CHECKSUMS = "SHA256SUMS"  # beside the JSON list, written by datasets.check
MANY = 500  # from this many images on, checking them shows a progress bar


@dataclass(frozen=True)
class Problem:
    """Why an entry cannot be used: its position in the list, its name and what is wrong."""

    index: int
    name: str
    problem: str


def _read_list_bytes(path: Path, expected: str) -> bytes:
    """The content of a list's or a split's file."""
    try:
        if not path.is_file():
            raise InputError(f"{path} is missing: {expected}")
        if path.stat().st_size > MOST_LIST_BYTES:
            raise InputError(f"{path} holds more than {MOST_LIST_BYTES} bytes: download it again")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_list(path: Path) -> list:
    """Reads the JSON list of annotations."""
    data = _read_list_bytes(path, "the data folder must hold the data set (data/README.md)")
    try:
        entries = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON ({error}): download it again") from error
    if not isinstance(entries, list):
        found = type(entries).__name__
        raise InputError(f"{path} holds a {found}, expected a list: download it again")
    return entries


def read_split(path: Path, num_entries: int) -> np.ndarray:
    """Reads the positions (N,) in a list of `num_entries` that a split file names."""
    data = _read_list_bytes(path, "the split's indices belong beside the JSON list")
    try:
        indices = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except DAMAGED_ARRAY as error:
        raise InputError(
            f"{path} is not a NumPy array of indices ({error}): download it again"
        ) from error
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
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
        if os.path.isdir(folder / name):
            if not os.access(folder / name, os.X_OK):  # else each image would seem to be missing
                raise InputError(f"{folder / name} cannot be read: Permission denied")
            return folder / name
    raise InputError(
        f"{folder / 'Images'} is missing: put the data set's images there (data/README.md)"
    )


def printable(text: str) -> str:
    """`text` with control characters and what is no Unicode written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def entry_name(entry) -> str:
    """`<breed>_<file without ending>` of an entry, or a question mark where it names no file."""
    path = entry.get("img_path") if isinstance(entry, dict) else None
    parts = Path(path).parts if isinstance(path, str) else ()
    return printable("_".join([*parts[:-1], Path(parts[-1]).stem])) if parts else "?"


def unique_names(names: Sequence[str], indices: Sequence[int]) -> list[str]:
    """`names` with `_<index>` where several are the same; no two of the result are."""
    times = Counter(names)
    taken = {name for name in names if times[name] == 1}
    out = []
    for name, index in zip(names, indices, strict=True):
        if times[name] > 1:
            name = f"{name}_{index}"
            while name in taken:
                name += "_"
            taken.add(name)
        out.append(name)
    return out


def read_mask(entry: dict) -> np.ndarray:
    """The animal's mask (H, W), uint8 0 or 1; ValueError where the run lengths do not fit."""
    return decode_mask(entry["seg"], int(entry["img_height"]), int(entry["img_width"]))


def read_joints(entry: dict) -> np.ndarray:
    """The first 20 keypoints (20, 3) of an entry: x, y in pixels of the image, visible."""
    return np.asarray(entry["joints"], dtype=np.float64)[:NUM_KEYPOINTS]


def labels_problem(entry, keys: Sequence[str]) -> str | None:
    """What is wrong with an entry, as far as the list alone tells; None where all is well.

    Args:
        entry: as it stands in the list.
        keys: those that it must have.
    """
    if not isinstance(entry, dict):
        return f"entry is {type(entry).__name__}, not an object"
    if entry.get("problem"):  # found while the list was read
        return str(entry["problem"])
    missing = [key for key in keys if key not in entry]
    if missing:
        return "lacks " + ", ".join(missing)
    problem = path_problem(entry["img_path"])
    if problem:
        return problem
    try:
        joints = np.asarray(entry.get("joints", np.zeros((NUM_KEYPOINTS, 3))), dtype=np.float64)
        box = np.asarray(entry["img_bbox"], dtype=np.float64)
        width, height = int(entry["img_width"]), int(entry["img_height"])
    except (TypeError, ValueError, OverflowError):
        return "joints, img_bbox or the image's size are not numbers"
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        return f"image of {width} x {height} pixels"
    return joints_problem(joints, width, height) or box_problem(box, width, height)


def path_problem(path) -> str | None:
    """What is wrong with the path of an image inside the folder of images."""
    if not isinstance(path, str) or not Path(path).parts:
        return "img_path names no file"
    if not path.isprintable():
        return f"img_path {printable(path)} holds characters that no file name should"
    if Path(path).is_absolute() or ".." in Path(path).parts:
        return f"img_path {path} leads out of the folder of images"
    longest = max(len(part.encode()) for part in Path(path).parts)
    if longest > 255 or len(entry_name({"img_path": path}).encode()) > MOST_NAME_BYTES:
        return f"img_path {path[:40]}... is too long ({len(path)} characters)"
    return None


def joints_problem(joints: np.ndarray, width: int, height: int) -> str | None:
    """What is wrong with joints (N, 3) x, y, visible in an image of this size."""
    counts = range(NUM_KEYPOINTS, MOST_JOINTS + 1)
    if joints.ndim != 2 or joints.shape[1] != 3 or len(joints) not in counts:
        return f"joints have shape {joints.shape}, expected ({MOST_JOINTS}, 3)"
    joints, size = joints[:NUM_KEYPOINTS], np.array([width, height])
    far = (joints[:, :2] < -size) | (joints[:, :2] > 2 * size)  # (N, 2), NaN is never far
    far = far.any(1) & (joints[:, 2] > 0)
    if far.any():
        k = far.argmax()
        place = f"x {joints[k, 0]:g}, y {joints[k, 1]:g} in {width} x {height}"
        return f"visible joint {k} lies far outside the image ({place})"
    return None


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


def mask_problem(entry: dict) -> str | None:
    """What is wrong with an entry's mask, all else being well."""
    if not isinstance(entry["seg"], str) or not entry["seg"]:
        return "empty mask"
    try:
        if not run_lengths(entry["seg"])[1::2].any():
            return "empty mask"
        with one_if_large(int(entry["img_width"]) * int(entry["img_height"])):
            mask = read_mask(entry)
    except ValueError as error:
        return f"mask cannot be decoded ({error})"
    low, high = crop_bounds(*box_center_and_side(entry["img_bbox"]))
    low = np.maximum(low, 0)
    if not mask[low[1] : high[1], low[0] : high[0]].any():
        return "mask lies outside the box"
    return None


def image_problem(entry: dict, path: Path, sha256: str | None) -> str | None:
    """What is wrong with an entry's image file; None where all is well."""
    if not os.path.exists(path):
        return f"image missing ({path})"
    try:
        height, width = read_image(path, sha256).shape[:2]
    except InputError as error:
        return f"image unreadable: {error}"
    if (width, height) != (int(entry["img_width"]), int(entry["img_height"])):
        listed = f"{entry['img_width']} x {entry['img_height']}"
        return f"image is {width} x {height}, the list says {listed}"
    return None


def read_checksums(root: Path) -> dict[str, str]:
    """Checksums by path of the file, from the lines of its `SHA256SUMS` (empty without one)."""
    path = root / CHECKSUMS
    if not path.is_file():
        return {}
    lines = _read_list_bytes(path, "").decode("utf-8", "replace").splitlines()
    parts = (line.partition("  ") for line in lines)
    return {str(root / name): digest for digest, _, name in parts}


def find_problems(
    entries: list,
    indices: np.ndarray,
    images: Path,
    keys: Sequence[str],
    checksums: Mapping[str, str],
) -> list[str | None]:
    """Finds the entries that cannot be used.

    Args:
        entries: the whole list of annotations.
        indices: (N,), positions in it to check.
        images: folder of the images.
        keys: that an entry must have.
        checksums: by path of the image file, where they are known.

    Returns:
        (N,): what is wrong with each, or None.
    """

    def check(index: int) -> str | None:
        entry = entries[index]
        problem = labels_problem(entry, keys)
        if problem:
            return problem
        path = images / entry["img_path"]
        problem = image_problem(entry, path, checksums.get(str(path)))
        return problem or (mask_problem(entry) if "seg" in keys else None)

    with ThreadPoolExecutor() as pool:
        results = pool.map(check, indices)
        silent = len(indices) <= MANY
        found = list(tqdm(results, "checking images", len(indices), leave=False, disable=silent))
    seen: set[int] = set()
    usable: dict[str, list[int]] = {}  # entries by their image
    for i, index in enumerate(indices):
        if index in seen:
            found[i] = "named twice in the split"
        elif not found[i]:
            others = usable.setdefault(entries[index]["img_path"], [])
            same = [k for k in others if repr(entries[k]) == repr(entries[index])]
            others.append(index)
            found[i] = f"the same as entry {same[0]}" if same else None
        seen.add(index)
    return found
