"""Files of ground truth: arrays as NumPy reads them, whatever their layout; damage is named."""

import io
import zipfile

import numpy as np
import pytest

from datasets.ground_truth import Mirror, read_arrays
from smal_model.joints import KEYPOINT_JOINTS, MIRRORED
from util.errors import InputError


def arrays():
    rng = np.random.default_rng(0)
    shapes = {"verts": (7, 3), "joints": (41, 3), "pose": 105, "betas": 20, "scale": ()}
    return {name: np.asarray(rng.random(shape)) for name, shape in shapes.items()} | {
        "crop_square": np.array([1, 2, 100])
    }


def npy(array, version=(1, 0)) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version)
    return file.getvalue()


def write(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x,
        lambda x: np.array(x, order="F"),
        lambda x: x.astype(">f8"),
        lambda x: (100 * x).astype(np.int16),
    ],
)
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_are_as_numpy_reads_them(tmp_path, change, version):
    path = tmp_path / "a.npz"
    write(path, {name: npy(change(array), version) for name, array in arrays().items()})
    found = read_arrays(path)
    with np.load(path) as expected:
        assert found.keys() == set(expected.files)
        for name, array in found.items():
            assert array.dtype == np.float32 and array.flags.writeable
            assert np.array_equal(array, expected[name].astype(np.float32))


def test_the_published_body_has_a_mirror(shared):
    """Its landmarks are not each other's mirror images; ears and paws change places."""
    mirror = Mirror.of_body(shared / "samples" / "smal")
    assert (mirror.all_joints[mirror.all_joints] == np.arange(len(mirror.all_joints))).all()
    left_and_right = np.array(KEYPOINT_JOINTS)
    assert (mirror.all_joints[left_and_right] == left_and_right[list(MIRRORED)]).all()


def test_arrays_of_one_header_are_not_mixed_up(tmp_path):
    for number in range(3):
        array = np.full((7, 3), number)
        write(tmp_path / "a.npz", {k: npy(v) for k, v in (arrays() | {"verts": array}).items()})
        assert (read_arrays(tmp_path / "a.npz")["verts"] == number).all()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: data[:6],
        lambda data: b"",
        lambda data: data.replace(b"(7, 3)", b"(-7,3)"),
        lambda data: data.replace(b"(7, 3)", b"(9, 3)"),
        lambda data: data.replace(b"<f8", b"|O8"),
        lambda data: data.replace(b"<f8", b"<q9"),
        lambda data: data.replace(b"(7, 3)", b"(7, 3]"),
    ],
)
def test_damage_is_named(tmp_path, damage):
    path = tmp_path / "a.npz"
    write(path, {k: damage(npy(v)) if k == "verts" else npy(v) for k, v in arrays().items()})
    with pytest.raises(InputError, match=r"a\.npz.*make the data set again"):
        read_arrays(path)
