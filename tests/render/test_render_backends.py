"""Every backend here against the recorded scenes and against the plain PyTorch reference."""

import numpy as np
import pytest
import torch

import render
from tests.render.render_scenes import BACKENDS, require, run, run_here, scene, soup

SMALL = ["one_triangle", "clockwise_triangle", "wide_sigma", "two_depths"]
SMALL += ["off_screen_behind_and_flat"]
LARGE = ["sphere_batch", "body_side", "body_turned"]


def close(result: dict, expected: dict) -> None:
    """Silhouettes within 1e-4, gradients within 1e-3 of the largest, coverage and faces equal."""
    if "silhouette" in result:
        np.testing.assert_allclose(result["silhouette"], expected["silhouette"], atol=1e-4, rtol=0)
        largest = np.abs(expected["grad"]).max(initial=0)
        within = 1e-3 * largest + 1e-12
        np.testing.assert_allclose(result["grad"], expected["grad"], atol=within, rtol=0)
    assert np.array_equal(result["coverage"], expected["coverage"])
    assert np.array_equal(result["face"], expected["face"])
    np.testing.assert_allclose(result["depth"], expected["depth"], rtol=1e-4)
    np.testing.assert_allclose(result["bary"], expected["bary"], atol=1e-4)


@pytest.mark.parametrize("name", SMALL + LARGE)
@pytest.mark.parametrize("backend", ["torch", "numba", "pytorch3d"])
def test_recorded_scenes(backend, name, golden):
    require(backend)
    check_recorded(golden("renderer"), name, backend)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SMALL + LARGE)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_recorded_scenes_on_a_gpu(backend, name, golden):
    check_recorded(golden("renderer"), name, backend, device="cuda")


def check_recorded(arrays: dict, name: str, backend: str, device: str = "cpu") -> None:
    expected = {k.split("/")[1]: v for k, v in arrays.items() if k.startswith(name + "/")}
    verts = torch.tensor(expected["verts"], requires_grad=True, device=device)
    faces = torch.tensor(expected["faces"], device=device)
    size = expected["silhouette"].shape[1:]
    blur = float(expected["sigma"]), float(expected["blur_radius"])
    silhouette = render.soft_silhouette(verts, faces, size, *blur, backend)
    (silhouette * torch.tensor(expected["weights"], device=device)).sum().backward()
    silhouette, grad = silhouette.detach().cpu().numpy(), verts.grad.cpu().numpy()
    np.testing.assert_allclose(silhouette, expected["silhouette"], atol=1e-4, rtol=0)
    largest = np.abs(expected["grad_verts"]).max()
    np.testing.assert_allclose(grad, expected["grad_verts"], atol=1e-3 * largest, rtol=0)
    face = render.rasterize(verts, faces, size, backend).face.cpu().numpy()
    check_faces(face, expected["hard_face"])


def check_faces(face: np.ndarray, expected: np.ndarray) -> None:
    covered = expected >= 0
    assert np.array_equal(face >= 0, covered)
    assert (face == expected)[covered].mean() >= 0.999


def test_recorded_scenes_through_triton(golden, tmp_path):
    arrays = golden("renderer")
    scenes, names = [], SMALL
    if not torch.cuda.is_available():  # the interpreter takes eight seconds for each
        names = ["clockwise_triangle", "two_depths", "off_screen_behind_and_flat"]
    for name in names:
        size = arrays[f"{name}/silhouette"].shape[1:]
        mesh = arrays[f"{name}/verts"], arrays[f"{name}/faces"]
        scenes.append(scene(*mesh, size, float(arrays[f"{name}/sigma"])))
    results = zip(names, run("triton", scenes, tmp_path), run_here("torch", scenes), strict=True)
    for name, result, reference in results:
        silhouette = arrays[f"{name}/silhouette"]
        np.testing.assert_allclose(result["silhouette"], silhouette, atol=1e-4, rtol=0)
        check_faces(result["face"], arrays[f"{name}/hard_face"])
        close(result, reference)  # the recorded gradients are for other weights


def odd_scenes(size_of_soup: int) -> list[dict]:
    """Odd sizes, batches, wide and narrow blur, no blur, faces crossing the camera."""
    verts, faces = soup(1, 2, size_of_soup)
    crossing, _ = soup(2, 1, 4)
    crossing[..., 2] -= 4
    few, few_faces = soup(3, 1, 4)
    return [
        scene(verts, faces, (23, 37), sigma=1e-3),
        scene(few, few_faces, (19, 19), sigma=1e-4, supersample=3),
        scene(few, few_faces, (1, 5), sigma=1e-2, supersample=1),
        scene(few, few_faces, (17, 16), sigma=1e-3, blur_radius=4.0),
        scene(few, few_faces, (18, 18), sigma=1e-3, blur_radius=0.0),
        scene(crossing, few_faces, (21, 21), sigma=1e-3),
    ]


