"""Pictures of results: what is drawn is where it belongs and has the colour it should have."""

import cv2
import numpy as np
import pytest
import torch

from model import Estimate
from report.overlays import (
    BOTH,
    CAPTION_HEIGHT,
    GAP,
    LABEL,
    MISSING,
    PREDICTED,
    TOO_MUCH,
    UNKNOWN,
    WHITE,
    draw_keypoints,
    image_grid,
    overlay,
    side_view,
    silhouette_comparison,
    strip,
)
from util.camera import CROP, project, to_pixels
from util.images import normalize, write_png

GREY = np.full((CROP, CROP, 3), 90, np.uint8)
SCALE = torch.zeros(1)


def near(color, pixel) -> bool:
    return np.abs(np.asarray(color, float) - np.asarray(pixel, float)).max() < 25


def make_body() -> tuple[torch.Tensor, torch.Tensor]:
    """A closed box, thin in depth, higher than wide: verts (8, 3) and faces (12, 3)."""
    corners = torch.tensor(
        [[x, y, z] for x in (-0.2, 0.2) for y in (-0.4, 0.4) for z in (0.9, 1.1)]
    )
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return corners, faces


def make_strip(refined: bool = True, image: np.ndarray = GREY, scores=None) -> np.ndarray:
    verts, faces = make_body()
    mask, border = torch.zeros(CROP, CROP), torch.ones(CROP, CROP)
    mask[60:160, 100:170] = 1
    border[:, 200:] = 0
    sample = {
        "image": normalize(image / np.float32(255)),
        "mask": mask,
        "has_mask": torch.tensor(True),
        "has_keypoints": torch.tensor(True),
        "border_mask": border,
        "keypoints": torch.tensor([[50.0, 60.0, 1.0]]).repeat(20, 1),
    }

    def estimate(shift: float) -> Estimate:
        moved = verts[None] + torch.tensor([shift, 0, 0])
        return Estimate(moved, moved.mean(1, keepdim=True).expand(1, 41, 3), SCALE[None])

    estimates = {"coarse": estimate(0.0)} | ({"refined": estimate(0.3)} if refined else {})
    return strip(sample, estimates, faces, scores, backend="torch")


def both(pck: float, iou: float) -> dict:
    return {"coarse": (pck, iou), "refined": (pck, iou)}


def tile(row: np.ndarray, number: int) -> np.ndarray:
    start = number * (CROP + GAP)
    return row[CAPTION_HEIGHT:, start : start + CROP]


def caption(row: np.ndarray, number: int) -> np.ndarray:
    start = number * (CROP + GAP)
    return row[:CAPTION_HEIGHT, start : start + CROP]


def test_overlay_mixes_by_alpha():
    rgb = torch.zeros(CROP, CROP, 3) + torch.tensor([1.0, 0.5, 0.0])
    alpha = torch.zeros(CROP, CROP)
    alpha[10], alpha[20] = 1.0, 0.5
    out = overlay(GREY, rgb, alpha, opacity=1.0)
    assert out[10, 5].tolist() == [255, 128, 0] and out[15, 5].tolist() == [90, 90, 90]
    assert np.abs(out[20, 5].astype(int) - [172, 109, 45]).max() <= 1
    with pytest.raises(ValueError, match="do not fit an image"):
        overlay(GREY, rgb[:10], alpha[:10])
    with pytest.raises(ValueError, match="expected .H, W, 3. of uint8"):
        overlay(GREY / 255, rgb, alpha)


def test_keypoints_are_drawn_at_row_and_column():
    keypoints = torch.zeros(20, 3)
    keypoints[0] = torch.tensor([40.0, 150.5, 1.0])
    keypoints[1] = torch.tensor([120.0, 20.0, 0.0])  # not visible
    keypoints[2] = torch.tensor([200.0, 30.0, 1.0])
    predicted = torch.full((41, 2), 200.0)
    predicted[0] = torch.tensor([100.0, 150.5])
    predicted[1] = torch.tensor([120.0, 80.0])
    predicted[2] = torch.tensor([float("nan"), 5.0])
    out = draw_keypoints(GREY, predicted, keypoints)
    assert near(PREDICTED, out[100, 150])
    assert near(LABEL, out[40 - 4, 150]) and near(LABEL, out[40, 150 + 4])  # a ring
    assert near(PREDICTED, out[70, 150])  # the line between the two
    changed = (out != GREY).any(-1)
    assert changed[110:].sum() == 0 and changed[:, :130].sum() == 0  # the two others are not drawn
    assert (GREY == 90).all()
    far = draw_keypoints(
        GREY, torch.full((20, 2), 1e12), keypoints
    )  # far outside: drawn without harm
    assert far.shape == GREY.shape
    with pytest.raises(ValueError, match="expected .K or more, 2. and .K, 3."):
        draw_keypoints(GREY, predicted[:10], keypoints)


