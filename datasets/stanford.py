"""StanfordExtra: photographs of dogs with a mask and 20 keypoints each."""

from pathlib import Path

import numpy as np

from .annotations import IMAGE_KEYS, read_list, read_split
from .labelled import LabelledImages


class StanfordExtra(LabelledImages):
    """One split of `<data_dir>/StanfordExtra_v12`."""

    folder = "StanfordExtra_v12"
    list_name = "StanfordExtra_v12.json"
    split_name = "{split}_stanford_StanfordExtra_v12.npy"
    keys = (*IMAGE_KEYS, "joints", "seg")

    @classmethod
    def split_path(cls, data_dir: str | Path, split: str) -> Path:
        """The file that holds the split's indices."""
        return Path(data_dir) / cls.folder / cls.split_name.format(split=split)

    @classmethod
    def has_split(cls, data_dir: str | Path, split: str) -> bool:
        return cls.split_path(data_dir, split).is_file()

    @classmethod
    def read_annotations(cls, data_dir: str | Path, split: str) -> tuple[list, np.ndarray]:
        entries = read_list(Path(data_dir) / cls.folder / cls.list_name)
        return entries, read_split(cls.split_path(data_dir, split), len(entries))


class Synthetic(StanfordExtra):
    """What `python -m synthetic --data_dir <data_dir>/synthetic` writes, in the same layout."""

    folder = "synthetic/StanfordExtra_v12"
