"""Pictures of results: a mesh over its photograph, keypoints, silhouettes, and strips that show them side by side.

Pictures are (H, W, 3) uint8 arrays, red green blue. Masks, keypoints and meshes may be arrays or tensors on any device.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from render.shading import shade
from smal_model.files import written_aside
from smal_model.joints import NUM_KEYPOINTS

from .camera import CROP, project

LABEL = (20, 150, 60)  # green
PREDICTED = (225, 30, 110)  # pink
BOTH = (150, 165, 150)  # silhouette and mask
TOO_MUCH = (235, 110, 20)  # silhouette alone, orange
MISSING = (40, 100, 220)  # mask alone, blue
UNKNOWN = (225, 225, 225)  # outside the photograph
INK = (30, 30, 30)
WHITE = (255, 255, 255)
COARSE_COLOR = (0.55, 0.70, 0.90)
REFINED_COLOR = (0.93, 0.76, 0.50)

CAPTION_HEIGHT = 34  # pixels, two lines
FINE = 4  # keypoints are drawn at this multiple of the picture's size
GAP = 4  # between the tiles of a strip and the rows of a grid

Words = list[tuple[str, tuple[int, int, int]]]  # pieces of a line of text with their colours


@dataclass(frozen=True)
class Fit:
    """One stage's result for one picture.

    verts (V, 3) in camera space; keypoints (K, 2), K >= 20, row and column in pixels of the 224 crop; silhouette
    (224, 224) in [0, 1]; pck and iou in [0, 1] or NaN, shown in the captions where given.
    """

    verts: torch.Tensor
    keypoints: torch.Tensor
    silhouette: torch.Tensor
    pck: float | None = None
    iou: float | None = None


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _check_picture(picture: np.ndarray) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"picture {picture.shape} of {picture.dtype}, expected (H, W, 3) of uint8")


def overlay(picture: np.ndarray, rgb, alpha, opacity: float = 0.85) -> np.ndarray:
    """Lay a shaded mesh, rgb (H, W, 3) and alpha (H, W) in [0, 1], over a picture of that size."""
    _check_picture(picture)
    rgb, alpha = _array(rgb), _array(alpha)
    if rgb.shape != picture.shape or alpha.shape != picture.shape[:2]:
        raise ValueError(f"rgb {rgb.shape} and alpha {alpha.shape} do not fit a picture of {picture.shape}")
    weight = opacity * alpha[..., None]
    return np.clip(np.round(weight * 255 * rgb + (1 - weight) * picture), 0, 255).astype(np.uint8)


def draw_keypoints(picture: np.ndarray, predicted, keypoints) -> np.ndarray:
    """Draw predicted places (K, 2), row and column in pixels of the picture, and labels (20, 3), row, column, visible.

    Visible labels are green rings, predictions pink dots, and a line joins each pair. Returns a new picture.
    """
    _check_picture(picture)
    predicted, keypoints = _array(predicted).astype(float), _array(keypoints).astype(float)
    if predicted.ndim != 2 or len(predicted) < NUM_KEYPOINTS or keypoints.shape != (NUM_KEYPOINTS, 3):
        raise ValueError(f"predicted {predicted.shape} and keypoints {keypoints.shape}, expected (20+, 2) and (20, 3)")
    # Drawn at several times the size and averaged: smooth at any place, and pixels without a mark stay as they were.
    out = cv2.resize(picture, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_NEAREST)
    pairs = []
    for guess, label in zip(predicted[:NUM_KEYPOINTS], keypoints, strict=True):
        if label[2] > 0 and np.isfinite(guess).all():
            # Row, column to OpenCV's column, row, kept within the range of its integers.
            pairs.append([np.clip(np.round(FINE * p[1::-1]), -1e5, 1e5).astype(int).tolist() for p in (guess, label)])
    for guess, label in pairs:
        cv2.line(out, guess, label, WHITE, FINE * 2)
        cv2.line(out, guess, label, PREDICTED, FINE)
    for _, label in pairs:
        cv2.circle(out, label, FINE * 4, WHITE, FINE * 3)
        cv2.circle(out, label, FINE * 4, LABEL, int(FINE * 1.5))
    for guess, _ in pairs:
        cv2.circle(out, guess, int(FINE * 3.2), WHITE, -1)
        cv2.circle(out, guess, int(FINE * 2.4), PREDICTED, -1)
    return cv2.resize(out, picture.shape[1::-1], interpolation=cv2.INTER_AREA)


def silhouette_comparison(silhouette, mask, border_mask=None) -> np.ndarray:
    """A silhouette against a mask, both (H, W) in [0, 1]: grey where both are, orange silhouette alone, blue mask alone.

    Outside the photograph (border_mask (H, W) is 0) nothing is known: light grey, the silhouette a little darker.
    """
    silhouette, mask = _array(silhouette).astype(float), _array(mask).astype(float)
    if silhouette.ndim != 2 or silhouette.shape != mask.shape:
        raise ValueError(f"silhouette {silhouette.shape} and mask {mask.shape}, expected the same shape (H, W)")
    s, g = np.clip(silhouette, 0, 1)[..., None], np.clip(mask, 0, 1)[..., None]  # (H, W, 1)
    out = s * g * BOTH + s * (1 - g) * TOO_MUCH + (1 - s) * g * MISSING + (1 - s) * (1 - g) * np.array(WHITE)
    if border_mask is not None:
        outside = _array(border_mask) == 0
        out[outside] = np.asarray(UNKNOWN) - 45 * s[outside]
    return np.round(out).astype(np.uint8)


def _turned(verts: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A mesh (1, V, 3) turned by 90 degrees about the vertical through its middle, in the middle of the picture.

    Returns its places in the image plane, made smaller where they would not fit, and in camera space, both (1, V, 3).
    """
    low, high = verts.amin(1, keepdim=True), verts.amax(1, keepdim=True)  # (1, 1, 3)
    middle = (low + high) / 2
    x, y, z = (verts - middle).unbind(-1)  # (1, V) each
    turned = torch.stack([-z, y, x + middle[..., 2]], -1)  # (1, V, 3)
    plane = project(turned, scale)  # (1, V, 3)
    reach = plane[..., :2].abs().amax().clamp_min(1e-6)
    zoom = (0.92 / reach).clamp_max(1.0)
    return torch.cat([plane[..., :2] * zoom, plane[..., 2:]], -1), turned


