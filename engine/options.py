"""Command-line options of all scripts: one home for each name and default."""

import argparse
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleError

import torch

from datasets import DATASETS, SPLITS
from model import BACKBONES
from render import BACKENDS
from smal_model.priors import FAMILIES

# What shapes the network. Not given on the command line, these come from the checkpoint; where it stores none, from here.
NETWORK_DEFAULTS = {
    "backbone": "resnet50",
    "img_res": 224,
    "betas_scale": False,
    "shape_init": "smal",
    "shape_family_id": 1,
}
REFINER_DEFAULTS = {"local_feat": False, "num_channels": 256, "num_layers": 5, "num_downsampling": 1}


def _positive(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def _not_negative(kind):
    def parse(text):
        value = kind(text)
        if not value >= 0:
            raise argparse.ArgumentTypeError(f"{value}: expected 0 or more")
        return value

    parse.__name__ = kind.__name__
    return parse


def _gpu_ids(text):
    try:
        ids = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a GPU's number, such as 0, or -1 for the CPU") from None
    if len(ids) != 1:
        raise argparse.ArgumentTypeError(f"{text!r}: one GPU at a time is supported; give one number")
    return ids[0]


def _common(parser, batch_size):
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=Path, default=Path("./logs/"), help="folder of this run (default: %(default)s)")
    run.add_argument("--batch_size", type=_positive, default=batch_size, help="pictures a step (default: %(default)s)")
    run.add_argument("--num_works", type=_not_negative(int), default=4, help="loader processes (default: %(default)s)")
    run.add_argument(
        "--gpu_ids", type=_gpu_ids, default=0, help="GPU; the CPU is used where there is none (default: %(default)s)"
    )
    run.add_argument("--device", help="torch device, instead of --gpu_ids: cpu, cuda:1, ...")
    run.add_argument("--renderer", choices=("auto", *BACKENDS), default="auto", help="silhouette renderer (default: %(default)s)")
    run.add_argument("--seed", type=_not_negative(int), default=0, help="of every random choice (default: %(default)s)")

    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of data/README.md (default: %(default)s)")
    data.add_argument("--param_dir", type=Path, help="folder of smal/, priors/ and the mesh hierarchy (default: --data_dir)")
    data.add_argument("--dataset", choices=DATASETS, default="stanford", help="(default: %(default)s)")

    network = parser.add_argument_group(
        "network", "stored in checkpoints: only needed for a new network or a file without options"
    )
    default = NETWORK_DEFAULTS
    network.add_argument("--backbone", choices=BACKBONES, help=f"(default: {default['backbone']})")
    network.add_argument("--img_res", type=_positive, help=f"side of the input picture (default: {default['img_res']})")
    network.add_argument("--betas_scale", action="store_true", default=None, help="predict limb log-scales too")
    network.add_argument("--shape_init", choices=FAMILIES, help=f"start of the betas (default: {default['shape_init']})")
    network.add_argument("--shape_family_id", type=int, help=f"SMAL family (default: {default['shape_family_id']}, dogs)")

    weights = parser.add_argument_group("checkpoints")
    weights.add_argument("--resume", type=Path, metavar="FILE", help="checkpoint to continue, start from or evaluate")
    weights.add_argument("--save_results", action="store_true", help="when evaluating: save a strip and the arrays of each image")
    return network


def _refiner(network):
    default = REFINER_DEFAULTS
    network.add_argument("--local_feat", action="store_true", default=None, help="sample image features at the vertices")
    network.add_argument("--num_channels", type=_positive, help=f"of the graph network (default: {default['num_channels']})")
    network.add_argument("--num_layers", type=_positive, help=f"mesh levels used (default: {default['num_layers']})")
    network.add_argument(
        "--num_downsampling", type=_not_negative(int), help=f"levels above the network (default: {default['num_downsampling']})"
    )


