"""Dog-Pose: StanfordExtra's photographs and keypoints without masks, in ultralytics' layout."""

from pathlib import Path

import numpy as np

from util.errors import InputError

from .annotations import IMAGE_KEYS
from .images import IMAGE_SUFFIXES, image_size
from .labelled import LabelledImages

NUMBERS = 5 + 3 * 24  # of a line: class, box, keypoints
MOST_LABEL_BYTES = 2**20  # of a label file


class DogPose(LabelledImages):
    """One split of `<data_dir>/dog-pose`; keypoints and box, no masks.

    Images lie in `images/{train,val}` and labels in `labels/{train,val}`, or, in older copies, in
    `{train,val}/{images,labels}`. A line of `<image>.txt` is a dog: class, box (centre x, y, width,
    height), 24 x (x, y, visible), all relative to the image. The `val` folder holds StanfordExtra's
    test images and is opened as `test`: nothing may be chosen on it.
    """

    folder = "dog-pose"
    keys = (*IMAGE_KEYS, "joints")

    @classmethod
    def folders(cls, data_dir: str | Path, split: str) -> tuple[Path, Path]:
        """The split's folders of images and labels, in the first layout where there is none."""
        root, part = Path(data_dir) / cls.folder, "train" if split == "train" else "val"
        older = root / part / "images", root / part / "labels"
        newer = root / "images" / part, root / "labels" / part
        return older if older[0].is_dir() else newer

    @classmethod
    def has_split(cls, data_dir: str | Path, split: str) -> bool:
        return split != "val" and cls.folders(data_dir, split)[0].is_dir()

    @classmethod
    def image_folder(cls, data_dir: str | Path, split: str) -> Path:
        return cls.folders(data_dir, split)[0]

    @classmethod
    def read_annotations(cls, data_dir: str | Path, split: str) -> tuple[list, np.ndarray]:
        images, labels = cls.folders(data_dir, split)
        if not images.is_dir() or not labels.is_dir():
            raise InputError(
                f"{labels if images.is_dir() else images} is missing: the data folder must hold "
                "the data set as ultralytics downloads it (data/README.md)"
            )
        paths = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        entries = [e for path in paths for e in read_entries(path, labels / f"{path.stem}.txt")]
        return entries, np.arange(len(entries))


def read_entries(image: Path, label: Path) -> list[dict]:
    """The dogs of an image; one entry with a problem where the image or its label is unusable."""
    try:
        if not label.is_file():
            raise InputError(f"label missing ({label})")
        if label.stat().st_size > MOST_LABEL_BYTES:
            raise InputError(f"label {label} holds more than {MOST_LABEL_BYTES} bytes")
        size = image_size(image)
    except InputError as error:
        return [{"img_path": image.name, "problem": str(error)}]
    lines = label.read_text(encoding="utf-8", errors="replace").splitlines()
    dogs = [_parse(line, size) for line in lines if line.strip()]
    dogs = dogs or [{"problem": f"label {label} names no dog"}]
    return [{"img_path": image.name} | dog for dog in dogs]


def _parse(line: str, size: tuple[int, int]) -> dict:
    """One line of a label file in pixels of an image of `size` (width, height)."""
    try:
        numbers = np.array([float(word) for word in line.split()])
    except ValueError:
        return {"problem": "label holds something that is no number"}
    if len(numbers) != NUMBERS:
        return {"problem": f"label of {len(numbers)} numbers, expected {NUMBERS}"}
    center, extent = numbers[1:3] * size, numbers[3:5] * size
    joints = numbers[5:].reshape(-1, 3) * [*size, 1]  # (24, 3) x, y, visible
    box = np.concatenate([center - extent / 2, extent])
    box = np.round(box, 2)  # of whole pixels, written relative with six digits
    return {"img_width": size[0], "img_height": size[1], "img_bbox": box, "joints": joints}
