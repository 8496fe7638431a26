"""Oxford-IIIT Pet: photographs of dogs with trimaps (Parkhi et al., CVPR 2012; CC BY-SA 4.0).

The data set has no keypoints. `oxford_pet_keypoints.json` has those of 199 of its dogs, marked by
eye for this project: by name of the photograph, x and y of each keypoint that can be seen.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from smal_model.joints import KEYPOINT_NAMES, NUM_KEYPOINTS
from util.errors import InputError

from .annotations import IMAGE_KEYS, read_joints
from .images import open_image, read_bytes, to_grey
from .labelled import LabelledImages
from .masks import UNSURE, mask_box

DOG = "2"  # the species in the lists
ANIMAL, BACKGROUND, EDGE = 1, 2, 3  # in a trimap
KEYPOINTS_FILE = Path(__file__).with_name("oxford_pet_keypoints.json")


class OxfordPet(LabelledImages):
    """The dogs of one split of `<data_dir>/oxford-iiit-pet`; masks, and keypoints of a few.

    Laid out as by torchvision: `images/`, `annotations/trimaps/`, `annotations/trainval.txt`
    (opened as `train`) and `test.txt`. The box is that of the animal and its unsure edge, which
    counts neither as animal nor as background (`mask_weight`).
    """

    folder = "oxford-iiit-pet"
    keys = (*IMAGE_KEYS, "trimap")

    @classmethod
    def list_path(cls, data_dir: str | Path, split: str) -> Path:
        """The file that names the split's images."""
        name = {"train": "trainval"}.get(split, split)
        return Path(data_dir) / cls.folder / "annotations" / f"{name}.txt"

    @classmethod
    def has_split(cls, data_dir: str | Path, split: str) -> bool:
        return cls.list_path(data_dir, split).is_file()

    @classmethod
    def image_folder(cls, data_dir: str | Path, split: str) -> Path:
        return Path(data_dir) / cls.folder / "images"

    @classmethod
    def read_annotations(cls, data_dir: str | Path, split: str) -> tuple[list, np.ndarray]:
        path = cls.list_path(data_dir, split)
        if not path.is_file():
            raise InputError(
                f"{path} is missing: the data folder must hold the data set as torchvision "
                "downloads it (data/README.md)"
            )
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        words = [line.split() for line in lines if not line.startswith("#")]
        names = [word[0] for word in words if len(word) == 4 and word[2] == DOG]
        trimaps = [path.parent / "trimaps" / f"{name}.png" for name in names]
        with ThreadPoolExecutor() as pool:
            labels = list(pool.map(_read_label, trimaps))
        entries = [{"img_path": f"{n}.jpg"} | x for n, x in zip(names, labels, strict=True)]
        marked = read_marked()
        for name, entry in zip(names, entries, strict=True):
            if name in marked:
                entry["joints"] = marked[name]
        return entries, np.arange(len(entries))

    def read_labels(self, entry: dict) -> tuple[np.ndarray, np.ndarray | None]:
        return read_trimap(entry["trimap"]), read_joints(entry) if "joints" in entry else None


def read_marked() -> dict[str, np.ndarray]:
    """Joints (20, 3) x, y, visible of the photographs in KEYPOINTS_FILE, by name."""
    marked = {}
    for name, places in json.loads(KEYPOINTS_FILE.read_text()).items():
        joints = np.zeros((NUM_KEYPOINTS, 3))
        for keypoint, place in places.items():
            joints[KEYPOINT_NAMES.index(keypoint)] = [*place, 1]
        marked[name] = joints
    return marked


def read_trimap(path: Path) -> np.ndarray:
    """Reads a trimap as a mask (H, W) uint8: 0, 1, or `UNSURE` on the animal's edge."""
    trimap = to_grey(open_image(read_bytes(path), path, ("PNG",)), path)
    if not ((trimap >= ANIMAL) & (trimap <= EDGE)).all():
        raise InputError(f"{path} is no trimap: it holds other values than 1, 2 and 3")
    return np.array([0, 1, 0, UNSURE], np.uint8)[trimap]


def _read_label(path: Path) -> dict:
    """Size and box of a trimap, or what is wrong with it."""
    try:
        mask = read_trimap(path)
    except InputError as error:
        return {"problem": str(error)}
    if not (mask == 1).any():
        return {"problem": "empty mask"}
    height, width = mask.shape
    sizes = {"img_width": width, "img_height": height}
    return sizes | {"img_bbox": mask_box(mask), "trimap": path}


def download(data_dir: str | Path) -> None:
    """Downloads the data set by torchvision's own downloader."""
    import torchvision  # takes seconds, and only this needs it

    torchvision.datasets.OxfordIIITPet(data_dir, download=True)
