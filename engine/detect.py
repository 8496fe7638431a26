"""Animals in a photograph: torchvision's Mask R-CNN, trained on COCO, gives box and mask."""

import urllib.error
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import cv2
import numpy as np
import torch

from util.errors import InputError

from .checkpoint import load_checkpoint

ANIMALS = ("cat", "dog", "horse", "sheep", "cow", "bear", "zebra", "giraffe")  # of COCO
MIN_SCORE = 0.5
LONGEST = 1333  # pixels of a photograph's longer side, as Mask R-CNN takes it
SAME_ANIMAL = 0.6  # overlap of boxes above which two detections are one animal


@dataclass
class Animal:
    """One animal in a photograph.

    box: (4,) x, y, width, height, pixels.
    mask: (H, W) bool, or None where it is not known (in engine.video: run lengths, of pycocotools).
    kind: its class in COCO, or "" where nobody said.
    """

    box: np.ndarray
    mask: Any = None
    kind: str = ""


class Detector:
    """Finds animals.

    Args:
        net: a torchvision Mask R-CNN, in evaluation mode.
        categories: names of its classes, in order.
    """

    def __init__(self, net: torch.nn.Module, categories: list[str]):
        self.net, self.categories = net, categories

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> list[Animal]:
        """The animals in an image (H, W, 3) uint8, the surest first; empty where there is none."""
        from torchvision.ops import batched_nms  # takes seconds, which messages need not wait for

        device = next(self.net.parameters()).device
        height, width = image.shape[:2]
        shrink = max(1.0, max(height, width) / LONGEST)  # else each mask is as large as the image
        if shrink > 1:
            small = max(1, round(width / shrink)), max(1, round(height / shrink))
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        values = torch.from_numpy(np.ascontiguousarray(image)).to(device).permute(2, 0, 1) / 255
        (found,) = self.net([values])
        names = [self.categories[i] for i in found["labels"].tolist()]
        is_animal = torch.tensor(
            [name in ANIMALS for name in names], device=device, dtype=torch.bool
        )
        kept = (is_animal & (found["scores"] >= MIN_SCORE)).nonzero()[:, 0]
        boxes, scores = found["boxes"][kept], found["scores"][kept]
        # One animal may be found as two kinds.
        chosen = kept[batched_nms(boxes, scores, torch.zeros_like(kept), SAME_ANIMAL)]
        animals = []
        for i in chosen.tolist():
            x0, y0, x1, y1 = (shrink * found["boxes"][i]).tolist()
            soft = found["masks"][i, 0].cpu().numpy()
            mask = (cv2.resize(soft, (width, height)) if shrink > 1 else soft) > 0.5
            if min(x1 - x0, y1 - y0) >= 2 and mask.any():
                box = np.array([x0, y0, x1 - x0, y1 - y0])
                animals.append(Animal(box, mask, names[i]))
        return animals


def build_detector(weights: Path | None, device: torch.device) -> Detector:
    """Mask R-CNN with the weights of a file, or torchvision's own, which are downloaded once.

    Raises:
        InputError: the file does not fit, or nothing can be downloaded.
    """
    from torchvision.models import detection

    published = detection.MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1
    try:
        if weights:
            state = load_checkpoint(weights).state_dict
        else:
            state = published.get_state_dict(check_hash=True)
    except (OSError, urllib.error.URLError, RuntimeError, EOFError, UnpicklingError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        reason = f"{error}; a damaged file in {cache} can be removed"
        raise InputError(f"the detector's weights cannot be downloaded ({reason})") from None
    net = detection.maskrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, box_score_thresh=MIN_SCORE
    )
    try:
        net.load_state_dict(state)
    except RuntimeError:
        name = "maskrcnn_resnet50_fpn_v2"
        raise InputError(f"{weights} does not hold the weights of torchvision's {name}") from None
    return Detector(net.eval().to(device), published.meta["categories"])


def open_detector(choice: str, weights: Path | None, device: torch.device) -> Detector | None:
    """The detector that the options name; None, with a line, where its weights cannot be had."""
    if choice == "none":
        return None
    try:
        return build_detector(weights, device)
    except InputError as error:
        if weights:
            raise
        print(
            f"{error}: the whole image is taken as the animal's box (--bbox, --detector_weights)."
        )
        return None


def whole(image: np.ndarray) -> Animal:
    """An animal that fills an image (H, W, 3)."""
    height, width = image.shape[:2]
    return Animal(np.array([0.0, 0.0, width, height]))
