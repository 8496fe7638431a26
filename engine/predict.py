"""From photographs and boxes to meshes: what demo.py and app.py share."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import default_collate

from datasets.transforms import make_crop
from model import CoarseToFine, Networks, Prediction

from .detect import Animal
from .fitting import with_outlines
from .loaders import to_device

LONGEST_BOX = 2000  # pixels; a photograph with a longer one is made smaller first
Refine = Callable[[dict, Prediction], Prediction]


@dataclass
class Task:
    """One animal to predict: its name and photograph, the crop's sample, and the photograph."""

    name: str
    path: Path
    image: np.ndarray  # (H, W, 3) uint8, upright
    sample: dict

    @property
    def crop(self) -> tuple[tuple[float, float], float]:
        """Center (x, y) and side of the crop, pixels of the photograph."""
        x, y = self.sample["center"].tolist()
        return (x, y), 200 * float(self.sample["scale"])


def sample_of(image: np.ndarray, animal: Animal, img_res: int, name: str) -> dict:
    """The data sets' sample of an animal in a photograph, without keypoints.

    Args:
        image: (H, W, 3) uint8, upright.
        animal: its box and, where known, mask.
        img_res: side of the network's input, pixels.
        name: of the sample.
    """
    mask: Any = None if animal.mask is None else animal.mask.astype(np.uint8)
    box = np.asarray(animal.box, float)
    shrink = max(1.0, box[2:].max() / LONGEST_BOX)
    if shrink > 1:
        small = tuple(max(1, round(n / shrink)) for n in image.shape[1::-1])
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        if mask is not None:
            mask = cv2.resize(mask, small, interpolation=cv2.INTER_NEAREST)
    sample = make_crop(image, box / shrink, mask, img_res=img_res)
    place = {key: sample[key] * shrink for key in ("center", "scale")}
    return sample | place | {"name": name, "index": 0, "failed": ""}


class Predictor:
    """Runs the networks on samples and, where asked for, fits their answer to the masks.

    Where no mask is known, it is the outline that the network sees, if it sees one.

    Args:
        model: CoarseModel or CoarseToFine, on its device.
        refine: takes a batch and a prediction and gives a better one; None: no refinement.
    """

    def __init__(self, model: Networks, refine: Refine | None = None):
        self.model, self.refine = model.eval(), refine

    @property
    def img_res(self) -> int:
        """Side of the network's input, pixels."""
        model = self.model
        return model.meshnet.img_res if isinstance(model, CoarseToFine) else model.img_res

    def __call__(self, samples: list[dict]) -> tuple[dict, Prediction]:
        """The batch of these samples, on the model's device, and the prediction."""
        batch = to_device(default_collate(samples), self.model.device)
        with torch.no_grad():
            out = self.model(batch["image"])
        if self.refine is not None:
            batch = with_outlines(batch, out)
            if bool(batch["has_mask"].any()):
                out = self.refine(batch, out)
        return batch, out
