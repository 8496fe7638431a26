"""Shaded images: normals, light, colours and transparency at the outline."""

import pytest
import torch

import render
from render.shading import LIGHT, shade
from smal_model.mesh import vertex_normals


def sphere(rings: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """A unit sphere: verts (1, V, 3) and faces."""
    polar = torch.linspace(0, torch.pi, rings)[1:-1, None]
    around = torch.arange(2 * rings) * (torch.pi / rings)
    height = polar.cos().expand(-1, 2 * rings)
    points = torch.stack([polar.sin() * around.cos(), height, polar.sin() * around.sin()], -1)
    pole = torch.tensor([[0.0, 1.0, 0.0]])
    verts = torch.cat([pole, points.reshape(-1, 3), -pole])
    faces, count, last = [], 2 * rings, len(verts) - 1
    for c in range(count):
        n = (c + 1) % count
        faces += [[0, 1 + c, 1 + n], [last, last - count + n, last - count + c]]
        for r in range(rings - 3):
            top, below = 1 + r * count, 1 + (r + 1) * count
            faces += [[top + c, below + c, top + n], [top + n, below + c, below + n]]
    return verts[None], torch.tensor(faces)


def placed(verts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Image plane (orthographic) and camera coordinates of a sphere of radius 0.6, five away."""
    camera = verts * 0.6 + torch.tensor([0.0, 0.0, 5.0])
    return camera.clone(), camera


def test_vertex_normals_of_a_sphere_are_its_radii():
    verts, faces = sphere(24)
    normals = vertex_normals(verts, faces)
    agreement = (normals * verts).sum(2).abs()
    assert agreement.min() > 0.995
    assert torch.allclose(normals.norm(dim=2), torch.ones(1, verts.shape[1]), atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_the_side_towards_the_light_is_brighter_whatever_the_turn_of_the_faces(turned):
    verts, faces = sphere()
    plane, camera = placed(verts)
    corners = faces.flip(1) if turned else faces
    rgb, alpha = shade(plane, corners, vertex_normals(camera, corners), 64)
    assert rgb.shape == (1, 64, 64, 3) and alpha.shape == (1, 64, 64)
    assert LIGHT[0] < 0 < LIGHT[1]  # upper left
    grey = rgb[0].mean(2)
    assert grey[20, 22] > grey[32, 32] > grey[43, 42] > 0.1
    assert rgb.min() >= 0 and rgb.max() <= 1


def test_alpha_is_the_coverage_and_rgb_is_0_outside():
    verts, faces = sphere()
    plane, camera = placed(verts)
    rgb, alpha = shade(plane, faces, vertex_normals(camera, faces), (40, 48), supersample=3)
    assert torch.allclose(alpha, render.coverage(plane, faces, (40, 48), 3), atol=1e-6)
    assert (rgb[alpha == 0] == 0).all() and (rgb[alpha > 0] > 0).all()
    assert ((alpha > 0) & (alpha < 1)).any()


def test_one_colour_or_a_colour_for_each_vertex():
    verts, faces = sphere()
    plane, camera = placed(verts)
    mesh, blue = (plane, faces, vertex_normals(camera, faces)), torch.tensor([0.2, 0.4, 0.8])
    plain, _ = shade(*mesh, 32, color=(0.2, 0.4, 0.8))
    count = verts.shape[1]
    each, _ = shade(*mesh, 32, color=blue.expand(count, 3))
    batch, _ = shade(*mesh, 32, color=blue.expand(1, count, 3))
    assert torch.allclose(plain, each, atol=1e-6) and torch.allclose(plain, batch, atol=1e-6)
    assert torch.allclose(plain[..., 2], 4 * plain[..., 0], atol=1e-5)
    left = (verts[0, :, :1] < 0).float()
    halves, alpha = shade(*mesh, 32, color=torch.cat([left, 1 - left, 0 * left], 1))
    seen = alpha[0] == 1
    assert (halves[0, :, :14, 0] >= halves[0, :, :14, 1])[seen[:, :14]].all()
    assert (halves[0, :, 18:, 1] >= halves[0, :, 18:, 0])[seen[:, 18:]].all()


def test_broken_vertices_and_empty_batches():
    verts, faces = sphere()
    plane, camera = placed(verts)
    plane[0, 5], camera[0, 5] = float("nan"), float("nan")
    rgb, alpha = shade(plane, faces, vertex_normals(camera, faces), 32)
    assert rgb.isfinite().all() and alpha.sum() > 100
    rgb, alpha = shade(plane[:0], faces, vertex_normals(camera[:0], faces), 16)
    assert rgb.shape == (0, 16, 16, 3) and alpha.shape == (0, 16, 16)
    with pytest.raises(ValueError, match="color"):
        shade(plane, faces, vertex_normals(camera, faces), 16, color=(1.0, 1.0))
    with pytest.raises(ValueError, match="normals"):
        shade(plane, faces, vertex_normals(camera, faces)[:, :4], 16)
