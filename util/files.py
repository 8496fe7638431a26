"""Files that are whole or not there: written aside, flushed to disk, then renamed."""

import argparse
import errno
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InputError

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no such locks: leftovers stay there
    fcntl = None  # type: ignore[assignment]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NEARLY_FULL = 2**20  # bytes; a write that failed where fewer are free failed for want of room
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.[^.]*)?")  # as `atomic_write` names them


@contextmanager
def atomic_write(path, size: int | None = None) -> Iterator[Path]:
    """Gives a temporary path beside `path`, to be written to inside the block.

    When the block ends well the file is flushed to disk and renamed to `path`, and the folder is
    flushed; when it does not the file is removed. While the block runs the file is locked, which
    tells `sweep_leftovers` that somebody owns it.

    Args:
        path: the file; its folder is made where it is missing.
        size: bytes that will be written, for the message of a full disk; by default as many as the
            file that is replaced has.

    Raises:
        InputError: the disk is full, or the folder cannot be written to.
    """
    path = Path(path)
    temporary, lock = None, -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, temporary = _make_temporary(path)
        os.chmod(temporary, 0o644)
        yield Path(temporary)
        _flush(Path(temporary))
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, RuntimeError) as e:  # PyTorch's writer raises RuntimeError
        reason = _reason(e, path, temporary, size)
        if reason is None:
            raise
        raise InputError(reason) from e
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
            os.close(lock)


def path_of(text: str) -> Path:
    """The path that an option gives.

    Raises:
        argparse.ArgumentTypeError: it is empty, as of a variable that is not set.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a path, found nothing: is a variable not set?")
    return Path(text)


def lock_folder(folder) -> int:
    """Locks a folder, without a file, until the handle is closed or its process ends.

    Returns:
        The handle; -1 where the file system has no such locks.

    Raises:
        BlockingIOError: another process holds it.
    """
    if fcntl is None:
        return -1
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return -1
    return handle


def sweep_leftovers(folder, name: str = "", untouched: float = 0) -> list[Path]:
    """Removes the temporaries of writes that were killed; those of living processes stay.

    Args:
        folder: one that `atomic_write` writes to; its subfolders are not looked at.
        name: start of the names of the files that were to be written.
        untouched: seconds for which nothing was written to what is removed; locks of other machines
            are not seen on every file system.

    Returns:
        The files that were removed.
    """
    removed = []
    for path in sorted(Path(folder).glob(".*")):
        if not path.name.startswith(f".{name}") or path.is_symlink() or not path.is_file():
            continue
        if not _TEMPORARY.fullmatch(path.name):
            continue
        try:
            if untouched and time.time() - path.stat().st_mtime < untouched:
                continue
            handle = os.open(path, os.O_RDWR)
        except OSError:  # gone meanwhile, or not ours
            continue
        try:
            if _lock(handle, wait=False):
                path.unlink(missing_ok=True)
                removed.append(path)
        finally:
            os.close(handle)
    return removed


def _make_temporary(path):
    """Handle and name of a new file beside `path`, locked."""
    while True:
        handle, name = tempfile.mkstemp(path.suffix, f".{path.stem}-", path.parent)
        _lock(handle)
        if os.fstat(handle).st_nlink:  # no sweep came between
            return handle, name
        os.close(handle)


def _lock(handle, wait: bool = True) -> bool:
    """Locks an open file until it is closed or its process ends; whether that succeeded."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # held by another process, or a file system without locks
        return False
    return True


def _flush(path):
    """Waits until a file, or the names in a folder, are on the disk."""
    if fcntl is None and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error, path, temporary, size):
    """What the user can do about a failed write; None where it is no fault of the disk."""
    folder, number = path.parent, getattr(error, "errno", None)
    if path.is_dir():
        return f"{path} is a folder; give a file."
    if not folder.is_dir():
        return f"{path} cannot be written: {folder} is gone or cannot be made; give another folder."
    by_torch = "inline_container" in str(error)  # all that PyTorch says of a failed write
    full = by_torch and shutil.disk_usage(folder).free < _NEARLY_FULL
    if full or number in _NO_ROOM:
        size = path.stat().st_size if size is None and path.exists() else size
        written = os.path.getsize(temporary) if temporary and os.path.exists(temporary) else 0
        missing = f"{size - written:,} more bytes" if size and size > written else "more"
        return (
            f"{folder} is full: {path.name} needs {missing} after {written:,} bytes;"
            " make room there or give another folder."
        )
    of_ours = getattr(error, "filename", None) in (temporary, str(folder))
    if by_torch or (number is not None and (temporary is None or of_ours)):
        return (
            f"{path} cannot be written ({os.strerror(number or errno.EIO)}); give another folder."
        )
    return None


def write_text(path, text: str) -> None:
    """Writes a text file whole."""
    data = text.encode()
    with atomic_write(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_json(path, value) -> None:
    """Writes JSON whole; numbers that are not finite become null, other objects their text."""
    write_text(path, json.dumps(jsonable(value), indent=2, allow_nan=False) + "\n")


def jsonable(value):
    """`value` as plain JSON types."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | bool | None) else str(value)
