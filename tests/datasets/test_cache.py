"""Pixels kept in a file: the same samples, and no file that is damaged or of other photographs."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from datasets import build_dataset
from datasets.transforms import Augmentation, make_crop, reach
from engine import build
from engine.options import stage1_parser
from util.errors import InputError

from .small_set import HEIGHT, WIDTH, edit, make_entry, photo_path, write_photo


def open_train(folder, cache=None):
    dataset = build_dataset("stanford", folder, "train", augment=True, flip=True, img_res=64)
    if cache:
        dataset.keep_pixels(cache)
    return dataset


def assert_same(found, expected):
    for name, value in expected.items():
        same = torch.equal(found[name], value) if torch.is_tensor(value) else found[name] == value
        assert same, name


@pytest.fixture
def wide_set(small_set):
    """Boxes in the middle, small at an edge, and reaching out of the photograph."""

    def move(entries):
        entries[0]["img_bbox"], entries[3]["img_bbox"] = [190, 120, 90, 110], [-30, 40, 200, 170]

    edit(small_set, move)
    return small_set


def test_samples_are_the_same_to_the_last_bit_and_need_no_photograph(wide_set):
    plain = open_train(wide_set)
    cached = open_train(wide_set, wide_set / "cache")
    again = pickle.loads(pickle.dumps(open_train(wide_set, wide_set / "cache")))
    samples = {}
    for epoch in range(20):
        plain.set_epoch(epoch)
        samples[epoch] = [plain[i] for i in range(3)]
    shutil.rmtree(wide_set / "StanfordExtra_v12" / "Images")
    for epoch, expected in samples.items():
        for dataset in (cached, again):
            dataset.set_epoch(epoch)
            for i in range(3):
                assert_same(dataset[i], expected[i])


def test_a_crop_shows_nothing_beyond_its_reach():
    """Pixels out of reach may be anything: the crops' corners, turned, included."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    touched = 0
    for _ in range(200):
        x, y, w, h = rng.uniform([-40, -40, 20, 20], [200, 150, 160, 150])
        angle = rng.choice([0.0, rng.uniform(-60, 60), 45.0])
        change = Augmentation(float(rng.choice([0.75, 1.25])), float(angle))
        left, top, right, bottom = reach((x, y, w, h), True, WIDTH, HEIGHT)
        blank = np.zeros_like(image)
        blank[top:bottom, left:right] = image[top:bottom, left:right]
        crops = [make_crop(i, (x, y, w, h), augmentation=change) for i in (image, blank)]
        assert_same(*crops)
        touched += (right - left) * (bottom - top) < 0.9 * WIDTH * HEIGHT
    assert touched > 100, "the reach must leave something out"


def cache_files(folder):
    return sorted(path.name for path in (folder / "cache").iterdir())


def test_damaged_files_are_made_again(wide_set):
    expected = list(open_train(wide_set))
    open_train(wide_set, wide_set / "cache")
    (name,) = cache_files(wide_set)
    path = wide_set / "cache" / name
    whole = path.read_bytes()
    middle = 3 * (HEIGHT * WIDTH + WIDTH) // 2  # of the first photograph, which is there as a whole
    for damaged in (
        whole[:-1],
        b"",
        whole[:middle] + bytes([~whole[middle] & 255]) + whole[middle + 1 :],
        whole + b"x",
    ):
        path.write_bytes(damaged)
        for found, sample in zip(open_train(wide_set, wide_set / "cache"), expected, strict=True):
            assert_same(found, sample)
        assert path.read_bytes() == whole and cache_files(wide_set) == [name]
    before = path.stat().st_mtime_ns
    open_train(wide_set, wide_set / "cache")
    assert path.stat().st_mtime_ns == before, "a whole file is used as it is"


def test_other_photographs_boxes_and_changes_make_other_files(wide_set):
    open_train(wide_set, wide_set / "cache")
    build_dataset("stanford", wide_set, "train").keep_pixels(wide_set / "cache")
    assert len(cache_files(wide_set)) == 2, "without augmentation less is kept"
    photo = photo_path(wide_set, 3)
    write_photo(wide_set / "StanfordExtra_v12", make_entry(3) | {"img_path": "breed/dog_30.png"})
    shutil.copy(photo.with_name("dog_30.png"), photo)
    cached = open_train(wide_set, wide_set / "cache")
    assert len(cache_files(wide_set)) == 3
    assert_same(cached[2], open_train(wide_set)[2])
    edit(wide_set, lambda entries: entries[0].update(img_bbox=[60, 60, 150, 120]))
    open_train(wide_set, wide_set / "cache")
    assert len(cache_files(wide_set)) == 4


def test_a_file_that_vanishes_or_shrinks_under_way_is_named(wide_set):
    cached = open_train(wide_set, wide_set / "cache")
    (name,) = cache_files(wide_set)
    path = wide_set / "cache" / name
    os.truncate(path, 100)
    with pytest.raises(InputError, match=f"{name} was cut short under way"):
        cached[0]
    path.unlink()
    with pytest.raises(InputError, match=f"{name} cannot be read: No such file"):
        pickle.loads(pickle.dumps(cached))[0]


def test_a_folder_that_cannot_be_used_is_named(small_set):
    (small_set / "file").write_text("")
    for folder in (small_set / "file" / "cache", small_set / ("long" * 80)):
        with pytest.raises(InputError, match=f"{folder.name[:250]}.*give another folder"):
            open_train(small_set, folder)


def test_only_leftovers_of_the_cache_are_removed(small_set):
    folder = small_set / "cache"
    folder.mkdir()
    (folder / ".vim-settings").write_text("mine")
    left = folder / ".StanfordExtra_v12_train_0123-abcdefgh.pixels"
    left.write_bytes(b"half")
    open_train(small_set, folder)
    assert left.exists(), "perhaps another machine writes it"
    os.utime(left, (0, 0))
    open_train(small_set, folder)
    assert (folder / ".vim-settings").read_text() == "mine" and not left.exists()


def test_the_option_keeps_what_is_trained_on_and_what_validates(small_set):
    """Without a validation split, images held out of the training split validate."""
    args = ["--data_dir", str(small_set), "--cache", str(small_set / "cache")]
    sets = build.open_sets(stage1_parser().parse_args(args), img_res=64)
    assert len(cache_files(small_set)) == 2
    shutil.rmtree(small_set / "StanfordExtra_v12" / "Images")
    assert not any(sample["failed"] for part in (sets.train, sets.val) for sample in part)


def test_a_mixture_keeps_what_it_is_made_of(small_set):
    args = ["--data_dir", str(small_set), "--cache", str(small_set / "cache"), "--mix"]
    sets = build.open_sets(stage1_parser().parse_args([*args, "stanford:1"]), img_res=64)
    assert len(cache_files(small_set)) == 2
    shutil.rmtree(small_set / "StanfordExtra_v12" / "Images")
    assert not any(sample["failed"] for part in (sets.train, sets.val) for sample in part)
