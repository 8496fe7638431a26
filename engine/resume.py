"""Runs that resume: which checkpoint, whether it is of this run, and the folder that continues."""

import argparse
import math
from pathlib import Path

from util import distributed
from util.errors import Finished, InputError

from .build import Loaders, make_output_dir
from .checkpoint import Checkpoint, EpochProgress, TrainState, load_checkpoint
from .options import AUTO, FREE, STEERING
from .run_folder import CHECKPOINT, DAMAGED, PREVIOUS, RunFolder, SilentRun

ORDER = ("dataset", "mix", "data_dir", "seed", "batch_size")  # what puts the images in order


def find_checkpoint(args: argparse.Namespace) -> Checkpoint | None:
    """The checkpoint that --resume names, else that of --pretrained; None: there is none.

    `auto` and a run folder stand for the newest whole checkpoint of the folder.

    Raises:
        InputError: it is missing or damaged.
    """
    pretrained = getattr(args, "pretrained", None)
    if args.resume == AUTO:
        checkpoint = _newest(args.output_dir)
        if checkpoint is not None:
            return checkpoint
        if pretrained is not None:
            return open_checkpoint(pretrained)
        if getattr(args, "freezecoarse", False):
            needed = f"--freezecoarse needs --pretrained: {args.output_dir} holds no checkpoint"
            raise InputError(f"{needed}, and a coarse network with random weights would be frozen")
        return None
    source = args.resume or pretrained
    return open_checkpoint(source) if source else None


def open_checkpoint(source: Path) -> Checkpoint:
    """A checkpoint, or the newest whole one of a run folder.

    Raises:
        InputError: it is missing or damaged.
    """
    if not source.is_dir():
        return load_checkpoint(source)
    checkpoint = _newest(source)
    if checkpoint is None:
        raise InputError(f"{source} holds no {CHECKPOINT}; give a checkpoint or another folder")
    return checkpoint


