"""Puts body, networks, losses and data together from the options. Paths and options end here."""

import copy
import urllib.error
from pathlib import Path

import torch
import torchvision
from torch.utils.data import Subset

import datasets
import render
from model import CoarseModel, CoarseToFine
from smal_model import SMAL, MeshHierarchy
from smal_model.hierarchy import HIERARCHY_FILE
from smal_model.priors import pose_prior, shape_prior, unity_betas

from .camera import CROP
from .checkpoint import Checkpoint, load_checkpoint, load_weights
from .losses import Criterion
from .options import NETWORK_DEFAULTS, REFINER_DEFAULTS, network_options

VALIDATION_SHARE = 10  # without a validation split, one in this many training images
_IMAGENET = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": torchvision.models.ResNet50_Weights.IMAGENET1K_V1,
}


def param_dir(args) -> Path:
    return args.param_dir or args.data_dir


def backbone_weights(choice: str, backbone: str) -> dict | None:
    """State dict to start the backbone from: `imagenet` (torchvision's, downloaded once), `none`, or a file."""
    if choice == "none":
        return None
    if choice == "imagenet":
        try:
            return _IMAGENET[backbone].get_state_dict(progress=True)
        except (OSError, urllib.error.URLError, RuntimeError) as e:
            raise OSError(
                f"the ImageNet weights of {backbone} cannot be downloaded ({e}); give --backbone_weights none to start from "
                "random weights, or --backbone_weights FILE with a ResNet state dict"
            ) from None
    path = Path(choice)
    if not path.is_file():
        raise FileNotFoundError(f"--backbone_weights {choice}: expected imagenet, none or an existing file")
    weights = load_checkpoint(path, "--backbone_weights").state_dict
    reference = torchvision.models.get_model(backbone, weights=None)
    counters = {k: v for k, v in reference.state_dict().items() if k.endswith("num_batches_tracked")}  # older files lack them
    weights = counters | weights
    load_weights(reference, weights, f"--backbone_weights {path}")
    return weights


def check_renderer(args, device):
    """Draws nothing with --renderer, so that a missing package or an unfit device shows before work starts."""
    nothing = torch.zeros(0, 3, 3, device=device), torch.zeros(0, 3, dtype=torch.int64, device=device)
    render.coverage(*nothing, CROP, backend=args.renderer)


def build_model(args, refined: bool, weights: str = "none"):
    """CoarseModel, or CoarseToFine where `refined`, from resolved network options. weights: see `backbone_weights`."""
    folder = param_dir(args)
    smal = SMAL(folder / "smal", args.shape_family_id)
    unity_mean = unity_betas(folder)[0] if args.shape_init == "unity" else None
    hierarchy = MeshHierarchy.load(folder / HIERARCHY_FILE) if refined else None
    common = {
        "backbone": args.backbone,
        "backbone_weights": backbone_weights(weights, args.backbone),
        "betas_scale": args.betas_scale,
        "shape_init": args.shape_init,
        "unity_mean": unity_mean,
        "img_res": args.img_res,
    }
    if not refined:
        return CoarseModel(smal, **common)
    return CoarseToFine(
        smal,
        hierarchy,
        local_feat=args.local_feat,
        num_channels=args.num_channels,
        num_downsampling=args.num_downsampling,
        num_layers=args.num_layers,
        **common,
    )


def start_from(model, checkpoint: Checkpoint):
    """Loads a checkpoint's weights: a stage 1 file into `meshnet`, a file of both networks into all."""
    trained_on = checkpoint.content.get("num_verts", model.smal.num_verts)
    if trained_on != model.smal.num_verts:
        raise ValueError(
            f"{checkpoint.path} was trained on a body of {trained_on} vertices, this one has {model.smal.num_verts}; "
            "give the data folder (--data_dir or --param_dir) of that body"
        )
    if isinstance(model, CoarseToFine) and checkpoint.coarse_only:
        model = model.meshnet
    load_weights(model, checkpoint.state_dict, checkpoint.path)


def build_criterion(args, smal, refined: bool) -> Criterion:
    weights = {"kpts": args.w_kpts, "betas_prior": args.w_betas_prior, "pose_prior": args.w_pose_prior}
    silhouette = {}
    if refined:
        weights |= {
            "pose_limit_prior": args.w_pose_limit_prior,
            "dice": args.w_dice,
            "kpts_refine": args.w_kpts_refine,
            "dice_refine": args.w_dice_refine,
            "arap": args.w_arap,
        }
        silhouette = {"alpha": args.alpha, "beta": args.beta}
    folder = param_dir(args)
    priors = shape_prior(args.prior_betas, smal, folder), pose_prior(args.prior_pose, folder)
    return Criterion(weights, smal, *priors, renderer=args.renderer, **silhouette)


class _Split(Subset):
    """Some images of a training set; epochs reach the set itself."""

    def set_epoch(self, epoch: int):
        self.dataset.set_epoch(epoch)


def build_training_sets(args):
    """Training set (None with --evaluate, where it is not needed), validation set, and the number of unusable images left out.
    Without a validation split, every tenth training image validates, and a line says so."""
    common = {"name": args.dataset, "data_dir": args.data_dir, "img_res": args.img_res, "seed": args.seed}
    own_validation = datasets.has_split(args.dataset, args.data_dir, "val")
    val = datasets.build_dataset(split="val", **common) if own_validation else None
    if own_validation and args.evaluate:
        return None, val, val.excluded
    train = datasets.build_dataset(split="train", augment=not args.no_augment, flip=args.flip, **common)
    if own_validation:
        return train, val, train.excluded + val.excluded
    if len(train) < 3:
        raise ValueError(f"{args.dataset} has no validation split and only {len(train)} training images to take one from")
    plain = copy.copy(train)
    plain.augment = plain.flip = False
    held_out = range(0, len(train), VALIDATION_SHARE)
    print(f"No validation split: {len(held_out)} of the {len(train)} training images (every tenth) validate instead.")
    return _Split(train, [i for i in range(len(train)) if i not in held_out]), Subset(plain, held_out), train.excluded


def stored_options(args, refined: bool) -> dict:
    return network_options(args, NETWORK_DEFAULTS | (REFINER_DEFAULTS if refined else {}))