def _losses(parser):
    group = parser.add_argument_group("losses")
    number = _not_negative(float)
    group.add_argument("--w_kpts", type=number, default=10.0, help="keypoints of the coarse mesh (default: %(default)s)")
    group.add_argument("--w_betas_prior", type=number, default=1.0, help="shape prior (default: %(default)s)")
    group.add_argument("--w_pose_prior", type=number, default=1.0, help="pose prior (default: %(default)s)")
    group.add_argument("--prior_betas", choices=FAMILIES, default="smal", help="(default: %(default)s)")
    group.add_argument("--prior_pose", choices=FAMILIES, default="smal", help="(default: %(default)s)")
    return group, number


def _training(parser, epochs):
    group = parser.add_argument_group("training")
    group.add_argument("--nEpochs", type=_positive, default=epochs, help="epochs in all (default: %(default)s)")
    group.add_argument(
        "--start_epoch", type=_not_negative(int), help="number of the first epoch (default: the checkpoint's, or 0)"
    )
    group.add_argument("--lr", type=_not_negative(float), default=1e-4, help="Adam's learning rate (default: %(default)s)")
    group.add_argument(
        "--load_optimizer",
        action="store_true",
        help="with --resume of another stage: take over the optimiser's state too (a run that goes on always does)",
    )
    group.add_argument("--evaluate", action="store_true", help="only evaluate --resume on the validation images")
    group.add_argument("--bf16", action="store_true", help="networks in bfloat16 while training: faster, less exact")
    group.add_argument(
        "--freeze_bn", action="store_true", help="batch norm with its running statistics: for few or small batches"
    )
    group.add_argument("--flip", action="store_true", help="augment by mirror images too")
    group.add_argument("--no_augment", action="store_true", help="no random scale, rotation and colour")
    group.add_argument(
        "--backbone_weights", default="imagenet", help="start of a new backbone: imagenet, none, or a file (default: %(default)s)"
    )


def stage1_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Stage 1: trains the coarse network.", allow_abbrev=False)
    _common(parser, batch_size=16)
    _losses(parser)
    _training(parser, epochs=200)
    return parser


def meshgraph_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Stages 2 and 3: trains the refiner, then both networks.", allow_abbrev=False)
    _refiner(_common(parser, batch_size=16))
    group, number = _losses(parser)
    group.add_argument("--w_kpts_refine", type=number, default=1.0, help="keypoints of the refined mesh (default: %(default)s)")
    group.add_argument("--w_dice", type=number, default=0.0, help="silhouette of the coarse mesh (default: %(default)s)")
    group.add_argument("--w_dice_refine", type=number, default=0.0, help="silhouette of the refined mesh (default: %(default)s)")
    group.add_argument("--w_pose_limit_prior", type=number, default=0.0, help="joint limits (default: %(default)s)")
    group.add_argument("--w_arap", type=number, default=0.0, help="Laplacian of the refined mesh (default: %(default)s)")
    group.add_argument("--alpha", type=number, default=0.6, help="silhouette: weight of false positives (default: %(default)s)")
    group.add_argument("--beta", type=number, default=0.4, help="silhouette: weight of false negatives (default: %(default)s)")
    _training(parser, epochs=250)
    parser.add_argument("--pretrained", type=Path, metavar="FILE", help="weights to start from: of stage 1, or of both networks")
    parser.add_argument("--freezecoarse", action="store_true", help="stage 2: the coarse network does not learn")
    return parser


def eval_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Evaluates a checkpoint: PCK and IoU.", allow_abbrev=False)
    _refiner(_common(parser, batch_size=32))
    parser.add_argument("--split", choices=SPLITS, default="test", help="(default: %(default)s)")
    # Accepted so that one set of options serves all scripts; evaluation has no use for them.
    unused = parser.add_argument_group("training options without effect here")
    unused.add_argument("--prior_betas", choices=FAMILIES, default="smal")
    unused.add_argument("--prior_pose", choices=FAMILIES, default="smal")
    unused.add_argument("--load_optimizer", action="store_true")
    unused.add_argument("--lr", type=float, default=1e-4)
    return parser


