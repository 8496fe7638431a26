"""Photographs with labels, as torch data sets that all give the same sample (see `datasets.stanford.StanfordExtra`)."""

from pathlib import Path

from .animal_pose import AnimalPose
from .stanford import StanfordExtra
from .transforms import CROP

DATASETS = {"stanford": StanfordExtra, "animal_pose": AnimalPose}
SPLITS = ("train", "val", "test")


def dataset_class(name: str, split: str = "test") -> type[StanfordExtra]:
    """The class of a data set; ValueError where the name or the split is not known."""
    if name not in DATASETS:
        raise ValueError(f"unknown data set '{name}': choose one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise ValueError(f"unknown split '{split}': choose one of {', '.join(SPLITS)}")
    return DATASETS[name]


def build_dataset(
    name: str,
    data_dir: str | Path,
    split: str,
    img_res: int = CROP,
    augment: bool = False,
    flip: bool = False,
    truth: bool = False,
    seed: int = 0,
) -> StanfordExtra:
    """Open one split of `stanford` or `animal_pose`; faults of the files' structure are raised in one sentence."""
    return dataset_class(name, split)(data_dir, split, img_res, augment, flip, truth, seed)


def has_split(name: str, data_dir: str | Path, split: str) -> bool:
    """Whether the data set in `data_dir` has a file of indices for the split."""
    return dataset_class(name, split).split_path(data_dir, split).is_file()
