"""Images as arrays and as network inputs; an image is (H, W, 3) uint8, red green blue."""

from pathlib import Path

import cv2
import numpy as np
import torch

from .files import atomic_write

IMAGENET_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # red green blue, of images in [0, 1]
IMAGENET_STD = np.array([0.229, 0.224, 0.225], np.float32)
# 0.4 times the size that is usual with OpenCV, in 1.3 times the time
PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]


def normalize(image: np.ndarray, gain: tuple[float, float, float] | None = None) -> torch.Tensor:
    """An image as network input: (3, S, S) float32, ImageNet-normalised.

    Args:
        image: (S, S, 3) float32 in [0, 1].
        gain: of red, green and blue; what exceeds 1 is cut off.
    """
    out = np.empty((3, *image.shape[:2]), np.float32)
    for channel, plane in enumerate(cv2.split(image)):  # plane by plane: all in the cache
        values = out[channel]
        if gain is not None:
            plane = np.multiply(plane, np.float32(gain[channel]), out=values)
            plane = np.clip(plane, 0, 1, out=values)
        np.subtract(plane, IMAGENET_MEAN[channel], out=values)
        np.divide(values, IMAGENET_STD[channel], out=values)
    return torch.from_numpy(out)


def to_image(normalized: torch.Tensor) -> np.ndarray:
    """A network input (3, S, S) back to an image (S, S, 3), uint8."""
    image = (
        normalized.detach().cpu().float().numpy().transpose(1, 2, 0) * IMAGENET_STD + IMAGENET_MEAN
    )
    return np.clip(np.round(255 * image), 0, 255).astype(np.uint8)


def check_image(image: np.ndarray) -> None:
    """Raises ValueError unless `image` is (H, W, 3) of uint8."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image {image.shape} of {image.dtype}, expected (H, W, 3) of uint8")


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Writes an image whole."""
    check_image(image)
    _, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), PNG)
    with atomic_write(path) as temporary:
        temporary.write_bytes(data.tobytes())
