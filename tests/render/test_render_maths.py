"""The renderer against closed forms, loops written out, and finite differences."""

import math
from functools import partial

import numpy as np
import pytest
import torch

import render
from tests.render.render_scenes import require, run_here, scene, soup

BACKENDS = ["torch", "numba"]


def centres(count: int) -> np.ndarray:
    return (2 * np.arange(count) + 1) / count - 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_run_down_and_columns_right(backend):
    require(backend)
    verts = torch.tensor([[[0.5, 0.5, 1.0], [1.0, 0.5, 1.0], [0.5, 1.0, 1.0]]])  # upper right
    image = render.coverage(verts, torch.tensor([[0, 1, 2]]), (8, 8), backend=backend)[0]
    assert image[:2, 6:].sum() > 0 and image.sum() == image[:2, 6:].sum()


@pytest.mark.parametrize("backend", BACKENDS)
def test_silhouette_of_a_half_plane(backend):
    """Far from its corners a large face is a half plane: sigmoid(+-d^2 / sigma)."""
    require(backend)
    edge, sigma, size = 0.137, 2e-3, 32
    corners = [[edge, -50.0, 1.0], [edge, 50.0, 1.0], [-50.0, 0.0, 1.0]]
    verts, faces = torch.tensor([corners], requires_grad=True), torch.tensor([[0, 1, 2]])
    silhouette = render.soft_silhouette(verts, faces, size, sigma, backend=backend)
    distance = centres(size) - edge
    logit = -np.sign(distance) * distance**2 / sigma
    expected = np.where(logit > -math.log(1 / 1e-4 - 1), 1 / (1 + np.exp(-logit)), 0)
    np.testing.assert_allclose(silhouette.detach()[0], np.tile(expected, (size, 1)), atol=1e-5)
    silhouette.sum().backward()
    # By moving the edge to the right:
    slope = (expected * (1 - expected) * 2 * np.abs(distance) / sigma).sum() * size
    np.testing.assert_allclose(verts.grad[0, :2, 0].sum(), slope, rtol=1e-4)
    np.testing.assert_allclose(verts.grad[0, 2], 0, atol=1e-4)


def test_silhouette_equals_a_loop_over_faces_and_pixels():
    verts, faces = soup(11, 1, 6)
    sigma, blur_radius, size = 3e-3, 0.02, (9, 14)
    mesh = torch.tensor(verts).double(), torch.tensor(faces)
    result = render.soft_silhouette(*mesh, size, sigma, blur_radius)[0]
    for r, y in enumerate(-centres(size[0])):
        for c, x in enumerate(centres(size[1])):
            miss = 1.0
            for face in faces:
                corners = verts[0, face].astype(np.float64)
                bary = np.linalg.solve(np.vstack([corners[:, :2].T, np.ones(3)]), [x, y, 1])
                nearest = math.inf
                for i, j in ((0, 1), (1, 2), (2, 0)):
                    a, b, p = corners[i, :2], corners[j, :2], np.array([x, y])
                    along = np.clip((p - a) @ (b - a) / ((b - a) @ (b - a)), 0, 1)
                    nearest = min(nearest, ((p - a - along * (b - a)) ** 2).sum())
                clipped = np.maximum(bary, 0) / np.maximum(bary, 0).sum()
                if clipped @ corners[:, 2] >= 0 and ((bary > 0).all() or nearest < blur_radius):
                    outside = -1 if (bary > 0).all() else 1
                    miss *= 1 - 1 / (1 + math.exp(outside * nearest / sigma))
            assert abs(result[r, c] - (1 - miss)) < 1e-6


def test_gradients_equal_finite_differences_in_double_precision():
    verts, _ = soup(3, 1, 3)
    faces = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 4, 8]])
    verts = torch.tensor(verts, dtype=torch.float64, requires_grad=True)
    # The blur reaches everywhere: where it ends the silhouette steps, which no derivative tells.
    function = partial(render.soft_silhouette, faces=faces, image_size=(7, 9), sigma=1e-2)
    assert torch.autograd.gradcheck(partial(function, blur_radius=9.0), verts)


