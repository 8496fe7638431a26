"""Images of results: a mesh over its photograph, keypoints, silhouettes, strips of them.

An image is (H, W, 3) uint8, red green blue. Other inputs may be arrays or tensors on any device.
"""

import cv2
import numpy as np
import torch

import render
from model.outputs import Estimate, Prediction
from render.shading import shade
from smal_model.mesh import vertex_normals
from util.camera import CROP, project
from util.images import check_image, to_image
from util.scores import Scores

LABEL = (20, 150, 60)  # green
PREDICTED = (225, 30, 110)  # pink
BOTH = (150, 165, 150)  # silhouette and mask
TOO_MUCH = (235, 110, 20)  # silhouette alone, orange
MISSING = (40, 100, 220)  # mask alone, blue
UNKNOWN = (225, 225, 225)  # outside the photograph
INK = (30, 30, 30)
WHITE = (255, 255, 255)
MESH_COLORS = {
    "coarse": (0.55, 0.70, 0.90),
    "refined": (0.93, 0.76, 0.50),
    "fitted": (0.62, 0.82, 0.62),
}

CAPTION_HEIGHT = 34  # pixels, two lines
FINE = 4  # keypoints are drawn at this multiple of the image's size
GAP = 4  # pixels between the tiles of a strip and the rows of a grid
LARGE = 2**21  # pixels of a photograph above which overlays are drawn with one sample each

LABELS = ("image", "mask", "has_mask", "border_mask", "keypoints", "has_keypoints")  # of a sample
Words = list[tuple[str, tuple[int, int, int]]]  # pieces of a line of text with their colours


def array_of(values) -> np.ndarray:
    """An array, or a tensor on any device, as an array."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def overlay(image: np.ndarray, rgb, alpha, opacity: float = 0.85) -> np.ndarray:
    """A shaded mesh over an image of the same size.

    Args:
        image: below.
        rgb: (H, W, 3) in [0, 1], the mesh (render.shading).
        alpha: (H, W) in [0, 1], where it is.
        opacity: of the mesh.
    """
    check_image(image)
    rgb, alpha = array_of(rgb), array_of(alpha)
    if rgb.shape != image.shape or alpha.shape != image.shape[:2]:
        raise ValueError(
            f"rgb {rgb.shape} and alpha {alpha.shape} do not fit an image of {image.shape}"
        )
    weight = opacity * alpha[..., None]
    mixed = weight * 255 * rgb + (1 - weight) * image
    return np.clip(np.round(mixed), 0, 255).astype(np.uint8)


def draw_keypoints(image: np.ndarray, predicted, keypoints=None) -> np.ndarray:
    """An image with visible labels as green rings, predictions as pink dots, and lines between.

    Args:
        image: below; not changed.
        predicted: (K or more, 2), row and column in pixels.
        keypoints: (K, 3), row, column, visible; None: no labels, all predictions.
    """
    check_image(image)
    predicted = array_of(predicted).astype(float)
    if keypoints is None:
        labels = np.full((len(predicted), 3), np.nan)
    else:
        labels = array_of(keypoints).astype(float)
    if labels.shape[1:] != (3,) or predicted.ndim != 2 or len(predicted) < len(labels):
        shapes = f"predicted {predicted.shape} and keypoints {labels.shape}"
        raise ValueError(f"{shapes}, expected (K or more, 2) and (K, 3)")
    # Drawn larger and averaged: smooth at any place, and pixels without a mark stay as they were.
    out = cv2.resize(image, None, fx=FINE, fy=FINE, interpolation=cv2.INTER_NEAREST)

    def place(point) -> list[int]:
        """Row, column to OpenCV's column, row, within the range of its integers."""
        return np.clip(np.round(FINE * point[1::-1]), -1e5, 1e5).astype(int).tolist()

    known = np.isfinite(predicted[: len(labels)]).all(1)
    shown = known & ((labels[:, 2] > 0) | np.isnan(labels[:, 2]))
    dots = [place(p) for p in predicted[: len(labels)][shown]]
    rings = [place(p) for p in labels[shown & (labels[:, 2] > 0)]]
    for dot, ring in zip(dots, rings, strict=False):
        cv2.line(out, dot, ring, WHITE, FINE * 2)
        cv2.line(out, dot, ring, PREDICTED, FINE)
    for ring in rings:
        cv2.circle(out, ring, FINE * 4, WHITE, FINE * 3)
        cv2.circle(out, ring, FINE * 4, LABEL, int(FINE * 1.5))
    for dot in dots:
        cv2.circle(out, dot, int(FINE * 3.2), WHITE, -1)
        cv2.circle(out, dot, int(FINE * 2.4), PREDICTED, -1)
    return cv2.resize(out, image.shape[1::-1], interpolation=cv2.INTER_AREA)


