"""The page beside results: `index.html`, opened from the disk: scores, strips and meshes to turn.

    images = [PageImage("dog", "dog.png", {"iou": 0.8, "iou_refined": 0.9}, {"coarse": verts})]
    write_page("logs/test", "Test split", images, smal.faces, {"checkpoint": "stage3.pth"})

`index.html` holds the table and the figures, the folder `page` beside it the viewer and, one file
an image, the meshes, which are loaded when they are looked at. Nothing leaves the machine: the
page's own policy forbids it.
"""

import base64
import hashlib
import html
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from util.files import atomic_write, jsonable, write_text
from util.metrics import GROUPS
from util.scores import nanmean, pck_at

from .meshes import mesh_in_file_axes
from .overlays import array_of
from .tables import MESHES

ASSETS = Path(__file__).parent / "viewer"
FOLDER = "page"
SCORES = {  # key: (label, 1 where more is better, a fraction shown in percent)
    "pck": ("PCK@0.15", 1, True),
    "iou": ("IoU", 1, True),
    "pa_mpvpe": ("PA-MPVPE", -1, True),
    "pa_mpjpe": ("PA-MPJPE", -1, True),
}
THRESHOLDS = np.linspace(0, 0.3, 61)
POLICY = (
    "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; "
    "script-src 'self' file: '{hash}'; base-uri 'none'; form-action 'none'"
)


@dataclass
class PageImage:
    """One row of the page; everything but the name may be missing.

    name: shown, any text.
    strip: path of an image, relative to the page.
    scores: by key, of finer meshes under `<key>_refined`, `<key>_fitted`; None or NaN: none.
    meshes: (V, 3) vertices by name (of `MESHES`), camera space.
    colors: (V, 3) red green blue in [0, 1] by name of the mesh.
    errors: (20,) distances of the keypoints by name of the mesh, as fractions of the square root
        of the mask's area; NaN where a keypoint is not labelled.
    files: paths to download, relative to the page, by label.
    """

    name: str
    strip: str | None = None
    scores: dict[str, Any] = field(default_factory=dict)
    meshes: dict[str, Any] = field(default_factory=dict)
    colors: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


