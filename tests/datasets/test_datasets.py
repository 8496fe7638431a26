"""The data sets: crops against recorded ones, changes in training, faults in the files, the check's table."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torch.utils.data import DataLoader

import datasets
from datasets import build_dataset, check, has_split
from datasets.annotations import read_image
from datasets.transforms import MIRRORED, Augmentation, draw_augmentation, make_crop, to_picture

WIDTH, HEIGHT = 300, 240
ROOT = Path(datasets.__file__).resolve().parents[1]


# ---- a small data set, made up ----------------------------------------------------------------------------------


def encode(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def make_entry(number: int) -> dict:
    rng = np.random.default_rng(number)
    mask = np.zeros((HEIGHT, WIDTH))
    mask[60:180, 70:230] = 1
    joints = np.zeros((24, 3))
    joints[:20, 0], joints[:20, 1], joints[:20, 2] = rng.uniform(75, 225, 20), rng.uniform(65, 175, 20), 1
    return {
        "img_path": f"breed/dog_{number}.png",
        "img_width": WIDTH,
        "img_height": HEIGHT,
        "joints": joints.tolist(),
        "img_bbox": [70, 60, 160, 120],
        "is_multiple_dogs": False,
        "seg": encode(mask),
    }


def write_photo(root: Path, entry: dict) -> None:
    path = root / "Images" / entry["img_path"]
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(entry["img_path"])).integers(20, 235, (HEIGHT // 4, WIDTH // 4, 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(noise, (WIDTH, HEIGHT)))


def write_set(data_dir: Path, entries, splits: dict) -> Path:
    root = data_dir / "StanfordExtra_v12"
    root.mkdir(parents=True, exist_ok=True)
    (root / "StanfordExtra_v12.json").write_text(json.dumps(entries))
    for split, indices in splits.items():
        np.save(root / f"{split}_stanford_StanfordExtra_v12.npy", np.array(indices))
    for entry in entries if isinstance(entries, list) else []:
        write_photo(root, entry)
    return root


@pytest.fixture
def made_up(tmp_path):
    write_set(tmp_path, [make_entry(i) for i in range(4)], {"train": [2, 0, 3], "test": [1]})
    return tmp_path


def edit(data_dir: Path, change) -> None:
    """Rewrite the list of annotations with `change(entries)`."""
    path = data_dir / "StanfordExtra_v12" / "StanfordExtra_v12.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))


def photo_path(data_dir: Path, number: int) -> Path:
    return data_dir / "StanfordExtra_v12" / "Images" / "breed" / f"dog_{number}.png"


# ---- the evaluation crop -----------------------------------------------------------------------------------------


def test_crops_are_the_recorded_ones(shared, golden):
    recorded = golden("stanford_eval_items")
    samples = {}
    for split in datasets.SPLITS:
        dataset = build_dataset("stanford", shared / "samples", split)
        assert dataset.excluded == 0 and dataset.report == []
        samples |= {sample["index"]: sample for sample in dataset}
    assert len(samples) == 12
    for n, index in enumerate(recorded["index"]):
        sample = samples[int(index)]
        picture = recorded[f"{n}_img_orig_u8"].transpose(1, 2, 0).astype(int)
        difference = np.abs(to_picture(sample["image"]) - picture)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-4
        np.testing.assert_allclose(sample["mask"], recorded[f"{n}_seg"][0], atol=1e-6)
        np.testing.assert_array_equal(sample["border_mask"], recorded[f"{n}_border_mask"][0])
        np.testing.assert_array_equal(sample["keypoints"], recorded[f"{n}_keypoints"][:, [1, 0, 2]])
        np.testing.assert_allclose(sample["center"], recorded[f"{n}_center"])
        np.testing.assert_allclose(sample["scale"], recorded[f"{n}_scale"], rtol=1e-6)


def test_a_sample_has_the_documented_fields(made_up):
    sample = build_dataset("stanford", made_up, "train", img_res=96)[0]
    shapes = {k: (tuple(v.shape), v.dtype) for k, v in sample.items() if torch.is_tensor(v)}
    assert shapes == {
        "image": ((3, 96, 96), torch.float32),
        "mask": ((224, 224), torch.float32),
        "border_mask": ((224, 224), torch.float32),
        "keypoints": ((20, 3), torch.float32),
        "center": ((2,), torch.float32),
        "scale": ((), torch.float32),
    }
    assert sample["index"] == 2 and sample["name"] == "breed_dog_2"


def test_input_size_changes_the_input_alone(made_up):
    large = build_dataset("stanford", made_up, "train")[0]
    small = build_dataset("stanford", made_up, "train", img_res=48)[0]
    for key in ("mask", "border_mask", "keypoints", "center", "scale"):
        assert torch.equal(large[key], small[key])
    # The cut is 192 pixels wide: shrinking by 4 averages, as shrinking the 224-pixel crop does up to its blur.
    reference = cv2.resize(to_picture(large["image"]), (48, 48), interpolation=cv2.INTER_AREA)
    assert np.abs(reference.astype(int) - to_picture(small["image"])).mean() < 3


def test_joints_that_are_no_numbers_are_not_visible(made_up):
    def spoil(entries):
        entries[2]["joints"][4] = [float("nan"), float("nan"), 0]
        entries[2]["joints"][5] = [float("nan"), 100.0, 1]

    edit(made_up, spoil)
    keypoints = build_dataset("stanford", made_up, "train")[0]["keypoints"]
    assert keypoints[[4, 5]].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert keypoints[:, 2].sum() == 18 and keypoints.isfinite().all()


# ---- changes in training -----------------------------------------------------------------------------------------

CHANGES = [
    Augmentation(),
    Augmentation(scale=1.25),
    Augmentation(scale=0.75, angle=20),
    Augmentation(angle=-60),
    Augmentation(scale=1.1, angle=35, flip=True),
    Augmentation(flip=True),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_picture_mask_and_keypoints_move_together(change):
    """A dot drawn at a joint, in the photograph and in the mask, is found at the joint's place in the crop."""
    joints = np.column_stack([np.linspace(90, 210, 20), 120 + 40 * np.sin(np.arange(20)), np.ones(20)])
    box = (70, 60, 160, 120)
    for k in range(0, 20, 3):
        dot = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.circle(dot, tuple(int(16 * v) for v in joints[k, :2]), 16 * 4, 1, -1, cv2.LINE_8, 4)
        photo = np.repeat(dot[..., None] * 200, 3, -1).astype(np.uint8)
        sample = make_crop(photo, dot, joints, box, change=change)
        place = int(np.flatnonzero(MIRRORED == k)[0]) if change.flip else k  # a mirrored joint has its twin's number
        inside = cv2.erode(sample["border_mask"].numpy(), np.ones((5, 5)), borderValue=1)
        for plane in (to_picture(sample["image"])[..., 1] / 200.0 * inside, sample["mask"].numpy()):
            rows, cols = np.nonzero(plane > 0.5)
            found = np.array([rows.mean(), cols.mean()])
            # A label is rounded towards zero and then moved on by one: up to a pixel off, two in a mirror.
            limit = 2.7 if change.flip else 1.6
            assert np.abs(found - sample["keypoints"][place, :2].numpy()).max() < limit, (k, place)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_border_is_the_edge_of_the_photograph(change):
    """A mask that covers the whole photograph has the border mask as its crop."""
    photo = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    sample = make_crop(photo, np.ones((HEIGHT, WIDTH)), np.zeros((20, 3)), (10, 20, 230, 150), change=change)
    mask, border = sample["mask"].numpy(), sample["border_mask"].numpy()
    assert 0.3 < border.mean() < 0.999
    assert (border[mask > 0.02] == 1).all() and (border[mask == 0] == 0).all()


