"""Written meshes and cameras: what other programs read is where and what the estimate was."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
import trimesh
from PIL import Image, ImageOps

from model.outputs import Estimate
from render import coverage
from report.meshes import (
    JOINT_NAMES,
    KEYPOINT_NAMES,
    SCHEMA,
    Photograph,
    camera_in_photograph,
    mesh_in_file_axes,
    pixels,
    turntable,
    vertex_colors,
    write_estimate,
    write_meshes,
)
from smal_model import SMAL
from smal_model.joints import KEYPOINT_JOINTS
from util.camera import CROP, project, to_pixels


@pytest.fixture(scope="module")
def smal(synthetic_body):
    return SMAL(synthetic_body / "smal")


@pytest.fixture(scope="module")
def estimate(smal):
    """The body at rest, seen from the front and one side, away from the crop's middle."""
    pose = torch.zeros(1, 3 * smal.num_joints)
    pose[:, :3] = torch.tensor([-1.20919958, 1.20919958, 1.20919958])
    body = smal(torch.zeros(1, 20), pose, torch.tensor([[0.1, -0.05, 1.0]]))
    cos, sin = np.cos(0.9), np.sin(0.9)
    turn = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], dtype=torch.float32)
    return Estimate(body.verts @ turn, body.joints @ turn, torch.tensor([[-0.3]]))


def ball(subdivisions: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    sphere = trimesh.creation.icosphere(subdivisions)
    return torch.tensor(sphere.vertices, dtype=torch.float32), torch.tensor(sphere.faces)


@pytest.fixture
def silhouette():
    """The function that docs/conventions.md prints, executed from there."""
    from tests.conftest import ROOT

    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "conventions.md").read_text(), re.S
    )
    names: dict = {}
    exec(code, names)
    return names["silhouette"]


def direct_silhouette(estimate, faces, photograph) -> np.ndarray:
    """From the crop's pixels to the photograph's by the crop's place alone: (H, W)."""
    row, column = to_pixels(estimate.plane).unbind(-1)  # (1, V) each, crop
    zoom = photograph.side / CROP
    column = (column - CROP / 2) * zoom + photograph.center[0]
    row = (row - CROP / 2) * zoom + photograph.center[1]
    x, y = 2 * column / photograph.width - 1, 1 - 2 * row / photograph.height
    plane = torch.stack([x, y, estimate.plane[..., 2]], -1)
    return coverage(plane, faces, (photograph.height, photograph.width))[0].numpy()


@pytest.mark.parametrize("ending", ["obj", "glb", "ply"])
@pytest.mark.parametrize("inside_out", [False, True])
def test_files_hold_the_mesh_upright_and_outside_out(tmp_path, smal, estimate, ending, inside_out):
    faces = smal.faces.flip(1) if inside_out else smal.faces
    files = write_meshes(tmp_path, "dog", estimate.verts[0], faces)
    mesh = trimesh.load(tmp_path / files[ending], force="mesh", process=False)
    assert len(mesh.faces) == len(faces) and len(mesh.vertices) == smal.num_verts
    expected = estimate.verts[0].numpy() * [1, 1, -1]
    assert np.abs(mesh.vertices - expected).max() < 1e-5
    assert mesh.is_watertight and mesh.volume > 0  # closed, with normals that point outward
    feet, back = (
        estimate.joints[0, [10, 14, 20, 24], 1].mean(),
        estimate.joints[0, [2, 5], 1].mean(),
    )
    assert feet < back and mesh.bounds[0, 1] < feet + 0.05  # y is up
    nose = estimate.joints[0, 35].numpy() * [1, 1, -1]
    assert np.linalg.norm(mesh.vertices - nose, axis=1).min() < 1e-4
    assert nose[2] > mesh.centroid[2] + 0.2  # the animal faces the viewer, who is on the side of +z


def test_colours_are_those_of_the_screen_and_linear_light_in_gltf(tmp_path):
    verts, faces = ball(1)
    colors = np.full((len(verts), 3), [1.0, 0.5, 0.0])
    files = write_meshes(tmp_path, "ball", verts, faces, colors)
    for ending, half in (("obj", 128), ("ply", 128), ("glb", 55)):  # 0.5 ** 2.2 is about 0.21
        (mesh,) = trimesh.load_scene(tmp_path / files[ending], process=False).geometry.values()
        has_material = ending == "glb"
        found = (
            mesh.visual.vertex_attributes["color"] if has_material else mesh.visual.vertex_colors
        )
        assert np.abs(found[:, :3].astype(int) - [255, half, 0]).max() <= 1
    tree = json.loads((tmp_path / files["glb"]).read_bytes()[20:].split(b"BIN\0")[0][:-4].strip())
    assert tree["materials"][0]["pbrMetallicRoughness"]["metallicFactor"] == 0


