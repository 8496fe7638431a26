"""List what cannot be used in a data set, all splits in one table:

python -m datasets.check --dataset stanford --data_dir data

Exits with 1 where something is unusable, with 0 where all is well.
"""

import argparse
from pathlib import Path

from util.errors import run_cli

from . import DATASETS, SPLITS, dataset_class, has_split
from .annotations import find_problems, image_folder


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check", description="List what is unusable in a data set."
    )
    parser.add_argument("--dataset", default="stanford", choices=sorted(DATASETS))
    parser.add_argument(
        "--data_dir", default="data", help="folder that holds the data set (default: data)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    dataset = dataset_class(args.dataset)
    splits = [split for split in SPLITS if has_split(args.dataset, args.data_dir, split)]
    rows, total = [], 0
    for split in splits or ["test"]:  # without any split the reading itself says what is missing
        entries, indices = dataset.read_annotations(args.data_dir, split)
        total += len(indices)
        images = image_folder(Path(args.data_dir) / dataset.folder)
        problems = find_problems(entries, indices, images)
        rows += [(str(p.index), split, p.name, p.problem) for p in problems]
    if rows:
        rows.insert(0, ("index", "split", "name", "problem"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)] + [0]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    unusable = max(len(rows) - 1, 0)
    print(f"{args.dataset}: {total} images in {', '.join(splits)}, {unusable} unusable")
    return 1 if unusable else 0


if __name__ == "__main__":
    run_cli(main)
