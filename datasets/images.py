"""Reading image files: size from the header first, then every pixel or a named fault."""

import hashlib
import io
import struct
import threading
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from PIL import Image

from util.errors import InputError

try:
    import simplejpeg  # as Pillow, but says where the data is damaged
except ImportError:
    simplejpeg = None

MOST_PIXELS = 2**26  # of an image, 8192 x 8192: more is refused before anything is decoded
MOST_BYTES = 2**28  # of an image file
LARGE = 2**23  # pixels
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
DAMAGED = (  # what Pillow raises
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error,
)  # fmt: skip
HARMLESS = ("Warning:", "Unknown Adobe", "Invalid SOS parameters", "bad ICC marker")  # in JPEGs
_one_large = threading.Lock()


def one_if_large(pixels: int):
    """A context that only one thread enters at a time where an image is large, to bound memory."""
    return _one_large if pixels > LARGE else nullcontext()


def read_bytes(path: Path, sha256: str | None = None) -> bytes:
    """Reads an image file.

    Args:
        path: the file.
        sha256: its checksum in hexadecimal, where one is known.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path} is missing")
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise InputError(f"{path} holds {size} bytes, expected at most {MOST_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path} is damaged: its checksum is not the recorded one")
    return data


def open_image(data: bytes, path: Path, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """Opens an image's header; `.size` is (width, height) as stored, nothing is decoded.

    Raises:
        InputError: names `path` where the header is none or promises too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} has too many pixels ({error})") from error
    except DAMAGED as error:
        raise InputError(f"{path} is not a readable image ({len(data)} bytes)") from error
    width, height = image.size
    if min(width, height) < 1 or width * height > MOST_PIXELS:
        raise InputError(f"{path} is {width} x {height}, expected at most {MOST_PIXELS} pixels")
    return image


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image as stored, from its header."""
    return open_image(read_bytes(path), path).size


def read_image(path: Path, sha256: str | None = None) -> np.ndarray:
    """Reads an image as stored: an orientation tag turns nothing, transparency is ignored.

    Args:
        path: a JPEG, PNG, WebP, GIF, BMP or TIFF file; grey, CMYK and 16-bit images are converted.
        sha256: its checksum in hexadecimal, where one is known.

    Returns:
        (H, W, 3) uint8, red green blue.

    Raises:
        InputError: names the file where it is missing, unreadable, too large, truncated or damaged.
    """
    data = read_bytes(path, sha256)
    pixels = _plain_jpeg(data)
    if pixels is not None:
        return pixels
    image = open_image(data, path)
    with one_if_large(image.width * image.height):
        return decode(image, path, data)


def _plain_jpeg(data: bytes) -> np.ndarray | None:
    """Pixels of an undamaged JPEG, without Pillow's longer look at its header; else None."""
    if simplejpeg is None or not data.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MOST_PIXELS or colours not in ("YCbCr", "RGB", "Gray"):
            return None
        with one_if_large(width * height):
            return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:
        return None


def decode(image: Image.Image, path: Path, data: bytes = b"") -> np.ndarray:
    """Pixels (H, W, 3) uint8 of an opened image; `data`, its file: to name damage of a JPEG."""
    if data and image.format == "JPEG" and simplejpeg is not None and image.mode != "CMYK":
        try:
            return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError as error:
            if not any(text in str(error) for text in HARMLESS):
                raise InputError(f"{path} is damaged ({error})") from error
    if image.mode == "F":
        raise InputError(f"{path} holds numbers with fractions; convert it to 8 or 16 bits")
    try:
        image.load()
        if image.mode.startswith("I"):  # 16 bits
            grey = (np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8)  # (H, W)
            return np.repeat(grey[..., None], 3, -1)
        return np.array(image.convert("RGB"))
    except DAMAGED as error:
        raise InputError(f"{path} is damaged or truncated ({error})") from error


def to_grey(image: Image.Image, path: Path) -> np.ndarray:
    """Values (H, W) uint8 of an opened image of one channel, such as a mask."""
    if image.mode not in ("1", "L", "P"):
        raise InputError(f"{path} is of kind {image.mode}, expected one channel of 8 bits")
    try:
        return np.array(image, np.uint8)
    except DAMAGED as error:
        raise InputError(f"{path} is damaged or truncated ({error})") from error
