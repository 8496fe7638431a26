"""Fits the body to annotated images by optimisation, then deforms its vertices.

python fit.py --data_dir data --output_dir logs/fit --split test --save_results
python fit.py --data_dir data --output_dir logs/fit --resume logs/stage3/checkpoint.pth.tar
torchrun --nproc_per_node 4 fit.py --data_dir data --output_dir logs/fit --split all
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch.utils.data import ConcatDataset

import datasets
from datasets import SPLITS
from engine import build
from engine.evaluate import score_images
from engine.fitting import FIT, REFINEMENT, fit_images
from engine.loaders import make_loader
from engine.prediction_options import fit_parser
from engine.resume import open_checkpoint
from engine.run_folder import write_command
from model import NetworkConfig
from model.outputs import Prediction
from report import tables
from report.results import Results
from smal_model import SMAL
from smal_model.priors import pose_prior
from util import distributed
from util.camera import CROP
from util.errors import InputError, run_cli
from util.files import atomic_write
from util.scores import Scores

SCORES = ("pck", "iou", "pck_refined", "iou_refined")  # that a parameter file holds


def main(argv=None) -> None:
    args = fit_parser().parse_args(argv)
    device = build.prepare(args)
    folder = build.param_dir(args)
    network, img_res = None, CROP
    if args.resume:
        checkpoint = open_checkpoint(args.resume)
        given = argparse.Namespace(shape_family_id=args.shape_family_id)
        config = build.resolve_network(given, checkpoint, checkpoint.refined)
        network = build.load_network(config, folder, checkpoint).to(device).eval()
        img_res, args.shape_family_id = config.img_res, config.shape_family_id
    elif args.shape_family_id is None:
        args.shape_family_id = NetworkConfig.shape_family_id
    smal = network.smal if network else SMAL(folder / "smal", args.shape_family_id).to(device)
    prior = pose_prior("smal", folder).to(device)
    dataset, excluded = open_images(args, img_res, smal)
    build.make_output_dir(args.output_dir)
    if distributed.is_main():
        write_command(args.output_dir / build.RECORDS[1], vars(args), str(device))
    if excluded:
        print(f"Unusable images left out: {excluded}; python -m datasets.check lists them.")

    settings = replace(REFINEMENT if network else FIT, renderer=args.renderer)
    results = Results(args.output_dir, smal.faces, args.renderer, args.save_results)

    def predict(batch: dict) -> Prediction:
        start = network(batch["image"]) if network else None
        return fit_images(smal, prior, batch, settings, start)

    def save(batch: dict, out: Prediction, scores: Scores) -> None:
        results.add(batch, out, scores)
        save_parameters(args.output_dir / "parameters", batch, out, scores)

    loader = make_loader(dataset, args.batch_size, args.num_works, device)
    scores = score_images(predict, loader, smal, args.renderer, save, "fit")
    report = tables.summarize(scores) | {
        "dataset": args.dataset,
        "excluded": excluded,
        "checkpoint": str(args.resume or ""),
        "options": vars(args) | {"settings": vars(settings)},
    }
    if distributed.is_main():
        tables.write_report(args.output_dir, report, scores)
    facts = {"start": args.resume or "several headings", "split": args.split}
    results.write_page(f"Fit to {args.dataset}", facts)
    print(f"{tables.format_report(report)}\nResults are in {args.output_dir}.")


def open_images(args, img_res: int, smal: SMAL) -> tuple[ConcatDataset, int]:
    """The images of --split, with ground truth where there is one, and how many are unusable."""
    splits = [args.split]
    if args.split == "all":
        splits = [s for s in SPLITS if datasets.has_split(args.dataset, args.data_dir, s)]
        if not splits:
            raise InputError(f"{args.data_dir} holds no split of {args.dataset} (data/README.md)")
    opened = [build.build_test_set(args, split, img_res, smal) for split in splits]
    if len(opened) > 1:
        datasets.name_apart([images for images, _ in opened])
    return ConcatDataset([images for images, _ in opened]), sum(count for _, count in opened)


def save_parameters(folder: Path, batch: dict, out: Prediction, scores: Scores) -> None:
    """Writes `<name>.npz` for each image: parameters, scores and crop (docs/conventions.md)."""
    values = {"pose": out.pose, "betas": out.betas, "trans": out.trans, "del_v": out.del_v}
    values |= {"scale": out.coarse.scale, "betas_logscale": out.betas_logscale}
    arrays = {k: v.cpu().numpy() for k, v in values.items() if v is not None}
    arrays |= {"crop_center": batch["center"].numpy(force=True)}
    arrays |= {"crop_side": 200 * batch["scale"].numpy(force=True)}
    arrays |= {k: v for k, v in scores.columns().items() if k in SCORES}
    for i, name in enumerate(batch["name"]):
        with atomic_write(folder / f"{name}.npz") as temporary:
            np.savez(temporary, **{key: array[i] for key, array in arrays.items()})


if __name__ == "__main__":
    run_cli(main)
