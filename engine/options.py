"""Command-line options of training and evaluation: one home for each name and default."""

import argparse
import math
from dataclasses import fields
from pathlib import Path

from datasets import DATASETS, SPLITS, parse_mix
from model import BACKBONES, NetworkConfig, RefinerConfig
from model.backbone import STRIDES
from render import BACKENDS
from smal_model.priors import FAMILIES
from util.errors import InputError
from util.files import path_of

from .checkpoint import LARGEST_OPTION
from .losses import LossWeights
from .schedule import SCHEDULES

# What steers learning: a checkpoint stores it, and a resumed run says what differs.
WEIGHTS = (
    "w_kpts", "w_betas_prior", "w_pose_prior", "w_pose_limit_prior", "w_dice", "w_maps",
    "w_outline", "w_verts", "w_pose", "w_betas", "w_camera", "w_param",
)  # fmt: skip
WEIGHTS_REFINED = (
    "w_kpts_refine", "w_dice_refine", "w_arap", "w_verts_refine", "w_kpts_robust", "w_maps_refine",
)  # fmt: skip
STEERING = (
    "dataset", "mix", "lr", "batch_size", "seed", "alpha", "beta", "prior_betas", "prior_pose",
    "flip", "augment", "no_augment", "bf16", "freeze_bn", "freeze_backbone", "sync_bn",
    "grad_accum", "grad_clip", "schedule", "warmup", "ema", "fit_dir",
    *WEIGHTS, *WEIGHTS_REFINED,
)  # fmt: skip
MAY_CHANGE = "lr", "alpha", "beta", "grad_accum", "grad_clip"  # in a run
FREE = MAY_CHANGE + WEIGHTS + WEIGHTS_REFINED
REFINED_TO = "both", "mask", "keypoints", "outline"  # eval.py's --refine
LARGEST = 2**63  # numbers of options are below it: seeds have 64 bits
AUTO = "auto"  # --resume: the newest whole checkpoint of --output_dir


def _at_least(least: int, text: str, kind: type, name: str):
    try:
        value = kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a {name}") from None
    if not value >= least:
        raise argparse.ArgumentTypeError(f"{value:g}: expected {least} or more")
    if value >= LARGEST:
        raise argparse.ArgumentTypeError(f"{value:g}: expected less than {LARGEST:g}")
    return value


def positive(text: str) -> int:
    """A whole number from 1 on."""
    return _at_least(1, text, int, "whole number")


def count(text: str) -> int:
    """A whole number from 0 on."""
    return _at_least(0, text, int, "whole number")


def _number(text: str) -> float:
    return _at_least(0, text, float, "number")


