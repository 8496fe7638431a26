"""What the crops of a data set show of its photographs, decoded once and kept in a file."""

import hashlib
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from util import distributed
from util.errors import InputError
from util.files import atomic_write, sweep_leftovers

from .images import read_image

VERSION = 1  # of the file: the parts' pixels one after the other, then the CRC-32 of each part
UNTOUCHED = 600  # seconds after which a half-written file is that of a process that has ended
AT_ONCE = 16  # images decoded before they are written


class Photograph(NamedTuple):
    """A photograph, and the part of it that is kept."""

    path: Path
    width: int  # pixels
    height: int
    part: tuple[int, int, int, int]  # first column and row, last plus one column and row


class PixelCache:
    """Parts of many photographs in one file, which every worker and process reads.

    The file's name holds what it was made of: photographs with their size and time of change, and
    the parts' bounds. Anything else makes another file; older ones stay until they are removed.
    """

    def __init__(self, folder: Path, name: str, photographs: Mapping[int, Photograph]):
        """Opens the file, or makes it where it is missing or damaged: the first process does.

        Args:
            folder: where it lies; made where it is missing.
            name: start of its name.
            photographs: by number.

        Raises:
            InputError: a photograph cannot be read, or the file cannot be read or written.
        """
        self.photographs, self.name = dict(photographs), name
        sizes = [3 * (x1 - x0) * (y1 - y0) for *_, (x0, y0, x1, y1) in self.photographs.values()]
        self._starts = dict(zip(self.photographs, accumulate([0, *sizes[:-1]]), strict=True))
        self._end = sum(sizes)
        self._open: tuple[int, Any] | None = None
        fault = ""
        try:
            self.path = folder / f"{name}_{self._key()}.pixels"
            if distributed.local_rank() == 0:
                sweep_leftovers(folder, name, UNTOUCHED)
                if not self._is_whole():
                    self._make()
        except InputError as error:  # the other processes must not wait for this one
            fault = str(error)
        except OSError as error:
            fault = f"{folder} cannot hold the cache ({error.strerror}); give another folder"
        if faults := list(filter(None, distributed.gather_interleaved([fault]))):
            raise InputError(faults[0])

    def _key(self) -> str:
        """Tells apart what files are made of."""
        digest = hashlib.sha256(f"{VERSION}".encode())
        for path, *size in self.photographs.values():
            try:
                found = path.stat()
            except OSError as error:
                raise InputError(f"{path} cannot be read: {error.strerror}") from error
            digest.update(os.fsencode(path.resolve()))
            digest.update(f"\n{size} {found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    def _decoded(self) -> Iterator[np.ndarray]:
        """The parts, decoded by several threads."""

        def part(photograph: Photograph) -> np.ndarray:
            path, width, height, (x0, y0, x1, y1) = photograph
            image = read_image(path)
            if image.shape[:2] != (height, width):
                raise InputError(f"{path} has changed its size")
            return np.ascontiguousarray(image[y0:y1, x0:x1])

        rest = iter(self.photographs.values())
        with ThreadPoolExecutor() as pool:
            while some := list(islice(rest, AT_ONCE)):
                yield from pool.map(part, some)

    def _make(self) -> None:
        sums = np.zeros(len(self.photographs), np.uint32)
        with atomic_write(self.path, self._end + sums.nbytes) as temporary:
            with open(temporary, "wb") as file:
                parts = tqdm(self._decoded(), "caching images", len(sums), leave=False)
                for i, part in enumerate(parts):
                    sums[i] = zlib.crc32(part.data)
                    file.write(part.data)
                file.write(sums.tobytes())
        self._open = None  # of the file that was there before

    def _is_whole(self) -> bool:
        """Whether the file is there, and undamaged."""
        count = 4 * len(self.photographs)
        try:
            if self.path.stat().st_size != self._end + count:
                return False
            sums = self._bytes(self._end, count).view(np.uint32).tolist()
            ends = [*self._starts.values(), self._end]
            found = (zlib.crc32(self._bytes(a, b - a).data) for a, b in pairwise(ends))
            return all(a == b for a, b in zip(found, sums, strict=True))
        except (FileNotFoundError, InputError):  # gone or cut short meanwhile
            return False

    def _bytes(self, start: int, count: int) -> np.ndarray:
        if self._open is None or self._open[0] != os.getpid():  # a forked worker has its own place
            self._open = os.getpid(), open(self.path, "rb", buffering=0)
        file, out = self._open[1], np.empty(count, np.uint8)
        file.seek(start)
        if file.readinto(out.data) != count:
            raise InputError(f"{self.path} was cut short under way: remove it, then resume")
        return out

    def read(self, number: int) -> np.ndarray:
        """A photograph: (height, width, 3) uint8, red green blue, black outside the part kept.

        Raises:
            InputError: the file has vanished or was cut short.
        """
        _, width, height, (x0, y0, x1, y1) = self.photographs[number]
        out, shape = np.zeros((height, width, 3), np.uint8), (y1 - y0, x1 - x0, 3)
        try:
            pixels = self._bytes(self._starts[number], math.prod(shape))
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from error
        out[y0:y1, x0:x1] = pixels.reshape(shape)
        return out

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": None}  # a worker opens the file itself
