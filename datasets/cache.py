"""What the crops of a data set show of its photographs, decoded once and kept in a file."""

import hashlib
import os
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from util import distributed
from util.errors import InputError
from util.files import atomic_write, sweep_leftovers

from .images import read_image

VERSION = 1  # of the file: the parts' pixels one after the other, then the CRC-32 of each part
AT_ONCE = 64  # images decoded before they are written


class PixelCache:
    """Parts of many photographs in one file, which every worker and process reads.

    The file's name holds what it was made of: photographs with their size and time of change, and
    the parts' bounds. Anything else makes another file; older ones stay until they are removed.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        paths: Sequence[Path],
        sizes: Sequence[tuple[int, int]],
        parts: Sequence[tuple[int, int, int, int]],
    ):
        """Opens the file, or makes it where it is missing or damaged.

        Args:
            folder: where it lies; made where it is missing.
            name: start of its name.
            paths: (N,) of the photographs.
            sizes: (N, 2) of the photographs, width and height.
            parts: (N, 4) that are kept: first column and row, last plus one column and row.

        Raises:
            InputError: a photograph cannot be read, or the file cannot be written.
        """
        self.sizes, self.parts = np.array(sizes, np.int64), np.array(parts, np.int64)
        counts = 3 * (self.parts[:, 2:] - self.parts[:, :2]).prod(1)
        self._starts = np.concatenate([[0], counts.cumsum()])
        self.path = folder / f"{name}_{self._key(paths)}.pixels"
        self._open: tuple[int, Any] | None = None
        if distributed.local_rank() == 0 and not self._is_whole():
            self._make(paths)
        distributed.barrier()

    def _key(self, paths: Sequence[Path]) -> str:
        """Tells apart what files are made of."""
        digest = hashlib.sha256(f"{VERSION}".encode() + self.sizes.tobytes() + self.parts.tobytes())
        for path in paths:
            try:
                found = path.stat()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from error
            digest.update(f"{path.resolve()}\n{found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def _decoded(self, paths: Sequence[Path]) -> Iterator[np.ndarray]:
        """The parts, decoded by several threads."""

        def part(i: int) -> np.ndarray:
            x0, y0, x1, y1 = self.parts[i]
            image = read_image(paths[i])
            if image.shape[1::-1] != tuple(self.sizes[i]):
                raise InputError(f"{paths[i]} has changed its size")
            return np.ascontiguousarray(image[y0:y1, x0:x1])

        with ThreadPoolExecutor() as pool:
            for first in range(0, len(paths), AT_ONCE):
                yield from pool.map(part, range(first, min(first + AT_ONCE, len(paths))))

    def _make(self, paths: Sequence[Path]) -> None:
        sums = np.zeros(len(paths), np.uint32)
        sweep_leftovers(self.path.parent)
        with atomic_write(self.path, int(self._starts[-1]) + sums.nbytes) as temporary:
            with open(temporary, "wb") as file:
                parts = tqdm(self._decoded(paths), "caching images", len(paths), leave=False)
                for i, part in enumerate(parts):
                    sums[i] = zlib.crc32(part.data)
                    file.write(part)
                file.write(sums.tobytes())
        self._open = None  # of the file that was there before

    def _is_whole(self) -> bool:
        """Whether the file is there, and undamaged."""
        end = int(self._starts[-1])
        if not self.path.is_file() or self.path.stat().st_size != end + 4 * len(self.parts):
            return False
        sums = self._bytes(end, 4 * len(self.parts)).view(np.uint32)
        found = (zlib.crc32(self._bytes(a, b - a).data) for a, b in pairwise(self._starts.tolist()))
        return all(a == b for a, b in zip(found, sums.tolist(), strict=True))

    def _bytes(self, start: int, count: int) -> np.ndarray:
        if self._open is None or self._open[0] != os.getpid():  # a forked worker has its own place
            self._open = os.getpid(), open(self.path, "rb", buffering=0)
        file, out = self._open[1], np.empty(count, np.uint8)
        file.seek(start)
        found = file.readinto(out.data)
        if found != count:
            raise InputError(f"{self.path} was cut short under way: remove it, then resume")
        return out

    def read(self, i: int) -> np.ndarray:
        """Photograph i: (height, width, 3) uint8, red green blue, black outside the part kept.

        Raises:
            InputError: the file has vanished or changed.
        """
        x0, y0, x1, y1 = self.parts[i]
        start, end = self._starts[i : i + 2].tolist()
        width, height = self.sizes[i]
        out = np.zeros((height, width, 3), np.uint8)
        try:
            out[y0:y1, x0:x1] = self._bytes(start, end - start).reshape(y1 - y0, x1 - x0, 3)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from error
        return out

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}  # a worker opens the file itself
