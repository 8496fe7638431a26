"""Crops against recorded ones, the documented sample, ground truth of synthetic images."""

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import datasets
from datasets import build_dataset, train_val
from util.errors import InputError
from util.images import to_image

from .small_set import edit, make_entry, photo_path, write_set


def test_crops_are_the_recorded_ones(shared, golden):
    recorded = golden("stanford_eval_items")
    samples = {}
    for split in datasets.SPLITS:
        dataset = build_dataset("stanford", shared / "samples", split)
        assert dataset.excluded == 0
        samples |= {sample["index"]: sample for sample in dataset}
    assert len(samples) == 12
    for n, index in enumerate(recorded["index"]):
        sample = samples[int(index)]
        original = recorded[f"{n}_img_orig_u8"].transpose(1, 2, 0).astype(int)
        difference = np.abs(to_image(sample["image"]) - original)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-4
        np.testing.assert_allclose(sample["mask"], recorded[f"{n}_seg"][0], atol=1e-6)
        np.testing.assert_array_equal(sample["border_mask"], recorded[f"{n}_border_mask"][0])
        np.testing.assert_array_equal(sample["keypoints"], recorded[f"{n}_keypoints"][:, [1, 0, 2]])
        np.testing.assert_allclose(sample["center"], recorded[f"{n}_center"])
        np.testing.assert_allclose(sample["scale"], recorded[f"{n}_scale"], rtol=1e-6)


def test_a_sample_has_the_documented_fields(small_set):
    sample = build_dataset("stanford", small_set, "train", img_res=96)[0]
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in sample.items() if torch.is_tensor(v)}
    assert shapes == {
        "image": ((3, 96, 96), torch.float32),
        "mask": ((224, 224), torch.float32),
        "has_mask": ((), torch.bool),
        "mask_weight": ((224, 224), torch.float32),
        "area": ((), torch.float32),
        "border_mask": ((224, 224), torch.float32),
        "inside": ((224, 224), torch.float32),
        "keypoints": ((20, 3), torch.float32),
        "has_keypoints": ((), torch.bool),
        "center": ((2,), torch.float32),
        "scale": ((), torch.float32),
    }
    assert (sample["mask_weight"] == 1).all() and sample["area"] == sample["mask"].sum()
    assert sample["has_mask"] and sample["has_keypoints"]
    assert sample["index"] == 2 and sample["name"] == "breed_dog_2"


def test_input_size_changes_the_input_alone(small_set):
    large = build_dataset("stanford", small_set, "train")[0]
    small = build_dataset("stanford", small_set, "train", img_res=48)[0]
    for key in ("mask", "border_mask", "keypoints", "center", "scale"):
        assert torch.equal(large[key], small[key])
    # The cut is 192 pixels wide: shrinking averages, as shrinking the crop does up to its blur.
    reference = cv2.resize(to_image(large["image"]), (48, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(reference.astype(int) - to_image(small["image"])).mean() < 3


def test_joints_that_are_no_numbers_are_not_visible(small_set):
    def spoil(entries):
        entries[2]["joints"][4] = [float("nan"), float("nan"), 0]
        entries[2]["joints"][5] = [float("nan"), 100.0, 1]
        entries[2]["joints"][6] = [1e300, 100.0, 0]

    edit(small_set, spoil)
    keypoints = build_dataset("stanford", small_set, "train")[0]["keypoints"]
    assert keypoints[[4, 5, 6]].tolist() == [[0, 0, 0]] * 3
    assert keypoints[:, 2].sum() == 17 and keypoints.isfinite().all()


def write_truth(path, number):
    """The ground truth of an animal all of whose points lie in one place."""
    arrays = {"verts": np.full((7, 3), number), "joints": np.full((41, 3), number)}
    arrays |= {"pose": np.zeros(105), "betas": np.zeros(20), "scale": np.zeros(())}
    np.savez(path, crop_square=np.array([0, 0, 100.0]), **arrays)


def test_ground_truth_comes_with_the_sample(small_set):
    folder = small_set / "StanfordExtra_v12" / "Truth" / "breed"
    assert not build_dataset("stanford", small_set, "train", ground_truth=True).has_ground_truth
    folder.mkdir(parents=True)
    for i in range(3):
        write_truth(folder / f"dog_{i}.npz", i)
    with pytest.raises(
        InputError, match=r"dog_3\.npz and 0 more files of the ground truth are missing"
    ):
        build_dataset("stanford", small_set, "train", ground_truth=True)
    write_truth(folder / "dog_3.npz", 3)
    opened = build_dataset("stanford", small_set, "train", ground_truth=True)
    batch = next(iter(DataLoader(opened, batch_size=3)))
    shapes = {k: tuple(v.shape[1:]) for k, v in batch.items() if k.startswith("gt_")}
    assert shapes == {
        "gt_verts": (7, 3),
        "gt_joints": (41, 3),
        "gt_rotations": (35, 3, 3),
        "gt_betas": (20,),
        "gt_scale": (1,),
    }
    assert batch["gt_verts"][0, :, 2].unique().tolist() == [2.0] and batch["has_truth"].all()
    assert batch["gt_verts"].dtype == torch.float32
    assert "gt_verts" not in build_dataset("stanford", small_set, "train")[0]


def test_a_tenth_of_the_training_images_validates_where_there_is_no_split(tmp_path):
    write_set(tmp_path, [make_entry(i) for i in range(12)], {"train": range(11), "test": [11]})
    sets = train_val("stanford", tmp_path, augment=True, flip=True, seed=5)
    assert sets.held_out and [s["index"] for s in sets.val] == [0, 10]
    assert [s["index"] for s in sets.train] == list(range(1, 10))
    plain = build_dataset("stanford", tmp_path, "train")
    assert torch.equal(sets.val[1]["image"], plain[10]["image"])
    before = sets.train[3]["image"]
    sets.train.set_epoch(1)
    assert not torch.equal(before, sets.train[3]["image"])


def test_a_validation_split_is_used_where_there_is_one(small_set):
    write_set(small_set, [make_entry(i) for i in range(4)], {"val": [1]})
    photo_path(small_set, 3).unlink()
    sets = train_val("stanford", small_set)
    assert not sets.held_out and sets.excluded == 1
    assert [s["index"] for s in sets.val] == [1] and [s["index"] for s in sets.train] == [2, 0]
    sets = train_val("stanford", small_set, validation_only=True)
    assert sets.train is None and sets.excluded == 0 and len(sets.val) == 1
