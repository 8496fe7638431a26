"""Fitted parameters as labels: which count, and how they follow the crop."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from datasets import Fits, build_dataset, name_apart
from datasets.annotations import entry_name
from datasets.transforms import Augmentation, box_center_and_side
from smal_model import SMAL
from util.errors import InputError

LOGSCALE = np.linspace(-0.1, 0.2, 6)


@pytest.fixture
def write_fits(data, tmp_path):
    """write_fits(change): files as of a perfect fit, each passed through change(i, arrays)."""
    root = data / "StanfordExtra_v12"
    entries = json.loads((root / "StanfordExtra_v12.json").read_text())

    def write(change=lambda i, arrays: arrays):
        (tmp_path / "parameters").mkdir(exist_ok=True)
        for i, entry in enumerate(entries[:6]):
            truth = np.load((root / "Truth" / entry["img_path"]).with_suffix(".npz"))
            center, side = box_center_and_side(entry["img_bbox"])
            arrays = {k: truth[k] for k in ("pose", "betas")}
            arrays["del_v"] = np.zeros_like(truth["verts"])
            arrays |= {"betas_logscale": LOGSCALE, "iou": 0.9, "pck": 1.0}
            arrays = change(i, arrays | {"crop_center": center, "crop_side": side})
            np.savez(tmp_path / "parameters" / f"{entry_name(entry)}.npz", **arrays)
        return Fits(tmp_path, data / "smal")

    return write


@pytest.mark.parametrize("flip", [False, True])
def test_labels_turn_and_mirror_as_the_body_does(data, write_fits, flip):
    smal, fits = SMAL(data / "smal"), write_fits()
    fit = dict(next(iter(fits._good.values())))
    fit["betas"] = smal.family_mean[:20].astype(np.float32)

    def mesh(labels):
        turns = Rotation.from_matrix(labels["fit_rotations"].double().numpy())
        pose = torch.tensor(turns.as_rotvec().ravel()).float()
        body = smal(labels["fit_betas"][None], pose[None])
        return (body.verts[0] - body.joints[0, 0]).numpy()

    plain = mesh(fits.in_crop(fit, Augmentation()))
    cos, sin = np.cos(np.radians(30)), np.sin(np.radians(30))
    x, y, z = plain.T
    expected = np.stack([x * cos + y * sin, y * cos - x * sin, z], 1)  # clockwise; y is up
    if flip:
        expected = expected[fits.mirror.verts] * [-1, 1, 1]
    found = mesh(fits.in_crop(fit, Augmentation(angle=30, flip=flip)))
    assert np.abs(found - plain).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_samples_change_their_labels_as_their_crops(data, write_fits):
    options = {"augment": True, "flip": True, "ground_truth": True, "seed": 4}
    images = build_dataset("stanford", data, "train", img_res=64, fits=write_fits(), **options)
    plain = build_dataset("stanford", data, "train", img_res=64, fits=images.fits)
    turned = mirrored = 0
    for item in range(6):
        sample, before = images[item], plain[item]["fit_rotations"]
        assert sample["has_fit"] and sample["has_fit_logscale"]
        torch.testing.assert_close(sample["fit_rotations"], sample["gt_rotations"])
        torch.testing.assert_close(sample["fit_betas"], sample["gt_betas"])
        np.testing.assert_allclose(sample["fit_logscale"], LOGSCALE, atol=1e-6)
        turned += not torch.allclose(before[0], sample["fit_rotations"][0], atol=1e-3)
        mirrored += not torch.allclose(before[1:], sample["fit_rotations"][1:], atol=1e-3)
    assert turned >= 2 and 1 <= mirrored <= 5


def _poor(i, arrays):
    changed = {
        1: {"iou": 0.79},
        2: {"pck": 0.89},
        3: {"pck": np.nan},  # no keypoints: nobody knows where the head is
        4: {"iou": np.nan},  # no mask: the keypoints say enough
        5: {"crop_center": arrays["crop_center"] + [0.1 * arrays["crop_side"], 0]},
    }
    return arrays | changed.get(i, {})


def test_only_good_fits_count(data, write_fits):
    images = build_dataset("stanford", data, "train", img_res=64, fits=write_fits(_poor))
    known = [bool(images[i]["has_fit"]) for i in range(8)]
    assert known == [True, False, False, False, True, False, False, False]  # 6, 7 have no file
    assert images.num_fitted == 2 and images.part([0, 1]).num_fitted == 1
    assert all(images[1][k].abs().sum() == 0 for k in ("fit_rotations", "fit_betas"))
    without = build_dataset("stanford", data, "train", img_res=64)
    assert "has_fit" not in without[0] and without.num_fitted == 0


def test_a_fit_that_is_not_finite_does_not_count(data, write_fits):
    def spoil(i, arrays):
        return arrays | ({"pose": np.full_like(arrays["pose"], np.nan)} if i == 0 else {})

    assert (
        build_dataset("stanford", data, "train", img_res=64, fits=write_fits(spoil)).num_fitted == 5
    )


def test_fits_without_log_scales_are_labels_of_the_rest(data, write_fits):
    def leave_out(_, arrays):
        return {k: v for k, v in arrays.items() if k != "betas_logscale"}

    sample = build_dataset("stanford", data, "train", img_res=64, fits=write_fits(leave_out))[0]
    assert sample["has_fit"] and not sample["has_fit_logscale"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda i, a: {k: v for k, v in a.items() if k != "iou"}, "iou.npy.*run fit.py again"),
        (lambda i, a: a | {"betas": np.zeros(7)}, r"no \(20,\) array betas: run fit.py again"),
        (lambda i, a: a | {"pose": np.zeros(99)}, r"no \(105,\) array pose: run fit.py again"),
        (
            lambda i, a: a | {"del_v": np.zeros((9, 3))},
            "body of 9 vertices, expected .*--param_dir",
        ),
    ],
)
def test_files_of_another_kind_are_named(write_fits, change, told):
    with pytest.raises(InputError, match=told):
        write_fits(change)


def test_a_folder_without_parameters_is_refused(data, tmp_path):
    with pytest.raises(InputError, match=r"holds no parameters/\*\.npz"):
        Fits(tmp_path, data / "smal")


def test_two_animals_of_one_photograph_keep_their_fits_whatever_the_splits(data, write_fits):
    """fit.py over all splits writes `<name>_<index>` for both, each split alone reads `<name>`."""
    sets = [build_dataset("stanford", data, split, img_res=64) for split in ("train", "test")]
    first, second = sets[0].indices[0], sets[1].indices[0]
    path = sets[0].entries[first]["img_path"]
    for images in sets:
        images.entries[second] = {**images.entries[second], "img_path": path}
        images.names[:] = [entry_name(images.entries[i]) for i in images.indices]
    assert sets[0].names[0] == sets[1].names[0]
    plain = sets[0].names[0]
    fits = write_fits()
    fit = dict(next(iter(fits._good.values())))
    fits._good = {}
    for images, index in zip(sets, (first, second), strict=True):
        images.fits = fits
        center, side = box_center_and_side(images.entries[index]["img_bbox"])
        found = fit | {"crop_center": center, "crop_side": side, "betas": np.full(20, index)}
        fits._good[f"{plain}_{index}"] = found
    for images, index in zip(sets, (first, second), strict=True):
        assert images._fit(0)["betas"][0] == index
    name_apart(sets)
    assert [images.names[0] for images in sets] == [f"{plain}_{first}", f"{plain}_{second}"]
    assert sets[0].names[1] == entry_name(sets[0].entries[sets[0].indices[1]])
