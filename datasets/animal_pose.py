"""The dogs of Animal Pose, as published for evaluation: fields and sample of StanfordExtra."""

from pathlib import Path

import numpy as np

from util.errors import InputError

from .stanford import StanfordExtra


class AnimalPose(StanfordExtra):
    """One split of `<data_dir>/animal_pose`; only `test` is published.

    Keypoints 13 and 17 to 19 are never labelled.
    """

    folder = "animal_pose"
    list_name = "animal_pose_data.json"
    split_name = "{split}_animal_pose.npy"

    @classmethod
    def read_annotations(cls, data_dir: str | Path, split: str) -> tuple[list, np.ndarray]:
        path = cls.split_path(data_dir, split)
        if split != "test" and path.parent.is_dir() and not path.is_file():
            raise InputError(
                f"Animal Pose has no split for training or validation ({path.name} does not "
                "exist): only test is published, train and validate on stanford"
            )
        return super().read_annotations(data_dir, split)