def test_scale_multiplies_the_side_of_the_crop():
    photo, mask = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[80:160, 100:200] = 1
    crops = [make_crop(photo, mask, np.zeros((20, 3)), (70, 60, 160, 120), change=Augmentation(s)) for s in (1, 1.25)]
    assert crops[1]["scale"] / crops[0]["scale"] == pytest.approx(1.25)
    assert crops[0]["mask"].sum() / crops[1]["mask"].sum() == pytest.approx(1.25**2, rel=0.03)


def test_flip_is_the_crop_of_the_mirrored_photograph():
    entry = make_entry(7)
    rng = np.random.default_rng(3)
    photo = cv2.resize(rng.integers(0, 255, (30, 40, 3), np.uint8), (WIDTH, HEIGHT))
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[60:150, 70:200] = 1
    joints = np.array(entry["joints"])[:20]
    x, y, w, h = 70, 60, 160, 120
    flipped = make_crop(photo, mask, joints, (x, y, w, h), change=Augmentation(flip=True))

    mirrored_joints = joints[[6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 12, 13, 15, 14, 16, 17, 19, 18]]
    mirrored_joints = mirrored_joints * [-1, 1, 1] + [WIDTH, 0, 0]
    expected = make_crop(photo[:, ::-1], mask[:, ::-1], mirrored_joints, (WIDTH - x - w, y, w, h))
    for key in ("image", "mask", "border_mask", "keypoints"):
        torch.testing.assert_close(flipped[key], expected[key], atol=1e-5, rtol=0)