def test_the_camera_is_the_crops_moved_into_the_photograph():
    k = camera_in_photograph(-0.5, (400.0, 120.0), 448.0)
    assert k.tolist() == [[2700, 0, 400], [0, 2700, 120], [0, 0, 1]]
    points = torch.tensor([[[0.3, 0.2, 1.5], [-0.7, -0.1, -2.0]]])
    crop = to_pixels(project(points, torch.tensor([[-0.5]])))[0]  # row, column
    found = pixels(points[0].numpy() * [1, 1, -1], k)
    assert np.allclose(found[:, 0], 400 + 2 * (crop[:, 1].numpy() - 112), atol=1e-3)
    assert np.allclose(found[:, 1], 120 + 2 * (crop[:, 0].numpy() - 112), atol=1e-3)
    assert np.allclose(found[:, 2], [21.5, 18.0])


@pytest.mark.parametrize(
    "stored,orientation,center,side",
    [
        ((640, 427), 1, (330.5, 210.0), 380.0),  # landscape
        ((427, 640), 1, (200.0, 350.25), 401.0),  # portrait
        ((640, 480), 6, (240.0, 300.0), 430.0),  # a phone held upright: 480 x 640 as shown
        ((640, 427), 1, (20.0, 400.0), 390.0),  # over the left and the lower edge
        ((300, 200), 8, (190.0, -10.0), 333.0),  # rotated, over the upper and the right edge
    ],
)
def test_a_written_mesh_covers_its_silhouette(
    tmp_path, smal, estimate, silhouette, stored, orientation, center, side
):
    noise = np.random.default_rng(0).integers(0, 255, (stored[1], stored[0], 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise).save(tmp_path / "photo.jpg", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "photo.jpg")))
    assert upright.shape == cv2.imread(str(tmp_path / "photo.jpg")).shape
    assert (upright.shape[:2] == stored[::-1]) == (orientation == 1)

    photograph = Photograph("photo.jpg", upright.shape[1], upright.shape[0], center, side)
    refined = Estimate(estimate.verts * 1.05, estimate.joints, estimate.scale + 0.1)
    estimates = {"coarse": estimate, "refined": refined}
    write_estimate(tmp_path, "photo", estimates, {}, smal.faces, photograph, upright)
    for name, one in estimates.items():
        found, expected = (
            silhouette(tmp_path / "photo_estimate.json", name),
            direct_silhouette(one, smal.faces, photograph),
        )
        assert found.shape == upright.shape[:2] and expected.sum() > 500
        assert np.minimum(found, expected).sum() >= 0.99 * np.maximum(found, expected).sum()


def test_the_numbers_of_an_estimate(tmp_path, smal, estimate):
    photograph = Photograph("a/dog.jpg", 500, 400, (260.0, 180.0), 300.0)
    parameters = {"pose": torch.ones(1, 105), "trans": torch.zeros(1, 3), "betas_logscale": None}
    write_estimate(tmp_path, "dog", {"coarse": estimate}, parameters, smal.faces, photograph)
    data = json.loads((tmp_path / "dog_estimate.json").read_text())
    assert data["schema"] == SCHEMA and data["version"] == 1
    assert data["image"] == {"file": "a/dog.jpg", "width": 500, "height": 400}
    assert data["crop"] == {"center": [260.0, 180.0], "side": 300.0}
    assert data["parameters"] == {"pose": [1.0] * 105, "trans": [0.0] * 3}
    mesh = data["meshes"]["coarse"]
    assert (mesh["num_vertices"], mesh["num_faces"]) == (smal.num_verts, len(smal.faces))
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*mesh["files"].values(), "dog_estimate.json", "dog_estimate.npz"]
    )
    row_column = to_pixels(project(estimate.joints, estimate.scale))[0].numpy()
    expected = (row_column[:, ::-1] - 112) * 300 / 224 + [260, 180]
    assert len(set(JOINT_NAMES)) == estimate.joints.shape[1] and len(set(KEYPOINT_NAMES)) == 20
    for j, name in enumerate(JOINT_NAMES):
        assert np.allclose(mesh["joints_2d"][name], expected[j], atol=0.01)
        assert np.allclose(
            mesh["joints_3d"][name], estimate.joints[0, j] * torch.tensor([1, 1, -1]), atol=1e-4
        )
    for k, name in enumerate(KEYPOINT_NAMES):
        assert np.allclose(mesh["keypoints_2d"][name], expected[KEYPOINT_JOINTS[k]], atol=0.01)
    places = {name: mesh["joints_3d"][name] for name in JOINT_NAMES}
    assert (
        mesh["keypoints_3d"]["left_ear_tip"] == places["REarTip"]
    )  # the body is seen as in a mirror
    assert mesh["keypoints_3d"]["right_rear_paw"] == places["LFootBack"]
    with np.load(tmp_path / "dog_estimate.npz") as arrays:
        assert str(arrays["schema"]) == SCHEMA and arrays["version"] == 1
        assert np.allclose(arrays["K_coarse"], mesh["K"])
        assert arrays["faces"].shape == smal.faces.shape and arrays["pose"].shape == (105,)
        assert arrays["joint_names"].tolist() == list(JOINT_NAMES)
        assert np.allclose(
            pixels(arrays["joints_3d_coarse"], arrays["K_coarse"])[:, :2],
            arrays["joints_2d_coarse"],
        )
        assert np.allclose(arrays["verts_coarse"] * [1, 1, -1], estimate.verts[0], atol=1e-6)