def _newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run folder; a line says which are damaged."""
    paths = [p for name in (CHECKPOINT, PREVIOUS) if (p := folder / name).exists()]
    faults = []
    for path in paths:
        try:
            checkpoint = load_checkpoint(path)
        except InputError as error:
            faults.append(str(error))
            continue
        if faults:
            print(f"{faults[0]}; {path} is used instead.")
        return checkpoint
    if faults:
        raise InputError(
            f"no checkpoint in {folder} can be read: {'; '.join(faults)}; without --resume "
            "training starts anew and moves them aside"
        )
    return None


def training_options(args: argparse.Namespace) -> dict:
    """What steers learning, as a checkpoint stores it."""
    options = {name: value for name, value in vars(args).items() if name in STEERING}
    fit_dir = args.fit_dir and str(args.fit_dir.resolve())
    return options | {"data_dir": str(args.data_dir.resolve()), "fit_dir": fit_dir}


def resume(state: TrainState, checkpoint: Checkpoint | None, args: argparse.Namespace) -> list[str]:
    """Continues the checkpoint's run where it is of this stage.

    A file without optimiser state (model_best) is a start, not a run to resume.

    Returns:
        The options that differ from that run's, as `--name value (was other)`.

    Raises:
        InputError: with `auto`, they change what is learnt from, or the run is of another stage.
    """
    changed = {}
    own_names = [args.output_dir / name for name in (CHECKPOINT, PREVIOUS)]
    own = args.resume == AUTO and checkpoint is not None and checkpoint.path in own_names
    if checkpoint and (own or args.resume not in (None, AUTO)):
        state.resumed = checkpoint.resumable and checkpoint.stage == state.stage
    if checkpoint and own and not state.resumed:
        raise InputError(
            f"{checkpoint.path} is of stage {checkpoint.stage}, this is stage {state.stage}; give "
            "another --output_dir, and that file as --pretrained or --resume"
        )
    if checkpoint and state.resumed:
        before = checkpoint.content.get("training", {})
        for name, value in state.training.items():
            if before.get(name, value) != value:
                changed[name] = f"--{name} {value} (was {before[name]})"
        refused = [text for name, text in changed.items() if name not in FREE]
        if args.resume == AUTO and refused:
            raise InputError(
                f"{checkpoint.path} is of a run with other options: {', '.join(refused)}; leave "
                f"them as they were, or give --resume {checkpoint.path} to resume with these"
            )
        state.load_state_dict(checkpoint)
        if state.progress.steps and any(name in changed for name in ORDER):
            state.progress = EpochProgress()  # its images came in another order
    elif checkpoint and args.load_optimizer:
        state.load_optimizer(checkpoint)
    if args.start_epoch is not None:
        state.epoch, state.progress = args.start_epoch, EpochProgress()
    if not in_place(state, checkpoint, args) or "dataset" in changed or "data_dir" in changed:
        state.best_score = -math.inf  # no epoch of this folder was scored on these images yet
    return list(changed.values())


def in_place(state: TrainState, checkpoint: Checkpoint | None, args: argparse.Namespace) -> bool:
    """Whether a run resumes in its own folder: else what that holds is moved aside."""
    if checkpoint is None or not state.resumed:
        return False
    if args.resume == AUTO or args.resume.is_dir():  # its newest whole checkpoint, then
        return checkpoint.path.parent.resolve() == args.output_dir.resolve()
    return checkpoint.path.resolve() == (args.output_dir / CHECKPOINT).resolve()


def open_run(
    state: TrainState, checkpoint: Checkpoint | None, args: argparse.Namespace, loaders: Loaders
) -> RunFolder | SilentRun:
    """The run's folder, opened, with a first line that says what runs.

    A run that resumes in its folder says so on the screen alone: its log stays that of one run.

    Args:
        state: of the run, not yet resumed.
        checkpoint: from which it starts, or None.
        args: of the script.
        loaders: of the images.
    """
    changed = resume(state, checkpoint, args)
    weights = str(checkpoint.content.get("checksum"))[:8] if checkpoint else "none"
    start = f"weights {weights}, epoch {state.epoch + 1}, step {state.progress.steps + 1}"
    # All have read the checkpoint when this is done: the folder's files may be moved.
    if found := distributed.difference(start):
        wanted = "--output_dir and the checkpoint must be on a disk that all machines share"
        raise InputError(f"the processes start from different checkpoints ({found}): {wanted}")
    if state.epoch >= args.nEpochs:
        raise Finished(
            f"Nothing to do: {state.epoch} of {args.nEpochs} epochs are done (--nEpochs)."
        )
    if state.resumed and state.schedule.elapsed() >= 1:
        raise Finished(f"Nothing to do: its {args.max_minutes:g} minutes are over (--max_minutes).")
    if not distributed.is_main():
        return SilentRun()
    if args.resume == AUTO and checkpoint is None:
        print(f"--resume auto: {args.output_dir} holds no checkpoint: it starts anew.")
    make_output_dir(args.output_dir)
    here = in_place(state, checkpoint, args)
    if here and checkpoint and checkpoint.path.name == PREVIOUS:
        if (args.output_dir / CHECKPOINT).exists():
            (args.output_dir / CHECKPOINT).replace(args.output_dir / DAMAGED)
    options = vars(args) | state.config.to_dict()
    run = RunFolder(args.output_dir, options, state, here, args.save_every)
    sets: list = [loaders.train.dataset, loaders.val.dataset]
    train, val = map(len, sets)
    line = f"stage {state.stage} on {state.model.device}: {train} training and {val} validation"
    line += " images"
    if distributed.world_size() > 1:
        line = f"{distributed.world_size()} processes, {line}"
    if loaders.excluded:
        line += f" ({loaders.excluded} unusable ones left out; python -m datasets.check lists them)"
    if checkpoint:
        verb = "resumes" if state.resumed else "starts from"
        line += f"; {verb} {checkpoint.path}, epoch {state.epoch + 1}"
    if state.progress.steps:
        line += f", step {state.progress.steps + 1}"
    if here:
        print(line)
    else:
        run.line(line)
    if changed:
        run.line(f"resumes with other options than it was started with: {', '.join(changed)}")
    return run
