"""Puts body, networks, priors and data together from the options. Paths and options end here."""

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import datasets
import render
from datasets.fits import LEAST_IOU, LEAST_PCK
from datasets.labelled import LabelledImages
from model import CoarseModel, CoarseToFine, NetworkConfig, Networks, Prediction, build_backbone
from model.backbone import Backbone
from model.batch_norm import synchronize_batch_norm
from model.config import network_options
from smal_model import SMAL, MeshHierarchy
from smal_model.body_files import load_body
from smal_model.hierarchy import HIERARCHY_FILE
from smal_model.priors import GaussianPrior, pose_prior, shape_prior, unity_betas
from util import distributed
from util.errors import InputError
from util.files import sweep_leftovers
from util.memory import keep_freed_memory

from .checkpoint import Checkpoint, load_checkpoint, load_weights
from .device import select_device
from .fitting import REFINEMENT, fit_images, with_outlines
from .loaders import Loader, make_loader, part_sizes
from .losses import TRUTH_TERMS
from .options import loss_weights
from .schedule import AveragedWeights, Schedule


def resolve_network(
    args: argparse.Namespace, checkpoint: Checkpoint | None, refined: bool
) -> NetworkConfig:
    """What shapes the networks: options given, else the checkpoint's, else the defaults.

    Raises:
        InputError: lists the options that both give, differently, or that contradict each other.
    """
    given = {k: v for k, v in vars(args).items() if k in network_options(refined) and v is not None}
    stored = checkpoint.options if checkpoint else {}
    conflicts = [
        f"--{name} {value} (the checkpoint has {stored[name]})"
        for name, value in given.items()
        if name in stored and stored[name] != value and name != "flip_test"  # shapes no weight
    ]
    if conflicts and checkpoint:
        raise InputError(
            f"{checkpoint.path} is of a network with other options: {', '.join(conflicts)}; "
            "leave them out or take another checkpoint"
        )
    return NetworkConfig.from_dict(stored | given, refined)


def param_dir(args: argparse.Namespace) -> Path:
    """The folder of smal/, priors/ and the mesh hierarchy."""
    return args.param_dir or args.data_dir


def build_network(config: NetworkConfig, folder: Path, backbone: Backbone) -> Networks:
    """CoarseModel, or CoarseToFine where the configuration has a refiner.

    Args:
        config: of the networks.
        folder: of smal/, priors/ and the mesh hierarchy.
        backbone: with the weights that it starts from.
    """
    smal = SMAL(folder / "smal", config.shape_family_id)
    common: dict = {
        "backbone": backbone,
        "betas_scale": config.betas_scale,
        "shape_init": config.shape_init,
        "unity_mean": unity_betas(folder)[0] if config.shape_init == "unity" else None,
        "img_res": config.img_res,
        "keypoint_maps": config.keypoint_maps,
        "outline": config.outline,
    }
    if config.refiner is None:
        return CoarseModel(smal, **common)
    hierarchy = MeshHierarchy.load(folder / HIERARCHY_FILE)
    return CoarseToFine(smal, hierarchy, **vars(config.refiner), **common)


def load_network(config: NetworkConfig, folder: Path, checkpoint: Checkpoint) -> Networks:
    """The networks with the weights of a checkpoint; other arguments as in `build_network`."""
    model = build_network(config, folder, build_backbone(config.backbone))
    load_weights(model, checkpoint)
    return model


def start_backbone(config: NetworkConfig, choice: str) -> Backbone:
    """The backbone of a new network.

    Args:
        config: names it.
        choice: `imagenet`, `none`, or a file with its state dict.
    """
    if choice in ("imagenet", "none"):
        try:
            return build_backbone(config.backbone, pretrained=choice == "imagenet")
        except InputError as error:
            raise InputError(f"{error} (--backbone, --backbone_weights)") from None
    if not Path(choice).is_file():
        raise InputError(
            f"--backbone_weights {choice}: expected imagenet, none or an existing file"
        )
    backbone, weights = build_backbone(config.backbone), load_checkpoint(choice).state_dict
    try:
        backbone.load(weights)
    except RuntimeError as error:
        raise InputError(f"--backbone_weights {choice} does not fit: {error}") from None
    return backbone


