"""The training loop of all stages."""

import itertools
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from datasets.strong import strong_change
from util import distributed
from util.errors import InputError, Interrupted
from util.scores import Scores, nanmean

from .checkpoint import EpochProgress, TrainState
from .cuda_graph import RecordedGradients
from .loaders import Loader, explained_faults, part_sizes, set_epoch, to_device
from .losses import Criterion, term_weights
from .run_folder import RunFolder, SilentRun
from .signals import Stop, deferred

VALIDATION_STEPS = 50  # epochs of fewer steps share validation, checkpoint and images
MOST_SKIPPED = 10  # steps in a row whose loss or gradient is not finite
MOST_FAILED = 0.01  # fraction of the images that may fail under way; a single one always may


class Statistics:
    """Remembers the running statistics of batch norm, which a forward pass changes."""

    def __init__(self, model: nn.Module):
        self.groups: dict[torch.dtype, tuple[list, list]] = {}
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for values in module.buffers(recurse=False):
                    own, kept = self.groups.setdefault(values.dtype, ([], []))
                    own.append(values)
                    kept.append(values.clone())

    @torch.no_grad()
    def remember(self) -> None:
        """Keeps what they are."""
        for own, kept in self.groups.values():
            torch._foreach_copy_(kept, own)

    @torch.no_grad()
    def restore(self) -> None:
        """Sets them to what was kept last."""
        for own, kept in self.groups.values():
            torch._foreach_copy_(own, kept)


class Step(nn.Module):
    """A batch to its weighted terms: networks and criterion as one, for several processes."""

    def __init__(self, model, criterion: Criterion):
        super().__init__()
        self.model, self.criterion = model, criterion

    def forward(
        self, batch: dict, fractions: dict[str, float] | None = None
    ) -> dict[str, torch.Tensor]:
        images = batch["image"]
        if "strong_draws" in batch:
            images = strong_change(images, batch["strong_draws"])
        terms = self.criterion(self.model(images), batch)
        return {k: v * fractions[k] for k, v in terms.items()} if fractions else terms


def divide(batch: dict, parts: int) -> list[tuple[dict, dict[str, float] | None]]:
    """Micro-batches of a batch, and the fractions of its terms that theirs make up.

    Args:
        batch: this process' images of a batch of `EpochBatches`.
        parts: micro-batches wanted; a small batch has fewer.
    """
    if parts == 1:
        return [(batch, None)]
    num_images = distributed.total(torch.tensor(len(batch["image"])))
    sizes = part_sizes(int(num_images), parts)
    own = [len(distributed.interleaved(range(size))) for size in sizes]
    ends = itertools.accumulate(own)
    cuts = [slice(end - size, end) for size, end in zip(own, ends, strict=True)]
    micro = [{key: value[cut] for key, value in batch.items()} for cut in cuts]
    weights = [term_weights(part) for part in micro]
    counts = distributed.total(torch.stack([torch.stack([*w.values()]) for w in weights]))
    fractions = counts / counts.sum(0).clamp_min(1)  # (parts, terms)
    named = [dict(zip(weights[0], row, strict=True)) for row in fractions.tolist()]
    return list(zip(micro, named, strict=True))


def add_gradients(
    step: nn.Module, batch: dict, device: torch.device, parts: int
) -> dict[str, torch.Tensor]:
    """Adds a batch's gradient to that of the parameters, micro-batch by micro-batch.

    Args:
        step: gives the terms of a batch (`Step`).
        batch: from the loader.
        device: of the networks.
        parts: micro-batches.

    Returns:
        The weighted terms of the batch, and their sum, `loss`.
    """
    sums: dict[str, torch.Tensor] = {}
    micro = divide(batch, parts)
    for part, fractions in micro:
        last = part is micro[-1][0]
        with nullcontext() if last else distributed.alone(step):
            terms = step(to_device(part, device), fractions)
            loss = sum(terms.values())
            loss.backward()
        for name, value in {**terms, "loss": loss}.items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
    return sums


@dataclass
class Hooks:
    """What a pass over the images calls.

    on_step: between two steps.
    on_skip: with the batch and the values of a step that was skipped, and the names of its images
        in all processes.
    """

    on_step: Callable[[], None] = lambda: None
    on_skip: Callable[[dict, dict, list], None] = lambda batch, values, names: None


def step_gradients(state: TrainState, criterion: Criterion) -> RecordedGradients:
    """What leaves a batch's gradients in the parameters: recorded where that is possible.

    Returns:
        Takes a batch; gives the weighted terms, their sum `loss`, and the norm of the `gradient`.
    """
    step = distributed.data_parallel(Step(state.model, criterion))
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    device, parts = state.model.device, state.grad_accum

    def compute(batch: dict) -> dict[str, torch.Tensor]:
        terms = add_gradients(step, batch, device, parts)
        found = [p.grad for p in parameters if p.grad is not None]
        return terms | {"gradient": nn.utils.get_total_norm(found)}

    possible = device.type == "cuda" and distributed.world_size() == 1 and parts == 1
    waits = torch.is_anomaly_enabled()  # who looks for the origin of a NaN waits for the device
    return RecordedGradients(compute, parameters, state.cuda_graph and possible and not waits)


