"""From parsed options to a finished training run: what main.py and main_meshgraph.py share."""

import math

import torch

from .build import backbone_weights, build_criterion, build_model, build_training_sets, start_from, stored_options
from .checkpoint import load_checkpoint
from .engine import Progress, fit
from .logging import RunFolder
from .options import NETWORK_DEFAULTS, REFINER_DEFAULTS, check_training, one_sentence, resolve_network, select_device
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
        device = select_device(args)
        frozen = refined and args.freezecoarse
        stage = 3 if refined and not frozen else 2 if refined else 1
        continued = bool(args.resume) and checkpoint.stage == stage

        model = build_model(args, refined, None if checkpoint else backbone_weights(args.backbone_weights, args.backbone))
        if checkpoint:
            start_from(model, checkpoint)
        if frozen:
            model.freeze_coarse()
        if args.bf16:
            model.use_bf16()
        model.to(device)
        train_set, val_set = build_training_sets(args)
        if args.evaluate:
            evaluate_and_report(model, val_set, args, device)
            return
        if len(train_set) < 2 and not frozen:
            raise ValueError("batch norm needs two training images or more; this training split has one")
        if args.batch_size < 2 and not frozen:
            raise ValueError("--batch_size 1: batch norm cannot learn from a single image; give 2 or more")
        criterion = build_criterion(args, model.smal, refined).to(device)
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=args.lr, fused=True)
        progress = _take_over(args, checkpoint, continued, optimizer) if checkpoint else Progress()
        if args.start_epoch is not None:
            progress.epoch = args.start_epoch

    run = RunFolder(args.output_dir, args, device, continued)
    excluded = sum(getattr(getattr(s, "dataset", s), "excluded", 0) for s in (train_set, val_set))
    run.line(
        f"stage {stage} on {device}: {len(train_set)} training and {len(val_set)} validation images"
        + (f" ({excluded} unusable ones left out; python -m datasets.check lists them)" if excluded else "")
        + (f"; {'continues' if continued else 'starts from'} {checkpoint.path}, epoch {progress.epoch + 1}" if checkpoint else "")
    )
    if progress.epoch >= args.nEpochs:
        run.line(f"nothing to do: {progress.epoch} of {args.nEpochs} epochs are done (--nEpochs)")

    def draw(batch, output):
        return picture_grid(batch_strips(batch, output, model.smal.faces, args.renderer))

    saved = {"options": stored_options(args, refined), "stage": stage}
    try:
        fit(model, criterion, optimizer, train_set, val_set, args, device, run, progress, saved, draw)
    except FloatingPointError as e:
        raise SystemExit(f"error: {e}") from None
    finally:
        run.close()


def _take_over(args, checkpoint, continued: bool, optimizer) -> Progress:
    """Where the checkpoint's run stood, its optimiser and random state, if this run is of the same stage; else a fresh start."""
    content = checkpoint.content
    if continued or args.load_optimizer:
        if "optimizer" not in content:
            raise ValueError(
                f"{checkpoint.path} holds no optimiser state (model_best files do not), so its run cannot be continued; "
                "give --resume a checkpoint.pth.tar, or --pretrained to start anew from its weights"
            )
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
