"""Scores as text, JSON and CSV."""

import csv
import io
import math
from pathlib import Path

from util.files import write_json, write_text
from util.metrics import GROUPS
from util.scores import Scores

_LABELS = {
    "pck": "PCK@0.15 (%)",
    "iou": "IoU (%)",
    "pa_mpvpe": "PA-MPVPE (% of body length)",
    "pa_mpjpe": "PA-MPJPE (% of body length)",
}


def summarize(scores: Scores) -> dict:
    """Means over the images by name; keypoint groups under `pck[_refined]_by_group`."""
    report: dict = {"num_images": len(scores.names)}
    for mesh, means in scores.means().items():
        suffix = "" if mesh == "coarse" else f"_{mesh}"
        groups = {name: means.pop(f"pck_{name}") for name in GROUPS}
        report |= {name + suffix: value for name, value in means.items()}
        report[f"pck{suffix}_by_group"] = groups
    return report


def format_report(report: dict) -> str:
    """The report as a table: a row a score, a column a mesh, in percent."""
    suffixes = ["", "_refined"] if "pck_refined" in report else [""]

    def row(label: str, values) -> str:
        return f"{label:32}" + "".join(f"{100 * value:10.2f}" for value in values)

    title = f"{report['dataset']}, {report['num_images']} images"
    lines = [f"{title:32}" + "".join(f"{c:>10}" for c in ("coarse", "refined")[: len(suffixes)])]
    for score, label in _LABELS.items():
        if score in report:
            lines.append(row(label, [report[score + s] for s in suffixes]))
        if score == "pck":
            for name in GROUPS:
                lines.append(row(f"  {name}", [report[f"pck{s}_by_group"][name] for s in suffixes]))
    if report["excluded"]:
        lines.append(f"{report['excluded']} unusable images left out")
    return "\n".join(lines)


def write_report(folder: Path, report: dict, scores: Scores) -> None:
    """Writes `<dataset>_report.json` and `.txt`, and `per_image.csv` (empty: no label)."""
    write_json(folder / f"{report['dataset']}_report.json", report)
    write_text(folder / f"{report['dataset']}_report.txt", format_report(report) + "\n")
    columns = scores.columns()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(["name", *columns])
    for name, *values in zip(scores.names, *columns.values(), strict=True):
        writer.writerow([name, *("" if math.isnan(v) else f"{v:.6f}" for v in values)])
    write_text(folder / "per_image.csv", text.getvalue())
