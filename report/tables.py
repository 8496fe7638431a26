"""Scores as text, JSON and CSV."""

import csv
import io
import math
from pathlib import Path

from smal_model.joints import KEYPOINT_NAMES
from util.files import write_json, write_text
from util.metrics import GROUPS
from util.scores import Scores, interval, nanmean, pck_area, pck_at

MESHES = {"coarse": "", "refined": "_refined", "fitted": "_fitted"}  # ends of the scores' keys
THRESHOLDS = (0.05, 0.10, 0.15)  # of PCK, fractions of the mask's side
_LABELS = {
    "pck": "PCK@0.15 (%)",
    "iou": "IoU (%)",
    "pa_mpvpe": "PA-MPVPE (% of body length)",
    "pa_mpjpe": "PA-MPJPE (% of body length)",
}
_MORE_LABELS = {
    "iou_clean": "IoU, hard, true border (%)",
    "pck_05": "PCK@0.05 (%)",
    "pck_10": "PCK@0.10 (%)",
    "pck_auc": "PCK, area under the curve to 0.15 (%)",
}


def summarize(scores: Scores) -> dict:
    """Means over the images by name; keypoint groups under `pck[_refined]_by_group`."""
    report: dict = {"num_images": len(scores.names)}
    for mesh, means in scores.means().items():
        suffix = "" if mesh == "coarse" else f"_{mesh}"
        groups = {name: means.pop(f"pck_{name}") for name in GROUPS}
        report |= {name + suffix: value for name, value in means.items()}
        report[f"pck{suffix}_by_group"] = groups
    rows = _rows(scores)
    report["intervals"] = {
        mesh: {k: interval(v) for k, v in row.items()} for mesh, row in rows.items()
    }
    for mesh, mesh_scores in scores.meshes.items():
        suffix = "" if mesh == "coarse" else f"_{mesh}"
        kinds = {k: v for k, v in rows[mesh].items() if k not in mesh_scores.columns()}
        report |= {k + suffix: nanmean(v) for k, v in kinds.items()}
        hits = mesh_scores.errors.T[..., None]  # (K, N, 1)
        each = [nanmean(pck_at(h, THRESHOLDS[-1])) for h in hits]
        report[f"pck{suffix}_by_keypoint"] = dict(zip(KEYPOINT_NAMES, each, strict=False))
    return report


def _rows(scores: Scores) -> dict[str, dict]:
    """Values of each image that have intervals, by mesh, and of each mesh less the one before."""
    rows = {}
    for mesh, part in scores.meshes.items():
        more = {f"pck_{round(100 * t):02d}": pck_at(part.errors, t) for t in THRESHOLDS[:-1]}
        more["pck_auc"] = pck_area(part.errors, THRESHOLDS[-1])
        groups = {f"pck_{name}" for name in part.pck_by_group}
        rows[mesh] = {k: v for k, v in part.columns().items() if k not in groups} | more
    names = list(rows)
    for name, before in zip(names[1:], names, strict=False):
        rows[f"{name} - {before}"] = {k: v - rows[before][k] for k, v in rows[name].items()}
    return rows


def format_markdown(report: dict) -> str:
    """A table to paste: means with 95 % intervals over images; the last column is paired."""
    columns = report["intervals"]
    lines = [f"| {report['dataset']}, {report['num_images']} images | {' | '.join(columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")

    def mean(score: str, name: str) -> float:
        return report[score + MESHES[name]]

    for score, label in {**_LABELS, **_MORE_LABELS}.items():
        cells = []
        for name in columns if score in report else ():
            mesh, _, before = name.partition(" - ")
            value = mean(score, mesh) - (mean(score, before) if before else 0)
            low, high = columns[name][score]
            sign = "+" if before else ""
            bounds = f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
            cells.append(f"{100 * value:{sign}.1f} {bounds}")
        if cells:
            lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def format_report(report: dict) -> str:
    """The report as a table: a row a score, a column a mesh, in percent."""
    meshes = [mesh for mesh in MESHES if f"pck{MESHES[mesh]}" in report]
    suffixes = [MESHES[mesh] for mesh in meshes]

    def row(label: str, values) -> str:
        return f"{label:32}" + "".join(f"{100 * value:10.2f}" for value in values)

    title = f"{report['dataset']}, {report['num_images']} images"
    lines = [f"{title:32}" + "".join(f"{mesh:>10}" for mesh in meshes)]
    for score, label in _LABELS.items():
        if score in report:
            lines.append(row(label, [report[score + s] for s in suffixes]))
        if score == "pck":
            for name in GROUPS:
                lines.append(row(f"  {name}", [report[f"pck{s}_by_group"][name] for s in suffixes]))
    if report["excluded"]:
        lines.append(f"Unusable images left out: {report['excluded']}")
    return "\n".join(lines)


def write_report(folder: Path, report: dict, scores: Scores) -> None:
    """Writes `<dataset>_report.json`, `.txt` and `.md`, and `per_image.csv` (empty: no label)."""
    write_json(folder / f"{report['dataset']}_report.json", report)
    write_text(folder / f"{report['dataset']}_report.txt", format_report(report) + "\n")
    write_text(folder / f"{report['dataset']}_report.md", format_markdown(report) + "\n")
    columns = scores.columns()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["name", *columns])
    for name, *values in zip(scores.names, *columns.values(), strict=True):
        writer.writerow([name, *("" if math.isnan(v) else f"{v:.6f}" for v in values)])
    write_text(folder / "per_image.csv", text.getvalue())
