"""Dog-Pose, Oxford-IIIT Pet, synthetic images and mixtures of data sets."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import (
    SPLITS,
    build_dataset,
    check,
    has_split,
    mixed_training_set,
    parse_mix,
    train_val,
)
from datasets.masks import UNSURE
from datasets.oxford_pet import read_trimap
from datasets.transforms import Augmentation, make_crop
from util.errors import InputError

from .small_set import make_entry, write_photo, write_set

LAYOUTS = {"newer": "dog-pose/{kind}/{part}", "older": "dog-pose/{part}/{kind}"}


def label_line(entry: dict) -> str:
    """An entry of StanfordExtra's list as a line of Dog-Pose."""
    size = np.array([entry["img_width"], entry["img_height"]])
    box = np.array(entry["img_bbox"], float)
    joints = np.nan_to_num(np.array(entry["joints"], float)) / [*size, 1]
    numbers = [*((box[:2] + box[2:] / 2) / size), *(box[2:] / size), *joints.reshape(-1)]
    return "0 " + " ".join(f"{number:.6f}" for number in numbers) + "\n"


def write_dog_pose(data_dir: Path, layout: str, part: str, dogs: list[tuple[Path, dict]]) -> None:
    images, labels = (
        data_dir / LAYOUTS[layout].format(kind=kind, part=part) for kind in ("images", "labels")
    )
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    for image, entry in dogs:
        shutil.copy(image, images / image.name)
        with open(labels / f"{image.stem}.txt", "a") as file:
            file.write(label_line(entry))


def sample_dogs(shared: Path, split: str) -> list[tuple[Path, dict]]:
    root = shared / "samples/StanfordExtra_v12"
    entries = json.loads((root / "StanfordExtra_v12.json").read_text())
    indices = np.load(root / f"{split}_stanford_StanfordExtra_v12.npy")
    return [(root / "Images" / entries[i]["img_path"], entries[i]) for i in indices]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dog_pose_gives_the_crops_of_stanford_extra(shared, tmp_path, layout):
    for part, split in (("train", "train"), ("val", "test")):
        dogs = sample_dogs(shared, split)
        write_dog_pose(tmp_path, layout, part, dogs)
        ours = {s["name"]: s for s in build_dataset("dog_pose", tmp_path, split)}
        theirs = build_dataset("stanford", shared / "samples", split)
        assert len(ours) == len(theirs)
        for expected, (image, entry) in zip(theirs, dogs, strict=True):
            sample = ours[image.stem]
            for key in ("image", "border_mask", "center", "scale"):
                assert torch.equal(sample[key], expected[key])
            visible = expected["keypoints"][:, 2] > 0
            assert torch.equal(sample["keypoints"][:, 2] > 0, visible)
            off = (sample["keypoints"] - expected["keypoints"])[visible].abs()  # places are rounded
            assert off.max() <= 1 and (off > 0).sum() <= 2
            assert not sample["has_mask"] and sample["has_keypoints"]
            assert sample["mask"].sum() == sample["mask_weight"].sum() == 0
            w, h = entry["img_bbox"][2:]
            assert sample["area"] == pytest.approx(224**2 / 1.44 * min(w, h) / max(w, h), rel=1e-4)
    assert [s for s in SPLITS if has_split("dog_pose", tmp_path, s)] == ["train", "test"]
    assert train_val("dog_pose", tmp_path).held_out  # nothing is chosen on the published test set


def test_dog_pose_labels_that_lie_are_listed(tmp_path, capsys):
    entries = [make_entry(i) for i in range(7)]
    for entry in entries:
        write_photo(tmp_path, entry)
    dogs = [(tmp_path / "Images" / e["img_path"], e) for e in entries]
    write_dog_pose(tmp_path, "newer", "train", dogs)
    labels = tmp_path / "dog-pose/labels/train"
    (labels / "dog_0.txt").unlink()
    (labels / "dog_1.txt").write_text("\n")
    (labels / "dog_2.txt").write_text("0 0.5 0.5 0.2")
    (labels / "dog_3.txt").write_bytes(b"\xff" * 40)
    (labels / "dog_4.txt").write_text(label_line(entries[4]).replace(" 1.000000", " nan", 1))
    (tmp_path / "dog-pose/images/train/dog_5.png").write_bytes(b"")
    with open(labels / "dog_6.txt", "a") as file:
        file.write(label_line(entries[5]))  # a second dog
    dataset = build_dataset("dog_pose", tmp_path, "train")
    assert dataset.names == ["dog_4", "dog_6_6", "dog_6_7"]
    assert dataset[0]["keypoints"][:, 2].sum() == 19
    found = [(p.name, p.problem) for p in dataset.problems]
    expected = ["label missing", "names no dog", "of 4 numbers", "no number", "not a readable"]
    names = ["dog_0", "dog_1", "dog_2", "dog_3", "dog_5"]
    for (name, problem), wanted_name, wanted in zip(found, names, expected, strict=True):
        assert name == wanted_name and wanted in problem
    assert check.main(["--dataset", "dog_pose", "--data_dir", str(tmp_path)]) == 1
    assert "7 unusable" not in capsys.readouterr().out
    with pytest.raises(InputError, match="dog-pose/images/val is missing"):
        build_dataset("dog_pose", tmp_path, "test")


