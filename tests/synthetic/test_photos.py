"""Real photographs: no pixel of an animal in a background, fur from inside of masks alone."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from synthetic.fur import TILE
from synthetic.photos import Photos, fill_holes
from util.errors import InputError


def magenta(image):
    image = image.astype(np.float32)
    return (image[..., 0] > 150) & (image[..., 2] > 150) & (image[..., 1] < 90)


def test_backgrounds_show_no_animal_and_fur_nothing_else(photographs):
    photos = Photos(photographs)
    assert len(photos) == 3
    for i in range(3):
        clean, (photo, mask) = photos.clean(i), photos.read(i)
        assert clean.shape == photo.shape == (*mask.shape, 3)
        assert magenta(photo).sum() > 5000 and not magenta(clean).any()
        kept = cv2.dilate((mask > 0).astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
        assert (clean[kept] == photo[kept]).all() and clean.max() < 140
    tile = photos.draw_fur(np.random.default_rng(0))
    assert tile.shape == (TILE, TILE, 3) and magenta(tile).mean() > 0.99
    for seed in range(20):
        box = np.array([[30.0, 40.0], [120.0, 150.0]])
        image = photos.draw_background(np.random.default_rng(seed), (170, 140), box)
        assert image.shape == (170, 140, 3) and image.dtype == np.float32
        assert not magenta(image * 255).any() and 0.02 < image.mean() < 0.4


def test_holes_are_filled_from_around():
    photo = np.full((40, 50, 3), (10, 200, 90), np.uint8)
    hole = np.zeros((40, 50), bool)
    hole[10:30, 10:40] = True
    photo[hole] = (255, 0, 255)
    assert np.abs(fill_holes(photo, hole).astype(int) - (10, 200, 90)).max() <= 2
    assert (fill_holes(photo, np.zeros_like(hole)) == photo).all()


def test_stanfordextra_gives_its_training_split_alone(tmp_path):
    (tmp_path / "Images" / "breed").mkdir(parents=True)
    entries = []
    for i in range(4):
        photo, mask = np.full((80, 90, 3), 40, np.uint8), np.zeros((80, 90), np.uint8)
        mask[20:60, 30:70] = 1
        photo[mask > 0] = (255, 0, 255)
        cv2.imwrite(str(tmp_path / "Images" / "breed" / f"{i}.png"), photo)
        code = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
        entry = {"img_path": f"breed/{i}.png", "img_width": 90, "img_height": 80, "seg": code}
        entries.append(entry)
    (tmp_path / "StanfordExtra_v12.json").write_text(json.dumps(entries))
    assert len(Photos(tmp_path)) == 4
    np.save(tmp_path / "train_stanford_StanfordExtra_v12.npy", np.array([0, 2]))
    photos = Photos(tmp_path)
    assert [path.name for path, _ in photos.sources] == ["0.png", "2.png"]
    clean, (photo, _) = photos.clean(1), photos.read(1)
    assert magenta(photo).any() and not magenta(clean).any()
    digest = photos.digest()
    (tmp_path / "StanfordExtra_v12.json").write_text(json.dumps([e | {"seg": ""} for e in entries]))
    assert Photos(tmp_path).digest() != digest


def test_masks_belong_to_photographs_as_they_are_stored(tmp_path):
    """A photograph that its tag turns for the eye keeps its mask; without masks it is turned."""
    (tmp_path / "masked" / "Images").mkdir(parents=True)
    photo, mask = np.full((80, 90, 3), 40, np.uint8), np.zeros((80, 90), np.uint8)
    mask[5:40, 10:50] = 1
    photo[mask > 0] = (255, 0, 255)
    tag = Image.Exif()
    tag[0x0112] = 6  # a quarter turn
    for folder in (tmp_path, tmp_path / "masked" / "Images"):
        Image.fromarray(photo).save(folder / "a.png", exif=tag)
    code = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    entry = {"img_path": "a.png", "img_width": 90, "img_height": 80, "seg": code}
    path = tmp_path / "masked" / "StanfordExtra_v12.json"
    path.write_text(json.dumps([entry]))
    photos = Photos(tmp_path / "masked")
    clean, (found, _) = photos.clean(0), photos.read(0)
    assert found.shape == (80, 90, 3) and magenta(found).any() and not magenta(clean).any()
    (tmp_path / "masked" / "Images" / "a.png").rename(tmp_path / "masked.png")
    path.unlink()
    assert Photos(tmp_path).read(0)[0].shape == (90, 80, 3)
    Image.fromarray(photo[:60]).save(tmp_path / "masked" / "Images" / "a.png")
    path.write_text(json.dumps([entry]))
    with pytest.raises(InputError, match="a.png: its mask is not of the photograph's size"):
        Photos(tmp_path / "masked").read(0)
    everywhere = np.ones((80, 90), bool)
    assert not magenta(fill_holes(photo, everywhere)).any()


def test_photographs_without_masks_and_faults(tmp_path):
    with pytest.raises(InputError, match="holds no photographs"):
        Photos(tmp_path)
    cv2.imwrite(str(tmp_path / "a.png"), np.full((50, 60, 3), 77, np.uint8))
    photos = Photos(tmp_path)
    rng = np.random.default_rng(0)
    assert photos.draw_fur(rng) is None
    image = photos.draw_background(rng, (40, 90), np.array([[10.0, 10.0], [50.0, 30.0]]))
    np.testing.assert_allclose(image, 77 / 255, atol=1e-6)
    first = photos.digest()
    cv2.imwrite(str(tmp_path / "b.jpg"), np.full((50, 60, 3), 77, np.uint8))
    assert Photos(tmp_path).digest() != first
    (tmp_path / "b.jpg").write_bytes(b"no photograph")
    with pytest.raises(InputError, match="b.jpg is not a readable photograph"):
        Photos(tmp_path).read(1)
