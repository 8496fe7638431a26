"""Bad and empty input on every backend: defined values, finite gradients, or a refusal by name."""

import math

import numpy as np
import pytest
import torch

import render
from render import torch_reference
from tests.render.render_scenes import BACKENDS, run, run_here, scene, soup

PLAIN = np.array([[-0.5, -0.4, 2], [0.6, -0.3, 2], [0.1, 0.7, 2]], np.float32)
NAN, INF = float("nan"), float("inf")


def with_second_face(*corners) -> dict:
    return scene([[*PLAIN, *corners]], [[0, 1, 2], [3, 4, 5]], (20, 20), sigma=1e-3)


LEFT_OUT = {
    "nan": with_second_face([-0.9, -0.9, 2], [0.9, NAN, 2], [0, 0.9, 2]),
    "nan depth": with_second_face([-0.9, -0.9, NAN], [0.9, -0.9, 2], [0, 0.9, 2]),
    "infinite": with_second_face([-0.9, -0.9, 2], [INF, -0.9, 2], [0, 0.9, 2]),
    "minus infinite": with_second_face([-0.9, -0.9, 2], [0.9, -INF, 2], [0, 0.9, 2]),
    "huge": with_second_face([-0.9, -0.9, 2], [3e38, -0.9, 2], [0, 3e38, 2]),
    "no area": with_second_face([-0.9, -0.9, 2], [0.0, 0.0, 2], [0.9, 0.9, 2]),
    "one point": with_second_face([0.3, 0.3, 2], [0.3, 0.3, 2], [0.3, 0.3, 2]),
    "behind": with_second_face([-0.9, -0.9, -2], [0.9, -0.9, -1], [0, 0.9, -2]),
    "off the image": with_second_face([3, 3, 2], [5, 3, 2], [3, 5, 2]),
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_faces_that_are_left_out_change_nothing(backend, tmp_path):
    scenes = [*LEFT_OUT.values(), scene([PLAIN], [[0, 1, 2]], (20, 20), sigma=1e-3)]
    *results, plain = run(backend, scenes, tmp_path)
    assert 0 < plain["silhouette"].sum() < 400
    for name, result in zip(LEFT_OUT, results, strict=True):
        for key in ("silhouette", "coverage", "face", "depth", "bary"):
            np.testing.assert_allclose(result[key], plain[key], atol=1e-6, err_msg=f"{name}: {key}")
        grad = result["grad"][:, :3]
        np.testing.assert_allclose(grad, plain["grad"], rtol=1e-5, atol=1e-4, err_msg=name)
        assert (result["grad"][:, 3:] == 0).all(), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_scenes(backend, tmp_path):
    verts, faces = soup(1, 2, 2)
    nothing = np.zeros((0, 3), np.int64)
    scenes = [
        scene(verts[:0], faces, (6, 6)),  # no image
        scene(verts, nothing, (6, 6)),  # no face
        scene(verts[:, :0], nothing, (6, 6)),  # no vertex
        scene(verts + [9, 9, 0], faces, (6, 6)),  # outside the image
        scene(np.full_like(verts, NAN), faces, (6, 6)),
    ]
    for result, batch in zip(run(backend, scenes, tmp_path), (0, 2, 2, 2, 2), strict=True):
        assert not result["grad"].any()
        for key in ("silhouette", "coverage"):
            assert result[key].shape == (batch, 6, 6) and not result[key].any()
        for key in ("face", "depth", "bary"):
            assert result[key].shape[:3] == (batch, 6, 6) and (result[key] == -1).all()
        assert result["bary"].shape[3] == 3


@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_extreme_but_finite_coordinates_stay_finite(backend, tmp_path):
    random = np.random.default_rng(0)
    verts = random.normal(0, 1, (2, 12, 3)) * 10.0 ** random.uniform(-9, 9, (2, 12, 1))
    for result in run(backend, [scene(verts, np.arange(12), (16, 16))], tmp_path):
        for key, value in result.items():
            assert np.isfinite(value).all(), key
        assert (result["silhouette"] >= 0).all() and (result["silhouette"] <= 1).all()


@pytest.mark.parametrize("backend", ["torch", "numba", "triton"])
def test_a_face_that_crosses_the_camera_counts_where_its_depth_is_positive(backend, tmp_path):
    # Depth is 2x + 0.1: the face is in front of the camera right of x = -0.05.
    verts = [[[-0.9, -0.9, -1.7], [0.9, -0.9, 1.9], [0.0, 0.9, 0.1]]]
    (result,) = run(backend, [scene(verts, [[0, 1, 2]], (40, 40))], tmp_path)
    x = (2 * np.arange(40) + 1) / 40 - 1
    seen = result["face"][0] == 0
    assert seen.any() and not seen[:, x < -0.051].any() and seen[30, (x > -0.049) & (x < 0.5)].all()
    depth = np.broadcast_to(2 * x + 0.1, (40, 40))
    np.testing.assert_allclose(result["depth"][0][seen], depth[seen], atol=1e-4)
    assert result["silhouette"][0, 30, 10] == 0 and result["silhouette"][0, 30, 30] > 0.99


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_an_upstream_gradient_that_is_not_finite_reaches_the_vertices(backend, tmp_path):
    verts, faces = soup(12, 2, 12, 0.1)
    scenes = [scene(verts, faces, (12, 12), sigma=1e-3) for _ in range(3)]
    seen = np.flatnonzero(run_here("torch", scenes[:1])[0]["silhouette"])
    scenes[1]["broken"], scenes[2]["broken"] = seen[:1], seen[[0, -1]]
    sound, *results = run(backend, scenes, tmp_path)
    _, *references = run_here("torch", scenes)
    assert np.isfinite(sound["grad"]).all()
    for result, expected in zip(results, references, strict=True):
        finite = np.isfinite(expected["grad"])
        assert not finite.all() and finite[..., :2].any()
        broken = ~np.isfinite(result["grad"])  # between equal edges a vertex may be left out
        assert np.array_equal(broken.any((1, 2)), (~finite).any((1, 2)))
        assert not broken[finite].any() and broken.sum() > 0.7 * (~finite).sum()
        others = result["grad"][finite], sound["grad"][finite]
        np.testing.assert_allclose(*others, rtol=1e-3, atol=1e-6)


def test_more_than_two_to_the_31_pairs():
    """Every pixel in every face's box; a gradient remains at the image's lower right part."""
    size, count = 1024, 2100
    faces = torch.tensor([[0, 1, 2]]).repeat(count, 1)
    corners = [[-1.0, -1.0, 2.0], [1.0, 1.0, 2.0], [-1.0, 1.0, 2.0]]
    verts = torch.tensor([corners], requires_grad=True)
    box = torch_reference.pixel_box(verts.detach()[0, faces], (size, size), 0.03)
    assert int((box[2] * box[3]).sum()) > 2**31
    silhouette = render.soft_silhouette(verts, faces, size, sigma=1e-4, backend="numba")
    single = render.soft_silhouette(verts.detach().double(), faces[:1], size, sigma=1e-4)
    np.testing.assert_allclose(silhouette.detach(), 1 - (1 - single) ** count, atol=1e-3)
    silhouette.sum().backward()
    assert verts.grad.isfinite().all() and verts.grad[0, 1, 0] > 0


def test_wrong_arguments_are_refused_by_name():
    verts, faces = torch.rand(2, 6, 3), torch.tensor([[0, 1, 2], [3, 4, 5]])
    cases = [
        (ValueError, "verts", (verts[0], faces, 8)),
        (ValueError, "verts", (verts[..., :2], faces, 8)),
        (TypeError, "verts", (verts.half(), faces, 8)),
        (TypeError, "verts", (verts.long(), faces, 8)),
        (TypeError, "verts", (verts.numpy(), faces, 8)),
        (ValueError, "faces", (verts, faces[None], 8)),
        (ValueError, "faces", (verts, faces[:, :2], 8)),
        (TypeError, "faces", (verts, faces.float(), 8)),
        (TypeError, "faces", (verts, faces.tolist(), 8)),
        (ValueError, "faces .* 6 vertices.* 0 to 6", (verts, faces + torch.tensor([[0], [1]]), 8)),
        (ValueError, "faces", (verts, faces - 1, 8)),
        (ValueError, "faces", (verts[:, :0], faces, 8)),
        (ValueError, "image_size", (verts, faces, 0)),
        (ValueError, "image_size", (verts, faces, (8, -1))),
        (ValueError, "image_size", (verts, faces, 8.0)),
        (ValueError, "image_size", (verts, faces, (8, 8, 8))),
        (ValueError, "image_size", (verts, faces, True)),
    ]
    for function in (render.soft_silhouette, render.coverage, render.rasterize):
        for error, words, arguments in cases:
            with pytest.raises(error, match=words):
                function(*arguments)
        with pytest.raises(ValueError, match="backend 'opengl'.*auto, torch, numba"):
            function(verts, faces, 8, backend="opengl")
    for sigma in (0.0, -1e-4, NAN, INF):
        with pytest.raises(ValueError, match="sigma"):
            render.soft_silhouette(verts, faces, 8, sigma=sigma)
    for blur_radius in (-1e-4, NAN, INF):
        with pytest.raises(ValueError, match="blur_radius"):
            render.soft_silhouette(verts, faces, 8, blur_radius=blur_radius)
    for supersample in (0, 1.5, True):
        with pytest.raises(ValueError, match="supersample"):
            render.coverage(verts, faces, 8, supersample=supersample)
    with pytest.raises(TypeError, match="numba.*float32.*float64"):
        render.soft_silhouette(verts.double(), faces, 8, backend="numba")
    with pytest.raises(ValueError, match="triton.*CUDA"):
        render.soft_silhouette(verts, faces, 8, backend="triton")


def test_auto_chooses_by_device_type_and_what_is_installed(monkeypatch):
    verts = torch.zeros(1, 3, 3)
    assert render.choose_backend("auto", verts) == "numba"
    assert render.choose_backend("auto", verts.double()) == "torch"
    assert render.choose_backend("torch", verts) == "torch"
    assert render.choose_backend("auto", verts.to("meta")) == "torch"
    monkeypatch.setattr(render, "_installed", lambda package: False)
    assert render.choose_backend("auto", verts) == "torch"


def test_faces_are_read_once_for_a_tensor_and_version(monkeypatch):
    reads = []
    original = torch.Tensor.aminmax
    monkeypatch.setattr(torch.Tensor, "aminmax", lambda t: (reads.append(t), original(t))[1])
    verts, faces = torch.rand(1, 6, 3), torch.tensor([[0, 1, 2], [3, 4, 5]])
    for _ in range(3):
        render.coverage(verts, faces, 8)
    assert len(reads) == 1
    with pytest.raises(ValueError, match="faces .* 5 vertices"):
        render.coverage(verts[:, :5], faces, 8)
    faces[0, 0] = 6
    with pytest.raises(ValueError, match="faces .* 6 vertices.*1 to 6"):
        render.coverage(verts, faces, 8)
    assert len(reads) == 2
    with torch.inference_mode():
        render.coverage(verts, torch.tensor([[0, 1, 2]]), 8)


def test_faces_of_either_integer_type_and_any_layout_of_vertices():
    verts, faces = soup(4, 2, 5)
    verts, faces = torch.tensor(verts), torch.tensor(faces)
    expected = render.soft_silhouette(verts, faces, 16, sigma=1e-3)
    turned = verts.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    result = render.soft_silhouette(turned, faces.int(), (16, 16), sigma=1e-3)
    assert torch.equal(result, expected)
    result[:, ::2].transpose(1, 2).expand(2, 16, 8).sum().backward()
    assert turned.grad.shape == verts.shape and turned.grad.abs().sum() > 0


def test_default_blur_radius_is_the_distance_of_one_in_ten_thousand():
    verts, faces = torch.tensor(PLAIN)[None], torch.tensor([[0, 1, 2]])
    default = render.soft_silhouette(verts, faces, 64, sigma=1e-3)
    radius = math.log(1 / 1e-4 - 1) * 1e-3
    assert torch.equal(default, render.soft_silhouette(verts, faces, 64, 1e-3, radius))
    assert 1e-4 <= default[default > 0].min() < 2e-4


def test_results_carry_no_gradient_and_leave_the_input_alone():
    verts, faces = torch.tensor(PLAIN)[None].requires_grad_(), torch.tensor([[0, 1, 2]])
    before = verts.detach().clone()
    for backend in ("torch", "numba"):
        assert not render.coverage(verts, faces, 8, backend=backend).requires_grad
        assert not render.rasterize(verts, faces, 8, backend=backend).depth.requires_grad
        assert render.soft_silhouette(verts, faces, 8, backend=backend).requires_grad
    assert torch.equal(verts.detach(), before)
    assert run_here("numba", [scene([PLAIN], [[0, 1, 2]], (8, 8))])[0]["grad"][..., 2].any() == 0
