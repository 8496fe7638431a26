"""Pickles read without running anything that they ask for.

The published body and prior files are Python 2 pickles with chumpy arrays and SciPy matrices
inside. They are read without chumpy and without trust: only the names listed here are admitted,
each mapped to a harmless stand-in; any other name stops the reading.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy._core import multiarray

from util.errors import InputError


class UnsafeFileError(InputError):
    """A pickle asks for a name outside the admitted list."""


class _State:
    """Takes any pickled state and does nothing with it."""

    def __init__(self, *args):
        self.state: dict = {}

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {}


class _Chumpy(_State):
    """Stand-in for chumpy.ch.Ch: its value is the array `x`."""


class _Sparse(_State):
    """Stand-in for a SciPy sparse matrix; `build` is the SciPy class that it becomes."""

    build: Any = None


class _Csc(_Sparse):
    build = scipy.sparse.csc_matrix


class _Csr(_Sparse):
    build = scipy.sparse.csr_matrix


def _reconstructor(cls, base, state):
    """copyreg._reconstructor, for the stand-ins alone."""
    if not (isinstance(cls, type) and issubclass(cls, _State)) or base is not object:
        raise UnsafeFileError("it rebuilds a class that is not a chumpy array or a SciPy matrix")
    return cls()


def _latin1(text, encoding="latin1"):
    """_codecs.encode, as Python 3 writes bytes at pickle protocol 2."""
    return text.encode("latin1")


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_REBUILT = ("_reconstruct", "scalar")
_ADMITTED = {
    **{(m, n): getattr(multiarray, n) for m in _MULTIARRAY for n in _REBUILT},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(m, "object"): object for m in ("__builtin__", "builtins")},
    **{(m, "set"): set for m in ("__builtin__", "builtins")},
    **{(m, "_reconstructor"): _reconstructor for m in ("copy_reg", "copyreg")},
    **{(m, "Ch"): _Chumpy for m in ("chumpy", "chumpy.ch")},
    **{(f"scipy.sparse.{p}csc", "csc_matrix"): _Csc for p in ("", "_")},
    **{(f"scipy.sparse.{p}csr", "csr_matrix"): _Csr for p in ("", "_")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ADMITTED:
            raise UnsafeFileError(f"it asks for {module}.{name}, which body files do not need")
        return _ADMITTED[module, name]

    def persistent_load(self, pid):
        raise UnsafeFileError("it asks for an object outside the file")


def _plain(value):
    """Replaces stand-ins by NumPy arrays and SciPy matrices, also inside dicts and lists."""
    if isinstance(value, _Chumpy):
        if "x" not in value.state:
            raise pickle.UnpicklingError("a chumpy array without its value `x`")
        return np.asarray(value.state["x"])
    if isinstance(value, _Sparse):
        state = value.state
        shape = state.get("_shape", state.get("shape"))
        return value.build((state["data"], state["indices"], state["indptr"]), shape=shape)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(v) for v in value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        out = np.empty(value.shape, dtype=object)
        for i, v in np.ndenumerate(value):
            out[i] = _plain(v)
        return out
    return value


def unpickle(data: bytes, source) -> Any:
    """Reads a pickle from memory.

    Args:
        data: the pickle, Python 2 or 3, any protocol.
        source: what to call it in an error, usually its path.

    Returns:
        The pickled value, with chumpy arrays as NumPy arrays and SciPy matrices as such.

    Raises:
        UnsafeFileError: it asks for a name outside the admitted list; nothing of it is run.
        InputError: it is damaged.
    """
    if not data.startswith(b"\x80"):  # protocol 0 is text; Windows tools end its lines with CRLF
        data = data.replace(b"\r\n", b"\n")
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load())
    except UnsafeFileError as e:
        raise UnsafeFileError(
            f"{source} is a pickle that was not read: {e}. Take the file from its publisher again."
        ) from None
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise InputError(
            f"{source} is not a readable pickle ({type(e).__name__}: {e}); download it again."
        ) from e


def load_pickle(path) -> Any:
    """Reads a pickle file; see `unpickle`."""
    return unpickle(Path(path).read_bytes(), path)