def test_a_small_turn_is_near_no_turn():
    """The turned cut agrees with the plain one as the angle vanishes: the two ways to cut share one geometry."""
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 4)
    arguments = photo, np.ones((HEIGHT, WIDTH), np.uint8), np.zeros((20, 3)), (90, 80, 120, 90)
    plain, turned = (to_picture(make_crop(*arguments, change=Augmentation(angle=a))["image"]) for a in (0, 1e-4))
    assert np.abs(plain.astype(int) - turned).max() <= 1


def test_draws_have_the_documented_distribution():
    draws = [draw_augmentation(np.random.default_rng((0, 0, i)), augment=True, flip=True) for i in range(4000)]
    scale, angle = np.array([d.scale for d in draws]), np.array([d.angle for d in draws])
    gain = np.array([d.gain for d in draws])
    assert scale.min() == 0.75 and scale.max() == 1.25 and abs(scale.mean() - 1) < 0.01
    assert abs((scale == 0.75).mean() - 0.159) < 0.03  # below one standard deviation
    assert abs((angle == 0).mean() - 0.6) < 0.03 and np.abs(angle).max() == 60
    assert abs(angle[angle != 0].std() - 28.5) < 2  # 30 before the clipping
    assert 0.6 <= gain.min() < 0.61 and 1.39 < gain.max() <= 1.4
    assert abs(np.mean([d.flip for d in draws]) - 0.5) < 0.03
    plain = draw_augmentation(np.random.default_rng(0), augment=False, flip=False)
    assert plain == Augmentation()


def all_images(dataset, workers: int, epochs=(0,)) -> torch.Tensor:
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
    found = []
    for epoch in epochs:
        dataset.set_epoch(epoch)
        found += [batch["image"] for batch in loader]
    return torch.cat(found)


def test_random_changes_follow_seed_and_epoch_not_workers(made_up):
    def opened(seed):
        return build_dataset("stanford", made_up, "train", img_res=64, augment=True, flip=True, seed=seed)

    alone = all_images(opened(1), workers=0, epochs=(0, 1))
    assert torch.equal(alone, all_images(opened(1), workers=2, epochs=(0, 1)))
    assert not torch.equal(alone[:3], alone[3:])  # another epoch, other changes
    assert not torch.equal(alone, all_images(opened(2), workers=0, epochs=(0, 1)))


# ---- faults ------------------------------------------------------------------------------------------------------


def delete_photo(data_dir, entries):
    photo_path(data_dir, 0).unlink()


def truncate_png(data_dir, entries):
    path = photo_path(data_dir, 0)
    path.write_bytes(path.read_bytes()[:-400])


def no_picture(data_dir, entries):
    photo_path(data_dir, 0).write_bytes(b"<html>not found</html>")


