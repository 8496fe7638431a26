"""The camera against recorded values and its own formula."""

import numpy as np
import pytest
import torch

from util.camera import project, to_pixels


def test_projection_and_pixels_match_recorded_values(golden):
    g = golden("camera")
    plane = project(torch.tensor(g["points"]), torch.tensor(g["scale"]))
    recorded = g["projected_xyz"] + np.array([0, 0, 1], np.float32)  # recorded depth is one less
    np.testing.assert_allclose(plane.numpy(), recorded, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_pixels(plane).numpy(), g["pixels_row_col"], rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(
        (plane[..., :2] * torch.tensor([1, -1])).numpy(),
        g["normalized_xy_down"],
        rtol=1e-5,
        atol=1e-5,
    )


def test_pixels_of_the_crop_corners():
    corners = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [0.0, 0.0]])
    assert to_pixels(corners).tolist() == [[0, 0], [224, 224], [112, 112]]
    assert to_pixels(corners, 100).tolist() == [[0, 0], [100, 100], [50, 50]]


def test_points_behind_the_camera_keep_a_finite_depth():
    plane = project(torch.tensor([[[0.0, 0.0, -25.0]]]), torch.zeros(1, 1))
    assert torch.isfinite(plane).all() and plane[0, 0, 2] == pytest.approx(1e-6)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, N, 3\)"):
        project(torch.zeros(2, 5, 3), torch.zeros(2))
