"""People's own photographs and videos: files, folders, frames, with a mask where one lies beside.

The mask of `dog.jpg` is `dog_mask.png` in the same folder: one channel, as large as the photograph
as seen, 0 outside the animal and anything else inside.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from util.errors import InputError

from .annotations import MOST_NAME_BYTES, printable, unique_names
from .images import (
    DAMAGED,
    FORMATS,
    IMAGE_SUFFIXES,
    MOST_PIXELS,
    decode,
    one_if_large,
    open_image,
    read_bytes,
    to_grey,
)
from .masks import mask_box

HEIF_SUFFIXES = {".heic", ".heif"}
ORIENTATION = ExifTags.Base.Orientation
RESULTS = "page/three.min.js"  # lies in each folder of results
VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm"}
MASK_ENDING = "_mask.png"


@dataclass(frozen=True)
class Photograph:
    """A photograph as seen: its orientation tag followed, transparency over white."""

    name: str  # fit for a file name
    path: Path
    image: np.ndarray  # (H, W, 3) uint8, red green blue
    mask: np.ndarray | None = None  # (H, W) uint8, 0 or 1
    box: tuple[int, int, int, int] | None = None  # x, y, w, h of the mask
    frame: int | None = None  # number from 0 of a video's frame


def read_photograph(path: str | Path, name: str | None = None) -> Photograph:
    """Reads a photograph of any kind, and its mask where there is one.

    Args:
        path: JPEG, PNG, WebP, GIF (its first frame), BMP or TIFF; HEIC where pillow-heif is
            installed.
        name: of the result, without one the file's without its ending.

    Raises:
        InputError: names the file where it is missing, too large or damaged, or its mask is.
    """
    path = Path(path)
    data = read_bytes(path)
    header = open_image(data, path, _formats(path))
    with one_if_large(header.width * header.height):
        jpeg = header.format == "JPEG"
        opened: Image.Image = Image.fromarray(decode(header, path, data)) if jpeg else header
        try:
            if jpeg:
                opened.getexif()[ORIENTATION] = header.getexif().get(ORIENTATION, 1)
            opened = ImageOps.exif_transpose(opened)
        except DAMAGED as error:
            raise InputError(f"{path} is damaged or truncated ({error})") from error
        if opened.has_transparency_data:
            opened = opened.convert("RGBA")
            white = Image.new("RGBA", opened.size, "white")
            opened = Image.alpha_composite(white, opened)
        image = decode(opened, path)
    mask = _read_mask(path, image.shape[:2])
    box = None if mask is None else mask_box(mask)
    return Photograph(name or printable(path.stem), path, image, mask, box)


def _formats(path: Path) -> tuple[str, ...]:
    """The kinds of file that `path` may be."""
    if path.suffix.lower() not in HEIF_SUFFIXES:
        return FORMATS
    try:
        import pillow_heif
    except ImportError as error:
        raise InputError(
            f"{path} is HEIC: pip install pillow-heif, or convert it to JPEG"
        ) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _read_mask(photograph: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The mask (H, W) uint8 beside a photograph of `size` (height, width), None without one."""
    path = photograph.with_name(photograph.stem + MASK_ENDING)
    try:
        if not path.is_file():
            return None
    except OSError:  # a name that would be too long, say
        return None
    mask = (to_grey(open_image(read_bytes(path), path), path) > 0).astype(np.uint8)
    if mask.shape != size:
        found, expected = (f"{s[1]} x {s[0]}" for s in (mask.shape, size))
        raise InputError(f"{path} is {found}, expected the photograph's {expected}")
    if not mask.any():
        raise InputError(f"{path} is empty: remove it, or mark the animal")
    return mask