def add_caption(picture: np.ndarray, title: str, legend: Words = ()) -> np.ndarray:
    """The picture under a white band with a title and, below it, a line of coloured words."""
    band = np.full((CAPTION_HEIGHT, picture.shape[1], 3), 255, np.uint8)
    for line, words in enumerate([[(title, INK)], legend]):
        x = 4
        for text, color in words:
            cv2.putText(band, text, (x, 13 + 15 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)
            x += cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0] + 10
    return np.concatenate([band, picture])


def _score(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"  {name} -" if np.isnan(value) else f"  {name} {100 * value:.0f} %"


def strip(
    picture: np.ndarray,
    mask,
    border_mask,
    keypoints,
    faces: torch.Tensor,
    scale: torch.Tensor,
    coarse: Fit,
    refined: Fit | None = None,
    backend: str = "auto",
) -> np.ndarray:
    """One row of tiles, each 224 pixels wide under its caption.

    The crop; then for the coarse and, where given, the refined mesh: the mesh over the crop, predicted and labelled
    keypoints, the silhouette against the mask; last the finer of the meshes turned by 90 degrees, alone on white.

    picture (S, S, 3) uint8, the crop at any size; mask and border_mask (224, 224); keypoints (20, 3) row, column,
    visible; faces (F, 3); scale (1,) the predicted scale of the camera; backend as in `render.rasterize`. Returns
    (H, W, 3) uint8.
    """
    _check_picture(picture)
    if picture.shape[:2] != (CROP, CROP):
        method = cv2.INTER_AREA if picture.shape[0] > CROP else cv2.INTER_LINEAR
        picture = cv2.resize(picture, (CROP, CROP), interpolation=method)
    scale = scale.detach().reshape(1, 1)

    tiles = [add_caption(picture, "picture")]
    stages = [("coarse", coarse, COARSE_COLOR)] + ([("refined", refined, REFINED_COLOR)] if refined else [])
    for name, fit, color in stages:
        verts = fit.verts.detach()[None]  # (1, V, 3)
        rgb, alpha = shade(project(verts, scale), faces, verts, CROP, color=color, backend=backend)
        points = draw_keypoints(picture, fit.keypoints, keypoints)
        silhouette = silhouette_comparison(fit.silhouette, mask, border_mask)
        tiles += [
            add_caption(overlay(picture, rgb[0], alpha[0]), f"{name} mesh"),
            add_caption(points, f"{name} keypoints{_score('PCK', fit.pck)}", [("predicted", PREDICTED), ("labelled", LABEL)]),
            add_caption(
                silhouette,
                f"{name} silhouette{_score('IoU', fit.iou)}",
                [("both", (95, 110, 95)), ("too much", TOO_MUCH), ("missing", MISSING)],
            ),
        ]
    name, fit, color = stages[-1]
    plane, turned = _turned(fit.verts.detach()[None], scale)
    rgb, alpha = shade(plane, faces, turned, CROP, color=color, backend=backend)
    white = np.full((CROP, CROP, 3), 255, np.uint8)
    tiles.append(add_caption(overlay(white, rgb[0], alpha[0], opacity=1.0), f"{name} mesh, turned by 90 degrees"))

    gap = np.full((len(tiles[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], 1)


def picture_grid(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures below each other in one, narrower ones filled up with white; for TensorBoard with dataformats="HWC"."""
    if not pictures:
        raise ValueError("no picture to put into a grid")
    for picture in pictures:
        _check_picture(picture)
    width = max(picture.shape[1] for picture in pictures)
    rows = [np.pad(p, ((0, GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(rows)[:-GAP]


def save_png(path: str | Path, picture: np.ndarray) -> None:
    """Write a picture as PNG, aside first and then renamed, so that no half-written file is ever seen."""
    _check_picture(picture)
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    with written_aside(path) as temporary:
        temporary.write_bytes(data.tobytes())
