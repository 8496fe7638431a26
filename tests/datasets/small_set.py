"""A small data set in StanfordExtra's layout, and what is done to it."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 300, 240


def encode(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def make_entry(number: int) -> dict:
    rng = np.random.default_rng(number)
    mask = np.zeros((HEIGHT, WIDTH))
    mask[60:180, 70:230] = 1
    joints = np.zeros((24, 3))
    joints[:20, 0], joints[:20, 1], joints[:20, 2] = (
        rng.uniform(75, 225, 20),
        rng.uniform(65, 175, 20),
        1,
    )
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
    noise = np.random.default_rng(len(entry["img_path"])).integers(
        20, 235, (HEIGHT // 4, WIDTH // 4, 3), np.uint8
    )
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


def edit(data_dir: Path, change) -> None:
    """Rewrite the list of annotations with `change(entries)`."""
    path = data_dir / "StanfordExtra_v12" / "StanfordExtra_v12.json"
    entries = json.loads(path.read_text())
    change(entries)
    path.write_text(json.dumps(entries))


def photo_path(data_dir: Path, number: int) -> Path:
    return data_dir / "StanfordExtra_v12" / "Images" / "breed" / f"dog_{number}.png"
