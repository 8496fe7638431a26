"""Safe reading of the body, prior and mesh-hierarchy files.

The published files are Python 2 pickles with chumpy arrays and SciPy matrices inside. `load_pickle` reads them without
chumpy and without trusting them: only the names listed here are admitted, each mapped to a harmless stand-in, and any
other name stops the reading. `.npz` files with plain arrays are read without unpickling at all.
"""

import io
import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np
import scipy.sparse


class UnsafeFileError(pickle.UnpicklingError):
    """A pickle asks for a name outside the admitted list."""


class _State:
    """Takes any pickled state and does nothing with it."""

    def __init__(self, *args):
        self.state = {}

    def __setstate__(self, state):
        self.state = state if isinstance(state, dict) else {}


class _Chumpy(_State):
    """Stand-in for chumpy.ch.Ch: its value is the array `x`."""


class _Sparse(_State):
    """Stand-in for a SciPy sparse matrix; `build` names the SciPy class that it becomes."""

    build = None


class _Csc(_Sparse):
    build = scipy.sparse.csc_matrix


class _Csr(_Sparse):
    build = scipy.sparse.csr_matrix


def _reconstructor(cls, base, state):
    """copyreg._reconstructor, for the stand-ins alone."""
    if not (isinstance(cls, type) and issubclass(cls, _State)) or base is not object:
        raise UnsafeFileError("the pickle rebuilds a class that is not a chumpy array or a SciPy matrix")
    return cls()


def _latin1(text, encoding="latin1"):
    """_codecs.encode, as Python 3 writes bytes at pickle protocol 2."""
    return text.encode("latin1")


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ADMITTED = {
    **{(m, n): getattr(np._core.multiarray, n) for m in _MULTIARRAY for n in ("_reconstruct", "scalar")},
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
            raise UnsafeFileError(f"the pickle asks for {module}.{name}, which is not among the names that body files need")
        return _ADMITTED[module, name]

    def persistent_load(self, pid):
        raise UnsafeFileError("the pickle asks for an object outside the file")


def _plain(value):
    """Replaces stand-ins by NumPy arrays and SciPy matrices, also inside dicts, lists and object arrays."""
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


def _unpickle(data: bytes, path):
    if not data.startswith(b"\x80"):  # protocol 0 is text; Windows tools turn its line ends into CRLF
        data = data.replace(b"\r\n", b"\n")
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load())
    except UnsafeFileError as e:
        raise UnsafeFileError(f"{path} was not read: {e}. Take the file from its publisher again.") from None
    except Exception as e:  # a damaged pickle can raise nearly anything
        raise ValueError(f"{path} is not a readable pickle ({type(e).__name__}: {e}); download it again.") from e


def load_pickle(path):
    """Reads a pickle of plain values, NumPy and chumpy arrays and SciPy matrices (Python 2 or 3, any protocol).

    Returns the pickled value with chumpy arrays as NumPy arrays. Raises FileNotFoundError, UnsafeFileError where the
    file asks for any other name (nothing of it is run), ValueError where it is damaged.
    """
    return _unpickle(Path(path).read_bytes(), path)


def load_npz(path, keys=None) -> dict:
    """Reads an `.npz` into a dict, object arrays (pickled inside) through the safe unpickler. `keys` limits what is read."""
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                key = member.removesuffix(".npy")
                if keys is not None and key not in keys:
                    continue
                data = archive.read(member)
                stream = io.BytesIO(data)
                version = np.lib.format.read_magic(stream)
                read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                dtype = read_header(stream)[2]
                if dtype.hasobject:
                    out[key] = _unpickle(data[stream.tell() :], f"{path} ({key})")
                else:
                    out[key] = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except (zipfile.BadZipFile, zlib.error, EOFError) as e:
        raise ValueError(f"{path} is not a readable .npz file ({e}); download or make it again.") from e
    return out


def load_table(folder, stem: str) -> dict:
    """Reads `<folder>/<stem>.pkl`, or `.npz` where there is no pickle, as a dict. A pickled bare array comes under `stem`."""
    folder = Path(folder)
    for suffix, load in ((".pkl", load_pickle), (".npz", load_npz)):
        path = folder / (stem + suffix)
        if path.exists():
            value = load(path)
            return value if isinstance(value, dict) else {stem: value}
    raise FileNotFoundError(f"{folder / stem}.pkl (or .npz) is missing")


def require(table: dict, keys, path):
    """Raises ValueError naming the keys that `table`, read from `path`, lacks."""
    missing = [k for k in keys if k not in table]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(map(str, table)) or 'nothing'}.")