def find_media(
    inputs: Sequence[str | Path],
    on_fault: Callable[[InputError], None] | None = None,
    skip: Path | None = None,
) -> list[Path]:
    """The photographs and videos among files and, sorted and with their subfolders, in folders.

    Args:
        inputs: files and folders; a mask beside its photograph is no photograph.
        on_fault: is told of a file that is missing or neither, or a folder that holds none.
        skip: a folder, one of `inputs` or inside one, to leave out: results go there.

    Raises:
        InputError: such a fault without `on_fault`, where nothing is left, or a file of `inputs`
            lies where results go.
    """
    known = IMAGE_SUFFIXES | HEIF_SUFFIXES | VIDEO_SUFFIXES
    found: list[Path] = []
    faults: list[InputError] = []

    def unreadable(error: OSError) -> None:
        faults.append(InputError(f"{error.filename} cannot be read: {error.strerror}"))

    for path in map(Path, inputs):
        try:
            is_file = path.is_file()
        except OSError as error:
            unreadable(error)
            continue
        if path.is_dir():
            if skip is not None and _same(path, skip):
                continue
            inside = files_inside(path, skip, unreadable)
            inside = [p for p in inside if p.suffix.lower() in known]
            if not _without_masks(inside):
                faults.append(InputError(f"{path} holds no photograph or video"))
            found += inside
        elif not is_file:
            faults.append(InputError(f"{path} is missing"))
        elif path.suffix.lower() not in known:
            expected = ", ".join(sorted(known))
            faults.append(InputError(f"{path} is neither photograph nor video ({expected})"))
        else:
            if skip is not None and _same(path.parent, skip):
                where = f"{path} lies in {skip}, where results go"
                raise InputError(f"{where} and could replace it; give another --output_dir")
            found.append(path)
    for fault in faults:
        if on_fault is None or not found:
            raise fault
        on_fault(fault)
    if not found:
        raise InputError(f"{skip} is where results go: give other folders than --output_dir")
    return _without_masks(found)


def files_inside(
    folder: Path, skip: Path | None = None, on_error: Callable[[OSError], None] | None = None
) -> list[Path]:
    """The files in a folder and its subfolders, sorted; not those in `skip`, nor hidden ones, nor
    those in subfolders with results of this program.

    `on_error` is told of folders that cannot be read.
    """
    found = []
    for root, folders, files in os.walk(folder, onerror=on_error):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".")
            and (skip is None or not _same(Path(root) / name, skip))
            and not (Path(root) / name / RESULTS).is_file()
        ]
        found += [Path(root) / name for name in files if not name.startswith(".")]
    return sorted(found)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _without_masks(paths: list[Path]) -> list[Path]:
    """Those that are not the mask of one of the photographs."""
    named = {p.with_suffix("") for p in paths if p.suffix.lower() not in VIDEO_SUFFIXES}
    return [p for p in paths if not _is_mask(p, named)]


def _is_mask(path: Path, named: set[Path]) -> bool:
    """Whether `path` is the mask of one of the photographs, which are named without ending."""
    if not path.name.endswith(MASK_ENDING):
        return False
    return path.with_name(path.name[: -len(MASK_ENDING)]) in named


def media_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file, fit for file names, no two the same: its own without the ending."""
    names = [printable(path.stem) for path in paths]
    short = [name.encode()[:MOST_NAME_BYTES].decode(errors="ignore") for name in names]
    return unique_names(short, range(len(paths)))


def read_media(
    paths: Sequence[Path],
    every: int = 1,
    on_fault: Callable[[InputError], None] | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Photograph]:
    """Reads photographs and the frames of videos, one after the other.

    Args:
        paths: as from `find_media`.
        every: of a video, one frame in this many.
        on_fault: is told of a file that cannot be read, which is then left out; without it the
            fault is raised.
        names: of the results, as many as paths; without them those of `media_names`.
    """
    for path, name in zip(paths, names or media_names(paths), strict=True):
        try:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                yield from read_video(path, every, name)
            else:
                yield read_photograph(path, name)
        except InputError as error:
            if on_fault is None:
                raise
            on_fault(error)


def read_video(path: Path, every: int = 1, name: str | None = None) -> Iterator[Photograph]:
    """Reads the frames of a video, turned as they are seen.

    Args:
        path: a video file that OpenCV reads.
        every: one frame in this many, from the first on.
        name: of the frames, followed by `_<number>`; without one the file's without its ending.

    Raises:
        InputError: the file is no readable video, or its frames are too large.
    """
    video = cv2.VideoCapture(str(path))
    try:
        sides = [int(video.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)]
        if sides[0] * sides[1] > MOST_PIXELS:
            raise InputError(f"{path} has frames of {sides[0]} x {sides[1]}, too many pixels")
        number = 0
        while video.grab():
            if number % every == 0:
                whole, frame = video.retrieve()
                if not whole:
                    raise InputError(f"{path}: frame {number} cannot be read")
                image = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                yield Photograph(
                    f"{name or printable(path.stem)}_{number:06d}", path, image, frame=number
                )
            number += 1
        if number == 0:
            raise InputError(f"{path} is not a readable video")
    finally:
        video.release()
