"""StanfordExtra: photographs of dogs with a mask and 20 keypoints each."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from util.errors import InputError

from .annotations import (
    Problem,
    entry_name,
    find_problems,
    image_folder,
    read_joints,
    read_list,
    read_mask,
    read_split,
)
from .images import read_image
from .transforms import CROP, draw_augmentation, make_crop


class StanfordExtra(Dataset):
    """One split of `<data_dir>/StanfordExtra_v12`.

    A sample is a dict (S = img_res; labels live in the 224-pixel crop whatever S is):
        image         (3, S, S) float32, the network's input, ImageNet-normalised
        mask          (224, 224) float32 in [0, 1], not thresholded
        has_mask      () bool, whether the mask is labelled
        border_mask   (224, 224) float32, 1 inside the image (all channels below 1), 0 outside
        keypoints     (20, 3) float32: row, column, visible (0 or 1), pixels of the crop; the place
                      means nothing where visible is 0, and a joint written as NaN is (0, 0, 0)
        has_keypoints () bool, whether the keypoints are labelled
        center        (2,) float32 x, y of the crop's centre in the image
        scale         () float32, the crop's side / 200
        index         int, position in the JSON list
        name          str, `<breed>_<file without ending>`, and `_<index>` where several entries
                      name that file
    and, opened with ground_truth where the data set has a `Truth` folder, float32:
        gt_verts      (V, 3)
        gt_joints     (41, 3)

    Opening reads every image of the split once. Entries that cannot be used (no mask, no readable
    image, a box outside the image or without area, a missing key) are left out, in training and in
    evaluation alike, since without a mask neither PCK's threshold nor IoU exists: `problems` lists
    them.

    Random changes depend on (seed, epoch, position in the list) only: the number of workers changes
    nothing. Call `set_epoch` before each epoch; it reaches workers that are already running.
    """

    folder = "StanfordExtra_v12"
    list_name = "StanfordExtra_v12.json"
    split_name = "{split}_stanford_StanfordExtra_v12.npy"

    def __init__(
        self,
        data_dir: str | Path,
        split: str,
        img_res: int = CROP,
        augment: bool = False,
        flip: bool = False,
        ground_truth: bool = False,
        seed: int = 0,
    ):
        """Reads the list and checks every image of the split.

        Args:
            data_dir: folder that holds the data set's folder.
            split: `train`, `val` or `test`.
            img_res: side of the network's input, pixels.
            augment: random scale, turn and gain.
            flip: mirrors half of the images.
            ground_truth: whether samples carry the mesh of a synthetic image, where there is one.
            seed: of the random changes.
        """
        if ground_truth and (augment or flip):
            raise ValueError("ground_truth is that of the unchanged image: no augment or flip")
        self.root = Path(data_dir) / self.folder
        self.split, self.img_res = split, img_res
        self.augment, self.flip, self.seed = augment, flip, seed
        self.entries, indices = self.read_annotations(data_dir, split)
        self.images = image_folder(self.root)

        self.problems: list[Problem] = find_problems(self.entries, indices, self.images)
        unusable = {p.index for p in self.problems}
        self.indices = [int(i) for i in indices if int(i) not in unusable]
        if not self.indices:
            first = self.problems[0] if self.problems else None
            found = f" (the first: {first.name}, {first.problem})" if first else ""
            where = f"{self.root}, split {split}{found}"
            raise InputError(f"no usable image among the {len(indices)} of {where}")

        names = [entry_name(self.entries[i]) for i in self.indices]
        times = Counter(names)
        named = zip(names, self.indices, strict=True)
        self.names = [f"{name}_{i}" if times[name] > 1 else name for name, i in named]

        self.has_ground_truth = ground_truth and (self.root / "Truth").is_dir()
        if self.has_ground_truth:
            paths = [self.ground_truth_path(i) for i in self.indices]
            missing = [path for path in paths if not path.is_file()]
            if missing:
                raise InputError(
                    f"{missing[0]} and {len(missing) - 1} more files of the ground truth are "
                    "missing: make the data set again"
                )
        # Shared memory: workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def excluded(self) -> int:
        """Number of unusable entries left out."""
        return len(self.problems)

    @classmethod
    def split_path(cls, data_dir: str | Path, split: str) -> Path:
        """The file that holds the split's indices."""
        return Path(data_dir) / cls.folder / cls.split_name.format(split=split)

    @classmethod
    def read_annotations(cls, data_dir: str | Path, split: str) -> tuple[list, np.ndarray]:
        """Reads the whole list of annotations and the positions (N,) of the split's entries."""
        entries = read_list(Path(data_dir) / cls.folder / cls.list_name)
        return entries, read_split(cls.split_path(data_dir, split), len(entries))

    def ground_truth_path(self, index: int) -> Path:
        """The file of a synthetic image's mesh; `index` is the position in the JSON list."""
        return (self.root / "Truth" / self.entries[index]["img_path"]).with_suffix(".npz")

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of this epoch."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict:
        index = self.indices[item]
        entry = self.entries[index]
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        sample = make_crop(
            read_image(self.images / entry["img_path"]),
            read_mask(entry),
            read_joints(entry),
            entry["img_bbox"],
            self.img_res,
            draw_augmentation(rng, self.augment, self.flip),
        )
        sample |= {"index": index, "name": self.names[item]}
        if self.has_ground_truth:
            with np.load(self.ground_truth_path(index), allow_pickle=False) as truth:
                for key in ("verts", "joints"):  # (V, 3), (41, 3)
                    sample[f"gt_{key}"] = torch.from_numpy(truth[key].astype(np.float32))
        return sample
