"""From photographs and boxes to meshes: what demo.py and app.py share."""

from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import default_collate

from datasets.transforms import make_crop
from model import CoarseToFine, Networks, Prediction
from smal_model.joints import NUM_KEYPOINTS

from .detect import Animal
from .loaders import to_device

Refine = Callable[[dict, Prediction], Prediction]


def sample_of(image: np.ndarray, animal: Animal, img_res: int, name: str) -> dict:
    """The data sets' sample of an animal in a photograph, without keypoints.

    Args:
        image: (H, W, 3) uint8, upright.
        animal: its box and, where known, mask.
        img_res: side of the network's input, pixels.
        name: of the sample.
    """
    known = animal.mask is not None
    mask = animal.mask if animal.mask is not None else np.zeros(image.shape[:2])
    joints = np.zeros((NUM_KEYPOINTS, 3))
    sample = make_crop(image, np.asarray(mask, np.uint8), joints, animal.box, img_res)
    labels = {"has_mask": torch.tensor(known), "has_keypoints": torch.tensor(False)}
    return sample | labels | {"name": name, "index": 0}


class Predictor:
    """Runs the networks on samples and, where asked for, fits their answer to the masks.

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
        if self.refine is not None and bool(batch["has_mask"].any()):
            out = self.refine(batch, out)
        return batch, out
