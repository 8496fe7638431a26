"""Masks: COCO's compressed run lengths, boxes, pixels that count neither way."""

from functools import lru_cache

import cv2
import numpy as np

KEPT = 2**13  # masks whose runs stay in memory, of about 1 kB each
UNSURE = 2  # in a mask, besides 0 and 1: the edge that counts neither way


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box (x, y, w, h) of the pixels of a mask (H, W) that are not 0; there must be some."""
    x, y = (np.flatnonzero(mask.any(axis)) for axis in (0, 1))
    left, top = int(x[0]), int(y[0])
    return left, top, int(x[-1]) + 1 - left, int(y[-1]) + 1 - top


@lru_cache(KEPT)
def run_lengths(counts: str) -> np.ndarray:
    """Reads COCO's compressed run lengths.

    A number is a group of characters that hold five bits each from "0" on, lowest first, a sixth
    bit where the number goes on and the sign in the fifth bit of the last. From the fourth on,
    numbers are differences to the number two places before.

    Args:
        counts: the text; columns of the mask, runs of 0 and 1 in turn.

    Returns:
        (N,) int64, lengths of the runs; not to be written to, the next call has them again.

    Raises:
        ValueError: the text is empty, damaged or cut off.
    """
    if not counts or not all("0" <= c <= "o" for c in (min(counts), max(counts))):
        raise ValueError("run lengths are damaged or cut off")
    codes = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - ord("0")
    last = np.flatnonzero(codes & 32 == 0)  # of each number
    if len(last) == 0 or last[-1] != len(codes) - 1:
        raise ValueError("run lengths are damaged or cut off")
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() > 6:
        raise ValueError("run lengths are damaged: a number of more than 35 bits")
    place = 5 * (np.arange(len(codes)) - np.repeat(first, last - first + 1))
    numbers = np.add.reduceat((codes & 31) << place, first)
    numbers -= (codes[last] >> 4 & 1) << (place[last] + 5)  # the sign
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    if numbers.min() < 0:
        raise ValueError("run lengths are damaged: a run of less than nothing")
    numbers.flags.writeable = False
    return numbers


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """A mask (height, width), uint8 0 or 1, from COCO's compressed run lengths.

    Raises:
        ValueError: the text is damaged, or its runs do not add up to height x width.
    """
    runs = run_lengths(counts)
    if runs.sum() != height * width:
        raise ValueError(f"runs add up to {runs.sum()} pixels, not {height} x {width}")
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    columns = np.repeat(values, runs).reshape(width, height)
    return cv2.transpose(columns) if columns.size else columns.T
