"""What is checked of every file that comes from outside: sizes before decoding, arrays after it."""

import math
import re
from pathlib import Path

import numpy as np
import scipy.sparse

from util.errors import InputError

# One home for the limits of the readers; together they keep a process below 1 GiB.
MAX_FILE_BYTES = 64 * 2**20  # the largest published file, the body, has 33.7 MB
MAX_ARRAY_BYTES = 128 * 2**20  # all arrays of a file as float64; the body's have 33.7 MB
MAX_ITEMS = 200_000  # values of a file that are no arrays, and opcodes of a pickle (published: 523)
MAX_MEMBERS = 256  # files in an .npz; a hierarchy of 12 levels has 141
MAX_DEPTH = 16  # lists in lists; published: 3
MAX_VERTS = 100_000  # of a mesh; SMAL has 3,889
MAX_SHAPES = 1000  # shape directions; SMAL has 41
MAX_LEVELS = 16  # of a mesh hierarchy; the published one has 5
MAX_NUMBERS = 4_000_000  # of all matrices of a hierarchy; the published ones hold 48,000
MAX_VALUE = 1e6  # of any number: a posed body stays finite in float32; published: 9,994
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|O8?|[SU]\d{1,4})")


class Budget:
    """What may still be made from one file; whoever makes something pays first."""

    def __init__(self):
        self.items, self.bytes = MAX_ITEMS, MAX_ARRAY_BYTES

    def pay(self, items: int = 0, num_bytes: int = 0) -> None:
        """Raises ValueError where less is left."""
        self.items -= items
        self.bytes -= num_bytes
        if self.items < 0:
            raise ValueError(f"it holds more than {MAX_ITEMS:,} values")
        if self.bytes < 0:
            raise ValueError(f"its arrays take more than {MAX_ARRAY_BYTES >> 20} MiB")


def read_bytes(path) -> bytes:
    """A whole file.

    Raises:
        InputError: it is no file, cannot be read or is larger than MAX_FILE_BYTES.
    """
    try:
        if not Path(path).is_file():  # a named pipe would wait for ever
            raise InputError(f"{path} is not a file.")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as e:
        raise InputError(f"{path} cannot be read ({e.strerror or e}).") from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; is it the right file?")
    return data


def printable(text) -> str:
    """The start of a text from a file, fit for an error message."""
    text = str(text) if isinstance(text, str | Exception) else type(text).__name__
    text = ascii(text[:200])[1:-1]
    return text if len(text) <= 200 else text[:197] + "..."


def plain_dtype(text: str) -> np.dtype:
    """The dtype of a `descr` as files write it: booleans, numbers, text and objects alone."""
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ValueError(f"an array has dtype {printable(text)}")
    return np.dtype(object if "O" in text else text)


def num_elements(shape) -> int:
    """The number of elements of an array, where `shape` is one that a file may have."""
    if not isinstance(shape, tuple) or len(shape) > 4:
        raise ValueError("the shape of an array is no tuple of up to four lengths")
    if not all(type(n) is int and 0 <= n <= MAX_ARRAY_BYTES for n in shape):
        raise ValueError(f"a length of an array is not within 0 to {MAX_ARRAY_BYTES}")
    return math.prod(shape)


def build_array(data: bytes, dtype: np.dtype, shape, fortran: bool, budget: Budget) -> np.ndarray:
    """An array of its bytes, which must be as many as dtype and shape say."""
    count = num_elements(shape)
    if dtype.hasobject or len(data) != count * dtype.itemsize:
        raise ValueError(
            f"an array of shape {shape} and dtype {dtype} has {len(data)} bytes,"
            f" expected {count * dtype.itemsize}"
        )
    budget.pay(1, count * max(8, dtype.itemsize))
    flat = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
    if dtype.kind == "b":  # any byte but 0 is true
        flat = flat.view(np.uint8) != 0
    return flat.reshape(shape, order="F" if fortran else "C").copy("K")