def test_oxford_pet_gives_masks_and_counts_the_edge_neither_way(shared):
    dataset = build_dataset("oxford_pet", shared / "samples", "test")
    assert len(dataset) == 39 and dataset.excluded == 0
    for item in (0, 17):
        sample, entry = dataset[item], dataset.entries[dataset.indices[item]]
        assert sample["has_mask"] and sample["has_keypoints"]
        trimap = cv2.imread(str(entry["trimap"]), cv2.IMREAD_UNCHANGED)
        unsure = make_crop(np.zeros((*trimap.shape, 3), np.uint8), entry["img_bbox"], trimap == 3)
        counts = sample["mask_weight"]
        assert (counts[unsure["mask"] > 0.002] == 0).all()
        assert (counts[unsure["mask"] == 0] == 1).all()
        inner = sample["mask"][counts > 0]
        assert 0.05 < inner.mean() < 0.95 and ((inner == 0) | (inner == 1)).float().mean() > 0.999
        rows, cols = np.nonzero(trimap != 2)
        assert entry["img_bbox"] == (cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1)


def test_the_keypoints_of_oxford_pet_lie_on_the_animal(shared):
    on_animal, sides = [], []
    for split in ("train", "test"):
        dataset = build_dataset("oxford_pet", shared / "samples", split)
        for sample in (dataset[i] for i in range(len(dataset))):
            near = cv2.dilate(
                sample["mask"].numpy() + 1 - sample["mask_weight"].numpy(), np.ones((15, 15))
            )
            seen = sample["keypoints"][sample["keypoints"][:, 2] > 0].numpy().astype(int)
            rows, cols = seen[:, :2].clip(0, 223).T
            on_animal += near[rows, cols].tolist()
            left, right = sample["keypoints"][14], sample["keypoints"][15]  # bases of the ears
            if left[2] and right[2]:
                sides.append(float(left[1] > right[1]))
    assert len(on_animal) > 1900 and np.mean(np.array(on_animal) > 0) > 0.98
    assert np.mean(sides) > 0.9  # most look at the camera: their left is at the image's right


def test_an_oxford_dog_without_marks_has_a_mask_alone(shared, tmp_path):
    root, source = tmp_path / "oxford-iiit-pet", shared / "samples/oxford-iiit-pet"
    (root / "annotations/trimaps").mkdir(parents=True)
    (root / "images").mkdir()
    marked = next((source / "annotations/trimaps").iterdir()).stem
    for name in (marked, "stranger_1"):
        shutil.copy(source / f"images/{marked}.jpg", root / f"images/{name}.jpg")
        trimap = f"annotations/trimaps/{name}.png"
        shutil.copy(source / f"annotations/trimaps/{marked}.png", root / trimap)
    (root / "annotations/test.txt").write_text(f"{marked} 1 2 1\nstranger_1 1 2 1\n")
    dataset = build_dataset("oxford_pet", tmp_path, "test")
    assert [bool(dataset[i]["has_keypoints"]) for i in range(2)] == [True, False]
    assert dataset[1]["keypoints"].abs().sum() == 0 and dataset[1]["has_mask"]


def test_the_unsure_edge_turns_with_the_image():
    mask = np.zeros((100, 100), np.uint8)
    mask[30:70, 20:60], mask[40:60, 30:50] = UNSURE, 1
    change = Augmentation(scale=1.1, angle=30, flip=True)
    blank, box = np.zeros((100, 100, 3), np.uint8), (20, 30, 40, 40)
    whole = make_crop(blank, box, mask, augmentation=change)
    alone = make_crop(blank, box, (mask == UNSURE).astype(np.uint8), augmentation=change)
    assert (whole["mask_weight"][alone["mask"] > 0.002] == 0).all()
    assert 0.3 < whole["mask_weight"].mean() < 0.9


def test_a_trimap_that_lies_is_listed(shared, tmp_path):
    root, source = tmp_path / "oxford-iiit-pet", shared / "samples/oxford-iiit-pet"
    (root / "annotations/trimaps").mkdir(parents=True)
    (root / "images").mkdir()
    names = [line.split()[0] for line in (source / "annotations/test.txt").open()][:6]
    for name in names:
        shutil.copy(source / f"images/{name}.jpg", root / "images")
        shutil.copy(source / f"annotations/trimaps/{name}.png", root / "annotations/trimaps")
    lines = [f"{name} 1 2 1" for name in names] + ["cat 1 1 1", "# a comment", "../up 1 2 1"]
    (root / "annotations/test.txt").write_text("\n".join(lines))
    trimaps = [root / f"annotations/trimaps/{name}.png" for name in names]
    trimaps[0].unlink()
    cv2.imwrite(str(trimaps[1]), np.full((50, 50), 2, np.uint8))
    cv2.imwrite(str(trimaps[2]), np.zeros((50, 50), np.uint8))
    cv2.imwrite(str(trimaps[3]), np.ones((700, 700), np.uint8))
    trimaps[4].write_bytes(trimaps[4].read_bytes()[:200])
    dataset = build_dataset("oxford_pet", tmp_path, "test")
    assert dataset.names == names[5:] and dataset.excluded == 6
    wanted = [
        "is missing",
        "empty mask",
        "no trimap",
        "the list says 700 x 700",
        "damaged",
        "missing",
    ]
    for problem, text in zip(dataset.problems, wanted, strict=True):
        assert text in problem.problem
    trimaps[5].unlink()
    with pytest.raises(InputError, match="images in a row cannot be read"):
        dataset[0]
    with pytest.raises(InputError, match="is missing"):
        read_trimap(trimaps[5])