def empty_file(data_dir, entries):
    photo_path(data_dir, 0).write_bytes(b"")


def other_size(data_dir, entries):
    cv2.imwrite(str(photo_path(data_dir, 0)), np.zeros((50, 60, 3), np.uint8))


def empty_mask(data_dir, entries):
    entries[0]["seg"] = encode(np.zeros((HEIGHT, WIDTH)))


def no_run_lengths(data_dir, entries):
    entries[0]["seg"] = ""


def broken_run_lengths(data_dir, entries):
    entries[0]["seg"] = "o" * 500


def cut_off_run_lengths(data_dir, entries):
    entries[0]["seg"] = entries[0]["seg"][:-1] + "P"  # a number that goes on


def foreign_run_lengths(data_dir, entries):
    entries[0]["seg"] = "1 2"


def mask_elsewhere(data_dir, entries):
    mask = np.zeros((HEIGHT, WIDTH))
    mask[:20, :20] = 1
    entries[0]["seg"] = encode(mask)


def box_outside(data_dir, entries):
    entries[0]["img_bbox"] = [1000, 60, 160, 120]


def box_mostly_outside(data_dir, entries):
    entries[0]["img_bbox"] = [-150, 60, 160, 120]


def huge_box(data_dir, entries):
    entries[0]["img_bbox"] = [0, 0, 10**9, 10**9]


def box_without_area(data_dir, entries):
    entries[0]["img_bbox"] = [70, 60, 0, 120]


def box_of_nan(data_dir, entries):
    entries[0]["img_bbox"] = [70, 60, float("nan"), 120]


def lacks_box(data_dir, entries):
    del entries[0]["img_bbox"]


def no_object(data_dir, entries):
    entries[0] = None


def path_outside(data_dir, entries):
    entries[0]["img_path"] = "../../dog_0.png"


def endless_picture(data_dir, entries):
    entries[0]["img_width"] = 10**12


def short_joints(data_dir, entries):
    entries[0]["joints"] = [[1, 2, 1]] * 4


def ragged_joints(data_dir, entries):
    entries[0]["joints"] = [[1, 2], [1, 2, 3], "x"]


