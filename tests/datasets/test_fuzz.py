"""Damaged files of every kind: each is read or refused by an InputError that names it.

FUZZ_EXAMPLES=100000 python -m pytest tests/datasets/test_fuzz.py    tries more of each kind.
"""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.annotations import IMAGE_KEYS, find_problems, read_list, read_split
from datasets.dog_pose import read_entries
from datasets.ground_truth import read_arrays
from datasets.images import read_image
from datasets.masks import decode_mask
from datasets.media import read_photograph
from datasets.oxford_pet import read_trimap
from util.errors import InputError

from .small_set import make_entry

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's and NumPy's, of what they skip
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 60))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=10_000,
    derandomize=EXAMPLES < 1000,
    suppress_health_check=list(HealthCheck),
)
# What is written where, and how much of the file it replaces.
EDITS = st.lists(
    st.tuples(
        st.integers(0, 4000),
        st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
        | st.binary(max_size=9),
        st.sampled_from([0, 1, 4, 9]),
    ),
    min_size=1,
    max_size=4,
)


def damage(data: bytes, edits) -> bytes:
    for place, put, cut in edits:
        place %= len(data) or 1
        data = data[:place] + put + data[place + cut :]
    return data


def image_bytes(form: str, mode: str = "RGB", **options) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).resize((40, 32)).convert(mode).save(out, form, **options)
    return out.getvalue()


IMAGES = {
    "jpeg": image_bytes("JPEG"),
    "progressive": image_bytes("JPEG", progressive=True),
    "cmyk": image_bytes("JPEG", "CMYK"),
    "png": image_bytes("PNG"),
    "palette": image_bytes("PNG", "P"),
    "webp": image_bytes("WEBP"),
    "lossless": image_bytes("WEBP", lossless=True),
    "gif": image_bytes("GIF"),
    "bmp": image_bytes("BMP"),
    "tiff": image_bytes("TIFF"),
    "lzw": image_bytes("TIFF", compression="tiff_lzw"),
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize("kind", IMAGES)
def test_images(path, kind):
    @fuzz
    @given(EDITS)
    def read(edits):
        path.write_bytes(damage(IMAGES[kind], edits))
        for reader in (read_image, lambda p: read_photograph(p).image):
            try:
                image = reader(path)
            except InputError as error:
                assert str(path) in str(error)
            else:
                assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8

    read()


def test_trimaps(path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(1, 4, (9, 7), np.uint8)).save(whole, "PNG")

    @fuzz
    @given(EDITS)
    def read(edits):
        path.write_bytes(damage(whole.getvalue(), edits))
        try:
            assert read_trimap(path).max() <= 2
        except InputError as error:
            assert str(path) in str(error)

    read()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_splits(path):
    @fuzz
    @given(EDITS)
    def read(edits):
        path.write_bytes(damage(npy(np.arange(8)), edits))
        try:
            indices = read_split(path, 8)
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert indices.ndim == 1 and ((indices >= 0) & (indices < 8)).all()

    read()


def test_ground_truth(path):
    whole = io.BytesIO()
    arrays = {"verts": np.zeros((9, 3)), "joints": np.zeros((41, 3)), "pose": np.zeros(105)}
    np.savez(whole, **arrays, betas=np.zeros(20), scale=np.zeros(()), crop_square=np.zeros(3))

    @fuzz
    @given(EDITS)
    def read(edits):
        path.write_bytes(damage(whole.getvalue(), edits))
        try:
            assert read_arrays(path)["verts"].shape[1] == 3
        except InputError as error:
            assert str(path) in str(error)

    read()


LIST = json.dumps([make_entry(0)]).encode()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from([10**400, -1, 1e9, 1e308, "0", "o" * 30, ".", "/", "a" * 300, "\udcff", "\0"])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=10,
)


@fuzz
@given(st.sampled_from([*IMAGE_KEYS, "joints", "seg"]), VALUES)
def test_entries(key, value):
    """Whatever stands in an entry, it has a problem: its image is missing."""
    entry = make_entry(0) | {key: value}
    keys = (*IMAGE_KEYS, "joints", "seg")
    (problem,) = find_problems([entry], np.array([0]), Path("nowhere"), keys, {})
    assert isinstance(problem, str) and problem


def test_lists(path):
    @fuzz
    @given(EDITS)
    def read(edits):
        path.write_bytes(damage(LIST, edits))
        try:
            assert isinstance(read_list(path), list)
        except InputError as error:
            assert str(path) in str(error)

    read()


def test_dog_pose_labels(tmp_path):
    image, label = tmp_path / "dog.bmp", tmp_path / "dog.txt"
    image.write_bytes(IMAGES["bmp"])
    whole = ("0 0.5 0.5 0.4 0.4" + " 0.5 0.5 1" * 24 + "\n").encode()
    keys = (*IMAGE_KEYS, "joints")

    @fuzz
    @given(EDITS)
    def read(edits):
        label.write_bytes(damage(whole, edits))
        entries = read_entries(image, label)
        assert entries and find_problems(entries, np.arange(len(entries)), tmp_path, keys, {})

    read()


@fuzz
@given(st.text("".join(map(chr, range(48, 112))), max_size=40))
def test_masks(counts):
    try:
        mask = decode_mask(counts, 9, 7)
    except ValueError:
        return
    assert mask.shape == (9, 7) and set(np.unique(mask)) <= {0, 1}
    known = coco_mask.decode({"size": [9, 7], "counts": counts.encode()})
    np.testing.assert_array_equal(mask, known)
