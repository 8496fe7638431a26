"""List what cannot be used in a data set, all splits in one table:

python -m datasets.check --dataset stanford --data_dir data

Exits with 1 where something is unusable, with 0 where all is well.
"""

import argparse
import hashlib
import sys
from pathlib import Path

from util.errors import InputError, run_cli
from util.files import write_text

from . import DATASETS, SPLITS, dataset_class, has_split, oxford_pet
from .annotations import CHECKSUMS, printable, read_checksums
from .images import read_bytes, simplejpeg


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.check", description="List what is unusable in a data set."
    )
    parser.add_argument("--dataset", default="stanford", choices=sorted(DATASETS))
    parser.add_argument(
        "--data_dir", default="data", help="folder that holds the data set (default: data)"
    )
    parser.add_argument(
        "--download", action="store_true", help="download it first (oxford_pet alone)"
    )
    parser.add_argument(
        "--write_checksums",
        action="store_true",
        help=f"note the usable images' checksums in the data set's folder ({CHECKSUMS}): from then "
        "on every image that has changed is unusable, unless its line there is deleted",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    if args.download:
        if args.dataset != "oxford_pet":
            raise InputError(f"--download: {args.dataset} cannot be downloaded, see data/README.md")
        oxford_pet.download(args.data_dir)
    dataset = dataset_class(args.dataset)
    root = Path(args.data_dir) / dataset.folder
    splits = [split for split in SPLITS if has_split(args.dataset, args.data_dir, split)]
    rows, total, usable = [], 0, set()
    for split in splits or ["test"]:  # without any split the reading itself says what is missing
        entries, indices = dataset.read_annotations(args.data_dir, split)
        total += len(indices)
        problems, well = dataset.check(args.data_dir, split, entries, indices)
        rows += [(str(p.index), split, p.name, printable(p.problem)) for p in problems]
        images = dataset.image_folder(args.data_dir, split)
        usable |= {images / entries[i]["img_path"] for i in well}
    if rows:
        rows.insert(0, ("index", "split", "name", "problem"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)] + [0]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    unusable = max(len(rows) - 1, 0)
    print(f"{args.dataset}: {total} images in {', '.join(splits)}, {unusable} unusable")
    if simplejpeg is None:
        note = "damaged JPEG files that still decode were not looked for: pip install simplejpeg"
        print(note, file=sys.stderr)
    if args.write_checksums:
        known = read_checksums(root)  # what is unusable now keeps the sum that it should have
        known |= {str(path): hashlib.sha256(read_bytes(path)).hexdigest() for path in usable}
        lines = [
            f"{digest}  {Path(path).relative_to(root).as_posix()}\n"
            for path, digest in sorted(known.items())
        ]
        write_text(root / CHECKSUMS, "".join(lines))
        print(f"checksums of {len(lines)} images written to {root / CHECKSUMS}")
    return 1 if unusable else 0


if __name__ == "__main__":
    run_cli(main)
