"""Run lengths against pycocotools on random masks; runs that do not add up are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from datasets.masks import decode_mask


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000), st.floats(0, 1))
def test_masks_are_those_of_pycocotools(height, width, seed, density):
    mask = (np.random.default_rng(seed).random((height, width)) < density).astype(np.uint8)
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    np.testing.assert_array_equal(decode_mask(counts, height, width), mask)


@pytest.mark.parametrize("side", [239, 241])
def test_runs_that_do_not_add_up_are_refused(side):
    counts = coco_mask.encode(np.ones((side, 300), np.uint8, order="F"))["counts"].decode()
    with pytest.raises(ValueError, match=f"runs add up to {side * 300} pixels, not 240 x 300"):
        decode_mask(counts, 240, 300)