def build_training_model(
    args: argparse.Namespace,
    config: NetworkConfig,
    checkpoint: Checkpoint | None,
    device: torch.device,
) -> Networks:
    """The networks as training starts with them, on `device`."""
    if args.prior_betas == "unity" and not config.betas_scale:
        prior = "--prior_betas unity is a prior over shape and log-scales"
        raise InputError(f"{prior}; it needs --betas_scale")
    if args.w_maps and not config.keypoint_maps:
        raise InputError("--w_maps is a term of heat maps; it needs --keypoint_maps")
    if args.w_outline and not config.outline:
        raise InputError("--w_outline is a term of the outline; it needs --outline")
    if config.refiner:
        looks = config.refiner.second_look
        if args.w_maps_refine and not looks:
            raise InputError("--w_maps_refine is a term of the second look; it needs --second_look")
        new = looks and not (checkpoint and checkpoint.options.get("second_look"))
        if new and not args.w_maps_refine:
            raise InputError("--second_look learns nothing without --w_maps_refine; give a weight")
    if config.outline and not args.w_outline and not checkpoint:
        raise InputError("--outline learns nothing without --w_outline; give that a weight above 0")
    if checkpoint and checkpoint.refined and config.refiner is None:
        raise InputError(
            f"{checkpoint.path} holds a refiner, of stage 2 or 3: main.py trains stage 1, "
            "main_meshgraph.py the others"
        )
    _tell_of_idle_maps(args, config)
    if checkpoint:
        model = load_network(config, param_dir(args), checkpoint)
    else:
        backbone = start_backbone(config, args.backbone_weights)
        model = build_network(config, param_dir(args), backbone)
    if args.sync_bn and distributed.world_size() > 1 and not args.freeze_bn:
        synchronize_batch_norm(model, device)  # first: it replaces modules
    model.freeze_backbone(args.freeze_backbone)
    if args.freeze_bn:
        model.freeze_batch_norm()
    return model.to(device)


def _tell_of_idle_maps(args: argparse.Namespace, config: NetworkConfig) -> None:
    """A line for each map of the network that no loss teaches while the rest learns."""
    frozen = config.refiner is not None and args.freezecoarse
    terms = [("--w_maps", "its heat maps", config.keypoint_maps, args.w_maps)]
    terms += [("--w_outline", "its map of the outline", config.outline, args.w_outline)]
    for name, what, there, weight in terms:
        if there and not weight and not frozen and distributed.is_main():
            print(f"{name} 0: the network learns, {what} not; give it a weight.")


def build_refiner(smal: SMAL, folder: Path, renderer: str, labels: str = "both"):
    """Test-time refinement: takes (batch, prediction), gives one fitted to the labels.

    Args:
        smal: the body.
        folder: of priors/.
        renderer: backend of `render`.
        labels: what is fitted to, `mask`, `keypoints`, `both`, or `outline`, what the network sees.
    """
    prior = pose_prior("smal", folder).to(smal.template.device)
    settings = replace(REFINEMENT, renderer=renderer)
    withheld = {"mask": "keypoints", "outline": "keypoints", "keypoints": "mask"}.get(labels)

    def refine(batch: dict, out: Prediction) -> Prediction:
        known = {key: value for key, value in batch.items() if key != withheld}
        if labels == "outline":
            for name in ("has_mask", "mask"):
                known[name] = torch.zeros_like(known[name])
            known = with_outlines(known, out)
        return fit_images(smal, prior, known, settings, out)

    return refine


def prepare(args: argparse.Namespace) -> torch.device:
    """Seeds, and refuses an unfit device, renderer or output folder before work starts.

    Raises:
        Relaunch: --gpu_ids names several GPUs, and no launcher started a process for each.
    """
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    np.random.seed(args.seed % 2**32)
    torch.autograd.set_detect_anomaly(getattr(args, "detect_anomaly", False))
    distributed.start()
    device = select_device(args)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        keep_freed_memory()
    check_output_dir(args.output_dir)
    if device.type == "cuda" or args.renderer != "auto":
        try:
            render.check(device, args.renderer)
        except (ImportError, RuntimeError, ValueError) as error:
            raise InputError(f"--renderer {args.renderer}: {error}") from None
    return device


def build_priors(args: argparse.Namespace, smal: SMAL) -> tuple[GaussianPrior, GaussianPrior]:
    """The shape and the pose prior that the options name."""
    folder = param_dir(args)
    return shape_prior(args.prior_betas, smal, folder), pose_prior(args.prior_pose, folder)


class Loaders(NamedTuple):
    """Loaders of the training and the validation images, and the number of unusable ones."""

    train: Loader
    val: Loader
    excluded: int


def open_sets(args: argparse.Namespace, img_res: int, validation_only: bool = False):
    """Training and validation set; a line says where one is taken from the other."""
    common = {"data_dir": args.data_dir, "img_res": img_res, "seed": args.seed}
    mix = None if validation_only else args.mix
    changes: dict = {}
    if not validation_only:
        changes = {"augment": not args.no_augment, "flip": args.flip, "scored": False}
        changes["strong"] = args.augment == "strong"
        changes["ground_truth"] = loss_weights(args).needs_truth
        if args.fit_dir:
            changes["fits"] = datasets.Fits(args.fit_dir, param_dir(args) / "smal")
    alone = validation_only or bool(mix)
    sets: Any = datasets.train_val(args.dataset, validation_only=alone, **common, **changes)
    if sets.held_out:
        total = len(sets.train) + len(sets.val)
        count = f"{len(sets.val)} of the {total} training images (every tenth)"
        print(f"No validation split: {count} validate instead.")
    if mix:
        train = datasets.mixed_training_set(datasets.parse_mix(mix), **common, **changes)
        sets = sets._replace(train=train, excluded=sets.val.excluded + train.excluded)
    if not validation_only and args.cache:
        for part in (*(sets.train.datasets if mix else [sets.train]), sets.val):
            part.keep_pixels(args.cache)
    return sets


