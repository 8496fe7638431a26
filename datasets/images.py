"""Reading image files."""

from pathlib import Path

import cv2
import numpy as np

from util.errors import InputError


def read_image(path: Path) -> np.ndarray:
    """Reads an image as stored: an orientation tag turns nothing.

    Returns:
        (H, W, 3) uint8, red green blue.

    Raises:
        InputError: names the file where it is missing, unreadable or truncated.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    # OpenCV returns what it could decode of a truncated file, the rest grey: look for the end.
    jpeg_cut_off = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(
        b"\xff\xda"
    )
    png_cut_off = data.startswith(b"\x89PNG") and b"IEND" not in data[-64:]
    if jpeg_cut_off or png_cut_off:
        raise InputError(f"{path} is truncated ({len(data)} bytes)")
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # no bytes at all, or a header that promises too many pixels
        image = None
    if image is None:
        raise InputError(f"{path} is not a readable image ({len(data)} bytes)")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
