"""Photographs with labels, as torch data sets with one sample (see `LabelledImages`)."""

from pathlib import Path
from typing import NamedTuple

from util.errors import InputError

from .animal_pose import AnimalPose
from .labelled import LabelledImages
from .stanford import StanfordExtra

DATASETS: dict[str, type[LabelledImages]] = {"stanford": StanfordExtra, "animal_pose": AnimalPose}
SPLITS = ("train", "val", "test")
HELD_OUT = 10  # without a validation split, one in this many training images validates


def dataset_class(name: str, split: str = "test") -> type[LabelledImages]:
    """The class of a data set; ValueError where the name or the split is not known."""
    if name not in DATASETS:
        raise ValueError(f"name is '{name}', expected one of {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise ValueError(f"split is '{split}', expected one of {', '.join(SPLITS)}")
    return DATASETS[name]


def build_dataset(name: str, data_dir: str | Path, split: str, **options) -> LabelledImages:
    """Opens one split of a data set.

    Args:
        name: a key of `DATASETS`.
        data_dir: folder that holds the data set's folder.
        split: one of `SPLITS`.
        options: img_res, augment, flip, ground_truth and seed of `LabelledImages`.

    Raises:
        InputError: a file is missing or not as published, or no image of the split can be used.
    """
    return dataset_class(name, split)(data_dir, split, **options)


def has_split(name: str, data_dir: str | Path, split: str) -> bool:
    """Whether the data set in `data_dir` has the split."""
    return dataset_class(name, split).has_split(data_dir, split)


class TrainingSets(NamedTuple):
    """What `train_val` opens."""

    train: LabelledImages | None
    val: LabelledImages
    excluded: int  # unusable images left out, of both
    held_out: bool  # whether the validation images are taken from the training split


def train_val(
    name: str,
    data_dir: str | Path,
    augment: bool = False,
    flip: bool = False,
    validation_only: bool = False,
    **options,
) -> TrainingSets:
    """Opens the training set and the validation set.

    Where the data set has no validation split, every tenth training image validates.

    Args:
        name, data_dir, options: see `build_dataset`.
        augment, flip: random changes of the training images; validation images are never changed.
        validation_only: leaves `train` None where a validation split makes it needless.
    """
    own_val = has_split(name, data_dir, "val")
    val = build_dataset(name, data_dir, "val", **options) if own_val else None
    if val and validation_only:
        return TrainingSets(None, val, val.excluded, held_out=False)
    train = build_dataset(name, data_dir, "train", augment=augment, flip=flip, **options)
    if val:
        return TrainingSets(train, val, train.excluded + val.excluded, held_out=False)
    if len(train) < 3:
        raise InputError(
            f"{train.root} has no validation split and only {len(train)} usable training images to "
            "take one from, expected at least 3: add images or a validation split"
        )
    held_out = range(0, len(train), HELD_OUT)
    val = train.part(held_out, changed=False)
    rest = train.part([i for i in range(len(train)) if i not in held_out])
    return TrainingSets(rest, val, train.excluded, held_out=True)