def train_epoch(
    state: TrainState,
    gradients: RecordedGradients,
    loader: DataLoader,
    description: str = "epoch",
    stop: Stop | None = None,
    hooks: Hooks | None = None,
    last: bool = True,
) -> dict[str, float]:
    """The rest of a pass over the training images, after `state.progress`.

    A step whose loss or gradient is not finite is skipped, by all processes: it changes nothing.

    Args:
        state: of the run, updated in place.
        gradients: of a batch (`step_gradients`).
        loader: of the training images, set to the epoch and to the first batch.
        description: of the progress bar.
        stop: what signals asked for; all processes know after each step.
        hooks: called under way.
        last: whether training ends with this epoch, so that it must not be skipped whole.

    Returns:
        The mean of each weighted term and of their sum, `loss`, over the epoch; empty where every
        step was skipped.

    Raises:
        InputError: none of ten steps in a row was finite, or too many images failed.
    """
    model, optimizer, done = state.model.train(), state.optimizer, state.progress
    stop, hooks, schedule = stop or Stop(), hooks or Hooks(), state.schedule
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    statistics = Statistics(model)
    total = len(loader)
    silent = not distributed.is_main()
    bar = tqdm(loader, description, leave=False, initial=done.steps, total=total, disable=silent)
    for batch in bar:
        statistics.remember()
        optimizer.zero_grad(set_to_none=True)
        terms = gradients(batch)
        values = _numbers(terms)
        if gradients.replayed and not all(map(math.isfinite, values.values())):
            statistics.restore()  # a silhouette may have lacked room, which happens only in a graph
            optimizer.zero_grad(set_to_none=True)
            terms = gradients.compute(batch)
            values = _numbers(terms)
        numbers = values.values()
        failed = list(filter(None, batch.get("failed", [])))
        own = [len(batch["image"]), len(failed), not all(map(math.isfinite, numbers))]
        elapsed, size, num_failed, spoilt = _agree(state, stop, own)
        rate = schedule.factor(state.epoch + done.steps / total, state.step, elapsed)
        state.step, done.steps = state.step + 1, done.steps + 1
        if not spoilt:
            if values.pop("gradient") > state.grad_clip:
                nn.utils.clip_grads_with_norm_(parameters, state.grad_clip, terms["gradient"])
            _update(state, rate)
            done.images, state.skipped = done.images + int(size), 0
            for name, value in values.items():
                done.sums[name] = done.sums.get(name, 0.0) + value * size
        else:
            statistics.restore()
            done.skipped, state.skipped = done.skipped + 1, state.skipped + 1
            names = distributed.gather_interleaved(list(batch["name"]))
            hooks.on_skip(batch, values, names)
            if state.skipped >= MOST_SKIPPED or (last and done.skipped == total):
                advice = "nothing of them was kept; lower the learning rate, or look at the images "
                advice += ", ".join(names)
                count = f"in {state.skipped} steps in a row"
                raise InputError(f"the loss is not finite ({values}) {count}: {advice}")
        if num_failed:
            _count_failed(done, failed)
        bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
        hooks.on_step()
        if elapsed >= 1:
            break
    return {name: value / done.images for name, value in done.sums.items()}


def _numbers(values: dict[str, torch.Tensor]) -> dict[str, float]:
    """What tensors () hold; here a step waits for the device."""
    return dict(zip(values, torch.stack([*values.values()]).tolist(), strict=True))


def _update(state: TrainState, rate: float) -> None:
    """The optimiser's step, at this fraction of the learning rate."""
    for group in state.optimizer.param_groups:
        group["lr"] = state.optimizer.defaults["lr"] * rate
    state.optimizer.step()
    if state.average:
        state.average.update(state.model, state.step)


def _count_failed(done: EpochProgress, failed: list[str]) -> None:
    """Adds what all processes could not read in this step; refuses too much of it."""
    done.failed += itertools.chain(*distributed.gather_interleaved([failed]))
    if len(done.failed) > max(1, MOST_FAILED * done.dataset_size):
        found = f"{_failures(done.failed)}: more than 1 % of the images"
        raise InputError(f"{found}; see to the data, then resume")


def _failures(failed: list[str]) -> str:
    shown = "; ".join(failed[:20]) + ("; ..." if len(failed) > 20 else "")
    return f"images that could not be read and were replaced: {len(failed)} ({shown})"


