"""Tables of named arrays, read from `.npz` files and pickles without trusting them."""

import io
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

from util.errors import InputError

from .checks import (
    MAX_ARRAY_BYTES,
    MAX_MEMBERS,
    Budget,
    build_array,
    plain_dtype,
    printable,
    read_bytes,
)
from .safe_pickle import load_pickle, unpickle

# The header of an array as NumPy writes it; Python 2 may have written 3L for 3.
_HEADER = re.compile(
    r"\{'descr': '([^']{2,8})', 'fortran_order': (False|True),"
    r" 'shape': \(([\dL, ]{0,64})\), *\} *\n"
)
# What zipfile and zlib raise on a damaged archive (RuntimeError: encrypted, or of a later version).
_DAMAGE = (
    *(ValueError, OverflowError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes


def load_npz(path, keys=None) -> dict:
    """Reads an `.npz` into a dict; arrays of objects (pickles) through the safe unpickler.

    Args:
        path: the file.
        keys: names of the arrays to read; all where None.

    Raises:
        InputError: the file, or a pickle in it, cannot be read or is larger than `checks` allows.
    """
    data = read_bytes(path)
    try:
        if data.count(b"PK\1\2") > MAX_MEMBERS:  # entries of its directory
            raise ValueError(f"more than {MAX_MEMBERS} members")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {
                member.filename.removesuffix(".npy"): member for member in archive.infolist()
            }
            wanted = {k: m for k, m in members.items() if keys is None or k in keys}
            if sum(m.file_size for m in wanted.values()) > MAX_ARRAY_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_ARRAY_BYTES >> 20} MiB")
            if any(m.compress_type not in _METHODS or m.flag_bits & 0x61 for m in wanted.values()):
                raise ValueError("it is encrypted or compressed in a way that NumPy does not write")
            budget = Budget()
            return {
                # Asked for as much as is declared, the archive never unpacks more.
                k: _read_array(
                    archive.open(m).read(m.file_size), f"{path} ({printable(k)})", budget
                )
                for k, m in wanted.items()
            }
    except InputError:  # of the unpickler
        raise
    except _DAMAGE as e:
        raise InputError(
            f"{path} is not a readable .npz file ({printable(e)}); download or make it again."
        ) from None


def _read_array(data: bytes, source: str, budget: Budget):
    """The array of an `.npy` file; its shape and dtype must account for every byte."""
    width = 2 if data[6:7] == b"\1" else 4
    start = 8 + width
    end = start + int.from_bytes(data[8:start], "little")
    header = _HEADER.fullmatch(data[start:end].decode("latin1"))
    if not data.startswith(b"\x93NUMPY") or end > len(data) or header is None:
        raise ValueError("an array without the header that NumPy writes")
    descr, fortran, shape = header.groups()
    dtype = plain_dtype(descr)
    if dtype.hasobject:
        return unpickle(data[end:], source, budget)
    sizes = tuple(int(n) for n in re.findall(r"\d+", shape))
    return build_array(data[end:], dtype, sizes, fortran == "True", budget)


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
        if os.path.exists(path):
            value = load(path)
            return value if isinstance(value, dict) else {stem: value}
    raise InputError(f"{stem_path}.pkl (or .npz) is missing. {advice}".rstrip())


def require(table: dict, keys, path) -> None:
    """Raises InputError naming the keys that `table`, read from `path`, lacks."""
    missing = [k for k in keys if k not in table]
    if missing:
        found = printable(", ".join(map(str, list(table)[:20]))) or "nothing"
        raise InputError(f"{path} lacks {printable(', '.join(missing))}; it holds {found}.")