def build_sparse(layout: str, data, indices, indptr, shape):
    """A SciPy matrix of its parts, all of which are checked.

    Args:
        layout: `csr` or `csc`.
        data: (N,) numbers.
        indices: (N,) columns (csr) or rows (csc).
        indptr: (rows or columns + 1,) where each row or column starts in `data`.
        shape: (rows, columns).

    Raises:
        ValueError: they are not the parts of such a matrix.
    """
    for part, kinds in ((data, "biuf"), (indices, "iu"), (indptr, "iu")):
        if not isinstance(part, np.ndarray) or part.ndim != 1 or part.dtype.kind not in kinds:
            raise ValueError("a sparse matrix is not made of a row of numbers and two of integers")
    # SciPy has no products of half precision or of foreign byte orders.
    data, indices, indptr = data.astype(float), indices.astype(np.int64), indptr.astype(np.int64)
    if len(shape) != 2 or not all(isinstance(n, int | np.integer) for n in shape):
        raise ValueError("the shape of a sparse matrix is not two whole numbers")
    shape = tuple(int(n) for n in shape)
    if not all(0 < n <= MAX_VERTS for n in shape):
        raise ValueError(f"a sparse matrix is not of 1 to {MAX_VERTS:,} rows and columns")
    major, minor = shape if layout == "csr" else shape[::-1]
    if len(indices) != len(data) or len(indptr) != major + 1:
        raise ValueError("the parts of a sparse matrix have lengths that do not fit")
    # The range first: SciPy's own check takes differences, which overflow.
    if indptr.min() < 0 or indptr.max() > len(data):
        raise ValueError("the rows of a sparse matrix end beyond its data")
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise ValueError("the rows of a sparse matrix are not in order")
    if len(indices) and not 0 <= indices.min() <= indices.max() < minor:
        raise ValueError(f"a sparse matrix has indices outside 0 to {minor - 1}")
    if not is_finite(data):
        raise ValueError(f"a sparse matrix holds numbers beyond {MAX_VALUE:g} or NaN")
    make = scipy.sparse.csr_matrix if layout == "csr" else scipy.sparse.csc_matrix
    matrix = make((data, indices.astype(np.int32), indptr.astype(np.int32)), shape=shape)
    matrix.check_format(full_check=True)
    return matrix


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers are finite and within MAX_VALUE."""
    # The smallest and the largest instead of a mask: no second array. NaN compares as False.
    return array.size == 0 or -MAX_VALUE <= float(array.min()) <= float(array.max()) <= MAX_VALUE


def _is_numeric(value) -> bool:
    """Whether it is numbers all through; NumPy would pad each text of a list to the longest."""
    if isinstance(value, list | tuple):
        return all(map(_is_numeric, value))
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biuf"
    return isinstance(value, int | float)


def _array(table, key, path, ndim, kinds):
    try:
        array = np.asarray(table[key] if _is_numeric(table[key]) else None)
    except ValueError:  # lists of lists of different lengths
        array = np.asarray(None)
    if array.dtype.kind not in kinds or array.ndim != ndim:
        raise InputError(
            f"{key} in {path} has {array.ndim} dimension(s) of dtype {array.dtype}; expected"
            f" {ndim} dimension(s) of numbers."
        )
    return array


def floats(table: dict, key: str, path, ndim: int) -> np.ndarray:
    """`table[key]` as float64.

    Args:
        table: arrays by name.
        key: one of its names.
        path: what the table was read from, for errors.
        ndim: the expected number of dimensions.

    Raises:
        InputError: it is no such array, or holds NaN, infinity or numbers beyond MAX_VALUE.
    """
    array = _array(table, key, path, ndim, "biuf")
    if not is_finite(array):
        raise InputError(f"{key} in {path} holds NaN or numbers beyond {MAX_VALUE:g}.")
    return np.asarray(array, np.float64)


def integers(table: dict, key: str, path, ndim: int) -> np.ndarray:
    """`table[key]` as int64: what `floats` is for numbers, for whole numbers up to 2^32."""
    array = _array(table, key, path, ndim, "iuf")
    if array.size and not -(2**32) <= array.min() <= array.max() <= 2**32:
        raise InputError(f"{key} in {path} holds NaN or numbers beyond 2^32.")
    whole = array.astype(np.int64)
    if (whole != array).any():
        raise InputError(f"{key} in {path} holds fractions; whole numbers are expected.")
    return whole