def large_scenes() -> list[dict]:
    """More pairs of image and face than a program sets up, and lists of more than one chunk."""
    pairs = soup(10, 2, 70, 0.1)  # 140; FACES is 128
    stack = soup(11, 1, 45, 0.02)  # CHUNK is 32
    left = np.tile([[-5.0, -9, 2], [0.7, 0, 2], [-5, 9, 2]], (1, 45, 1))
    left[..., 0] += np.linspace(0, 0.1, 45 * 3)
    return [
        scene(*pairs, (12, 14), sigma=1e-3),
        scene(*stack, (4, 4), sigma=1e-2),  # half of the faces at each pixel
        scene(left, stack[1], (8, 20), sigma=1e-4),  # opaque before the list of a tile ends
    ]


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_large_scenes_equal_the_reference(backend, tmp_path):
    scenes = large_scenes()
    results = run(backend, scenes, tmp_path)
    for result, expected in zip(results, run_here("torch", scenes), strict=True):
        close(result, expected)
    assert results[2]["silhouette"][0, 3:5, :16].min() == 1 and results[2]["grad"].any()


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_short_edges_equal_the_reference(backend, tmp_path):
    """Rounding says which of corners 1, 2 and 4 is nearest: their sum is compared."""
    fan = [[[0, 0.013, 2], [0.51, 0, 2], [0.51, 1e-5, 2.5], [0.31, 0.47, 2], [0.51003, 1e-5, 2]]]
    scenes = [scene(fan, [[0, 1, 3], [1, 2, 3], [1, 4, 3], [2, 0, 3]], (33, 33), sigma=1e-3)]
    (result,), (expected,) = run(backend, scenes, tmp_path), run_here("torch", scenes)
    for item in (result, expected):
        item["grad"][:, 1] += item["grad"][:, 2] + item["grad"][:, 4]
        item["grad"][:, [2, 4]] = 0
    close(result, expected)


@pytest.mark.parametrize("backend", ["numba", "triton"])
def test_odd_scenes_equal_the_reference(backend, tmp_path):
    scenes = odd_scenes(40 if backend == "numba" else 6)
    results = run(backend, scenes, tmp_path)
    for result, expected in zip(results, run_here("torch", scenes), strict=True):
        close(result, expected)


def test_odd_scenes_through_pytorch3d(tmp_path):
    scenes = odd_scenes(40)
    del scenes[5]  # faces that cross the camera: left out as a whole there
    results = run("pytorch3d", scenes, tmp_path)
    for result, expected in zip(results, run_here("torch", scenes), strict=True):
        if "silhouette" in result:
            np.testing.assert_allclose(result["silhouette"], expected["silhouette"], atol=1e-4)
            largest = np.abs(expected["grad"]).max(initial=0)
            np.testing.assert_allclose(result["grad"], expected["grad"], atol=1e-3 * largest)
        assert np.abs(result["coverage"] - expected["coverage"]).mean() < 1e-3
        assert (result["face"] == expected["face"]).mean() > 0.99


def test_bodies_of_a_batch_equal_the_reference(golden):
    arrays = golden("renderer")
    verts, faces = arrays["body_side/verts"], arrays["body_side/faces"]
    batch = np.concatenate([verts, verts[:, :, :] * [[[1.6, 1.9, 1]]], verts * [[[-0.4, 0.5, 1]]]])
    scenes = [scene(batch, faces, (96, 80))]
    for result, expected in zip(run_here("numba", scenes), run_here("torch", scenes), strict=True):
        close(result, expected)


def test_pytorch3d_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setattr(render, "_installed", lambda package: package != "pytorch3d")
    verts, faces = torch.zeros(1, 3, 3), torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(ModuleNotFoundError, match="pytorch3d.*not installed"):
        render.soft_silhouette(verts, faces, 8, backend="pytorch3d")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_run_gives_the_same(backend, tmp_path):
    verts, faces = soup(5, 2, 30 if backend in ("torch", "numba") else 3)
    first, second = run(backend, [scene(verts, faces, (24, 24), sigma=1e-3)] * 2, tmp_path)
    for key in first:
        if backend == "numba":
            assert np.array_equal(first[key], second[key]), key
        else:
            within = 1e-5 * np.abs(first[key]).max()
            np.testing.assert_allclose(first[key], second[key], rtol=1e-5, atol=within)
