"""Tables of named arrays, read from `.npz` files and pickles without trusting them."""

import io
import zipfile
import zlib
from pathlib import Path

from numpy.lib import format as npy

from util.errors import InputError

from .safe_pickle import load_pickle, unpickle


def load_npz(path, keys=None) -> dict:
    """Reads an `.npz` into a dict; arrays of objects (pickles) through the safe unpickler.

    Args:
        path: the file.
        keys: names of the arrays to read; all where None.

    Raises:
        InputError: the file, or a pickle in it, cannot be read.
    """
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                key = member.removesuffix(".npy")
                if keys is None or key in keys:
                    out[key] = _read_array(archive.read(member), f"{path} ({key})")
    except (zipfile.BadZipFile, zlib.error, EOFError) as e:
        raise InputError(
            f"{path} is not a readable .npz file ({e}); download or make it again."
        ) from e
    return out


def _read_array(data: bytes, source: str):
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    if read_header(stream)[2].hasobject:
        return unpickle(data[stream.tell() :], source)
    return npy.read_array(io.BytesIO(data), allow_pickle=False)


def load_table(folder, stem: str, advice: str = "") -> dict:
    """Reads `<folder>/<stem>.pkl`, or `.npz` where there is no pickle.

    Args:
        folder: where the file lies.
        stem: its name without suffix; a pickled bare array comes under this key.
        advice: what to do where there is no such file, as a sentence.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    stem_path = Path(folder) / stem
    for suffix, load in ((".pkl", load_pickle), (".npz", load_npz)):
        path = stem_path.with_name(stem + suffix)
        if path.exists():
            value = load(path)
            return value if isinstance(value, dict) else {stem: value}
    raise InputError(f"{stem_path}.pkl (or .npz) is missing. {advice}".rstrip())


def require(table: dict, keys, path) -> None:
    """Raises InputError naming the keys that `table`, read from `path`, lacks."""
    missing = [k for k in keys if k not in table]
    if missing:
        found = ", ".join(map(str, table)) or "nothing"
        raise InputError(f"{path} lacks {', '.join(missing)}; it holds {found}.")