# ---- mixtures ------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    """A data folder with StanfordExtra, Dog-Pose and synthetic images."""
    entries = [make_entry(i) for i in range(30)]
    write_set(tmp_path, entries, {"train": range(20), "val": range(20, 24)})
    write_set(tmp_path / "synthetic", entries[:12], {"train": range(10), "val": [10, 11]})
    dogs = [(tmp_path / "StanfordExtra_v12/Images" / e["img_path"], e) for e in entries]
    write_dog_pose(tmp_path, "newer", "train", dogs)
    return tmp_path


WEIGHTS = {"dog_pose": 0.2, "stanford": 0.2, "synthetic": 0.6}


def test_a_mixture_draws_by_weight_without_repeats_before_all_were_drawn(three):
    mixed = mixed_training_set(WEIGHTS, three, seed=3)
    assert len(mixed) == 27 + 20 + 10  # a tenth of Dog-Pose validates
    drawn = []
    for epoch in range(30):
        mixed.set_epoch(epoch)
        plan = mixed.plan()
        drawn.append(plan[:, 0])
        for which, size in enumerate((27, 20, 10)):
            times = np.bincount(plan[plan[:, 0] == which, 1], minlength=size)
            assert len(times) == size and np.ptp(times) <= 1
    fractions = np.bincount(np.concatenate(drawn)) / (30 * len(mixed))
    np.testing.assert_allclose(fractions, [0.2, 0.2, 0.6], atol=0.04)


def test_an_image_that_comes_again_in_an_epoch_is_changed_otherwise(three):
    mixed = mixed_training_set({"stanford": 0.9, "synthetic": 0.1}, three, seed=3, augment=True)
    plan = mixed.plan()
    again = np.flatnonzero((plan[:, :2] == plan[0, :2]).all(1))
    assert plan[again, 2].tolist() == list(range(len(again))) and len(again) > 1
    images = [mixed[int(item)]["image"] for item in again]
    assert not torch.equal(images[0], images[1])
    once = mixed.datasets[plan[0, 0]][int(plan[0, 1])]["image"]
    assert torch.equal(images[0], once)  # the first time as without a mixture


def test_a_mixture_tells_which_images_have_ground_truth(three):
    from tests.datasets.test_crops import write_truth

    folder = three / "synthetic/StanfordExtra_v12/Truth/breed"
    folder.mkdir(parents=True)
    for i in range(10):
        write_truth(folder / f"dog_{i}.npz", i)
    mixed = mixed_training_set(WEIGHTS, three, seed=3, ground_truth=True)
    batch = next(iter(DataLoader(mixed, batch_size=len(mixed))))
    known = torch.tensor(mixed.plan()[:, 0] == 2)
    assert torch.equal(batch["has_truth"], known) and 0 < known.sum() < len(known)
    assert batch["gt_verts"][~known].abs().sum() == 0
    assert batch["gt_rotations"][known].abs().flatten(1).sum(1).min() > 1
    assert "has_truth" not in mixed_training_set(WEIGHTS, three, seed=3)[0]


def test_a_mixture_follows_seed_and_epoch_not_workers(three):
    def names(seed, workers):
        mixed = mixed_training_set(WEIGHTS, three, seed=seed, augment=True, img_res=32)
        loader = DataLoader(
            mixed, batch_size=8, num_workers=workers, persistent_workers=workers > 0
        )
        out = []
        for epoch in (0, 1):
            mixed.set_epoch(epoch)
            out.append([b["name"] + b["image"].sum((1, 2, 3)).tolist() for b in loader])
        return out

    alone = names(1, 0)
    assert alone == names(1, 2) and alone[0] != alone[1] and alone != names(2, 0)


@pytest.mark.parametrize("text", ["", "a", "a:0", "a:-1", "a:1,a:2", "a:inf", ":1", "a:x", "a:nan"])
def test_a_mixture_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="expected NAME:WEIGHT"):
        parse_mix(text)


def test_a_mixture_is_written_as_names_and_weights():
    assert parse_mix("dog_pose:0.4, oxford_pet:2") == {"dog_pose": 0.4, "oxford_pet": 2.0}