def build_test_set(args: argparse.Namespace, split: str, img_res: int, smal: SMAL):
    """The images to evaluate, with ground truth where there is one; how many are unusable."""
    if split == "val" and not datasets.has_split(args.dataset, args.data_dir, "val"):
        sets = open_sets(args, img_res, validation_only=True)
        return sets.val, sets.excluded
    common = {"img_res": img_res, "ground_truth": True}
    dataset = datasets.build_dataset(args.dataset, args.data_dir, split, **common)
    check_body(dataset, smal.num_verts, args)
    return dataset, dataset.excluded


def check_body(dataset: LabelledImages, num_verts: int, args: argparse.Namespace) -> None:
    """Refuses ground truth of another body than the networks'."""
    if not dataset.has_ground_truth:
        return
    found = len(dataset[0]["gt_verts"])
    if found != num_verts:
        other = f"{dataset.root} holds images of a body of {found} vertices, that of "
        other += f"{param_dir(args)} has {num_verts}"
        raise InputError(f"{other}; give --param_dir {dataset.root.parent}")


def build_loaders(args: argparse.Namespace, config: NetworkConfig, device: torch.device) -> Loaders:
    """Loaders of the training images, shuffled and augmented, and of the validation images."""
    train, val, excluded, _ = open_sets(args, config.img_res)
    if loss_weights(args).needs_truth:
        if not train.has_ground_truth:
            given = [f"--w_{n}" for n in TRUTH_TERMS if vars(args).get(f"w_{n}")]
            needed = f"ground truth is needed for {', '.join(given)}"
            raise InputError(f"{needed}, and no training image has any")
        num_verts = len(load_body(param_dir(args) / "smal").template)
        for part in train.datasets if args.mix else [train]:
            check_body(part, num_verts, args)
    if args.fit_dir:
        count = train.num_fitted
        if not count:
            wanted = f"PCK {LEAST_PCK:g} and IoU {LEAST_IOU:g} or better"
            found = f"--fit_dir {args.fit_dir} holds no fit of a training image with {wanted}"
            raise InputError(f"{found}; run fit.py on the training images (--split train)")
        if distributed.is_main():
            print(f"--fit_dir: {count} of {len(train)} training images have a good fit.")
    frozen = args.freeze_bn or (config.refiner is not None and args.freezecoarse)
    if not frozen and len(train) < 2:  # batch norm takes its statistics from each batch
        raise InputError(
            "batch norm needs two training images or more; this training split has one"
        )
    if not frozen and args.batch_size < 2:
        needs = "batch norm cannot learn from a single image"
        raise InputError(f"--batch_size 1: {needs}; give 2 or more, or --freeze_bn")
    last = len(train) % args.batch_size
    if last == 0 or (last == 1 and len(train) > args.batch_size):  # one left over joins a batch
        last = args.batch_size
    share = min(part_sizes(last, args.grad_accum)) // distributed.world_size()
    if not frozen and not args.sync_bn and distributed.world_size() > 1 and share < 2:
        few = "leaves a process fewer than two images of a batch to take batch norm from"
        raise InputError(f"--no_sync_bn with --batch_size {args.batch_size} {few}; leave it out")
    load = args.batch_size, args.num_works, device
    shuffled = make_loader(train, *load, args.seed, args.grad_accum)
    return Loaders(shuffled, make_loader(val, *load), excluded)


def build_schedule(args: argparse.Namespace) -> Schedule:
    """The learning rate's course over the run."""
    return Schedule(args.schedule, args.warmup, args.nEpochs, args.max_minutes)


def build_average(args: argparse.Namespace, model: Networks) -> AveragedWeights | None:
    """The average of the weights that --ema asks for."""
    return AveragedWeights(model, args.ema) if args.ema else None


RECORDS = "demo_args.json", "fit_args.json"  # of what was run, written first into a folder


def check_output_dir(path: Path) -> None:
    """Refuses a path that is a file, or leads through one. Makes nothing."""
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise InputError(f"--output_dir {path}: {part} is a file; give a folder")


def make_output_dir(path: Path) -> None:
    """Makes the folder of results, or clears it of what killed processes left half-written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"--output_dir {path} cannot be made ({error.strerror})"
        raise InputError(f"{reason}; give another folder") from None
    try:
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = f"--output_dir {path} cannot be written to ({error.strerror})"
        raise InputError(f"{reason}; give another folder") from None
    if any((path / name).exists() for name in RECORDS):  # else its hidden files are not ours
        for folder in (path, path / "parameters", path / "page", *path.glob("*_sequence")):
            sweep_leftovers(folder)
