"""What all data sets share: the sample, the check on opening, images that fail under way."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from util.errors import InputError

from .annotations import (
    IMAGE_KEYS,
    Problem,
    entry_name,
    find_problems,
    image_folder,
    read_checksums,
    read_joints,
    read_mask,
    unique_names,
)
from .cache import Photograph, PixelCache
from .fits import Fits
from .ground_truth import Mirror, in_crop, read_arrays
from .images import read_image
from .strong import NUM_DRAWS
from .transforms import CROP, draw_augmentation, make_crop, reach

ATTEMPTS = 10  # images in a row that may fail under way


class LabelledImages(Dataset, ABC):
    """One split of a data set.

    A sample is a dict (S = img_res; labels live in the 224-pixel crop whatever S is):
        image         (3, S, S) float32, the network's input, ImageNet-normalised
        mask          (224, 224) float32 in [0, 1], not thresholded
        has_mask      () bool, whether the mask is labelled; it is 0 where not
        mask_weight   (224, 224) float32, 1 where the mask counts, 0 where it is unsure or missing;
                      nothing between
        area          () float32, for PCK's threshold, square pixels of the crop: sum of the mask,
                      or area of the box where no mask is labelled
        border_mask   (224, 224) float32, 1 inside the image (all channels below 1), 0 outside
        inside        (224, 224) float32, 1 inside the image, whatever its colours; this one and
                      border_mask only where opened with `scored`
        keypoints     (20, 3) float32: row, column, visible (0 or 1), pixels of the crop; the place
                      means nothing where visible is 0, and a joint written as NaN is (0, 0, 0)
        has_keypoints () bool, whether the keypoints are labelled; they are 0 where not
        center        (2,) float32 x, y of the crop's centre in the image
        scale         () float32, the crop's side / 200
        index         int, position in the list of annotations
        name          str, `<breed>_<file without ending>`, and `_<index>` where several entries
                      name that file
        strong_draws  (NUM_DRAWS,) float32, opened with `strong` alone
        failed        str, empty; or name and fault of the image that should have stood here and
                      could not be read: then the sample is that of the next readable image
    and, opened with ground_truth where the data set has a `Truth` folder, float32:
        gt_verts      (V, 3) as the crop's camera sees them, body units (util.camera)
        gt_joints     (41, 3) likewise
        gt_rotations  (J, 3, 3) of the joints, the first of the whole animal
        gt_betas      (20,)
        gt_scale      (1,) of the crop's camera
        has_truth     () bool
    and, opened with `fits`, 0 and False where an image has no good fit:
        fit_rotations (J, 3, 3) float32 of the joints, the first of the whole animal
        fit_betas     (20,) float32
        fit_logscale  (6,) float32
        has_fit, has_fit_logscale () bool, whether they are labels

    Opening reads every image of the split once. Entries that cannot be used (no readable image, a
    box outside the image or without area, a label that is missing or lies) are left out, in
    training and in evaluation alike: `problems` lists them.

    Random changes depend on (seed, epoch, position in the list) only, and where an epoch of a mix
    has an image several times, on which time it is: the number of workers changes nothing. Call
    `set_epoch` before each epoch; it reaches workers that are already running.
    """

    folder: str  # in the data folder
    names: list[str]  # of the samples
    cache: PixelCache | None = None
    keys: tuple[str, ...] = IMAGE_KEYS  # that an entry must have

    def __init__(
        self,
        data_dir: str | Path,
        split: str,
        img_res: int = CROP,
        augment: bool = False,
        flip: bool = False,
        strong: bool = False,
        ground_truth: bool = False,
        fits: Fits | None = None,
        seed: int = 0,
        scored: bool = True,
    ):
        """Reads the list and checks every image of the split.

        Args:
            data_dir: folder that holds the data set's folder.
            split: `train`, `val` or `test`.
            img_res: side of the network's input, pixels.
            augment: random scale, turn and gain.
            flip: mirrors half of the images.
            strong: whether samples carry the random numbers of `datasets.strong`.
            ground_truth: whether samples carry the mesh of a synthetic image, where there is one.
            fits: of fit.py, by name of the image: samples carry them as labels.
            seed: of the random changes.
            scored: whether samples carry the planes that only scores read.
        """
        self.root = Path(data_dir) / self.folder
        self.split, self.img_res, self.fits = split, img_res, fits
        self.augment, self.flip, self.strong, self.seed = augment, flip, strong, seed
        self.scored = scored
        self.entries, indices = self.read_annotations(data_dir, split)
        self.images = self.image_folder(data_dir, split)

        self.problems, self.indices = self.check(data_dir, split, self.entries, indices)
        if not self.indices:
            first = self.problems[0] if self.problems else None
            found = f" (the first: {first.name}, {first.problem})" if first else ""
            where = f"{self.root}, split {split}{found}"
            raise InputError(f"no usable image among the {len(indices)} of {where}")
        name_apart([self])

        self.has_ground_truth = ground_truth and (self.root / "Truth").is_dir()
        if self.has_ground_truth:
            paths = [self.ground_truth_path(i) for i in self.indices]
            missing = [path for path in paths if not path.is_file()]
            if missing:
                raise InputError(
                    f"{missing[0]} and {len(missing) - 1} more files of the ground truth are "
                    "missing: make the data set again"
                )
            self.mirror = Mirror.of_body(self.root.parent / "smal") if flip else None
        # Shared memory: workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    @abstractmethod
    def has_split(cls, data_dir: str | Path, split: str) -> bool:
        """Whether the data set in `data_dir` has the split."""

    @classmethod
    @abstractmethod
    def read_annotations(cls, data_dir: str | Path, split: str) -> tuple[list, np.ndarray]:
        """Reads the whole list of annotations and the positions (N,) of the split's entries."""

    @classmethod
    def image_folder(cls, data_dir: str | Path, split: str) -> Path:
        """The folder below which the entries' paths lie."""
        return image_folder(Path(data_dir) / cls.folder)

    @classmethod
    def check(
        cls, data_dir: str | Path, split: str, entries: list, indices: np.ndarray
    ) -> tuple[list[Problem], list[int]]:
        """What is wrong with the entries at `indices`, and the positions of those that are well."""
        images = cls.image_folder(data_dir, split)
        checksums = read_checksums(Path(data_dir) / cls.folder)
        found = find_problems(entries, indices, images, cls.keys, checksums)
        checked = list(zip(indices.tolist(), found, strict=True))
        problems = [Problem(i, entry_name(entries[i]), p) for i, p in checked if p]
        return problems, [i for i, p in checked if not p]

    @property
    def excluded(self) -> int:
        """Number of unusable entries left out."""
        return len(self.problems)

    @property
    def num_fitted(self) -> int:
        """Number of images that have a good fit."""
        return sum(self._fit(item) is not None for item in range(len(self)))

    def _fit(self, item: int) -> dict | None:
        if not self.fits:
            return None
        index = self.indices[item]
        entry = self.entries[index]
        # The second name is that of fit.py over all splits where another has the photograph too.
        names = self.names[item], f"{entry_name(entry)}_{index}"
        return next(filter(None, (self.fits.find(n, entry["img_bbox"]) for n in names)), None)

    def part(self, items: Sequence[int], changed: bool = True) -> "LabelledImages":
        """A data set of some of the samples that follows the epochs of this one.

        Args:
            items: positions of the samples.
            changed: whether it is for training as well: with random changes, or to be scored.
        """
        out = copy.copy(self)
        out.indices = [self.indices[i] for i in items]
        out.names = [self.names[i] for i in items]
        for name in ("augment", "flip", "strong"):
            setattr(out, name, changed and getattr(self, name))
        out.scored = self.scored or not changed
        return out

    def ground_truth_path(self, index: int) -> Path:
        """The file of a synthetic image's mesh; `index` is the position in the list."""
        return (self.root / "Truth" / self.entries[index]["img_path"]).with_suffix(".npz")

    def set_epoch(self, epoch: int) -> None:
        """Chooses the random numbers of this epoch."""
        self._epoch.fill_(epoch)

    def read_labels(self, entry: dict) -> tuple[np.ndarray | None, np.ndarray | None]:
        """An entry's mask (H, W) and joints (20, 3), None where they are not labelled."""
        mask = read_mask(entry) if "seg" in self.keys else None
        return mask, read_joints(entry) if "joints" in self.keys else None

    def _pixels(self, index: int) -> np.ndarray:
        """The photograph (H, W, 3) of the entry at `index`, black beyond all crops if cached."""
        if self.cache:
            return self.cache.read(index)
        entry = self.entries[index]
        image = read_image(self.images / entry["img_path"])
        if image.shape[:2] != (int(entry["img_height"]), int(entry["img_width"])):
            raise InputError(f"{self.images / entry['img_path']} has changed its size")
        return image

    def keep_pixels(self, folder: Path) -> None:
        """Reads all images once more and keeps their decoded pixels in a file of `folder`.

        Samples stay what they are. In several processes, all must call this.
        """
        photographs = {}
        for index in self.indices:
            entry = self.entries[index]
            size = int(entry["img_width"]), int(entry["img_height"])
            part = reach(entry["img_bbox"], self.augment, *size)
            photographs[index] = Photograph(self.images / entry["img_path"], *size, part)
        self.cache = PixelCache(folder, f"{self.root.name}_{self.split}", photographs)

    def load(self, item: int, times: int = 0) -> dict:
        """The documented sample without `failed`; `times`: how often this epoch had it before.

        Raises:
            InputError: a file has vanished or changed since opening.
        """
        index = self.indices[item]
        entry = self.entries[index]
        image = self._pixels(index)
        mask, joints = self.read_labels(entry)
        numbers = self.seed, int(self._epoch), index
        rng = np.random.default_rng((*numbers, times) if times else numbers)
        augmentation = draw_augmentation(rng, self.augment, self.flip)
        crop = image, entry["img_bbox"], mask, joints, self.img_res, augmentation, self.scored
        sample = make_crop(*crop)
        sample |= {"index": index, "name": self.names[item]}
        if self.strong:
            sample["strong_draws"] = torch.from_numpy(rng.random(NUM_DRAWS, np.float32))
        if self.has_ground_truth:
            truth = read_arrays(self.ground_truth_path(index))
            side = 200 * float(sample["scale"])
            sample |= in_crop(truth, sample["center"].numpy(), side, augmentation, self.mirror)
            sample["has_truth"] = torch.tensor(True)
        if self.fits:
            sample |= self.fits.in_crop(self._fit(item), augmentation)
        return sample

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> dict:
        return self.sample(item)

    def sample(self, item: int, times: int = 0) -> dict:
        """The documented sample; `times`: how often this epoch had it before (`Mixed`)."""
        if not 0 <= item < len(self):
            raise IndexError(item)
        failed = ""
        for place in range(item, item + min(ATTEMPTS, len(self))):
            try:
                return self.load(place % len(self), times) | {"failed": failed}
            except InputError as error:
                failed = failed or f"{self.names[place % len(self)]}: {error}"
        number = min(ATTEMPTS, len(self))
        raise InputError(f"{number} images in a row cannot be read, the first {failed}")


def name_apart(datasets: Sequence[LabelledImages]) -> None:
    """Names the samples of several data sets so that no two are the same."""
    indices = [index for dataset in datasets for index in dataset.indices]
    plain = [entry_name(dataset.entries[i]) for dataset in datasets for i in dataset.indices]
    names = iter(unique_names(plain, indices))
    for dataset in datasets:
        dataset.names = list(islice(names, len(dataset)))