def check_training(args):
    """Refuses options that contradict each other, before any work starts. Network options must be resolved."""
    pretrained = getattr(args, "pretrained", None)
    source = args.resume or pretrained
    if args.resume and pretrained:
        raise ValueError("--resume and --pretrained both name weights to start from; give one of them")
    if args.evaluate and not source:
        raise ValueError("--evaluate needs --resume: there is nothing to evaluate")
    if args.save_results and not args.evaluate:
        raise ValueError("--save_results goes with --evaluate, or with eval.py")
    if args.load_optimizer and not args.resume:
        raise ValueError("--load_optimizer needs --resume: there is no optimiser state to load")
    if getattr(args, "freezecoarse", False) and not source:
        raise ValueError("--freezecoarse needs --pretrained or --resume: a coarse network with random weights would be frozen")
    if source and args.backbone_weights not in ("imagenet", "none"):
        raise ValueError(f"--backbone_weights {args.backbone_weights}: the weights come from {source}; give one of the two")
    weights = {name: value for name, value in vars(args).items() if name.startswith("w_")}
    if getattr(args, "freezecoarse", False):
        weights = {name: weights[name] for name in ("w_kpts_refine", "w_dice_refine", "w_arap")}
    if not any(weights.values()):
        raise ValueError(f"{', '.join('--' + name for name in weights)} are all 0: there is nothing to learn from")
    if args.prior_betas == "unity" and not args.betas_scale:
        raise ValueError("--prior_betas unity is a prior over shape and log-scales; it needs --betas_scale")


def resolve_network(args, stored: dict | None, defaults: dict, path=None):
    """Fills in the options that shape the network: the command line's, else the checkpoint's, else the defaults.

    Raises ValueError listing the options that the command line and the checkpoint at `path` both give, differently.
    """
    stored = stored or {}
    conflicts = []
    for name, default in defaults.items():
        given = getattr(args, name)
        if given is None:
            setattr(args, name, stored.get(name, default))
        elif name in stored and stored[name] != given:
            conflicts.append(f"--{name} {given} (the checkpoint has {stored[name]})")
    if conflicts:
        raise ValueError(
            f"{path} is of a network with other options: {', '.join(conflicts)}; leave them out or take another checkpoint"
        )


def network_options(args, defaults: dict) -> dict:
    """The resolved network options, as a checkpoint stores them."""
    return {name: getattr(args, name) for name in defaults}


def check_output_dir(args):
    """Raises ValueError where --output_dir, or a folder above it, is a file. Makes nothing: preparations may still fail."""
    for path in (args.output_dir, *args.output_dir.parents):
        if path.exists() and not path.is_dir():
            raise ValueError(f"--output_dir {args.output_dir}: {path} is a file; give a folder")


def make_output_dir(args):
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OSError(f"--output_dir {args.output_dir} cannot be made ({e.strerror}); give another folder") from None


def select_device(args) -> torch.device:
    """--device, else the GPU of --gpu_ids, else the CPU with one line that says so."""
    if args.device:
        try:
            device = torch.device(args.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device {args.device}: expected cpu, cuda or cuda:NUMBER")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"--device {args.device}: no CUDA device is available here; use --device cpu")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"--device {args.device}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}")
        return device
    if args.gpu_ids < 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        print("No GPU found: running on the CPU.")
        return torch.device("cpu")
    if args.gpu_ids >= torch.cuda.device_count():
        raise ValueError(f"--gpu_ids {args.gpu_ids}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}")
    return torch.device("cuda", args.gpu_ids)


@contextmanager
def one_sentence():
    """Around a script's preparations: bad input ends the program with its one sentence instead of a traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError, PickleError) as e:
        sys.exit(f"{os.path.basename(sys.argv[0])}: error: {e}")
