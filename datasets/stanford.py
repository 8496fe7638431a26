"""StanfordExtra: photographs of dogs with a mask and 20 keypoints each."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from .annotations import (
    Problem,
    entry_name,
    find_problems,
    image_folder,
    read_image,
    read_joints,
    read_list,
    read_mask,
    read_split,
)
from .transforms import CROP, draw_augmentation, make_crop


class StanfordExtra(Dataset):
    """One split of `<data_dir>/StanfordExtra_v12`.

    A sample is a dict (S = img_res; labels live in the 224-pixel crop whatever S is):
        image        (3, S, S) float32, the network's input, ImageNet-normalised
        mask         (224, 224) float32 in [0, 1], not thresholded
        border_mask  (224, 224) float32, 1 inside the photograph (all three channels below 1), 0 outside
        keypoints    (20, 3) float32: row, column, visible (0 or 1), pixels of the crop; where visible is 0 the place
                     means nothing, and a joint written as NaN is (0, 0, 0)
        center       (2,) float32 x, y of the crop's centre in the photograph
        scale        () float32, the crop's side / 200
        index        int, position in the JSON list
        name         str, `<breed>_<file without ending>`, and `_<index>` where several entries name that file
    and, opened with truth=True where the data set has a `Truth` folder, float32:
        truth_verts  (V, 3), truth_joints (41, 3)

    Opening reads every photograph of the split once. Entries that cannot be used (no mask, no readable photograph,
    a box outside the picture or without area, a missing key) are left out, in training and in evaluation alike,
    since without a mask neither PCK's threshold nor IoU exists: `problems` lists them, `report` holds them as
    (name, problem), `excluded` is their number.

    Random changes depend on (seed, epoch, position in the list) only: the number of workers changes nothing. Call
    `set_epoch` before each epoch; it reaches workers that are already running.
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
        truth: bool = False,
        seed: int = 0,
    ):
        if truth and (augment or flip):
            raise ValueError("the truth is that of the photograph as it is: open it without augment and flip")
        self.root = Path(data_dir) / self.folder
        self.split, self.img_res = split, img_res
        self.augment, self.flip, self.seed = augment, flip, seed
        self.entries, indices = self.read_annotations(data_dir, split)
        self.images = image_folder(self.root)

        self.problems: list[Problem] = find_problems(self.entries, indices, self.images)
        self.report = [(p.name, p.problem) for p in self.problems]
        self.excluded = len(self.problems)
        unusable = {p.index for p in self.problems}
        self.indices = [int(i) for i in indices if int(i) not in unusable]
        if not self.indices:
            first = f" (the first: {self.report[0][0]}, {self.report[0][1]})" if self.report else ""
            raise ValueError(f"no usable photograph among the {len(indices)} of {self.root}, split {split}{first}")

        names = [entry_name(self.entries[i]) for i in self.indices]
        times = Counter(names)
        self.names = [f"{name}_{i}" if times[name] > 1 else name for name, i in zip(names, self.indices, strict=True)]

        self.has_truth = truth and (self.root / "Truth").is_dir()
        if self.has_truth:
            missing = [i for i in self.indices if not self.truth_path(i).is_file()]
            if missing:
                path = self.truth_path(missing[0])
                raise FileNotFoundError(
                    f"{path} and {len(missing) - 1} more files of the truth are missing: make the data set again"
                )
        # Shared memory: workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def split_path(cls, data_dir: str | Path, split: str) -> Path:
        """The file that holds the split's indices."""
        return Path(data_dir) / cls.folder / cls.split_name.format(split=split)

    @classmethod
    def read_annotations(cls, data_dir: str | Path, split: str) -> tuple[list, np.ndarray]:
        """The whole list of annotations and the positions (N,) of the split's entries in it."""
        entries = read_list(Path(data_dir) / cls.folder / cls.list_name)
        return entries, read_split(cls.split_path(data_dir, split), len(entries))

    def truth_path(self, index: int) -> Path:
        """Where the known mesh of a made-up photograph lies; `index` is the position in the JSON list."""
        return (self.root / "Truth" / self.entries[index]["img_path"]).with_suffix(".npz")

    def set_epoch(self, epoch: int) -> None:
        """Choose the random numbers of this epoch."""
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
        if self.has_truth:
            with np.load(self.truth_path(index), allow_pickle=False) as truth:
                sample["truth_verts"] = torch.from_numpy(truth["verts"].astype(np.float32))  # (V, 3)
                sample["truth_joints"] = torch.from_numpy(truth["joints"].astype(np.float32))  # (41, 3)
        return sample