def write_page(
    folder: str | Path,
    title: str,
    images: Sequence[PageImage],
    faces,
    facts: Mapping[str, object] | None = None,
) -> Path:
    """Writes `index.html` and the folder `page`.

    Args:
        folder: made where it is missing.
        title: heading of the page.
        images: in the order in which images without a score are shown.
        faces: (F, 3), shared by all meshes.
        facts: shown below the title, by name.

    Returns:
        The path of `index.html`.
    """
    folder = Path(folder)
    columns = _columns(images)
    turned = _write_meshes(folder / FOLDER, images, np.asarray(faces))
    for name in ("three.min.js", "three.LICENSE"):
        with atomic_write(folder / FOLDER / name) as temporary:
            shutil.copyfile(ASSETS / name, temporary)
    wide = bool(turned.size and turned.max() > np.iinfo(np.uint16).max)
    data = {
        "folder": FOLDER,
        "columns": [column | {"key": key} for key, column in columns.items()],
        "main": _main_column(columns),
        "wide": wide,
        "faces": _base64(turned.astype("<u4" if wide else "<u2")),
        "images": [
            {
                "name": image.name,
                "strip": _link(image.strip),
                "scores": [_finite(image.scores.get(key)) for key in columns],
                "meshes": list(image.meshes),
                "files": {label: _link(path) for label, path in image.files.items()},
            }
            for image in images
        ],
    }
    script = "".join(_asset(name) for name in ("viewer.js", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    count = "one image" if len(images) == 1 else f"{len(images)} images"
    parts = {
        "title": html.escape(title),
        "policy": POLICY.format(hash=f"sha256-{digest}"),
        "style": _asset("page.css"),
        "count": count,
        "facts": f"<span><b>{count}</b></span>"
        + "".join(
            f"<span>{html.escape(str(name))} <b>{html.escape(str(value))}</b></span>"
            for name, value in (facts or {}).items()
        ),
        "means": _means(images, columns),
        "charts": _charts(images, columns),
        "data": json.dumps(jsonable(data), separators=(",", ":")).replace("<", "\\u003c"),
        "library": f"{FOLDER}/three.min.js",
        "script": script,
    }
    page = re.sub(r"{{(\w+)}}", lambda match: parts[match[1]], _asset("page.html"))
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _link(path: str | None) -> str | None:
    """A relative path as an address that stays in its folder, whatever characters it has."""
    return None if path is None else "./" + quote(str(path).replace("\\", "/"))


def _finite(value) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _columns(images: Sequence[PageImage]) -> dict[str, dict]:
    """Columns of the table by key of the score; groups of keypoints have none."""
    keys = dict.fromkeys(key for image in images for key in image.scores)
    bases = dict.fromkeys(re.sub("(_refined|_fitted)$", "", key) for key in keys)
    columns = {}
    for base in bases:
        if base.rpartition("_")[2] in GROUPS:
            continue
        label, better, percent = SCORES.get(base, (base.replace("_", " "), 1, False))
        found = {base + end: mesh for mesh, end in MESHES.items() if base + end in keys}
        for key, mesh in found.items():
            column = {"label": label, "better": better, "percent": percent}
            columns[key] = column | {"mesh": mesh if len(found) > 1 else ""}
    return columns


def _main_column(columns: Mapping[str, dict]) -> int:
    """The column that sorts at first: the finest mesh's IoU, else the first; -1: none."""
    keys = list(columns)
    for key in (*(f"iou{end}" for end in reversed(MESHES.values())), *keys[:1]):
        if key in keys:
            return keys.index(key)
    return -1


def _write_meshes(folder: Path, images: Sequence[PageImage], faces: np.ndarray) -> np.ndarray:
    """One script per image, which hands its meshes to the page; returns the faces in file axes."""
    turned = np.zeros((0, 3), np.int64)
    for number, image in enumerate(images):
        packed = []
        for name, mesh in image.meshes.items():
            verts, turned = mesh_in_file_axes(mesh, faces)
            low = verts.min(0)
            step = np.maximum(verts.max(0) - low, 1e-9) / 65535
            whole = np.round((verts - low) / step).astype("<u2")
            colors = image.colors.get(name)
            if colors is not None:
                colors = _base64(np.round(255 * np.clip(array_of(colors), 0, 1)).astype(np.uint8))
            place = {"low": low.tolist(), "step": step.tolist()}
            packed.append(place | {"verts": _base64(whole), "colors": colors})
        if packed:
            text = json.dumps(packed, separators=(",", ":"))
            write_text(folder / f"mesh_{number:04d}.js", f"receiveMeshes({number},{text})\n")
    return turned


def _values(images: Sequence[PageImage], key: str) -> np.ndarray:
    found = (_finite(image.scores.get(key)) for image in images)
    return np.array([value for value in found if value is not None])


# ---------------------------------------------------------------- figures


def _means(images: Sequence[PageImage], columns: Mapping[str, dict]) -> str:
    """A card for each score with its mean over the images."""
    cards: dict[str, str] = {}
    for key, column in columns.items():
        values = _values(images, key)
        if not len(values):
            continue
        mean = f"{100 * values.mean():.1f}&#8201;%" if column["percent"] else f"{values.mean():.3g}"
        mesh = column["mesh"]
        note = f' <small class="{mesh}">{mesh}</small>' if mesh else ""
        label = html.escape(column["label"])
        cards[label] = cards.get(label, "") + f"<span><strong>{mean}</strong>{note}</span>"
    if not cards:
        return ""
    tiles = (
        f'<div class="card"><h2>{label}, mean</h2><p>{text}</p></div>'
        for label, text in cards.items()
    )
    return f'<section class="means" aria-label="Mean scores">{"".join(tiles)}</section>'


def _charts(images: Sequence[PageImage], columns: Mapping[str, dict]) -> str:
    """Histograms of PCK and IoU, PCK over thresholds, and PCK by group of keypoints."""
    figures = []
    for base in ("pck", "iou"):
        found = {mesh: _values(images, base + end) for mesh, end in MESHES.items()}
        series = {mesh: values for mesh, values in found.items() if len(values)}
        if series:
            label = SCORES[base][0]
            figures.append(
                _figure(f"{label} of the images", "number of images", series, _bars(series))
            )
    errors = {mesh: _errors(images, mesh) for mesh in MESHES}
    errors = {mesh: values for mesh, values in errors.items() if np.isfinite(values).any()}
    if errors:
        curves = {mesh: pck_curve(values, THRESHOLDS) for mesh, values in errors.items()}
        note = "of keypoints within the threshold, a fraction of the mask's side"
        figures.append(_figure("PCK over thresholds", f"% {note}", curves, _curves(curves)))
        groups = {mesh: group_pck(values) for mesh, values in errors.items()}
        figures.append(_figure("PCK@0.15 by keypoints", "%", groups, _groups(groups)))
    if not figures:
        return ""
    return f'<section class="charts" aria-label="Figures">{"".join(figures)}</section>'


def _errors(images: Sequence[PageImage], mesh: str) -> np.ndarray:
    """(N, K) keypoint errors of the images that have them."""
    rows = [array_of(image.errors[mesh]) for image in images if mesh in image.errors]
    return np.stack(rows) if rows else np.zeros((0, 0))


def pck_curve(errors: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Mean PCK over the images at each threshold: (N, K) errors, (T,) to (T,)."""
    return np.array([nanmean(pck_at(errors, threshold)) for threshold in thresholds])


def group_pck(errors: np.ndarray, threshold: float = 0.15) -> dict[str, float]:
    """PCK of all keypoints and of each group; groups that no image has labelled are left out."""
    chosen = {"all": tuple(range(errors.shape[1])), **GROUPS}
    parts = {name: errors[:, list(keypoints)] for name, keypoints in chosen.items()}
    return {
        name: nanmean(pck_at(part, threshold))
        for name, part in parts.items()
        if not np.isnan(part).all()
    }


WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 320, 190, 34, 16, 22, 8  # of a figure, its margins


def _figure(title: str, note: str, series: Mapping[str, object], drawing: str) -> str:
    keys = "".join(f'<span class="key {mesh}">{mesh}</span>' for mesh in series)
    return (
        f'<figure class="card"><figcaption>{title}<small>{keys}{note}</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{drawing}</svg>'
        "</figure>"
    )


def _x(part: float) -> float:
    return round(LEFT + part * (WIDTH - LEFT - RIGHT), 1)


def _y(part: float) -> float:
    return round(HEIGHT - BOTTOM - part * (HEIGHT - BOTTOM - TOP), 1)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def _axes(ticks_x: Mapping[float, str], ticks_y: Mapping[float, str]) -> str:
    """Labels below, and labelled lines across; places in [0, 1]."""
    below = (_text(_x(at), HEIGHT - 6, text, "middle") for at, text in ticks_x.items())
    across = (
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(at)}" y2="{_y(at)}"/>'
        + _text(LEFT - 6, _y(at) + 4, text, "end")
        for at, text in ticks_y.items()
    )
    return "".join([*across, *below])


_PERCENT = {0.0: "0", 0.5: "50", 1.0: "100"}


def _bars(series: Mapping[str, np.ndarray]) -> str:
    counts = {mesh: np.histogram(v, bins=10, range=(0, 1))[0] for mesh, v in series.items()}
    top = max(int(count.max()) for count in counts.values())
    width = 0.08 / len(counts)
    drawing = [_axes({0: "0 %", 0.5: "50", 1: "100"}, {0: "0", 1: str(top)})]
    for place, (mesh, count) in enumerate(counts.items()):
        for b, number in enumerate(count):
            x, y = _x(b / 10 + 0.01 + place * width), _y(number / top)
            size = f'width="{_x(width) - LEFT - 0.5:.1f}" height="{_y(0) - y:.1f}"'
            tip = f"{mesh}: {number} from {10 * b} to {10 * b + 10} %"
            drawing.append(
                f'<rect class="{mesh}" x="{x}" y="{y}" {size}><title>{tip}</title></rect>'
            )
    return "".join(drawing)


def _curves(curves: Mapping[str, np.ndarray]) -> str:
    drawing = [_axes({0: "0", 0.5: "0.15", 1: "0.3"}, _PERCENT)]
    for mesh, curve in curves.items():
        points = zip(THRESHOLDS / THRESHOLDS[-1], curve, strict=True)
        text = " ".join(f"{_x(x)},{_y(y)}" for x, y in points)
        drawing.append(f'<polyline class="{mesh}" points="{text}"/>')
    return "".join(drawing)


def _groups(groups: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(groups.values())))
    drawing = []
    row = (HEIGHT - TOP) / len(names)
    thick = 0.8 * row / max(2, len(groups))
    for r, name in enumerate(names):
        drawing.append(_text(LEFT, round(TOP + (r + 0.5) * row + 1, 1), name, "end"))
        for place, (mesh, values) in enumerate(groups.items()):
            y, value = TOP + r * row + place * thick, values.get(name, 0.0)
            end = LEFT + 8 + value * (WIDTH - LEFT - 60)
            size = f'width="{end - LEFT - 8:.1f}" height="{thick - 1:.1f}"'
            drawing.append(f'<rect class="{mesh}" x="{LEFT + 8}" y="{y:.1f}" {size}/>')
            middle = round(y + thick / 2 + 3.5, 1)
            drawing.append(_text(round(end + 5, 1), middle, f"{100 * value:.1f}", "start"))
    return "".join(drawing)
