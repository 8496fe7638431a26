"""Changes in training: labels move with the image; random numbers follow seed and epoch alone."""

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets import build_dataset
from datasets.transforms import Augmentation, draw_augmentation, make_crop
from smal_model.joints import MIRRORED
from util.images import to_image

from .small_set import HEIGHT, WIDTH, make_entry

CHANGES = [
    Augmentation(),
    Augmentation(scale=1.25),
    Augmentation(scale=0.75, angle=20),
    Augmentation(angle=-60),
    Augmentation(scale=1.1, angle=35, flip=True),
    Augmentation(flip=True),
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_image_mask_and_keypoints_move_together(change):
    """A dot at a joint, in the image and in the mask, is found at the joint's place in the crop."""
    joints = np.column_stack(
        [np.linspace(90, 210, 20), 120 + 40 * np.sin(np.arange(20)), np.ones(20)]
    )
    box = (70, 60, 160, 120)
    for k in range(0, 20, 3):
        dot = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.circle(dot, tuple(int(16 * v) for v in joints[k, :2]), 16 * 4, 1, -1, cv2.LINE_8, 4)
        photo = np.repeat(dot[..., None] * 200, 3, -1).astype(np.uint8)
        sample = make_crop(photo, box, dot, joints, augmentation=change)
        place = MIRRORED.index(k) if change.flip else k  # a mirrored joint has its twin's number
        inside = cv2.erode(sample["border_mask"].numpy(), np.ones((5, 5)), borderValue=1)
        for plane in (to_image(sample["image"])[..., 1] / 200.0 * inside, sample["mask"].numpy()):
            rows, cols = np.nonzero(plane > 0.5)
            found = np.array([rows.mean(), cols.mean()])
            # A label is rounded towards zero, then moved by one: a pixel off, two in a mirror.
            limit = 2.7 if change.flip else 1.6
            assert np.abs(found - sample["keypoints"][place, :2].numpy()).max() < limit, (k, place)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_border_is_the_edge_of_the_photograph(change):
    """A mask that covers the whole photograph has the border mask as its crop."""
    photo = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    box = (10, 20, 230, 150)
    sample = make_crop(photo, box, np.ones((HEIGHT, WIDTH)), augmentation=change)
    mask, border = sample["mask"].numpy(), sample["border_mask"].numpy()
    assert 0.3 < border.mean() < 0.999
    assert (border[mask > 0.02] == 1).all() and (border[mask == 0] == 0).all()


def test_scale_multiplies_the_side_of_the_crop():
    photo, mask = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[80:160, 100:200] = 1
    crops = [
        make_crop(photo, (70, 60, 160, 120), mask, augmentation=Augmentation(s)) for s in (1, 1.25)
    ]
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
    flipped = make_crop(photo, (x, y, w, h), mask, joints, augmentation=Augmentation(flip=True))

    mirrored_joints = joints[[6, 7, 8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 12, 13, 15, 14, 16, 17, 19, 18]]
    mirrored_joints = mirrored_joints * [-1, 1, 1] + [WIDTH, 0, 0]
    expected = make_crop(photo[:, ::-1], (WIDTH - x - w, y, w, h), mask[:, ::-1], mirrored_joints)
    for key in ("image", "mask", "border_mask", "keypoints"):
        torch.testing.assert_close(flipped[key], expected[key], atol=1e-5, rtol=0)


def test_a_small_turn_is_near_no_turn():
    """The turned cut agrees with the plain one as the angle vanishes: one geometry."""
    photo = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8), (0, 0), 4
    )
    box = (90, 80, 120, 90)
    plain, turned = (
        to_image(make_crop(photo, box, augmentation=Augmentation(angle=a))["image"])
        for a in (0, 1e-4)
    )
    assert np.abs(plain.astype(int) - turned).max() <= 1


@pytest.mark.parametrize("img_res", [224, 160])
@pytest.mark.parametrize("angle", [-50.0, 12.0, 33.0])
def test_a_turned_ramp_keeps_its_closed_form(angle, img_res):
    """A linear ramp stays linear under linear resampling: no shift, however it is resampled."""
    y, x = np.mgrid[0:100, 0:120]
    photo = np.repeat((1 * x + 1 * y)[..., None], 3, -1).astype(np.uint8)
    change = Augmentation(scale=1.1, angle=angle)
    sample = make_crop(photo, (45, 33, 40, 30), img_res=img_res, augmentation=change)
    place = (np.arange(img_res) + 0.5) / img_res * 53 - 0.5  # the cut is 53 pixels wide and high
    across, down = np.meshgrid(np.trunc(65 - 26.4) + place - 65, np.trunc(48 - 26.4) + place - 48)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    expected = 65 + cos * across + sin * down + 48 - sin * across + cos * down
    error = to_image(sample["image"])[..., 1] - expected
    assert abs(error.mean()) < 0.05 and np.abs(error).max() < 1.3


def test_draws_have_the_documented_distribution():
    draws = [
        draw_augmentation(np.random.default_rng((0, 0, i)), augment=True, flip=True)
        for i in range(4000)
    ]
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


def test_random_changes_follow_seed_and_epoch_not_workers(small_set):
    def opened(seed):
        return build_dataset(
            "stanford", small_set, "train", img_res=64, augment=True, flip=True, seed=seed
        )

    alone = all_images(opened(1), workers=0, epochs=(0, 1))
    assert torch.equal(alone, all_images(opened(1), workers=2, epochs=(0, 1)))
    assert not torch.equal(alone[:3], alone[3:])  # another epoch, other changes
    assert not torch.equal(alone, all_images(opened(2), workers=0, epochs=(0, 1)))