def _fraction(text: str) -> float:
    value = _number(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{value:g}: expected 0 or more, below 1")
    return value


def _minutes(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{value:g}: expected more than 0")
    return value


def _mix(text: str) -> str:
    try:
        unknown = [name for name in parse_mix(text) if name not in DATASETS]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if unknown:
        known = f"expected of {', '.join(DATASETS)}"
        raise argparse.ArgumentTypeError(f"unknown data set {unknown[0]!r}, {known}")
    return text


def _source(text: str) -> Path | str:
    return text if text == AUTO else path_of(text)


def _size(text: str) -> int:
    value = positive(text)
    if value > LARGEST_OPTION:
        raise argparse.ArgumentTypeError(f"expected {LARGEST_OPTION} or less, found {value}")
    return value


def gpu_ids(text: str) -> list[int]:
    """--gpu_ids of a script that may run in several processes."""
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        ids = []
    if not ids or len(set(ids)) < len(ids) or (len(ids) > 1 and min(ids) < 0):
        expected = "expected numbers of GPUs, such as 0 or 0,1,2,3, or -1 for the CPU"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}")
    return ids


def _parser(description: str, batch_size: int) -> argparse.ArgumentParser:
    """A parser with the options that all scripts share."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    run = parser.add_argument_group("run").add_argument
    shown = "(default: %(default)s)"
    run("--output_dir", type=path_of, default=Path("./logs/"), help=f"folder of this run {shown}")
    help_text = f"images a step, of all processes together; in evaluation of each {shown}"
    run("--batch_size", type=positive, default=batch_size, help=help_text)
    run("--num_works", type=count, default=4, help=f"data-loader workers {shown}")
    help_text = "GPU, or several, a process on each; -1, and where there is none: the CPU"
    run("--gpu_ids", type=gpu_ids, default="0", help=f"{help_text} {shown}")
    run("--device", help="torch device, instead of --gpu_ids: cpu, cuda:1, ...")
    run("--renderer", choices=("auto", *BACKENDS), default="auto", help=f"silhouettes {shown}")
    run("--seed", type=count, default=0, help=f"random seed {shown}")

    data = parser.add_argument_group("data").add_argument
    data("--data_dir", type=path_of, default=Path("data"), help=f"folder of data/README.md {shown}")
    data(
        "--param_dir", type=path_of, help="smal/, priors/ and mesh hierarchy (default: --data_dir)"
    )
    data("--dataset", choices=DATASETS, default="stanford", help=shown)

    network = parser.add_argument_group(
        "network", "stored in checkpoints: needed for a new network or a file without options alone"
    ).add_argument
    default = NetworkConfig()
    network("--backbone", help=f"{', '.join(BACKBONES)} or timm:NAME (default: {default.backbone})")
    network("--img_res", type=_size, help=f"side of the input image (default: {default.img_res})")
    network("--betas_scale", action="store_true", default=None, help="predict limb log-scales too")
    network(
        "--shape_init", choices=FAMILIES, help=f"start of the betas (default: {default.shape_init})"
    )
    network(
        "--keypoint_maps",
        action="store_true",
        default=None,
        help="find keypoints as heat maps too, and correct the coarse estimate by them",
    )
    help_text = (
        "find the animal's outline as a map too; the refiner poses the body by it, and is told it"
    )
    network("--outline", action="store_true", default=None, help=help_text)
    network(
        "--shape_family_id",
        type=int,
        help=f"SMAL family (default: {default.shape_family_id}, dogs)",
    )

    files = parser.add_argument_group("checkpoints").add_argument
    help_text = "checkpoint or run folder to resume, start from or evaluate; auto: that of "
    help_text += "--output_dir (training: a new run where it holds none)"
    files("--resume", type=_source, metavar="FILE", help=help_text)
    files(
        "--save_results",
        action="store_true",
        help="evaluating: a strip and the arrays of each image",
    )
    return parser


def _refiner(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument_group("graph network").add_argument, RefinerConfig()
    add(
        "--local_feat",
        action="store_true",
        default=None,
        help="sample image features at the vertices",
    )
    add("--num_channels", type=_size, help=f"width (default: {default.num_channels})")
    add("--num_layers", type=positive, help=f"mesh levels in use (default: {default.num_layers})")
    help_text = f"levels above the network (default: {default.num_downsampling})"
    add("--num_downsampling", type=count, help=help_text)
    help_text = "correct the heat maps by the body that fits them, and pose it once more; with "
    help_text += "--outline"
    add("--second_look", action="store_true", default=None, help=help_text)
    help_text = "do not see the mirrored image too, outside training and with --outline: quicker"
    add("--no_flip_test", dest="flip_test", action="store_false", default=None, help=help_text)


def _training(parser: argparse.ArgumentParser, epochs: int) -> None:
    shown = "(default: %(default)s)"
    loss, default = parser.add_argument_group("losses").add_argument, LossWeights()
    loss(
        "--w_kpts", type=_number, default=default.kpts, help=f"keypoints of the coarse mesh {shown}"
    )
    loss("--w_betas_prior", type=_number, default=default.betas_prior, help=f"shape prior {shown}")
    loss("--w_pose_prior", type=_number, default=default.pose_prior, help=f"pose prior {shown}")
    weight: dict = {"type": _number, "default": 0.0}
    loss("--w_pose_limit_prior", **weight, help=f"joint limits {shown}")
    help_text = "silhouette of the coarse mesh; with --w_verts where there is no ground truth alone"
    loss("--w_dice", **weight, help=f"{help_text} {shown}")
    loss("--alpha", type=_number, default=default.alpha, help=f"of false positives {shown}")
    loss("--beta", type=_number, default=default.beta, help=f"of false negatives {shown}")
    loss("--w_maps", **weight, help=f"heat maps of the keypoints, with --keypoint_maps {shown}")
    loss("--w_outline", **weight, help=f"map of the outline, with --outline {shown}")
    truth = "where an image has ground truth (synthetic)"
    loss("--w_verts", **weight, help=f"vertices of the coarse mesh, {truth} {shown}")
    loss("--w_pose", **weight, help=f"rotations of the joints, likewise {shown}")
    loss("--w_betas", **weight, help=f"shape coefficients, likewise {shown}")
    loss("--w_camera", **weight, help=f"place, size and depth, likewise {shown}")
    help_text = "pose and shape, where --fit_dir holds a good fit of the image"
    loss("--w_param", **weight, help=f"{help_text} {shown}")
    help_text = "--output_dir of fit.py on the training images: labels for --w_param"
    loss("--fit_dir", type=path_of, metavar="DIR", help=help_text)
    _priors(loss)
    add = parser.add_argument_group("training").add_argument
    add("--nEpochs", type=positive, default=epochs, help=f"epochs in all {shown}")
    add(
        "--start_epoch",
        type=count,
        help="number of the first epoch (default: the checkpoint's, or 0)",
    )
    add("--lr", type=_number, default=1e-4, help=f"Adam's learning rate {shown}")
    help_text = (
        "with --resume of a file that names no stage: the optimiser's state too (resuming a run "
        "always takes it; another stage's never fits)"
    )
    add("--load_optimizer", action="store_true", help=help_text)
    help_text = f"learning rate over all epochs: as it is, two drops to a tenth, or to 0 {shown}"
    add("--schedule", choices=SCHEDULES, default="constant", help=help_text)
    add("--warmup", type=count, default=0, help=f"steps in which the rate rises {shown}")
    help_text = "average the weights with this decay (0.999, say) and evaluate these"
    add("--ema", type=_fraction, default=0.0, metavar="DECAY", help=help_text)
    help_text = "end after this time, the schedule stretched to it"
    add("--max_minutes", type=_minutes, help=help_text)
    help_text = "steps between two checkpoints within an epoch (default: none)"
    add("--save_every", type=count, default=0, help=help_text)
    help_text = "largest norm of the gradient (default: no limit)"
    add("--grad_clip", type=_number, default=math.inf, help=help_text)
    help_text = "cut each batch into this many micro-batches, which take less memory; batch norm's "
    help_text += "statistics and the silhouette (Tversky) losses are over each of them alone, all "
    help_text += f"other terms are as of the whole batch {shown}"
    add("--grad_accum", type=positive, default=1, metavar="N", help=help_text)
    help_text = "stop where a gradient turns into NaN, and say which operation it was: slow"
    add("--detect_anomaly", action="store_true", help=help_text)
    help_text = "keep decoded photographs in this folder: epochs do not decode them again"
    add("--cache", type=path_of, metavar="DIR", help=help_text)
    add("--evaluate", action="store_true", help="only evaluate --resume on the validation images")
    parser.set_defaults(refine=None)  # of eval.py
    add(
        "--bf16",
        action="store_true",
        help="networks in bfloat16 while training: faster, less exact",
    )
    help_text = "launch a GPU's kernels one by one, as with --grad_accum and several processes: "
    help_text += "slower, and takes less memory"
    add("--no_cuda_graph", action="store_false", dest="cuda_graph", help=help_text)
    help_text = "batch norm with its running statistics: for few images or small batches"
    add("--freeze_bn", action="store_true", help=help_text)
    help_text = "batch norm over the images of all processes, as one would (the default)"
    add("--sync_bn", action="store_true", default=True, help=help_text)
    help_text = "batch norm over each process' own images"
    add("--no_sync_bn", action="store_false", dest="sync_bn", help=help_text)
    add("--flip", action="store_true", help="augment by mirror images too")
    help_text = (
        "train on several data sets, such as dog_pose:0.4,synthetic:0.6; --dataset validates"
    )
    add("--mix", type=_mix, metavar="NAME:WEIGHT,...", help=help_text)
    add("--no_augment", action="store_true", help="no random scale, rotation and colour")
    help_text = f"strong: light, sharpness and covered parts change too {shown}"
    add("--augment", choices=("published", "strong"), default="published", help=help_text)
    help_text = f"how many of the backbone's four maps, finest first, do not learn {shown}"
    add("--freeze_backbone", type=count, default=0, metavar="N", help=help_text)
    help_text = f"start of a new backbone: imagenet, none, or a file {shown}"
    add("--backbone_weights", default="imagenet", help=help_text)


def _priors(add) -> None:
    add("--prior_betas", choices=FAMILIES, default="smal", help="(default: %(default)s)")
    add("--prior_pose", choices=FAMILIES, default="smal", help="(default: %(default)s)")


def stage1_parser() -> argparse.ArgumentParser:
    """Options of main.py."""
    parser = _parser("Stage 1: trains the coarse network.", batch_size=16)
    _training(parser, epochs=200)
    return parser


def meshgraph_parser() -> argparse.ArgumentParser:
    """Options of main_meshgraph.py."""
    parser = _parser("Stages 2 and 3: trains the refiner, then both networks.", batch_size=16)
    _refiner(parser)
    _training(parser, epochs=250)
    loss = parser.add_argument_group("losses of stages 2 and 3").add_argument
    shown = "(default: %(default)s)"
    weight: dict = {"type": _number, "default": 0.0}
    help_text = f"keypoints of the refined mesh {shown}"
    loss("--w_kpts_refine", type=_number, default=1.0, help=help_text)
    help_text = f"the same, what is far off counts little {shown}"
    loss("--w_kpts_robust", **weight, help=help_text)
    loss("--w_dice_refine", **weight, help=f"silhouette of the refined mesh {shown}")
    loss("--w_arap", **weight, help=f"Laplacian of the refined mesh {shown}")
    help_text = "vertices of the refined mesh, aligned with the ground truth, where there is one"
    loss("--w_verts_refine", **weight, help=f"{help_text} {shown}")
    help_text = f"heat maps of the refiner, with --second_look {shown}"
    loss("--w_maps_refine", **weight, help=help_text)
    add = parser.add_argument_group("stages").add_argument
    help_text = "weights to start from: of stage 1, or of both networks"
    add("--pretrained", type=path_of, metavar="FILE", help=help_text)
    add("--freezecoarse", action="store_true", help="stage 2: the coarse network does not learn")
    return parser


def eval_parser() -> argparse.ArgumentParser:
    """Options of eval.py."""
    parser = _parser("Evaluates a checkpoint: PCK and IoU.", batch_size=32)
    _refiner(parser)
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    help_text = "score a fit to the labels too, started from the network's answer"
    choices: dict = {"nargs": "?", "const": "both", "choices": REFINED_TO}
    parser.add_argument("--refine", **choices, help=help_text)
    # Accepted so that one set of options serves all scripts.
    unused = parser.add_argument_group("training options without effect here").add_argument
    _priors(unused)
    unused("--load_optimizer", action="store_true")
    unused("--lr", type=float, default=1e-4)
    return parser


def loss_weights(args: argparse.Namespace) -> LossWeights:
    """The weights of the terms that a training script has options for."""
    given = {name.removeprefix("w_"): value for name, value in vars(args).items()}
    return LossWeights(**{f.name: given[f.name] for f in fields(LossWeights) if f.name in given})


def check_training(args: argparse.Namespace, refined: bool) -> None:
    """Refuses options that contradict each other, before any work starts.

    Args:
        args: of main.py, or of main_meshgraph.py where `refined`.
        refined: whether a refiner is trained.
    """
    source, pretrained = args.resume, args.pretrained if refined else None
    if source and source != AUTO and pretrained:
        raise InputError(
            "--resume and --pretrained both name weights to start from; give one of them"
        )
    start = pretrained if source == AUTO else source or pretrained
    if args.evaluate and not (source or start):
        raise InputError("--evaluate needs --resume: there is nothing to evaluate")
    if args.save_results and not args.evaluate:
        raise InputError("--save_results goes with --evaluate, or with eval.py")
    if args.load_optimizer and not args.resume:
        raise InputError("--load_optimizer needs --resume: there is no optimiser state to load")
    if start and args.backbone_weights not in ("imagenet", "none"):
        given = f"--backbone_weights {args.backbone_weights}"
        raise InputError(f"{given}: the weights come from {start}; give one of the two")
    if not source and args.start_epoch and args.start_epoch >= args.nEpochs:
        found = f"--start_epoch {args.start_epoch} leaves none of --nEpochs {args.nEpochs} epochs"
        raise InputError(f"{found}; give a lower number, or more epochs")
    if source == AUTO and args.start_epoch is not None:
        raise InputError("--start_epoch and --resume auto contradict each other; give one")
    if args.w_param and not args.fit_dir:
        raise InputError("--w_param needs --fit_dir, the output folder of fit.py")
    if args.fit_dir and not args.w_param:
        raise InputError("--fit_dir has no effect without --w_param; give that a weight above 0")
    if args.no_augment and args.augment == "strong":
        raise InputError("--augment strong and --no_augment contradict each other; give one")
    if args.freeze_backbone > len(STRIDES):
        raise InputError(f"--freeze_backbone {args.freeze_backbone}: a backbone has four maps")
    if args.grad_accum > 1 and args.batch_size < 2 * args.grad_accum:
        few = f"--grad_accum {args.grad_accum} cuts --batch_size {args.batch_size} into less than"
        raise InputError(f"{few} two images each; give fewer parts or a larger batch")
    if args.grad_clip == 0:
        raise InputError("--grad_clip 0 leaves nothing to learn; give a number above 0")
    frozen = refined and args.freezecoarse
    if frozen and not (source or start):
        needed = "--freezecoarse needs --pretrained or --resume"
        raise InputError(f"{needed}: a coarse network with random weights would be frozen")
    weights: tuple[str, ...] = WEIGHTS + WEIGHTS_REFINED if refined else WEIGHTS
    if frozen:
        weights = WEIGHTS_REFINED
    if not any(vars(args)[name] for name in weights):
        named = ", ".join("--" + name for name in weights)
        raise InputError(f"{named} are all 0: there is nothing to learn from")
