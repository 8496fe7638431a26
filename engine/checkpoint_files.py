"""Checkpoint files: read without trusting them, written whole and proven readable."""

import hashlib
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import torch

from util.errors import InputError
from util.files import atomic_write

_ZIP = b"PK\x03\x04"  # first bytes of what torch.save writes
_MULTIARRAY = np._core.multiarray  # type: ignore[attr-defined]
# NumPy scalars occur in published files (scores); beyond them tensors and plain values alone.
_NUMPY_SCALARS: list = [
    (_MULTIARRAY.scalar, "numpy.core.multiarray.scalar"),
    (_MULTIARRAY.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "bool")),
]


def read_file(path: Path):
    """The content of a checkpoint, on the CPU, without running anything that it contains.

    Raises:
        InputError: there is no such file, it is damaged, would fill the memory, or asks for code.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; give the path of a checkpoint")
        with open(path, "rb") as file:
            archive = file.read(len(_ZIP)) == _ZIP
        if archive:
            _check_archive(path)
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
        _check_tensors(content)
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # a damaged file can raise nearly anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is damaged, or no PyTorch file"
        raise InputError(f"{path} is not a checkpoint that can be read safely ({reason})") from None
    return content


def _check_archive(path):
    """Compares each member with its checksum, after the sizes with the file's."""
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
            raise InputError(f"{path} would unpack to more than it holds; it is no checkpoint")
        if archive.testzip() is not None:
            raise zipfile.BadZipFile


def _check_tensors(content, depth: int = 0):
    """Raises ValueError where a tensor is more than its storage, or the nesting has no end."""
    if depth > 20:
        raise ValueError
    if isinstance(content, dict):
        content = [*content.keys(), *content.values()]
    if isinstance(content, list | tuple):
        for value in content:
            _check_tensors(value, depth + 1)
    if isinstance(content, torch.Tensor):
        if content.layout != torch.strided or content.device.type != "cpu" or content.is_quantized:
            raise ValueError
        if content.nbytes > content.untyped_storage().nbytes():
            raise ValueError


def checksum(state_dict: dict[str, torch.Tensor]) -> str:
    """SHA-256 of weights: names, kinds, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        values = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def write_file(path: Path, content: dict, previous: Path | None = None) -> None:
    """Writes a checkpoint whole; the one before stays until the new one is proven readable.

    Args:
        path: of the file.
        content: with `state_dict`; a checksum of it is added.
        previous: name under which the file that is replaced stays; None: it does not.

    Raises:
        InputError: the disk is full, the folder cannot be written to, or the file not read back.
    """
    content = content | {"checksum": checksum(content["state_dict"])}
    with atomic_write(path, size=_num_bytes(content)) as temporary:
        torch.save(content, temporary)
        try:
            found = read_file(temporary)
            if checksum(found["state_dict"]) != content["checksum"]:
                raise InputError("its weights differ")
        except InputError as error:
            raise InputError(
                f"{path} cannot be read back after writing ({error}); see to the disk"
            ) from None
        if previous is not None and path.exists():
            _link(path, previous)


def _link(path, name):
    """Gives a file a second name, in one step."""
    temporary = name.with_name(f".{name.stem}-previous")  # `sweep_leftovers` knows such names
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links keeps one checkpoint
        return
    os.replace(temporary, name)


def _num_bytes(content) -> int:
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, dict):
        content = list(content.values())
    return sum(map(_num_bytes, content)) if isinstance(content, list | tuple) else 0
