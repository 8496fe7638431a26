"""A handful of synthetic images, and a finished stage 1 on them."""

import numpy as np
import pytest

from synthetic.writer import make_data
from tests.engine.few import stage1


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    make_data(folder, num_images=20, seed=7, num_workers=2)
    for split, indices in (("train", range(6)), ("val", [6]), ("test", [7])):
        np.save(
            folder / "StanfordExtra_v12" / f"{split}_stanford_StanfordExtra_v12.npy",
            np.array(indices),
        )
    return folder


@pytest.fixture(scope="module")
def start(few, tmp_path_factory):
    """A finished stage 1 of one epoch; batches of 3."""
    folder = tmp_path_factory.mktemp("start")
    stage1(few, folder, "--nEpochs", "1")
    return folder