FAULTS = {
    delete_photo: "image missing",
    truncate_png: "is truncated",
    no_picture: "not a readable picture",
    empty_file: "not a readable picture",
    other_size: "image is 60 x 50, the list says 300 x 240",
    empty_mask: "empty mask",
    no_run_lengths: "empty mask",
    broken_run_lengths: "mask cannot be decoded",
    cut_off_run_lengths: "damaged or cut off",
    foreign_run_lengths: "damaged or cut off",
    mask_elsewhere: "mask lies outside the box",
    box_outside: "box outside the picture",
    box_mostly_outside: "box outside the picture",
    huge_box: "box outside the picture",
    box_without_area: "box without area",
    box_of_nan: "img_bbox is not four numbers",
    lacks_box: "lacks img_bbox",
    no_object: "not an object",
    path_outside: "leads out of the folder",
    endless_picture: "picture of 1000000000000 x 240 pixels",
    short_joints: "joints have shape (4, 3)",
    ragged_joints: "not numbers",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_an_unusable_entry_is_found_and_left_out(made_up, fault):
    edit(made_up, lambda entries: fault(made_up, entries))
    dataset = build_dataset("stanford", made_up, "train")
    assert dataset.excluded == 1 and dataset.problems[0].index == 0
    assert dataset.report[0][0] in ("breed_dog_0", ".._.._dog_0", "?") and FAULTS[fault] in dataset.report[0][1]
    assert [sample["index"] for sample in dataset] == [2, 3]


def test_two_animals_in_one_photograph_have_two_names(made_up):
    edit(made_up, lambda entries: entries[3].update(img_path=entries[0]["img_path"]))
    assert [s["name"] for s in build_dataset("stanford", made_up, "train")] == ["breed_dog_2", "breed_dog_0_0", "breed_dog_0_3"]


def test_a_truncated_jpeg_is_found_wherever_it_ends(made_up, shared):
    source = shared / "samples/StanfordExtra_v12/Images/n02092339-Weimaraner/n02092339_1013.jpg"
    whole = source.read_bytes()
    path = made_up / "photo.jpg"
    path.write_bytes(whole + b"\0\0\0")  # what follows the end marker does no harm
    assert read_image(path).shape == (359, 480, 3)
    for length, message in (
        (0, "not a readable picture"),
        (3, "not a readable picture"),
        (300, "not a readable picture"),
        (len(whole) // 2, "truncated"),  # some versions of OpenCV give half a picture here
        (len(whole) - 2, "truncated"),
    ):
        path.write_bytes(whole[:length])
        with pytest.raises(OSError, match=rf"photo\.jpg is {message}"):
            read_image(path)


def test_a_box_partly_outside_and_a_tiny_one_are_used(made_up):
    def change(entries):
        entries[0]["img_bbox"] = [-60, 20, 160, 200]
        entries[3]["img_bbox"] = [100, 100, 2, 2]

    edit(made_up, change)
    dataset = build_dataset("stanford", made_up, "train", augment=True)
    assert dataset.excluded == 0 and all(sample["image"].isfinite().all() for sample in dataset)


def test_a_photograph_that_breaks_later_is_named(made_up):
    dataset = build_dataset("stanford", made_up, "train")
    delete_photo(made_up, None)
    with pytest.raises(OSError, match=r"dog_0\.png cannot be read"):
        dataset[1]


def test_faults_of_the_structure_are_one_clear_sentence(made_up, tmp_path):
    root = made_up / "StanfordExtra_v12"
    with pytest.raises(ValueError, match="unknown data set 'cats': choose one of stanford, animal_pose"):
        build_dataset("cats", made_up, "train")
    with pytest.raises(ValueError, match="unknown split 'all'"):
        build_dataset("stanford", made_up, "all")
    with pytest.raises(FileNotFoundError, match=r"StanfordExtra_v12\.json is missing"):
        build_dataset("stanford", tmp_path / "nowhere", "train")
    assert has_split("stanford", made_up, "train") and not has_split("stanford", made_up, "val")
    with pytest.raises(FileNotFoundError, match=r"val_stanford_StanfordExtra_v12\.npy is missing"):
        build_dataset("stanford", made_up, "val")

    split = root / "val_stanford_StanfordExtra_v12.npy"
    for indices, message in (
        ([0, 4], "names entry 4, but the list holds 4 entries"),
        ([-1], "names entry -1"),
        ([0.5], "one-dimensional array of whole numbers"),
        ([], "one-dimensional array of whole numbers"),
        (np.array([], int), "no usable photograph among the 0"),
        (np.array([{}]), "not a NumPy array of indices"),
    ):
        np.save(split, np.array(indices), allow_pickle=True)
        with pytest.raises(ValueError, match=message):
            build_dataset("stanford", made_up, "val")
    split.write_bytes(b"no array")
    with pytest.raises(ValueError, match="not a NumPy array of indices"):
        build_dataset("stanford", made_up, "val")

    delete_photo(made_up, None)
    np.save(split, np.array([0]))
    with pytest.raises(ValueError, match="no usable photograph among the 1 .*image missing"):
        build_dataset("stanford", made_up, "val")
    (root / "Images").rename(root / "images")  # some have it in small letters
    assert len(build_dataset("stanford", made_up, "test")) == 1
    (root / "images").rename(root / "photographs")
    with pytest.raises(FileNotFoundError, match="Images is missing: put the data set's photographs there"):
        build_dataset("stanford", made_up, "test")
    (root / "StanfordExtra_v12.json").write_text('{"dogs": []}')
    with pytest.raises(ValueError, match="must hold a list of annotations, found dict"):
        build_dataset("stanford", made_up, "test")
    (root / "StanfordExtra_v12.json").write_text("[{")
    with pytest.raises(ValueError, match="not readable as JSON"):
        build_dataset("stanford", made_up, "test")


def test_animal_pose_opens_once_its_photographs_are_there(shared, tmp_path):
    with pytest.raises(FileNotFoundError, match="Images is missing"):
        build_dataset("animal_pose", shared / "samples", "test")
    with pytest.raises(FileNotFoundError, match="only test is published"):
        build_dataset("animal_pose", shared / "samples", "train")
    assert has_split("animal_pose", shared / "samples", "test")
    assert not has_split("animal_pose", shared / "samples", "train")

    folder = tmp_path / "animal_pose"
    (folder / "Images").mkdir(parents=True)
    for name in ("animal_pose_data.json", "test_animal_pose.npy"):
        (folder / name).write_bytes((shared / "samples/animal_pose" / name).read_bytes())
    for entry in json.loads((folder / "animal_pose_data.json").read_text()):
        blank = np.full((entry["img_height"], entry["img_width"], 3), 128, np.uint8)
        cv2.imwrite(str(folder / "Images" / entry["img_path"]), blank, [cv2.IMWRITE_JPEG_QUALITY, 20])
    dataset = build_dataset("animal_pose", tmp_path, "test")
    assert len(dataset) + dataset.excluded == 94 and len(dataset) >= 90
    keypoints = torch.stack([sample["keypoints"] for sample in dataset])
    assert keypoints[:, [13, 17, 18, 19], 2].sum() == 0 and keypoints[..., 2].sum() > 500


# ---- the truth of made-up photographs ----------------------------------------------------------------------------


def test_truth_comes_with_the_sample(made_up):
    folder = made_up / "StanfordExtra_v12" / "Truth" / "breed"
    assert not build_dataset("stanford", made_up, "train", truth=True).has_truth
    folder.mkdir(parents=True)
    for i in range(3):
        np.savez(folder / f"dog_{i}.npz", verts=np.full((7, 3), i), joints=np.full((41, 3), i))
    with pytest.raises(FileNotFoundError, match=r"dog_3\.npz and 0 more files of the truth are missing"):
        build_dataset("stanford", made_up, "train", truth=True)
    np.savez(folder / "dog_3.npz", verts=np.zeros((7, 3)), joints=np.zeros((41, 3)))
    batch = next(iter(DataLoader(build_dataset("stanford", made_up, "train", truth=True), batch_size=3)))
    assert batch["truth_verts"].shape == (3, 7, 3) and batch["truth_joints"].shape == (3, 41, 3)
    assert batch["truth_verts"][0].unique().tolist() == [2.0] and batch["truth_verts"].dtype == torch.float32
    assert "truth_verts" not in build_dataset("stanford", made_up, "train")[0]
    with pytest.raises(ValueError, match="open it without augment and flip"):
        build_dataset("stanford", made_up, "train", truth=True, flip=True)


# ---- python -m datasets.check ------------------------------------------------------------------------------------


def run_check(capsys, data_dir: Path) -> tuple[int, str]:
    code = check.main(check.get_parser().parse_args(["--dataset", "stanford", "--data_dir", str(data_dir)]))
    return code, capsys.readouterr().out


def test_check_prints_one_table_of_all_splits(made_up, capsys):
    assert run_check(capsys, made_up) == (0, "stanford: 4 photographs in train, test, 0 unusable\n")

    def change(entries):
        delete_photo(made_up, entries)
        entries[1]["seg"] = ""
        entries[3]["img_bbox"] = [0, 0, 0, 0]

    edit(made_up, change)
    code, out = run_check(capsys, made_up)
    lines = out.splitlines()
    assert code == 1 and len(lines) == 5
    assert lines[0].split() == ["index", "split", "name", "problem"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["0", "train", "breed_dog_0"],
        ["3", "train", "breed_dog_3"],
        ["1", "test", "breed_dog_1"],
    ]
    assert "empty mask" in lines[3] and lines[4] == "stanford: 4 photographs in train, test, 3 unusable"


def test_check_as_a_command_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "datasets.check", "--dataset", "animal_pose", "--data_dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "animal_pose_data.json is missing" in done.stderr
