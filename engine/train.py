"""From parsed options to a finished training run: what main.py and main_meshgraph.py share."""

import math

import torch

from .build import build_criterion, build_model, build_training_sets, check_renderer, start_from, stored_options
from .checkpoint import load_checkpoint
from .engine import Progress, fit
from .logging import CHECKPOINT, RunFolder
from .options import (
    NETWORK_DEFAULTS,
    REFINER_DEFAULTS,
    check_output_dir,
    check_training,
    make_output_dir,
    one_sentence,
    resolve_network,
    select_device,
)
from .results import batch_strips, evaluate_and_report
from .visualize import picture_grid


def train(args, refined: bool):
    """Stage 1 (refined=False), or stages 2 and 3. All that bad input can break happens before the run folder is touched."""
    with one_sentence():
        torch.manual_seed(args.seed)
        pretrained = getattr(args, "pretrained", None)
        checkpoint = None
        if args.resume or pretrained:
            checkpoint = load_checkpoint(args.resume or pretrained, "--resume" if args.resume else "--pretrained")
        defaults = NETWORK_DEFAULTS | (REFINER_DEFAULTS if refined else {})
        resolve_network(args, checkpoint and checkpoint.options, defaults, checkpoint and checkpoint.path)
        check_training(args)
        check_output_dir(args)
        device = select_device(args)
        frozen = refined and args.freezecoarse
        stage = 3 if refined and not frozen else 2 if refined else 1
        # A file without optimiser state (model_best) is a start, not a run to go on with.
        continued = bool(args.resume) and checkpoint.stage == stage and "optimizer" in checkpoint.content
        check_renderer(args, device)

        model = build_model(args, refined, "none" if checkpoint else args.backbone_weights)
        if checkpoint:
            start_from(model, checkpoint)
        if frozen:
            model.freeze_coarse()
        if args.freeze_bn:
            (model.meshnet if refined else model).freeze_batch_norm()
        if args.bf16:
            model.use_bf16()
        model.to(device)
        train_set, val_set, excluded = build_training_sets(args)
        if args.evaluate:
            make_output_dir(args)
    if args.evaluate:
        evaluate_and_report(model, val_set, args, device, checkpoint.path, excluded)
        return

    with one_sentence():
        statistics = not frozen and not args.freeze_bn  # batch norm takes them from each batch
        if len(train_set) < 2 and statistics:
            raise ValueError("batch norm needs two training images or more; this training split has one")
        if args.batch_size < 2 and statistics:
            raise ValueError("--batch_size 1: batch norm cannot learn from a single image; give 2 or more, or --freeze_bn")
        criterion = build_criterion(args, model.smal, refined).to(device)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=args.lr, fused=True)
        progress = _take_over(args, checkpoint, continued, optimizer) if checkpoint else Progress()
        if args.start_epoch is not None:
            progress.epoch = args.start_epoch
        if progress.epoch >= args.nEpochs:
            print(f"Nothing to do: {progress.epoch} of {args.nEpochs} epochs are done (--nEpochs).")
            return
        # Only its last checkpoint goes on in a folder; from any other file, what the folder holds would be overwritten.
        in_place = continued and checkpoint.path.resolve() == (args.output_dir / CHECKPOINT).resolve()
        changed = _changed_options(args, checkpoint) if continued else {}
        if not in_place or "dataset" in changed or "data_dir" in changed:
            progress.best_score = -math.inf  # no epoch of this folder was scored on these images yet
        make_output_dir(args)
        run = RunFolder(args.output_dir, args, device, in_place, progress.step)

    run.line(
        f"stage {stage} on {device}: {len(train_set)} training and {len(val_set)} validation images"
        + (f" ({excluded} unusable ones left out; python -m datasets.check lists them)" if excluded else "")
        + (f"; {'continues' if continued else 'starts from'} {checkpoint.path}, epoch {progress.epoch + 1}" if checkpoint else "")
    )
    if changed:
        run.line(f"continues with other options than it was begun with: {', '.join(changed.values())}")

    def draw(batch, output):
        return picture_grid(batch_strips(batch, output, model.smal.faces, args.renderer))

    saved = {"options": stored_options(args, refined), "stage": stage, "training": _training_options(args)}
    saved["num_verts"] = model.smal.num_verts
    try:
        fit(model, criterion, optimizer, train_set, val_set, args, device, run, progress, saved, draw)
    except FloatingPointError as e:
        raise SystemExit(f"error: {e}") from None
    except KeyboardInterrupt:
        saved_to = run.folder / CHECKPOINT
        raise SystemExit(f"interrupted; --resume {saved_to} goes on" if saved_to.exists() else "interrupted") from None
    finally:
        run.close()


def _training_options(args) -> dict:
    """What steers learning, as a checkpoint stores it."""
    steering = (
        "dataset",
        "lr",
        "batch_size",
        "seed",
        "alpha",
        "beta",
        "prior_betas",
        "prior_pose",
        "flip",
        "no_augment",
        "bf16",
        "freeze_bn",
    )
    options = {name: value for name, value in vars(args).items() if name in steering or name.startswith("w_")}
    return options | {"data_dir": str(args.data_dir.resolve())}


def _changed_options(args, checkpoint) -> dict[str, str]:
    """The options that steer learning and are not those the checkpoint was written with: `--name value (was other)` by name."""
    before = checkpoint.content.get("training", {})
    return {k: f"--{k} {v} (was {before[k]})" for k, v in _training_options(args).items() if before.get(k, v) != v}


def _take_over(args, checkpoint, continued: bool, optimizer) -> Progress:
    """Where the checkpoint's run stood, its optimiser and random state, if this run is of the same stage; else a fresh start."""
    content = checkpoint.content
    if continued or args.load_optimizer:
        if "optimizer" not in content:
            raise ValueError(f"--load_optimizer: {checkpoint.path} holds no optimiser state; checkpoint.pth.tar files do")
        try:
            optimizer.load_state_dict(content["optimizer"])
        except ValueError as e:
            raise ValueError(
                f"the optimiser state in {checkpoint.path} is of other parameters ({e}); leave out --load_optimizer"
            ) from None
        for group in optimizer.param_groups:
            group["lr"] = args.lr
    if not continued:
        return Progress()
    torch.set_rng_state(content["random_state"])
    return Progress(content["epoch"], content["step"], content.get("best_score", -math.inf))
