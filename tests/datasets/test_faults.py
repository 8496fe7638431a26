"""Faults in the files: what is left out, what is refused, and what the messages say."""

import cv2
import numpy as np
import pytest

from datasets import build_dataset, train_val
from datasets.images import read_image
from util.errors import InputError

from .small_set import HEIGHT, WIDTH, edit, encode, make_entry, photo_path, write_set


def write_bytes(data: bytes):
    return lambda data_dir, entry: photo_path(data_dir, 0).write_bytes(data)


def label(**changes):
    return lambda data_dir, entry: entry.update(changes)


def mask_elsewhere():
    mask = np.zeros((HEIGHT, WIDTH))
    mask[:20, :20] = 1
    return encode(mask)


def truncate(data_dir, entry):
    path = photo_path(data_dir, 0)
    path.write_bytes(path.read_bytes()[:-400])


def other_size(data_dir, entry):
    cv2.imwrite(str(photo_path(data_dir, 0)), np.zeros((50, 60, 3), np.uint8))


def joint(value):
    def place(data_dir, entry):
        entry["joints"][4] = value

    return place


NAN, INF = float("nan"), float("inf")
FAULTS = {  # what is done to the first entry or its image, and what the problem says
    "no file": (lambda data_dir, _: photo_path(data_dir, 0).unlink(), "image missing"),
    "truncated": (truncate, "is damaged or truncated"),
    "no image": (write_bytes(b"<html>not found</html>"), "not a readable image"),
    "empty file": (write_bytes(b""), "not a readable image"),
    "other size": (other_size, "image is 60 x 50, the list says 300 x 240"),
    "empty mask": (label(seg=encode(np.zeros((HEIGHT, WIDTH)))), "empty mask"),
    "no runs": (label(seg=""), "empty mask"),
    "broken runs": (label(seg="o" * 500), "mask cannot be decoded"),
    "runs cut off": (label(seg=make_entry(0)["seg"][:-1] + "P"), "damaged or cut off"),
    "foreign runs": (label(seg="1 2"), "damaged or cut off"),
    "mask elsewhere": (label(seg=mask_elsewhere()), "mask lies outside the box"),
    "box outside": (label(img_bbox=[1000, 60, 160, 120]), "box outside the image"),
    "box mostly outside": (label(img_bbox=[-150, 60, 160, 120]), "box outside the image"),
    "huge box": (label(img_bbox=[0, 0, 10**9, 10**9]), "box outside the image"),
    "flat box": (label(img_bbox=[70, 60, 0, 120]), "box without area"),
    "box of nan": (label(img_bbox=[70, 60, NAN, 120]), "img_bbox is not four numbers"),
    "no box": (lambda _, entry: entry.pop("img_bbox"), "lacks img_bbox"),
    "nothing": (lambda _, entry: entry.clear(), "lacks img_path, img_width"),
    "path outside": (label(img_path="../../dog_0.png"), "leads out of the folder"),
    "endless": (label(img_width=10**12), "image of 1000000000000 x 240 pixels"),
    "far joint": (joint([1e9, 100, 1]), "visible joint 4 lies far outside the image (x 1e+09"),
    "infinite joint": (joint([INF, 100, 1]), "visible joint 4 lies far outside the image (x inf"),
    "joint left of all": (joint([-301, 100, 2]), "visible joint 4 lies far outside"),
    "many joints": (label(joints=[[1, 2, 1]] * 25), "joints have shape (25, 3)"),
    "huge number": (label(joints=[[10**400, 2, 1]] * 24), "not numbers"),
    "infinite size": (label(img_width=INF), "not numbers"),
    "runs too short": (label(seg=encode(np.ones((HEIGHT, WIDTH - 1)))), "not 240 x 300"),
    "runs too long": (label(seg=encode(np.ones((HEIGHT + 1, WIDTH)))), "not 240 x 300"),
    "negative run": (label(seg="0O0"), "a run of less than nothing"),
    "endless run": (label(seg="0" + "o" * 9 + "1"), "a number of more than 35 bits"),
    "long path": (label(img_path="a" * 300), "is too long (300 characters)"),
    "long name": (label(img_path="a" * 150 + "/" + "b" * 150), "is too long (301 characters)"),
    "dot": (label(img_path="."), "img_path names no file"),
    "no path": (label(img_path=""), "img_path names no file"),
    "number as path": (label(img_path=7), "img_path names no file"),
    "absolute path": (label(img_path="/etc/passwd"), "leads out of the folder"),
    "NUL in path": (label(img_path="breed/dog\0.png"), r"breed/dog\x00.png holds characters"),
    "no UTF-8": (label(img_path="breed/dog_\udcff.png"), r"breed/dog_\udcff.png holds"),
    "folder as image": (label(img_path="breed"), "breed is missing"),
    "huge mask": (label(img_width=2**14, img_height=2**14, seg="0"), "image of 16384 x 16384"),
    "few joints": (label(joints=[[1, 2, 1]] * 4), "joints have shape (4, 3)"),
    "ragged joints": (label(joints=[[1, 2], [1, 2, 3], "x"]), "not numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unusable_entry_is_found_and_left_out(small_set, fault):
    damage, message = FAULTS[fault]
    edit(small_set, lambda entries: damage(small_set, entries[0]))
    dataset = build_dataset("stanford", small_set, "train")
    assert dataset.excluded == 1
    found = dataset.problems[0]
    named = "/" not in fault and not any(w in fault for w in ("path", "nothing", "name", "dot"))
    assert found.index == 0 and (not named or found.name.startswith("breed"))
    assert found.name.isprintable()
    assert message in found.problem
    assert [sample["index"] for sample in dataset] == [2, 3]


def test_an_entry_that_is_no_object_is_found(small_set):
    edit(small_set, lambda entries: entries.__setitem__(0, None))
    assert "not an object" in build_dataset("stanford", small_set, "train").problems[0].problem


def test_two_animals_in_one_photograph_have_two_names(small_set):
    edit(small_set, lambda entries: entries[3].update(img_path=entries[0]["img_path"]))
    assert [s["name"] for s in build_dataset("stanford", small_set, "train")] == [
        "breed_dog_2",
        "breed_dog_0_0",
        "breed_dog_0_3",
    ]


def test_a_truncated_jpeg_is_found_wherever_it_ends(small_set, shared):
    source = shared / "samples/StanfordExtra_v12/Images/n02092339-Weimaraner/n02092339_1013.jpg"
    whole = source.read_bytes()
    path = small_set / "photo.jpg"
    path.write_bytes(whole + b"\0\0\0")  # what follows the end marker does no harm
    assert read_image(path).shape == (359, 480, 3)
    for length in (0, 3, 300, len(whole) // 2, len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"photo\.jpg is (not a readable image|damaged)"):
            read_image(path)


def test_a_box_partly_outside_and_a_tiny_one_are_used(small_set):
    def change(entries):
        entries[0]["img_bbox"] = [-60, 20, 160, 200]
        entries[3]["img_bbox"] = [100, 100, 2, 2]

    edit(small_set, change)
    dataset = build_dataset("stanford", small_set, "train", augment=True)
    assert dataset.excluded == 0 and all(sample["image"].isfinite().all() for sample in dataset)


def test_an_image_that_fails_under_way_is_replaced_and_named(small_set):
    dataset = build_dataset("stanford", small_set, "train")  # 2, 0, 3
    photo_path(small_set, 0).unlink()
    samples = list(dataset)
    assert [s["index"] for s in samples] == [2, 3, 3]
    assert [bool(s["failed"]) for s in samples] == [False, True, False]
    assert samples[1]["failed"].startswith("breed_dog_0: ")
    assert f"{photo_path(small_set, 0)} is missing" in samples[1]["failed"]
    cv2.imwrite(str(photo_path(small_set, 3)), np.zeros((50, 60, 3), np.uint8))
    assert [s["index"] for s in dataset] == [2, 2, 2] and "changed its size" in dataset[2]["failed"]
    photo_path(small_set, 2).unlink()
    with pytest.raises(InputError, match="images in a row cannot be read, the first breed_dog_2"):
        dataset[0]


def test_a_training_image_is_never_replaced_by_one_that_validates(tmp_path):
    write_set(tmp_path, [make_entry(i) for i in range(12)], {"train": range(12)})
    sets = train_val("stanford", tmp_path)
    photo_path(tmp_path, 9).unlink()
    assert [s["index"] for s in sets.train][-2:] == [11, 11] and sets.train[8]["failed"]
    photo_path(tmp_path, 11).unlink()
    assert sets.train[9]["index"] == 1
