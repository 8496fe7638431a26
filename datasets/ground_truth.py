"""The ground truth of a synthetic image, and how it follows the changes made to its crop."""

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from smal_model.body_files import load_body
from util.camera import CROP, DISTANCE, FOCAL
from util.errors import InputError

from .annotations import DAMAGED_ARRAY
from .transforms import Augmentation

MOST_BYTES = 2**26  # of an array
# What zipfile raises on a damaged archive (RuntimeError: encrypted, or of a later version).
DAMAGED_ZIP = (OSError, KeyError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error)
MIRRORED_CAMERA, MIRRORED_BODY = np.diag([-1.0, 1, 1]), np.diag([1.0, -1, 1])
SHAPES = {  # of the arrays in a file; None: of the body
    "verts": (None, 3),
    "joints": (None, 3),
    "pose": (None,),
    "betas": (None,),
    "scale": (),
    "crop_square": (3,),
}


@dataclass(frozen=True)
class Mirror:
    """What changes places when a body is mirrored: vertices (V,), joints (J + 6,) and (J,)."""

    verts: np.ndarray
    all_joints: np.ndarray
    joints: np.ndarray

    @classmethod
    def of_body(cls, folder: Path) -> "Mirror":
        """Of the body in a folder."""
        body = load_body(folder)
        joints = _mirrored(body.J_regressor @ body.template)  # (J,)
        landmarks = _mirrored(body.template[body.landmarks])  # SMAL's are not quite symmetric
        return cls(body.symmetry, np.concatenate([joints, len(joints) + landmarks]), joints)


def _mirrored(points: np.ndarray) -> np.ndarray:
    """(N,) of points (N, 3) the one nearest to each one's mirror image."""
    return np.linalg.norm((points * [1, -1, 1])[:, None] - points, axis=-1).argmin(1)


@lru_cache(maxsize=64)
def _header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, column-major order and type that the header of a NumPy file of version 1 tells."""
    file = io.BytesIO(data)
    np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file)


def _array(data: bytes) -> np.ndarray:
    """The array of a NumPy file; headers, nearly all of them alike, are parsed once."""
    if data[:8] != b"\x93NUMPY\x01\x00":
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    length = 10 + int.from_bytes(data[8:10], "little")
    shape, by_columns, dtype = _header(data[:length])
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{dtype} {shape} is no array of numbers")
    flat = np.frombuffer(data, dtype, math.prod(shape), length)
    return flat.reshape(shape, order="F" if by_columns else "C")


def read_arrays(
    path: Path,
    shapes: dict[str, tuple] = SHAPES,
    advice: str = "make the data set again",
    optional: dict[str, tuple] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name, float32.

    Args:
        path: of the file.
        shapes: by name; None in one: any length.
        advice: what to do about a bad file, for the message.
        optional: shapes of arrays that a file may lack.

    Raises:
        InputError: the file is damaged, or holds something else.
    """
    out = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names, optional = archive.namelist(), optional or {}
            more = {k: v for k, v in optional.items() if f"{k}.npy" in names}
            for key, shape in (shapes | more).items():
                member = archive.getinfo(f"{key}.npy")
                if member.file_size > MOST_BYTES:
                    raise InputError(f"{path} holds too large an array: {advice}")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError("unknown compression")
                array = _array(archive.read(member))
                fits = array.ndim == len(shape) and all(
                    n in (None, m) for n, m in zip(shape, array.shape, strict=True)
                )
                if not fits or array.dtype.kind not in "fiu":
                    wanted = str(shape).replace("None", "N")
                    raise InputError(f"{path} holds no {wanted} array {key}: {advice}")
                out[key] = array.astype(np.float32)
    except InputError:
        raise
    except (*DAMAGED_ARRAY, *DAMAGED_ZIP) as error:
        raise InputError(f"{path} is not readable ({error}): {advice}") from error
    return out


def _turn(change: Augmentation) -> np.ndarray:
    return Rotation.from_euler("z", -change.angle, degrees=True).as_matrix()


def rotations_in_crop(pose: np.ndarray, change: Augmentation, mirror: Mirror | None) -> np.ndarray:
    """The rotations of an animal's joints, (J, 3, 3), as the camera of a crop sees it.

    Args:
        pose: (3 J,) axis-angle, radians, the global rotation first, in the unchanged crop.
        change: turns and mirrors the crop.
        mirror: of the body; needed where `change` mirrors.
    """
    rotations = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix()  # (J, 3, 3)
    rotations[0] = _turn(change) @ rotations[0]
    if not change.flip:
        return rotations
    assert mirror is not None
    root = MIRRORED_CAMERA @ rotations[:1] @ MIRRORED_BODY
    return np.concatenate([root, MIRRORED_BODY @ rotations[mirror.joints[1:]] @ MIRRORED_BODY])


def in_crop(
    truth: dict[str, np.ndarray], center, side: float, change: Augmentation, mirror: Mirror | None
) -> dict[str, torch.Tensor]:
    """The ground truth as the camera of a crop sees it, under the sample's names.

    A crop about another point than the optical axis is taken as a shift of the body, which is exact
    at the depth of its root.

    Args:
        truth: of `read_arrays`.
        center: (2,) x, y of the crop's centre in the photograph.
        side: of the crop, pixels of the photograph, with the scale of `change` in it.
        change: turns and mirrors the crop.
        mirror: of the body; needed where `change` mirrors.
    """
    left, top, square = truth["crop_square"]
    zoom = square / side
    focal = FOCAL * (1 + truth["scale"]) * zoom  # pixels of the crop
    offset = np.array([left + square / 2 - center[0], center[1] - (top + square / 2)])
    root = truth["joints"][0]
    shift = np.zeros(3, np.float32)
    shift[:2] = offset * (CROP / side) * (DISTANCE + root[2]) / focal
    turn = _turn(change)
    verts, joints = truth["verts"] + shift, truth["joints"] + shift
    if change.angle:
        verts, joints = verts @ turn.T, joints @ turn.T
    if change.flip:
        assert mirror is not None
        verts = verts[mirror.verts] @ MIRRORED_CAMERA
        joints = joints[mirror.all_joints] @ MIRRORED_CAMERA
    values = {
        "verts": verts,
        "joints": joints,
        "rotations": rotations_in_crop(truth["pose"], change, mirror),
        "betas": truth["betas"],
        "scale": np.reshape(focal / FOCAL - 1, 1),
    }
    return {
        f"gt_{k}": torch.from_numpy(np.ascontiguousarray(v, np.float32)) for k, v in values.items()
    }
