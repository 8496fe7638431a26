"""What lens, sensor and file do to a photograph of the wide preset."""

import cv2
import numpy as np

from .colours import grain, thrice, through


def motion_kernel(length: float, angle: float) -> np.ndarray:
    """(k, k) weights that sum to 1 along a line through the middle; length in pixels."""
    half = int(np.ceil(length / 2)) + 1
    kernel = np.zeros((2 * half + 1,) * 2, np.float32)
    t = np.linspace(-length / 2, length / 2, 8 * half)
    x, y = half + t * np.cos(angle), half + t * np.sin(angle)
    np.add.at(kernel, (np.round(y).astype(int), np.round(x).astype(int)), 1)
    return kernel / kernel.sum()


def draw_focus(rng, sharp: float) -> float:
    """Blur of what is behind the animal, deviation in pixels: none in a fraction `sharp`, else
    up to far out of focus."""
    return 0.0 if rng.random() < sharp else float(np.exp(rng.uniform(np.log(0.5), np.log(7))))


def develop_wide(rng, image) -> bytes:
    """Exposure, colour, blur, noise and compression.

    Args:
        rng: the random numbers.
        image: (H, W, 3) float32, about [0, 1].

    Returns:
        A JPEG.
    """
    height, width = image.shape[:2]
    gain = np.exp(rng.normal(0.06, 0.16)) * np.exp(rng.normal(0, 0.05, 3))
    image = through(gain, image)
    if rng.random() < 0.3:  # darker corners
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        image *= thrice(1 - np.float32(rng.uniform(0.05, 0.35)) * (x * x + y * y) / 2)
    if rng.random() < 0.35:  # saturation, down to black and white
        red, green, blue = cv2.split(image)
        grey = thrice((red + green + blue) / 3)
        part = 0.0 if rng.random() < 0.06 else rng.uniform(0.6, 1.35)
        image = grey + np.float32(part) * (image - grey)
    if rng.random() < 0.4:  # contrast
        image = 0.45 + np.float32(rng.uniform(0.75, 1.3)) * (image - 0.45)
    if rng.random() < 0.08:
        angle, length = rng.uniform(0, np.pi), rng.uniform(2, 11)
        image = cv2.filter2D(image, -1, motion_kernel(length, angle))
    elif rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.12:  # a smaller photograph, enlarged
        zoom = rng.uniform(0.35, 0.8)
        small = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    elif rng.random() < 0.2:  # sharpened
        image = image + np.float32(rng.uniform(0.2, 0.8)) * (
            image - cv2.GaussianBlur(image, (0, 0), 1)
        )
    strength = np.float32(np.exp(rng.uniform(np.log(0.002), np.log(0.035))))
    image = image + thrice(strength * grain(rng, height, width))
    # Pure white counts as outside the photograph in the published protocol: stay below it.
    pixels = np.clip(image * 255, 0, 249).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 97))]
    return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