def test_silhouettes_have_their_colours():
    silhouette, mask, border = np.zeros((8, 8)), np.zeros((8, 8)), np.ones((8, 8))
    silhouette[:, 2:6] = 1
    mask[:4] = 1
    border[:, 7] = 0
    silhouette[7, 0] = 0.5
    out = silhouette_comparison(silhouette, mask, border)
    assert out[0, 3].tolist() == list(BOTH) and out[6, 3].tolist() == list(TOO_MUCH)
    assert out[0, 0].tolist() == list(MISSING) and out[6, 0].tolist() == list(WHITE)
    assert out[0, 7].tolist() == list(UNKNOWN) == out[7, 7].tolist()
    assert np.abs(out[7, 0].astype(int) - (np.array(TOO_MUCH) + 255) // 2).max() <= 1
    with pytest.raises(ValueError, match="same shape"):
        silhouette_comparison(silhouette, mask[:3])


def test_a_strip_shows_all_that_was_asked_for():
    row = make_strip(scores=both(0.85, 0.5))
    assert row.shape == (CAPTION_HEIGHT + CROP, 8 * CROP + 7 * GAP, 3) and row.dtype == np.uint8
    assert all((caption(row, n) < 120).all(-1).any() for n in range(8))  # dark words over each tile
    assert (tile(row, 0) == GREY).all()
    verts, _ = make_body()
    for number, shift in (
        (1, 0.0),
        (4, 0.3),
    ):  # the mesh covers its own middle and nothing far from it
        middle = to_pixels(
            project((verts.mean(0) + torch.tensor([shift, 0, 0])).expand(1, 1, 3), SCALE[None])
        )[0, 0]
        r, c = (int(v) for v in middle)
        assert (tile(row, number)[r, c] != 90).any()
        changed = (tile(row, number) != GREY).any(-1)
        assert 0.02 < changed.mean() < 0.5 and abs(np.nonzero(changed)[1].mean() - c) < 3
    for number in (2, 5):
        assert near(LABEL, tile(row, number)[50, 64]) and (caption(row, number)[15:] != 255).any()
    # The box covers columns 86 to 138, moved 125 to 176; the mask 100 to 170.
    for number, (shared, outside, missing) in {3: (120, 92, 150), 6: (150, 173, 110)}.items():
        image = tile(row, number)
        assert image[100, shared].tolist() == list(BOTH)
        assert image[100, outside].tolist() == list(TOO_MUCH)
        assert image[100, missing].tolist() == list(MISSING)
        assert image[100, 210].tolist() == list(UNKNOWN)


def test_the_turned_mesh_is_seen_from_its_side_alone_on_white():
    """From the side it is narrower by the ratio of depth to width, as high, and in the middle."""
    row = make_strip()
    front = (tile(row, 4) != GREY).any(-1)
    side = (tile(row, 7) != 255).any(-1)

    def extent(drawn, axis):
        found = np.flatnonzero(drawn.any(axis))
        return found[-1] - found[0] + 1

    assert extent(side, 0) == pytest.approx(0.5 * extent(front, 0), rel=0.12)
    assert extent(side, 1) == pytest.approx(extent(front, 1), rel=0.06)
    rows, cols = np.nonzero(side)
    assert abs(rows.mean() - CROP / 2) < 3 and abs(cols.mean() - CROP / 2) < 3


def test_a_long_mesh_is_made_to_fit_when_turned():
    verts, faces = make_body()
    verts = verts * torch.tensor([1, 1, 30.0])  # six units deep
    plane, turned = side_view(verts[None], SCALE[None])
    assert plane[..., :2].abs().max() == pytest.approx(0.92)
    assert turned[..., 0].max() - turned[..., 0].min() == pytest.approx(6.0)


def test_a_strip_without_a_refined_mesh_and_at_another_input_size():
    small = make_strip(refined=False, image=np.full((96, 96, 3), 90, np.uint8))
    assert small.shape == (CAPTION_HEIGHT + CROP, 5 * CROP + 4 * GAP, 3)
    assert (tile(small, 0) == GREY).all()


def test_captions_tell_the_scores():
    plain, scored, none = (
        make_strip(),
        make_strip(scores=both(0.85, 0.5)),
        make_strip(scores=both(float("nan"), 0.5)),
    )
    for number in range(8):
        same = (caption(plain, number) == caption(scored, number)).all()
        assert same == (number not in (2, 3, 5, 6))
    assert (caption(scored, 2) != caption(none, 2)).any()


def test_grid_and_file(tmp_path):
    grid = image_grid([np.zeros((5, 9, 3), np.uint8), np.zeros((6, 4, 3), np.uint8)])
    assert grid.shape == (5 + GAP + 6, 9, 3)
    assert (
        (grid[:5] == 0).all() and (grid[5 : 5 + GAP] == 255).all() and (grid[-6:, 4:] == 255).all()
    )
    with pytest.raises(ValueError, match="no image"):
        image_grid([])
    picture = np.random.default_rng(0).integers(0, 255, (7, 9, 3), np.uint8)
    write_png(tmp_path / "a.png", picture)
    write_png(tmp_path / "a.png", picture)  # replaces the first
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (cv2.imread(str(tmp_path / "a.png"))[..., ::-1] == picture).all()
    with pytest.raises(OSError):
        write_png(tmp_path / "a.png" / "b.png", picture)  # a file where a folder should be