def test_vertices_take_the_colour_of_what_is_seen_of_them():
    """A ball before a larger one; left is red, right is blue; the mesh crosses the right edge."""
    verts, faces = ball(4)
    verts = torch.cat(
        [verts * 0.4 - torch.tensor([0, 0, 2.0]), verts]
    )  # z points away: the small one is in front
    faces = torch.cat([faces, faces + len(verts) // 2])
    plane = torch.stack([verts[:, 0] + 0.3, verts[:, 1], verts[:, 2] + 5], 1)
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, :50], image[:, 50:] = (255, 0, 0), (0, 0, 255)
    image[:30] //= 2  # darker above
    colors = vertex_colors(image, verts, plane, faces, neutral=(0, 1, 0))
    assert colors.shape == verts.shape and colors.dtype == np.float32
    x, y, z = (plane - torch.tensor([0, 0, 5])).T
    small = torch.arange(len(verts)) < len(verts) // 2
    front = torch.where(small, z < -2.2, z < -0.6)
    radius = ((x - 0.3) ** 2 + y**2).sqrt()
    hidden = ~small & (radius < 0.15)
    clear = (x.abs() > 0.05) & (y.abs() > 0.05) & (small | (radius > 0.43))
    away = torch.where(small, z > -1.9, z > 0.3)
    for region, color in (
        (front & clear & (x < 0) & (y < 0), (1, 0, 0)),
        (front & clear & (x > 0) & (x < 0.95) & (y > 0), (0, 0, 0.5)),
        (hidden | away | (x > 1.23), (0, 1, 0)),
    ):
        assert region.sum() > 10
        assert np.abs(colors[region] - np.array(color)).max() < 0.02


def test_a_turntable_shows_every_side(tmp_path):
    """A flat disc of two colours: wide, a line, wide with the other colour; the whole fits."""
    verts, faces = ball()
    verts = verts * torch.tensor([1, 1, 0.02])
    colors = torch.where(verts[:, 2:] > 0, torch.tensor([0, 0, 1.0]), torch.tensor([1.0, 0, 0]))
    turntable(tmp_path / "ball.gif", verts, faces, colors, num_frames=8, size=64)
    with Image.open(tmp_path / "ball.gif") as gif:
        assert gif.n_frames == 8 and gif.size == (64, 64) and gif.info["loop"] == 0
        frames = []
        for n in range(8):
            gif.seek(n)
            frames.append(np.asarray(gif.convert("RGB")).astype(int))
    widths = [(frame.min(-1) < 240).any(0).sum() for frame in frames]
    assert widths[0] > 50 and widths[4] > 50 and widths[2] < 8 and widths[6] < 8
    assert (
        frames[0][32, 32, 0] > 2 * frames[0][32, 32, 2]
        and frames[4][32, 32, 2] > 2 * frames[4][32, 32, 0]
    )
    assert all((frame[[0, -1]] > 240).all() and (frame[:, [0, -1]] > 240).all() for frame in frames)


def test_wrong_meshes_are_refused():
    verts, faces = ball(1)
    with pytest.raises(ValueError, match="expected .V, 3. and .F, 3."):
        mesh_in_file_axes(verts[None], faces)
    with pytest.raises(ValueError, match="finite"):
        mesh_in_file_axes(verts / 0, faces)