def silhouette_comparison(silhouette, mask, border_mask=None) -> np.ndarray:
    """A silhouette against a mask: grey where both are, orange silhouette alone, blue mask alone.

    Args:
        silhouette, mask: (H, W) in [0, 1].
        border_mask: (H, W), 0 outside the photograph, where nothing is known: light grey.
    """
    silhouette, mask = array_of(silhouette).astype(float), array_of(mask).astype(float)
    if silhouette.ndim != 2 or silhouette.shape != mask.shape:
        shapes = f"silhouette {silhouette.shape} and mask {mask.shape}"
        raise ValueError(f"{shapes}, expected the same shape (H, W)")
    s, g = np.clip(silhouette, 0, 1)[..., None], np.clip(mask, 0, 1)[..., None]  # (H, W, 1)
    alone = s * (1 - g) * TOO_MUCH + (1 - s) * g * MISSING
    out = s * g * BOTH + alone + (1 - s) * (1 - g) * np.array(WHITE)
    if border_mask is not None:
        outside = array_of(border_mask) == 0
        out[outside] = np.asarray(UNKNOWN) - 45 * s[outside]
    return np.round(out).astype(np.uint8)


def side_view(verts: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Meshes turned by 90 degrees about the vertical, in the middle of the image.

    Args:
        verts: (B, V, 3) in camera space.
        scale: (B, 1) of the camera.

    Returns:
        In the image plane, smaller where it would not fit, and in camera space, (B, V, 3) each.
    """
    low, high = verts.amin(1, keepdim=True), verts.amax(1, keepdim=True)  # (B, 1, 3)
    middle = (low + high) / 2
    x, y, z = (verts - middle).unbind(-1)  # (B, V) each
    turned = torch.stack([-z, y, x + middle[..., 2]], -1)  # (B, V, 3)
    plane = project(turned, scale)  # (B, V, 3)
    reach = plane[..., :2].abs().amax((1, 2), keepdim=True).clamp_min(1e-6)  # (B, 1, 1)
    zoom = (0.92 / reach).clamp_max(1.0)
    return torch.cat([plane[..., :2] * zoom, plane[..., 2:]], -1), turned


def add_caption(image: np.ndarray, title: str, legend: Words | None = None) -> np.ndarray:
    """The image under a white band with a title and, below it, a line of coloured words."""
    band = np.full((CAPTION_HEIGHT, image.shape[1], 3), 255, np.uint8)
    for line, words in enumerate([[(title, INK)], legend or []]):
        x = 4
        for text, color in words:
            font = cv2.FONT_HERSHEY_SIMPLEX, 0.42
            cv2.putText(band, text, (x, 13 + 15 * line), *font, color, 1, cv2.LINE_AA)
            x += cv2.getTextSize(text, *font, 1)[0][0] + 10
    return np.concatenate([band, image])


def _percent(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"  {name} -" if np.isnan(value) else f"  {name} {100 * value:.0f} %"


def _drawn(background, faces, plane, verts, color, backend) -> np.ndarray:
    """The first mesh of a batch, shaded, over a background; opaque on white."""
    normals = vertex_normals(verts, faces)
    rgb, alpha = shade(plane, faces, normals, CROP, color=color, backend=backend)
    if background is None:
        background = np.full((CROP, CROP, 3), 255, np.uint8)
        return overlay(background, rgb[0], alpha[0], opacity=1.0)
    return overlay(background, rgb[0], alpha[0])


@torch.no_grad()
def strip(
    sample: dict,
    estimates: dict[str, Estimate],
    faces: torch.Tensor,
    scores: dict[str, tuple[float, float]] | None = None,
    backend: str = "auto",
) -> np.ndarray:
    """One row of tiles, each 224 pixels wide under its caption.

    The crop; then for each mesh: the mesh over the crop, predicted and labelled keypoints, the
    silhouette against the mask; last the finest mesh turned by 90 degrees, alone on white.

    Args:
        sample: of a data set, one image.
        estimates: by name, `coarse` first, each a batch of one.
        faces: (F, 3).
        scores: PCK and IoU in [0, 1] or NaN by name, for the captions.
        backend: of `render`.
    """
    image = to_image(sample["image"])
    if len(image) != CROP:
        method = cv2.INTER_AREA if len(image) > CROP else cv2.INTER_LINEAR
        image = cv2.resize(image, (CROP, CROP), interpolation=method)
    tiles = [add_caption(image, "image")]
    for name, estimate in estimates.items():
        pck, iou = (scores or {}).get(name, (None, None))
        color, plane = MESH_COLORS[name], estimate.plane
        mesh = _drawn(image, faces, plane, estimate.verts, color, backend)
        labels = sample["keypoints"] if bool(sample["has_keypoints"]) else None
        points = draw_keypoints(image, estimate.keypoints_px[0], labels)
        legend = [("predicted", PREDICTED), ("labelled", LABEL)][: 1 + (labels is not None)]
        tiles += [
            add_caption(mesh, f"{name} mesh"),
            add_caption(points, f"{name} keypoints{_percent('PCK', pck)}", legend),
        ]
        if bool(sample["has_mask"]):
            silhouette = render.coverage(plane, faces, CROP, backend=backend)[0]
            compared = silhouette_comparison(silhouette, sample["mask"], sample["border_mask"])
            areas = [("both", (95, 110, 95)), ("too much", TOO_MUCH), ("missing", MISSING)]
            title = f"{name} silhouette{_percent('IoU', iou)}"
            tiles.append(add_caption(compared, title, areas))
    plane, turned = side_view(estimate.verts, estimate.scale)
    side = _drawn(None, faces, plane, turned, color, backend)
    tiles.append(add_caption(side, f"{name} mesh, turned by 90 degrees"))
    gap = np.full((len(tiles[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([part for tile in tiles for part in (tile, gap)][:-1], 1)


@torch.no_grad()
def photograph_overlay(
    image: np.ndarray,
    estimate: Estimate,
    faces: torch.Tensor,
    crop: tuple,
    color=MESH_COLORS["refined"],
    backend: str = "auto",
) -> np.ndarray:
    """The mesh over the whole photograph.

    Args:
        image: the photograph, upright.
        estimate: a batch of one.
        faces: (F, 3).
        crop: center (x, y) and side, pixels of the photograph.
        color: red green blue in [0, 1].
        backend: of `render`.
    """
    height, width = image.shape[:2]
    (x, y), side = crop
    verts, plane = estimate.verts, estimate.plane
    half = verts.new_tensor([width / side, height / side])
    middle = verts.new_tensor([2 * x / width - 1, 1 - 2 * y / height])
    plane = torch.cat([plane[..., :2] / half + middle, plane[..., 2:]], -1)
    samples = 2 if height * width <= LARGE else 1
    normals = vertex_normals(verts, faces)
    rgb, alpha = shade(plane, faces, normals, (height, width), color, samples, backend)
    return overlay(image, rgb[0], alpha[0])


def batch_strips(
    batch: dict,
    out: Prediction,
    faces: torch.Tensor,
    scores: Scores | None = None,
    backend: str = "auto",
) -> list[np.ndarray]:
    """A strip for each image of a batch; arguments as in `strip`."""
    strips = []
    for i in range(len(batch["image"])):
        sample = {k: batch[k][i] for k in LABELS}
        estimates = {name: estimate[i] for name, estimate in out.estimates.items()}
        known = {n: (s.pck[i], s.iou[i]) for n, s in scores.meshes.items()} if scores else None
        strips.append(strip(sample, estimates, faces, known, backend))
    return strips


def image_grid(images: list[np.ndarray]) -> np.ndarray:
    """Images below each other in one, narrower ones filled up with white."""
    if not images:
        raise ValueError("no image to put into a grid")
    width = max(image.shape[1] for image in images)
    rows = [
        np.pad(p, ((0, GAP), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in images
    ]
    return np.concatenate(rows)[:-GAP]
