"""The training loop and the evaluator that all scripts share."""

import math
import os
import time
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from tqdm import tqdm

import render

from . import metrics
from .camera import CROP, keypoints_row_col, project
from .checkpoint import save_checkpoint
from .logging import BEST, CHECKPOINT, RunFolder
from .losses import Criterion

VALIDATION_STEPS = 50  # epochs of fewer steps share validation, checkpoint and pictures
NUM_PICTURES = 4  # validation images shown in TensorBoard


class EpochBatches(Sampler):
    """Batches of indices, shuffled by (seed, epoch) alone. One index left over joins the batch before it: batch norm cannot learn
    from a single image."""

    def __init__(self, num_images: int, batch_size: int, seed: int):
        self.num_images, self.batch_size, self.seed, self.epoch = num_images, batch_size, seed, 0

    def __iter__(self):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images).tolist()
        batches = [order[i : i + self.batch_size] for i in range(0, self.num_images, self.batch_size)]
        if self.batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            left = batches.pop()
            batches[-1] += left
        return iter(batches)

    def __len__(self):
        full, left = divmod(self.num_images, self.batch_size)
        return max(1, full + (left > 1))


def _start_worker(_):
    cv2.setNumThreads(0)


def make_loader(dataset: Dataset, batch_size: int, num_works: int, device, batches: Sampler | None = None) -> DataLoader:
    """Loader in the data set's order, or in that of `batches`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    order = {"batch_sampler": batches} if batches is not None else {"batch_size": batch_size}
    return DataLoader(
        dataset,
        num_workers=min(num_works, cores),
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        persistent_workers=num_works > 0,
        **order,
    )


def to_device(batch: dict, device) -> dict:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


@dataclass
class Scores:
    """Per-image values by name; a mean leaves NaN out (an image without a visible keypoint has no PCK)."""

    names: list[str] = field(default_factory=list)
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, names, values: dict[str, torch.Tensor]):
        self.names += names
        for key, value in values.items():
            self.values.setdefault(key, []).extend(value.tolist())

    def means(self) -> dict[str, float]:
        arrays = {key: np.asarray(value) for key, value in self.values.items()}
        return {key: float(np.nanmean(a)) if np.isfinite(a).any() else math.nan for key, a in arrays.items()}

    def figure_of_merit(self) -> float:
        """What chooses the best epoch: the mean of PCK and IoU of the finest mesh."""
        means = self.means()
        suffix = "_refined" if "pck_refined" in means else ""
        return float(np.nansum([means[f"pck{suffix}"], means[f"iou{suffix}"]])) / 2


def score(output, batch, faces, renderer: str, body_length: float | None = None) -> dict[str, torch.Tensor]:
    """Per-image metrics of a prediction: pck, pck_<group>, iou and, where the batch has the truth, pa_mpvpe and pa_mpjpe (in body
    lengths); with `_refined` for the refined mesh."""
    area = batch["mask"].sum((1, 2))  # (B,)
    out = {}
    for suffix, (verts, joints) in output.meshes.items():
        places = keypoints_row_col(joints, output.scale)  # (B, 20, 2)
        out[f"pck{suffix}"] = metrics.pck(places, batch["keypoints"], area)
        for group in metrics.GROUPS:
            out[f"pck{suffix}_{group}"] = metrics.pck(places, batch["keypoints"], area, group=group)
        silhouette = render.coverage(project(verts, output.scale), faces, CROP, backend=renderer)  # (B, 224, 224)
        out[f"iou{suffix}"] = metrics.iou(silhouette, batch["mask"], batch["border_mask"])
        if "truth_verts" in batch and body_length is not None:
            for name, predicted, true in (
                ("pa_mpvpe", verts, batch["truth_verts"]),
                ("pa_mpjpe", joints, batch["truth_joints"]),
            ):
                out[name + suffix] = metrics.aligned_error(predicted, true) / body_length
    return out


@torch.no_grad()
def evaluate(model, loader, device, renderer: str, on_batch=None, show_progress=True) -> Scores:
    """Runs the model in evaluation mode over all images. on_batch(batch, output, values) sees each batch on its way."""
    model.eval()
    smal = model.smal
    body_length = float(smal.template[:, 0].max() - smal.template[:, 0].min())
    scores = Scores()
    for batch in tqdm(loader, desc="evaluate", leave=False, disable=not show_progress):
        batch = to_device(batch, device)
        output = model(batch["image"])
        values = score(output, batch, smal.faces, renderer, body_length)
        scores.add(batch["name"], values)
        if on_batch is not None:
            on_batch(batch, output, values)
    return scores


def train_epoch(model, criterion: Criterion, optimizer, loader, device, description: str) -> tuple[dict[str, float], int]:
    """One pass over the training images; returns the mean of each weighted term and of their sum, and the number of steps.

    Raises FloatingPointError where the loss is not finite, before the weights are touched by it.
    """
    model.train()
    sums, images, steps = {}, 0, 0
    bar = tqdm(loader, desc=description, leave=False)
    for batch in bar:
        batch = to_device(batch, device)
        terms = criterion(model(batch["image"]), batch)
        loss = sum(terms.values())
        values = dict(zip([*terms, "loss"], torch.stack([*terms.values(), loss]).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            names = ", ".join(batch["name"])
            raise FloatingPointError(f"the loss is not finite ({values}); lower --lr, or look at the images {names}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        size = len(batch["image"])
        images, steps = images + size, steps + 1
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * size
        bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
    return {name: value / images for name, value in sums.items()}, steps


@dataclass
class Progress:
    """Where a run stands; what a checkpoint keeps beside weights and optimiser."""

    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf


def fit(
    model, criterion, optimizer, train_set, val_set, args, device, run: RunFolder, progress: Progress, saved: dict, draw
):  # fmt: skip
    """Trains from progress.epoch to args.nEpochs, logging, validating and saving each epoch.

    `saved` is written into every checkpoint (options, stage); draw(batch, output) gives the picture for TensorBoard.
    Epochs of fewer than VALIDATION_STEPS steps are validated and saved once in that many steps, and at the end.
    """
    batches = EpochBatches(len(train_set), args.batch_size, args.seed)
    train_loader = make_loader(train_set, args.batch_size, args.num_works, device, batches)
    val_loader = make_loader(val_set, args.batch_size, min(args.num_works, len(val_set)), device)
    shown = default_collate([val_set[i] for i in range(min(NUM_PICTURES, len(val_set)))])
    shown = to_device(shown, device)
    interval = math.ceil(VALIDATION_STEPS / len(batches))  # epochs
    for epoch in range(progress.epoch, args.nEpochs):
        start = time.monotonic()
        train_set.set_epoch(epoch)
        batches.epoch = epoch
        terms, steps = train_epoch(model, criterion, optimizer, train_loader, device, f"epoch {epoch + 1}/{args.nEpochs}")
        progress.epoch, progress.step = epoch + 1, progress.step + steps
        run.scalars("train", terms, progress.step)
        line = f"epoch {epoch + 1}/{args.nEpochs}  " + "  ".join(f"{name} {value:.4g}" for name, value in terms.items())

        if epoch + 1 == args.nEpochs or (epoch + 1) % interval == 0:
            scores = evaluate(model, val_loader, device, args.renderer)
            means, merit = scores.means(), scores.figure_of_merit()
            run.scalars("val", {k: v for k, v in means.items() if math.isfinite(v)}, progress.step)
            shown_means = [k for k in ("pck", "iou", "pck_refined", "iou_refined") if k in means]
            line += "  |  val " + "  ".join(f"{k} {100 * means[k]:.1f}" for k in shown_means)
            if merit > progress.best_score:
                progress.best_score = merit
                line += "  best"
                save_checkpoint(run.folder / BEST, {"state_dict": model.state_dict(), **vars(progress), **saved})
            state = {"optimizer": optimizer.state_dict(), "random_state": torch.get_rng_state()}
            save_checkpoint(run.folder / CHECKPOINT, {"state_dict": model.state_dict(), **vars(progress), **saved, **state})
            with torch.no_grad():
                run.picture("val", draw(shown, model.eval()(shown["image"])), progress.step)
        run.line(f"{line}  |  {time.monotonic() - start:.1f} s")
