"""A checkpoint to pass on: the weights that are scored, matrices in half precision.

python -m engine.publish logs/stage3/checkpoint.pth.tar pretrained/dogs.pth.tar
"""

import argparse
from pathlib import Path

from util.errors import InputError, run_cli
from util.files import path_of

from .checkpoint import load_checkpoint
from .checkpoint_files import write_file

KEPT = ("options", "stage", "training", "num_verts", "epoch", "step", "best_score")

FOLDERS = ("data_dir", "fit_dir")  # of the machine on which it was trained


def publish(source: Path, target: Path) -> None:
    """Writes a file of about half the size, without what only resuming needs.

    Vectors (biases, statistics of batch norm) stay in single precision.

    Args:
        source: a checkpoint of any stage.
        target: the file to write.

    Raises:
        InputError: the source is no checkpoint of ours, or the target; a weight is too large.
    """
    if target.exists() and target.samefile(source):
        raise InputError(f"{target} is the checkpoint itself; give another file to write")
    content = load_checkpoint(source).content
    if "stage" not in content:
        raise InputError(f"{source} does not say what network it is of; expected one of a run")
    weights = {}
    for key, value in content["state_dict"].items():
        matrix = value.is_floating_point() and value.ndim > 1
        weights[key] = value.half() if matrix else value
        if value.is_floating_point() and not weights[key].isfinite().all():
            raise InputError(f"{key} in {source} holds a number that half precision cannot hold")
    kept = {key: content[key] for key in KEPT if key in content}
    kept["training"] = {k: v for k, v in kept.get("training", {}).items() if k not in FOLDERS}
    write_file(target, {"state_dict": weights} | kept)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.publish",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", type=path_of, metavar="CHECKPOINT", help="of a run")
    parser.add_argument("target", type=path_of, metavar="FILE", help="to write")
    args = parser.parse_args(argv)
    publish(args.source, args.target)
    print(f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_cli(main)