def fit(
    state: TrainState,
    criterion: Criterion,
    loader: Loader,
    validate: Callable[[], Scores],
    run: RunFolder | SilentRun,
    epochs: int,
    on_validation: Callable[[TrainState], None] | None = None,
) -> None:
    """Trains from `state` to `epochs`, logging, validating and saving each epoch.

    Epochs of fewer than VALIDATION_STEPS steps are validated and saved once in that many steps, and
    at the end. SIGTERM and SIGINT save between two steps, or in validation, and leave.

    Args:
        state: of the run, updated in place.
        criterion: the losses.
        loader: of the training images.
        validate: scores of the model on the validation images.
        run: folder of the run, of this state.
        epochs: in all.
        on_validation: called with the state before each checkpoint.

    Raises:
        Interrupted: by a signal; a checkpoint was saved.
    """
    interval = math.ceil(VALIDATION_STEPS / len(loader))  # epochs
    gradients = step_gradients(state, criterion)
    size = len(loader.dataset)  # type: ignore[arg-type]
    if state.progress.dataset_size != size:  # of other images: the epoch begins again
        state.progress = EpochProgress(size)
    with deferred() as stop, explained_faults():
        for epoch in range(state.epoch, epochs):
            start = time.monotonic() - state.progress.seconds
            set_epoch(loader, epoch, state.progress.steps)

            def save(start=start):
                state.progress.seconds = time.monotonic() - start
                run.save()

            def on_step(save=save):
                due = run.save_every and state.step % run.save_every == 0
                if stop.due or (due and not state.skipped):
                    save()
                if stop.due:
                    distributed.barrier()  # a process that ends ends the others: after the save
                stop.check()

            description = f"epoch {epoch + 1}/{epochs}"
            last = epoch + 1 == epochs
            hooks = Hooks(on_step, run.skipped)
            given: dict = {"stop": stop, "hooks": hooks, "last": last}
            terms = train_epoch(state, gradients, loader, description, **given)
            over = _agree(state, stop, [])[0] >= 1
            if not (last or over):
                set_epoch(loader, epoch + 1)
                loader.begin()  # while the networks are validated
            scores = None
            if terms and (last or over or (epoch + 1) % interval == 0):
                distributed.copy_buffers(state.scored)
                scores = _validate(validate, stop, save)
            _finish_epoch(state, terms, scores, run, description, on_validation, start)
            if over:
                run.line(f"ended after {state.schedule.max_minutes:g} minutes (--max_minutes)")
            _agree(state, stop, [])
            if stop.due:
                if scores is None:
                    run.save()
                distributed.barrier()
            stop.check()
            if over:
                break


def _agree(state: TrainState, stop: Stop, own: list) -> list[float]:
    """The part of the run's time that is over, by the first process' clock, and sums of `own`.

    A signal to one process becomes one to all.
    """
    elapsed = state.schedule.elapsed() if distributed.is_main() else 0.0
    numbers = torch.tensor([stop.signum is not None, elapsed, *own], dtype=torch.float64)
    signals, *sums = distributed.total(numbers).tolist()
    if signals:
        stop.agree()
    return sums


def _validate(validate: Callable[[], Scores], stop: Stop, save: Callable[[], None]) -> Scores:
    """Scores; a signal saves the state, in which all steps of the epoch are done."""
    try:
        with stop.at_once():
            return validate()
    except (Interrupted, RuntimeError):  # the second where another process has left
        save()
        raise


def _finish_epoch(state, terms, scores, run, description, on_validation, start):
    """Logs an epoch and then, where it was validated, saves it, so that its line is never lost."""
    done, state.progress = state.progress, EpochProgress(state.progress.dataset_size)
    state.epoch += 1
    if done.failed:
        run.line(f"{_failures(done.failed)} in {description}")
    if done.skipped:
        terms = terms | {"skipped": done.skipped}
    run.scalars("train", terms, state.step)
    line = f"{description}  " + "  ".join(f"{k} {v:.4g}" for k, v in terms.items())
    if scores is not None:
        means = {name: nanmean(values) for name, values in scores.columns().items()}
        run.scalars("val", {k: v for k, v in means.items() if math.isfinite(v)}, state.step)
        shown = [k for k in ("pck", "iou", "pck_refined", "iou_refined") if k in means]
        line += "  |  val " + "  ".join(f"{k} {100 * means[k]:.1f}" for k in shown)
        selection = float(scores.selection_score())
        if selection > state.best_score:
            state.best_score = selection
            line += "  best"
            best = {k: means[k] for k in shown if math.isfinite(means[k])}
            run.scalars("best", {"score": selection, **best}, state.step)
            run.save_best()
        if on_validation is not None and distributed.is_main():
            on_validation(state)
    run.line(f"{line}  |  {time.monotonic() - start:.1f} s")
    if scores is not None:
        run.save()
