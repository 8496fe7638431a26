"""Lists, splits and folders that are missing or damaged, and what the messages say."""

import io
import json
import os
import zipfile

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datasets import build_dataset, has_split
from datasets.annotations import entry_name, image_folder, read_list, read_split, unique_names
from datasets.ground_truth import read_arrays
from util.errors import InputError

from .small_set import edit, make_entry, photo_path, write_set


def test_faults_of_the_structure_say_what_to_do(small_set, tmp_path):
    root = small_set / "StanfordExtra_v12"
    with pytest.raises(ValueError, match="name is 'cats', expected one of stanford, animal_pose"):
        build_dataset("cats", small_set, "train")
    with pytest.raises(ValueError, match="split is 'all', expected one of"):
        build_dataset("stanford", small_set, "all")
    with pytest.raises(InputError, match=r"StanfordExtra_v12\.json is missing"):
        build_dataset("stanford", tmp_path / "nowhere", "train")
    assert has_split("stanford", small_set, "train") and not has_split("stanford", small_set, "val")
    with pytest.raises(InputError, match=r"val_stanford_StanfordExtra_v12\.npy is missing"):
        build_dataset("stanford", small_set, "val")

    split = root / "val_stanford_StanfordExtra_v12.npy"
    for indices, message in (
        ([0, 4], "names entry 4, but the list holds 4 entries"),
        ([-1], "names entry -1"),
        ([0.5], "one-dimensional array of whole numbers"),
        ([], "one-dimensional array of whole numbers"),
        (np.array([], int), "no usable image among the 0"),
        (np.array([{}]), "not a NumPy array of indices"),
    ):
        np.save(split, np.array(indices), allow_pickle=True)
        with pytest.raises(InputError, match=message):
            build_dataset("stanford", small_set, "val")
    split.write_bytes(b"no array")
    with pytest.raises(InputError, match="not a NumPy array of indices"):
        build_dataset("stanford", small_set, "val")

    photo_path(small_set, 0).unlink()
    np.save(split, np.array([0]))
    with pytest.raises(InputError, match="no usable image among the 1 .*image missing"):
        build_dataset("stanford", small_set, "val")
    (root / "Images").rename(root / "images")  # some have it in small letters
    assert len(build_dataset("stanford", small_set, "test")) == 1
    (root / "images").rename(root / "photographs")
    with pytest.raises(InputError, match="Images is missing: put the data set's images there"):
        build_dataset("stanford", small_set, "test")
    (root / "StanfordExtra_v12.json").write_text('{"dogs": []}')
    with pytest.raises(InputError, match="holds a dict, expected a list"):
        build_dataset("stanford", small_set, "test")
    (root / "StanfordExtra_v12.json").write_text("[{")
    with pytest.raises(InputError, match="not readable as JSON"):
        build_dataset("stanford", small_set, "test")


def test_animal_pose_opens_once_its_photographs_are_there(shared, tmp_path):
    with pytest.raises(InputError, match="Images is missing"):
        build_dataset("animal_pose", shared / "samples", "test")
    with pytest.raises(InputError, match="only test is published"):
        build_dataset("animal_pose", shared / "samples", "train")
    assert has_split("animal_pose", shared / "samples", "test")
    assert not has_split("animal_pose", shared / "samples", "train")

    folder = tmp_path / "animal_pose"
    (folder / "Images").mkdir(parents=True)
    for name in ("animal_pose_data.json", "test_animal_pose.npy"):
        (folder / name).write_bytes((shared / "samples/animal_pose" / name).read_bytes())
    for entry in json.loads((folder / "animal_pose_data.json").read_text()):
        blank = np.full((entry["img_height"], entry["img_width"], 3), 128, np.uint8)
        cv2.imwrite(
            str(folder / "Images" / entry["img_path"]), blank, [cv2.IMWRITE_JPEG_QUALITY, 20]
        )
    dataset = build_dataset("animal_pose", tmp_path, "test")
    assert len(dataset) + dataset.excluded == 94 and len(dataset) >= 90
    keypoints = torch.stack([sample["keypoints"] for sample in dataset])
    assert keypoints[:, [13, 17, 18, 19], 2].sum() == 0 and keypoints[..., 2].sum() > 500


# ---- damaged lists, splits and ground truth ----------------------------------------------------


