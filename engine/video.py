"""An animal through a video: its box in each frame, and parameters smoothed over time."""

from dataclasses import replace

import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from model import Estimate, ImageFeatures, Prediction
from smal_model import SMAL, SMALOutput

from .detect import Animal

AT_A_TIME = 256  # frames whose bodies are computed together
FRAMES = 2.0  # standard deviation of the smoothing, frames


def packed(animal: Animal) -> Animal:
    """The animal with its mask as run lengths: a video has thousands."""
    if animal.mask is None:
        return animal
    return replace(animal, mask=coco_mask.encode(np.asfortranarray(animal.mask, np.uint8)))


def unpacked(animal: Animal) -> Animal:
    """The animal with its mask as an array again."""
    if animal.mask is None:
        return animal
    return replace(animal, mask=coco_mask.decode(animal.mask) > 0)


def without_features(out: Prediction) -> Prediction:
    """The prediction without the image features, which are most of it."""
    features = ImageFeatures((), out.features.pooled[:, :0])
    none: dict = dict.fromkeys(("keypoints", "outline", "second_maps", "before"))
    return replace(out, features=features, **none)


def follow(found: list[list[Animal]]) -> list[Animal]:
    """One animal through all frames: the largest of the first, then always the nearest box.

    Args:
        found: the animals of each frame; some frame has one.

    Returns:
        One a frame, their boxes smoothed over time, between those of other frames where a frame has
        none; masks stay as they are.
    """
    chosen: dict[int, Animal] = {}
    box: np.ndarray | None = None
    for frame, animals in enumerate(found):
        if box is None:
            nearest = max(animals, key=lambda animal: animal.box[2:].prod(), default=None)
        else:
            last = box
            nearest = min(animals, key=lambda a: np.abs(a.box - last).sum(), default=None)
        if nearest is not None:
            chosen[frame], box = nearest, nearest.box
    sides = np.stack([animal.box for animal in chosen.values()]).astype(float).T  # (4, frames)
    boxes = np.stack([np.interp(range(len(found)), list(chosen), side) for side in sides], 1)
    none = Animal(boxes[0])
    animals = [chosen.get(frame, none) for frame in range(len(found))]
    return [Animal(box, a.mask, a.kind) for box, a in zip(_smooth(boxes), animals, strict=True)]


@torch.no_grad()
def smooth_prediction(parts: list[Prediction], smal: SMAL) -> Prediction:
    """The predictions of a video's frames, in order, as one, smoothed; one shape for all frames."""

    def over_time(values) -> torch.Tensor:
        whole = torch.cat(list(values))
        return torch.from_numpy(_smooth(whole.cpu().numpy())).to(whole)

    pose = torch.cat([p.body.pose for p in parts])
    smooth_pose = torch.from_numpy(_smooth_rotations(pose.cpu().numpy())).to(pose)
    betas = torch.cat([p.body.betas for p in parts])
    betas = betas.mean(0, keepdim=True).expand_as(betas)
    trans = over_time(p.body.trans for p in parts)
    scale = over_time(p.coarse.scale for p in parts)
    logscale = del_v = refined = None
    if parts[0].betas_logscale is not None:
        of_frames = (p.betas_logscale for p in parts if p.betas_logscale is not None)
        logscale = torch.cat([*of_frames])
        logscale = logscale.mean(0, keepdim=True).expand_as(logscale)
    body = _posed(smal, betas, smooth_pose, trans, None, logscale)
    if any(p.del_v is not None for p in parts):  # a stage 1 network's, where masks refined it
        none = torch.zeros_like(body.verts)
        del_v = over_time(none[: len(p.coarse)] if p.del_v is None else p.del_v for p in parts)
        fine = _posed(smal, betas, smooth_pose, trans, del_v, logscale)
        refined = Estimate(fine.verts, fine.joints, scale)
    coarse = Estimate(body.verts, body.joints, scale)
    features = parts[0].features
    own = coarse, trans, smooth_pose, betas, logscale, features
    return Prediction(*own, refined=refined, del_v=del_v)


def _posed(smal: SMAL, *given: torch.Tensor | None) -> SMALOutput:
    """The bodies of all frames, some at a time."""
    count = next(len(v) for v in given if v is not None)
    parts = [
        smal(*(v if v is None else v[i : i + AT_A_TIME] for v in given))
        for i in range(0, count, AT_A_TIME)
    ]
    return SMALOutput(torch.cat([p.verts for p in parts]), torch.cat([p.joints for p in parts]))


def _smooth(values: np.ndarray) -> np.ndarray:
    return gaussian_filter1d(values, FRAMES, axis=0, mode="nearest").astype(values.dtype)


def _smooth_rotations(pose: np.ndarray) -> np.ndarray:
    """(T, 3 J) axis-angle, each joint's rotations smoothed as quaternions of one hemisphere."""
    frames = len(pose)
    quaternions = Rotation.from_rotvec(pose.reshape(-1, 3)).as_quat().reshape(frames, -1, 4)
    for t in range(1, frames):
        turned = (quaternions[t] * quaternions[t - 1]).sum(-1) < 0
        quaternions[t, turned] *= -1
    smoothed = _smooth(quaternions).reshape(-1, 4)
    return Rotation.from_quat(smoothed).as_rotvec().reshape(frames, -1).astype(pose.dtype)
