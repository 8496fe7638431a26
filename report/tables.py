"""Evaluation of a model on a data set: report, one line an image, and, where asked for, a strip and the arrays of each image."""

import csv
import math
from pathlib import Path

import numpy as np

import render
from datasets.transforms import to_picture
from smal_model.files import written_aside

from . import metrics
from .camera import CROP, keypoints_row_col, project
from .engine import evaluate, make_loader
from .logging import write_json
from .visualize import Fit, save_png, strip

_GROUPS = tuple(metrics.GROUPS)


def evaluate_and_report(model, dataset, args, device, checkpoint_name="", excluded=0) -> dict:
    """Evaluates `dataset`, prints the figures and writes `<dataset>_report.txt`, `.json` and `per_image.csv` to the folder
    args.output_dir; with args.save_results also `<name>.png` and `<name>.npz` for each image. Returns the report."""
    folder = Path(args.output_dir)
    on_batch = None
    if args.save_results:

        def on_batch(batch, output, values):
            _save_batch(folder, batch, output, values, model.smal.faces, args.renderer)

    loader = make_loader(dataset, args.batch_size, args.num_works, device)
    scores = evaluate(model, loader, device, args.renderer, on_batch)

    report = summarize(scores) | {
        "dataset": args.dataset,
        "excluded": excluded,
        "checkpoint": str(checkpoint_name),
        "options": vars(args),
    }
    write_json(folder / f"{args.dataset}_report.json", report)
    text = format_report(report)
    with written_aside(folder / f"{args.dataset}_report.txt") as temporary:
        temporary.write_text(text + "\n")
    with written_aside(folder / "per_image.csv") as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", *scores.values])
        for i, name in enumerate(scores.names):
            writer.writerow([name, *("" if math.isnan(v[i]) else f"{v[i]:.6f}" for v in scores.values.values())])
    print(text)
    print(f"Results are in {folder}.")
    return report


def summarize(scores) -> dict:
    """Means over the images; the keypoint groups under `pck_by_group` and `pck_refined_by_group`. NaN: no image had a value."""
    means = scores.means()
    report = {"num_images": len(scores.names)}
    for key, value in means.items():
        stem, _, group = key.rpartition("_")
        if group in _GROUPS:
            report.setdefault(f"{stem}_by_group", {})[group] = value
        else:
            report[key] = value
    return report


def format_report(report: dict) -> str:
    """The report as a table: a row per figure, a column per mesh; PCK and IoU in percent."""
    columns = ["", "_refined"] if "pck_refined" in report else [""]
    rows = [(f"{report['dataset']}, {report['num_images']} images", [{"": "coarse", "_refined": "refined"}[c] for c in columns])]
    rows.append(("PCK@0.15 (%)", [f"{100 * report['pck' + c]:.2f}" for c in columns]))
    for group in _GROUPS:
        rows.append((f"  {group}", [f"{100 * report[f'pck{c}_by_group'][group]:.2f}" for c in columns]))
    rows.append(("IoU (%)", [f"{100 * report['iou' + c]:.2f}" for c in columns]))
    for key, label in (("pa_mpvpe", "PA-MPVPE (% of body length)"), ("pa_mpjpe", "PA-MPJPE (% of body length)")):
        if key in report:
            rows.append((label, [f"{100 * report[key + c]:.2f}" for c in columns]))
    if report["excluded"]:
        rows.append((f"{report['excluded']} unusable images left out", []))
    return "\n".join(f"{label:32}" + "".join(f"{cell:>10}" for cell in cells) for label, cells in rows)


def batch_strips(batch: dict, output, faces, renderer: str, values: dict | None = None) -> list[np.ndarray]:
    """A strip of pictures for each image of a batch (util.visualize.strip). values: per-image scores for the captions."""
    values = values or {}
    fits = []
    for suffix, (verts, joints) in output.meshes.items():
        places = keypoints_row_col(joints, output.scale)
        silhouettes = render.coverage(project(verts, output.scale), faces, CROP, backend=renderer)
        scores = [values[k + suffix].tolist() if k + suffix in values else [None] * len(verts) for k in ("pck", "iou")]
        fits.append([Fit(*parts) for parts in zip(verts, places, silhouettes, *scores, strict=True)])
    return [
        strip(
            to_picture(batch["image"][i]),
            batch["mask"][i],
            batch["border_mask"][i],
            batch["keypoints"][i],
            faces,
            output.scale[i],
            *(stage[i] for stage in fits),
            backend=renderer,
        )
        for i in range(len(batch["image"]))
    ]


def _save_batch(folder, batch, output, values, faces, renderer):
    arrays = {}
    for suffix, (verts, joints) in output.meshes.items():
        places = keypoints_row_col(joints, output.scale)
        arrays |= {f"verts{suffix}": verts, f"joints{suffix}": joints, f"keypoints{suffix}_row_col": places}
    for key in ("pose", "betas", "trans", "scale", "betas_logscale"):
        if getattr(output, key) is not None:
            arrays[key] = getattr(output, key)
    arrays |= {key: value for key, value in values.items() if key.rpartition("_")[2] not in _GROUPS}
    arrays = {key: value.cpu().numpy() for key, value in arrays.items()}
    for i, (name, picture) in enumerate(zip(batch["name"], batch_strips(batch, output, faces, renderer, values), strict=True)):
        save_png(folder / f"{name}.png", picture)
        with written_aside(folder / f"{name}.npz") as temporary:
            np.savez(temporary, **{key: value[i] for key, value in arrays.items()})
