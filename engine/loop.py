"""The training loop of all stages."""

import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from util import distributed
from util.errors import InputError
from util.scores import Scores, nanmean

from .checkpoint import TrainState, save_checkpoint
from .loaders import set_epoch, to_device
from .losses import Criterion
from .run_folder import BEST, CHECKPOINT, RunFolder

VALIDATION_STEPS = 50  # epochs of fewer steps share validation, checkpoint and images


class Step(nn.Module):
    """A batch to its weighted terms: networks and criterion as one, for several processes."""

    def __init__(self, model, criterion: Criterion):
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(self, batch: dict) -> dict[str, torch.Tensor]:
        return self.criterion(self.model(batch["image"]), batch)


def train_epoch(
    state: TrainState, step: nn.Module, loader: DataLoader, description: str = "epoch"
) -> dict[str, float]:
    """One pass over the training images; returns the mean of each weighted term and of their sum.

    Args:
        state: of the run, updated in place.
        step: gives the terms of a batch (`Step`).
        loader: of the training images.
        description: of the progress bar.

    Raises:
        InputError: the loss is not finite; the weights are not touched by it.
    """
    model, optimizer = state.model.train(), state.optimizer
    device = model.device
    sums: dict[str, float] = {}
    schedule = state.schedule
    images = 0
    bar = tqdm(loader, desc=description, leave=False, disable=not distributed.is_main())
    for batch in bar:
        # the first process' clock counts
        own = [len(batch["image"]), schedule.elapsed() if distributed.is_main() else 0.0]
        size, elapsed = distributed.total(torch.tensor(own, dtype=torch.float64)).tolist()
        if elapsed >= 1 and images:
            break
        for group in optimizer.param_groups:
            group["lr"] = optimizer.defaults["lr"] * schedule.factor(state.step, elapsed)
        batch = to_device(batch, device)
        terms = step(batch)
        loss = sum(terms.values())
        numbers = torch.stack([*terms.values(), loss]).tolist()
        values = dict(zip([*terms, "loss"], numbers, strict=True))
        if not math.isfinite(values["loss"]):
            advice = f"lower --lr, or look at the images {', '.join(batch['name'])}"
            raise InputError(f"the loss is not finite ({values}); {advice}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        images, state.step = images + size, state.step + 1
        if state.average:
            state.average.update(state.model, state.step)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value * size
        bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
    return {name: value / images for name, value in sums.items()}


def fit(
    state: TrainState,
    criterion: Criterion,
    loader: DataLoader,
    validate: Callable[[], Scores],
    run: RunFolder,
    epochs: int,
    on_validation: Callable[[TrainState], None] | None = None,
) -> None:
    """Trains from state.epoch to `epochs`, logging, validating and saving each epoch.

    Epochs of fewer than VALIDATION_STEPS steps are validated and saved once in that many steps, and
    at the end.

    Args:
        state: of the run, updated in place.
        criterion: the losses.
        loader: of the training images.
        validate: scores of the model on the validation images.
        run: folder of the run.
        epochs: in all.
        on_validation: called with the state after each checkpoint.
    """
    interval = math.ceil(VALIDATION_STEPS / len(loader))  # epochs
    step = distributed.data_parallel(Step(state.model, criterion))
    for epoch in range(state.epoch, epochs):
        start = time.monotonic()
        set_epoch(loader, epoch)
        terms = train_epoch(state, step, loader, f"epoch {epoch + 1}/{epochs}")
        state.epoch = epoch + 1
        over = schedule_is_over(state)
        run.scalars("train", terms, state.step)
        line = f"epoch {epoch + 1}/{epochs}  " + "  ".join(f"{k} {v:.4g}" for k, v in terms.items())
        if over or epoch + 1 == epochs or (epoch + 1) % interval == 0:
            distributed.copy_buffers(state.scored)
            line += _validate_and_save(state, validate(), run)
            if on_validation is not None and distributed.is_main():
                on_validation(state)
        run.line(f"{line}  |  {time.monotonic() - start:.1f} s")
        if over:
            run.line(f"ended after {state.schedule.max_minutes:g} minutes (--max_minutes)")
            break


def schedule_is_over(state: TrainState) -> bool:
    """Whether the time of the run is up, by the first process' clock."""
    own = float(distributed.is_main() and state.schedule.elapsed() >= 1)
    return bool(distributed.total(torch.tensor(own)))


def _validate_and_save(state: TrainState, scores: Scores, run: RunFolder) -> str:
    """Logs the scores, saves the checkpoints; returns what the epoch's line says of it."""
    means = {name: nanmean(values) for name, values in scores.columns().items()}
    run.scalars("val", {k: v for k, v in means.items() if math.isfinite(v)}, state.step)
    shown = [k for k in ("pck", "iou", "pck_refined", "iou_refined") if k in means]
    line = "  |  val " + "  ".join(f"{k} {100 * means[k]:.1f}" for k in shown)
    selection = scores.selection_score()
    if selection > state.best_score:
        state.best_score = selection
        line += "  best"
        save_checkpoint(run.folder / BEST, state.weights_dict())
    save_checkpoint(run.folder / CHECKPOINT, state.state_dict())
    return line
