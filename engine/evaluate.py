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

from .loaders import explained_faults, to_device, without_failed


def score(out: Prediction, batch: dict, smal: SMAL, renderer: str = "auto") -> Scores:
    """Scores of a prediction, one an image.

    Args:
        out: of the networks or of a fit.
        batch: samples of a data set, collated, on the same device.
        smal: the body.
        renderer: backend of `render`.
    """
    has_mask, has_keypoints = batch["has_mask"], batch["has_keypoints"]
    weight = batch["mask_weight"]  # (B, 224, 224)
    area = torch.where(has_mask, batch["mask"].sum((1, 2)), batch["area"])  # (B,), square pixels
    body_length = smal.template[:, 0].max() - smal.template[:, 0].min()

    def array(values: torch.Tensor, known=None) -> np.ndarray:
        values = values if known is None else values.where(known, math.nan)
        return values.double().cpu().numpy()

    def score_mesh(estimate: Estimate) -> MeshScores:
        def pck(group=None):
            points = estimate.keypoints_px, batch["keypoints"]
            return array(metrics.pck(*points, area, group=group), has_keypoints)

        silhouette = render.coverage(estimate.plane, smal.faces, CROP, backend=renderer)
        labels = batch["mask"] * weight, batch["border_mask"]
        overlap = metrics.iou(silhouette * weight, *labels)  # what is unsure counts in neither sum
        seen, true = silhouette >= 0.5, batch["mask"] >= 0.5  # (B, 224, 224)
        counts = (batch["inside"] * weight) > 0
        both, either = ((x & counts).sum((1, 2)) for x in (seen & true, seen | true))
        errors = {}
        if "gt_verts" in batch:
            for name, found, true in (
                ("pa_mpvpe", estimate.verts, batch["gt_verts"]),
                ("pa_mpjpe", estimate.joints, batch["gt_joints"]),
            ):
                errors[name] = array(metrics.aligned_error(found, true) / body_length)
        groups = {group: pck(group) for group in metrics.GROUPS}
        distance = (estimate.keypoints_px - batch["keypoints"][..., :2]).norm(dim=-1)  # (B, K)
        distance = distance.nan_to_num(math.inf)  # as `metrics.pck` takes it: missed
        labelled = (batch["keypoints"][..., 2] > 0) & has_keypoints[:, None]
        relative = array(distance / area.sqrt()[:, None], labelled)
        overlaps = array(overlap, has_mask), array(both / either, has_mask)
        return MeshScores(pck(), groups, *overlaps, relative, **errors)

    meshes = {name: score_mesh(estimate) for name, estimate in out.estimates.items()}
    return Scores(list(batch["name"]), meshes)


@torch.no_grad()
@explained_faults()
def score_images(
    predict: Callable[[dict], Prediction],
    loader: DataLoader,
    smal: SMAL,
    renderer: str = "auto",
    on_batch: Callable | None = None,
    title: str = "evaluate",
) -> Scores:
    """Scores of predictions for all images of a data set, in its order.

    Several processes take their loaders' batches and gather the scores of all.

    Args:
        predict: from a batch to its prediction, on the device of `smal`.
        loader: of a data set of `datasets`, in its order.
        smal: the body.
        renderer: backend of `render`.
        on_batch: called with (batch, prediction, scores) of each batch.
        title: of the progress bar.
    """
    parts: list[Scores | None] = []
    for batch in tqdm(loader, desc=title, leave=False, disable=not distributed.is_main()):
        batch = to_device(without_failed(batch), smal.template.device)
        if not batch["name"]:
            parts.append(None)  # keeps the turns of the processes
            continue
        out = predict(batch)
        scores = score(out, batch, smal, renderer)
        parts.append(scores)
        if on_batch is not None:
            on_batch(batch, out, scores)
    parts = distributed.gather_interleaved(parts)
    return Scores.joined([part for part in parts if part is not None])


def evaluate(
    model,
    loader: DataLoader,
    renderer: str = "auto",
    on_batch: Callable | None = None,
    refine: Callable | None = None,
) -> Scores:
    """Scores of a model, in evaluation mode, as `score_images` gives them.

    Args:
        model: CoarseModel or CoarseToFine.
        loader, renderer, on_batch: as there.
        refine: takes (batch, prediction) and gives one fitted to the labels, scored as `fitted`.
    """
    model.eval()

    def predict(batch: dict) -> Prediction:
        out = model(batch["image"])
        if refine is not None:
            out.fitted = refine(batch, out).finest
        return out

    return score_images(predict, loader, model.smal, renderer, on_batch)
