"""What the tests of the synthetic world share."""

import cv2
import numpy as np
import pytest


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three photographs of noise with a magenta animal each, as Oxford-IIIT Pet lays them out."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    for i in range(3):
        photo = rng.integers(0, 80, (200, 260 + i, 3), dtype=np.uint8)  # dark
        trimap = np.full(photo.shape[:2], 2, np.uint8)
        cv2.ellipse(trimap, (130, 110), (62 + i, 44), 0, 0, 360, 3, -1)
        cv2.ellipse(trimap, (130, 110), (58 + i, 40), 0, 0, 360, 1, -1)
        photo[trimap != 2] = (255, 0, 255)
        cv2.imwrite(str(folder / "images" / f"dog_{i}.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, 100])
        cv2.imwrite(str(folder / "annotations" / "trimaps" / f"dog_{i}.png"), trimap)
    return folder