@pytest.mark.parametrize("data", [b"\xff\xfe[]", b"[" * 100_000, b'{"a": 1}', b"[1e", b""])
def test_a_damaged_list_is_named(tmp_path, data):
    path = tmp_path / "list.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"list\.json"):
        read_list(path)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_a_split_that_promises_too_much_is_refused(tmp_path):
    path = tmp_path / "split.npy"
    path.write_bytes(npy(np.arange(8)).replace(b"(8,), }        ", b"(8000000000000,), }"[:15]))
    with pytest.raises(InputError, match="not a NumPy array of indices"):
        read_split(path, 8)


def write_truth(path, verts):
    arrays = {"joints": np.zeros((41, 3)), "pose": np.zeros(105), "betas": np.zeros(20)}
    np.savez(path, verts=verts, **arrays, scale=np.zeros(()), crop_square=np.zeros(3))


def test_ground_truth_that_lies_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "truth.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("verts.npy", npy(np.zeros((2**22, 3))))
    with pytest.raises(InputError, match=r"truth\.npz holds too large an array"):
        read_arrays(path)
    for verts in (np.zeros((5, 2)), np.zeros((5, 3), complex), np.array([{}])):
        write_truth(path, verts)
        with pytest.raises(InputError, match=r"truth\.npz"):
            read_arrays(path)
    write_truth(path, np.zeros((5, 3)))
    assert read_arrays(path)["verts"].shape == (5, 3)
    whole = path.read_bytes()
    central = whole.find(b"PK\1\2")  # of the first array
    changed = [bytearray(whole) for _ in range(4)]
    changed[0][central + 8] = 0x20  # patched data
    changed[1][central + 6] = 255  # a version to come
    changed[2][central + 8] = 1  # encrypted
    changed[3][central + 10] = 14  # LZMA
    for data in (b"", b"PK", whole[:-30], *changed):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"truth\.npz is not readable"):
            read_arrays(path)


# ---- names ---------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["a", "a_0", "a_1", "a_1_", "b"]), max_size=8))
def test_no_two_names_are_the_same(names):
    unique = unique_names(names, range(len(names)))
    assert len(set(unique)) == len(names)
    assert all(new.startswith(old) for new, old in zip(unique, names, strict=True))
    once = [(new, old) for new, old in zip(unique, names, strict=True) if names.count(old) == 1]
    assert all(new == old for new, old in once)


@given(st.text(max_size=30))
def test_every_path_has_a_name_that_can_be_printed(path):
    assert entry_name({"img_path": path}).isprintable()


def test_an_entry_named_twice_is_used_once(small_set):
    write_set(small_set, [make_entry(i) for i in range(4)], {"train": [2, 0, 2]})
    dataset = build_dataset("stanford", small_set, "train")
    assert [s["index"] for s in dataset] == [2, 0]
    assert dataset.problems[0].problem == "named twice in the split" and dataset.excluded == 1


# ---- one image in twenty -------------------------------------------------------------------------


def test_the_rest_is_as_in_a_clean_data_set(tmp_path):
    """Sixty images, three of them broken: the others' samples are those of a list without them."""
    number, broken = 60, {7: "img_bbox", 23: "image", 41: "seg"}
    write_set(tmp_path / "clean", [make_entry(i) for i in range(number)], {})
    write_set(tmp_path / "dirty", [make_entry(i) for i in range(number)], {"test": range(number)})
    rest = [i for i in range(number) if i not in broken]
    write_set(tmp_path / "clean", [make_entry(i) for i in range(number)], {"test": rest})

    def spoil(entries):
        entries[7]["img_bbox"] = [0, 0, 0, 0]
        photo_path(tmp_path / "dirty", 23).write_bytes(b"\xff\xd8")
        entries[41]["seg"] = entries[41]["seg"][:-2]

    edit(tmp_path / "dirty", spoil)
    clean, dirty = (build_dataset("stanford", tmp_path / d, "test") for d in ("clean", "dirty"))
    assert [p.name for p in dirty.problems] == [f"breed_dog_{i}" for i in broken]
    assert dirty.excluded == 3 and len(clean) == len(dirty) == len(rest)
    for a, b in zip(clean, dirty, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]) if torch.is_tensor(a[key]) else a[key] == b[key]


def test_a_closed_folder_of_images_is_named(tmp_path, monkeypatch):
    (tmp_path / "Images").mkdir()
    assert image_folder(tmp_path) == tmp_path / "Images"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="Images cannot be read: Permission denied"):
        image_folder(tmp_path)
