"""The evaluator: scores of a prediction, and the loop over a data set."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

import render
from model.outputs import Estimate, Prediction
from smal_model import SMAL
from util import distributed, metrics
from util.camera import CROP
from util.scores import MeshScores, Scores

from .loaders import to_device


def score(out: Prediction, batch: dict, smal: SMAL, renderer: str = "auto") -> Scores:
    """Scores of a prediction, one an image.

    Args:
        out: of the networks or of a fit.
        batch: samples of a data set, collated, on the same device.
        smal: the body.
        renderer: backend of `render`.
    """
    has_mask, has_keypoints = batch["has_mask"], batch["has_keypoints"]
    area = batch.get("area", batch["mask"].sum((1, 2)))  # (B,), square pixels
    body_length = smal.template[:, 0].max() - smal.template[:, 0].min()

    def array(values: torch.Tensor, known=None) -> np.ndarray:
        values = values if known is None else values.where(known, math.nan)
        return values.double().cpu().numpy()

    def score_mesh(estimate: Estimate) -> MeshScores:
        def pck(group=None):
            points = estimate.keypoints_px, batch["keypoints"]
            return array(metrics.pck(*points, area, group=group), has_keypoints)

        silhouette = render.coverage(estimate.plane, smal.faces, CROP, backend=renderer)
        overlap = metrics.iou(silhouette, batch["mask"], batch["border_mask"])
        errors = {}
        if "gt_verts" in batch:
            for name, found, true in (
                ("pa_mpvpe", estimate.verts, batch["gt_verts"]),
                ("pa_mpjpe", estimate.joints, batch["gt_joints"]),
            ):
                errors[name] = array(metrics.aligned_error(found, true) / body_length)
        groups = {group: pck(group) for group in metrics.GROUPS}
        return MeshScores(pck(), groups, array(overlap, has_mask), **errors)

    meshes = {name: score_mesh(estimate) for name, estimate in out.estimates.items()}
    return Scores(list(batch["name"]), meshes)


@torch.no_grad()
def evaluate(
    model, loader: DataLoader, renderer: str = "auto", on_batch: Callable | None = None
) -> Scores:
    """Scores of a model, in evaluation mode, on all images of a data set, in its order.

    Several processes evaluate their loaders' batches and gather the scores of all.

    Args:
        model: CoarseModel or CoarseToFine.
        loader: of a data set of `datasets`, in its order.
        renderer: backend of `render`.
        on_batch: called with (batch, prediction, scores) of each batch.
    """
    model.eval()
    device = model.device
    parts = []
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not distributed.is_main()):
        batch = to_device(batch, device)
        out = model(batch["image"])
        parts.append(score(out, batch, model.smal, renderer))
        if on_batch is not None:
            on_batch(batch, out, parts[-1])
    return Scores.joined(distributed.gather_interleaved(parts))