def test_numba_gradients_equal_finite_differences_of_the_reference():
    verts, faces = soup(8, 1, 5)
    verts, faces = torch.tensor(verts, requires_grad=True), torch.tensor(faces)
    render.soft_silhouette(verts, faces, 24, 5e-3, 9.0, backend="numba").square().sum().backward()
    double, step = verts.detach().double(), 1e-6
    for vertex, axis in ((0, 0), (1, 1), (7, 0), (14, 1), (5, 2)):
        moved = [double.clone(), double.clone()]
        moved[0][0, vertex, axis] += step
        moved[1][0, vertex, axis] -= step
        high, low = (render.soft_silhouette(m, faces, 24, 5e-3, 9.0).square().sum() for m in moved)
        error = verts.grad[0, vertex, axis] - (high - low) / (2 * step)
        assert abs(error) < 1e-3 * verts.grad.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_coverage_of_a_rectangle_is_its_fraction_of_each_pixel(backend):
    require(backend)
    # Pixels are 0.25 wide; the rectangle ends a quarter of a pixel into columns 1 and 6, and its
    # diagonal misses the samples.
    left, right = -0.6875, 0.5625
    corners = [[left, -0.5, 1.0], [right, -0.5, 1.0], [right, 0.5, 1.0], [left, 0.5, 1.0]]
    verts = torch.tensor([corners])
    faces = torch.tensor([[0, 1, 2], [0, 2, 3]])
    image = render.coverage(verts, faces, 8, supersample=4, backend=backend)[0]
    expected = torch.tensor([0, 0.75, 1, 1, 1, 1, 0.25, 0])
    assert torch.equal(image[2:6], expected.expand(4, 8))
    assert not image[:2].any() and not image[6:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_exactly_on_an_edge_are_not_inside(backend):
    require(backend)
    corners = [[-1.0, -1.0, 1.0], [1.0, -1.0, 1.0], [1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]]
    square = torch.tensor([corners])
    nearest = render.rasterize(square, torch.tensor([[0, 1, 2], [0, 2, 3]]), 8, backend)
    diagonal = torch.eye(8, dtype=torch.bool).flip(1)  # x = y, the edge that both faces share
    assert (nearest.face[0][diagonal] == -1).all() and (nearest.face[0][~diagonal] >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_nearest_face_wins_and_the_first_of_equals(backend):
    require(backend)
    triangle = np.array([[-0.8, -0.7, 0], [0.9, -0.6, 0], [0.05, 0.8, 0]])
    verts = np.concatenate([triangle + [0, 0, z] for z in (3, 2, 2, 4)])[None]
    faces = np.arange(12).reshape(4, 3)
    (result,) = run_here(backend, [scene(verts, faces, (16, 16))])
    assert set(np.unique(result["face"])) == {-1, 1}
    assert set(np.unique(result["depth"])) == {-1, 2}


@pytest.mark.parametrize("backend", BACKENDS)
def test_barycentrics_give_back_the_pixel_and_the_depth(backend):
    require(backend)
    verts, faces = soup(6, 2, 20)
    (result,) = run_here(backend, [scene(verts, faces, (20, 30))])
    b, r, c = np.nonzero(result["face"] >= 0)
    corners = verts[b[:, None], faces[result["face"][b, r, c]]]  # (N, 3, 3)
    bary = result["bary"][b, r, c]
    point = (corners * bary[..., None]).sum(1)
    np.testing.assert_allclose(bary.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(point[:, 0], centres(30)[c], atol=1e-4)
    np.testing.assert_allclose(point[:, 1], -centres(20)[r], atol=1e-4)
    np.testing.assert_allclose(point[:, 2], result["depth"][b, r, c], atol=1e-4)
    assert (bary > 0).all() and len(b) > 200


def test_coverage_is_the_mean_of_the_fine_image():
    verts, faces = soup(9, 2, 15)
    verts, faces = torch.tensor(verts), torch.tensor(faces)
    for backend in BACKENDS:
        fine = (render.rasterize(verts, faces, (30, 45), backend).face >= 0).float()
        covered = render.coverage(verts, faces, (10, 15), 3, backend)
        assert torch.allclose(covered, fine.view(2, 10, 3, 15, 3).mean((2, 4)), atol=1e-6)
