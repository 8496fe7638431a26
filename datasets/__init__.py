"""Photographs with labels, as torch data sets with one sample (see `LabelledImages`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from util.camera import CROP
from util.errors import InputError

from .animal_pose import AnimalPose
from .dog_pose import DogPose
from .fits import Fits
from .labelled import LabelledImages, name_apart
from .mixed import Mixed, parse_mix
from .oxford_pet import OxfordPet
from .stanford import StanfordExtra, Synthetic

DATASETS: dict[str, type[LabelledImages]] = {
    "stanford": StanfordExtra,
    "animal_pose": AnimalPose,
    "dog_pose": DogPose,
    "oxford_pet": OxfordPet,
    "synthetic": Synthetic,
}
__all__ = [
    "DATASETS",
    "SPLITS",
    "Fits",
    "LabelledImages",
    "Mixed",
    "TrainingSets",
    "build_dataset",
    "dataset_class",
    "has_split",
    "mixed_training_set",
    "name_apart",
    "parse_mix",
    "train_val",
]
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
        options: of `LabelledImages`.

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
    img_res: int = CROP,
    seed: int = 0,
    validation_only: bool = False,
    **changes,
) -> TrainingSets:
    """Opens the training set and the validation set.

    Where a data set has no validation split, every tenth training image is kept for validation.

    Args:
        name, data_dir, img_res, seed: see `build_dataset`.
        validation_only: leaves `train` None where a validation split makes it needless.
        changes: other options of `LabelledImages`, of the training images alone.
    """
    common = {"img_res": img_res, "seed": seed}
    own_val = has_split(name, data_dir, "val")
    val = build_dataset(name, data_dir, "val", **common) if own_val else None
    if val and validation_only:
        return TrainingSets(None, val, val.excluded, held_out=False)
    train = build_dataset(name, data_dir, "train", **common, **changes)
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


def mixed_training_set(weights: Mapping[str, float], data_dir: str | Path, **options) -> Mixed:
    """Opens the training images of several data sets as one; those kept for validation stay out.

    Args:
        weights: by name of the data set, see `parse_mix`.
        data_dir, options: see `train_val`.
    """
    sets = {}
    for name in weights:
        train = train_val(name, data_dir, **options).train
        assert train is not None
        sets[name] = train
    return Mixed(sets, weights, options.get("seed", 0))
