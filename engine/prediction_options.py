"""Command-line options of demo.py, app.py and fit.py."""

import argparse
import math
from pathlib import Path

from datasets import DATASETS, SPLITS
from render import BACKENDS
from util.errors import InputError
from util.files import path_of

from .options import count, gpu_ids, positive

# The network that comes with the program: of the embedded body.
PRETRAINED = Path(__file__).parents[1] / "pretrained" / "dogs.pth.tar"


def _box(text: str) -> tuple[float, ...]:
    try:
        box = tuple(float(part) for part in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 2:
        expected = "expected x,y,width,height in pixels of the photograph"
        raise argparse.ArgumentTypeError(f"{text!r}: {expected}")
    return box


def _one_gpu(text: str) -> list[int]:
    """--gpu_ids of a script that runs in one process."""
    ids = gpu_ids(text)
    if len(ids) > 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one GPU; this runs in one process")
    return ids


def _running(add, several: bool = False) -> None:
    shown = "(default: %(default)s)"
    help_text = "GPU, or several, a process on each" if several else "GPU"
    kind = gpu_ids if several else _one_gpu
    add("--gpu_ids", type=kind, default="0", help=f"{help_text}; the CPU without one {shown}")
    add("--device", help="torch device, instead of --gpu_ids: cpu, cuda:1, ...")
    add("--renderer", choices=("auto", *BACKENDS), default="auto", help=f"silhouettes {shown}")
    add("--seed", type=count, default=0, help=f"random seed {shown}")


def _prediction(description: str, output_dir: str) -> argparse.ArgumentParser:
    """A parser with the options of demo.py and app.py."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    shown, add = "(default: %(default)s)", parser.add_argument
    help_text = "of any stage (default: pretrained/dogs.pth.tar, with the embedded body)"
    add("--checkpoint", type=path_of, default=PRETRAINED, metavar="FILE", help=help_text)
    help_text = f"folder of the results {shown}"
    add("--output_dir", type=path_of, default=Path(output_dir), help=help_text)
    add(
        "--data_dir",
        type=path_of,
        default=Path("data"),
        help=f"with --checkpoint: of smal/ {shown}",
    )
    add(
        "--param_dir",
        type=path_of,
        help="with --checkpoint: smal/ and hierarchy, if elsewhere (default: --data_dir)",
    )
    add("--detector", choices=("auto", "none"), default="auto", help=f"finds the animals {shown}")
    add("--detector_weights", type=path_of, metavar="FILE", help="of maskrcnn_resnet50_fpn_v2")
    _running(add)
    return parser


def check_prediction(args: argparse.Namespace) -> None:
    """Refuses options of demo.py and app.py that contradict each other."""
    boxed = getattr(args, "bbox", None)
    if args.detector_weights and (boxed or args.detector == "none"):
        reason = "--bbox" if boxed else "--detector none"
        raise InputError(f"--detector_weights has no effect with {reason}; give one of the two")


def demo_parser() -> argparse.ArgumentParser:
    """Options of demo.py."""
    parser = _prediction("Meshes of the animals in photographs or videos.", "./logs/meshes")
    shown, add = "(default: %(default)s)", parser.add_argument
    add("input", nargs="+", type=path_of, metavar="INPUT", help="photographs, folders, videos")
    help_text = "the animal's box, pixels of the photograph (--bbox=-5,0,90,80 left of it)"
    add("--bbox", type=_box, metavar="X,Y,W,H", help=help_text)
    help_text = "fit the answer to the mask, given or detected, else to the outline that the "
    help_text += "network sees"
    add("--refine", action="store_true", help=help_text)
    add("--turntable", action="store_true", help="a GIF of each mesh, turning")
    add("--batch_size", type=positive, default=8, help=f"animals a step {shown}")
    return parser


def app_parser() -> argparse.ArgumentParser:
    """Options of app.py."""
    parser = _prediction("Meshes of dropped photographs, in a browser.", "./logs/app")
    shown, add = "(default: %(default)s)", parser.add_argument
    add("--host", default="127.0.0.1", help=f"address to serve on; this machine alone {shown}")
    add("--port", type=positive, default=7860, help=f"port to serve on {shown}")
    return parser


def fit_parser() -> argparse.ArgumentParser:
    """Options of fit.py."""
    parser = argparse.ArgumentParser(
        description="Fits the body to annotated images.", allow_abbrev=False
    )
    shown, add = "(default: %(default)s)", parser.add_argument
    add("--data_dir", type=path_of, default=Path("data"), help=f"folder of data/README.md {shown}")
    add("--param_dir", type=path_of, help="smal/ and priors/, if elsewhere (default: --data_dir)")
    add("--output_dir", type=path_of, default=Path("./logs/fit"), help=f"of the results {shown}")
    add("--dataset", choices=DATASETS, default="stanford", help=shown)
    add("--split", choices=(*SPLITS, "all"), default="test", help=shown)
    add("--resume", type=path_of, metavar="FILE", help="start from the answers of this checkpoint")
    add("--shape_family_id", type=int, help="without --resume; SMAL family (default: 1, dogs)")
    add("--save_results", action="store_true", help="a strip and the arrays of each image")
    add("--batch_size", type=positive, default=8, help=f"images a step {shown}")
    add("--num_works", type=count, default=4, help=f"data-loader workers {shown}")
    _running(add, several=True)
    return parser
