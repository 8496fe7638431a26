"""The embedded body: a closed symmetric mesh, a skin that bends, shapes and poses that keep it
whole."""

import filecmp
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch

from smal_model import SMAL, MeshHierarchy, joints, priors
from synthetic.body import build_body, write_body
from synthetic.pose import POSES, sample_pose
from synthetic.shape import BREEDS, SHAPES, sample_betas, shape_families
from synthetic.skeleton import LEGS, PARENTS, mirror_joints, rest_joints


@pytest.fixture(scope="module")
def body():
    return build_body()


@pytest.fixture(scope="module")
def folder(synthetic_body):
    return synthetic_body


@pytest.fixture(scope="module")
def smal(folder):
    return SMAL(folder / "smal")


def volume(verts, faces):
    """Signed volume (positive where the faces are turned outwards)."""
    a, b, c = (verts[faces[:, k]] for k in range(3))
    return (np.cross(a, b) * c).sum() / 6


def winding(points, verts, faces):
    """(N,) how often the mesh goes round each point: 1 inside, 0 outside."""
    a, b, c = (verts[faces[:, k]][None] - points[:, None] for k in range(3))
    la, lb, lc = (np.linalg.norm(x, axis=2) for x in (a, b, c))
    triple = (a * np.cross(b, c)).sum(2)
    return np.arctan2(
        triple, la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    ).sum(1) / (2 * np.pi)


def edges_of(faces):
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def test_mesh_is_one_closed_two_manifold(body):
    verts, faces = body["v_template"], body["f"].astype(int)
    directed = edges_of(faces)
    assert len(np.unique(directed, axis=0)) == len(
        directed
    )  # no direction of an edge twice: faces agree on the outside
    undirected, count = np.unique(np.sort(directed, 1), axis=0, return_counts=True)
    assert (count == 2).all()
    assert len(verts) - len(undirected) + len(faces) == 2  # a sphere's Euler number
    graph = scipy.sparse.coo_matrix(
        (np.ones(len(undirected)), undirected.T), shape=(len(verts),) * 2
    )
    assert scipy.sparse.csgraph.connected_components(graph)[0] == 1
    following = {}  # round each vertex, the faces form one ring
    for face in faces:
        for k in range(3):
            following.setdefault(face[k], {})[face[(k + 1) % 3]] = face[(k + 2) % 3]
    for ring in following.values():
        start = at = next(iter(ring))
        steps = 0
        while steps == 0 or at != start:
            at, steps = ring[at], steps + 1
        assert steps == len(ring)
    corners = verts[faces]
    area = (
        np.linalg.norm(
            np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
        )
        / 2
    )
    assert area.min() > 1e-6
    assert volume(verts, faces) > 0.1


def test_mesh_is_its_own_mirror_image(body):
    verts, faces, symmetry = body["v_template"], body["f"].astype(int), body["symIdx"]
    assert (verts[symmetry] * (1, -1, 1) == verts).all()
    assert (symmetry[symmetry] == np.arange(len(verts))).all()
    plane = body["mirror_plane_vertices"]
    assert (verts[plane, 1] == 0).all() and (symmetry[plane] == plane).all()

    def as_set(f):
        return {tuple(np.roll(t, -t.argmin())) for t in f}

    assert as_set(symmetry[faces][:, ::-1]) == as_set(faces)
    image = mirror_joints()
    assert [image[j] for j in (7, 14, 17, 24, 33, 25)] == [11, 10, 21, 20, 34, 25]
    for table in (body["weights"], body["J_regressor"].T):
        np.testing.assert_allclose(table[symmetry][:, image], table, atol=1e-12)
    mirrored = body["shapedirs"][symmetry] * np.array((1, -1, 1))[:, None]
    np.testing.assert_allclose(mirrored, body["shapedirs"], atol=1e-9)


def test_body_has_its_own_size_and_the_proportions_of_a_dog(body):
    verts, place = body["v_template"], body["J_regressor"] @ body["v_template"]
    assert 3500 < len(verts) < 4500 and len(verts) != 3889
    assert abs(verts.mean()) < 1e-12  # what the layer takes off the template is nothing
    length, width, height = np.ptp(verts, axis=0)
    assert 1.9 < length < 2.3 and 0.3 < width < 0.45 and 0.95 < height < 1.15
    paws = [10, 14, 20, 24]
    assert (
        place[paws, 2].max()
        < place[[9, 13, 19, 23], 2].min()
        < place[[7, 11, 17, 21], 2].min()
        < place[16, 2]
    )
    nose, chin, right_ear, left_ear, left_eye, right_eye = verts[body["landmark_vertices"]]
    assert nose[0] > verts[:, 0].max() - 0.01 and nose[1] == chin[1] == 0 and chin[2] < nose[2]
    assert left_ear[1] > 0.1 and left_eye[1] > 0.03 and left_ear[2] > left_eye[2] > nose[2]
    assert (right_ear == left_ear * (1, -1, 1)).all() and (right_eye == left_eye * (1, -1, 1)).all()


def test_weights_and_joint_regressor(body):
    weights, regressor = body["weights"], body["J_regressor"]
    assert (
        weights.min() >= 0 and np.allclose(weights.sum(1), 1) and ((weights > 0).sum(1) <= 5).all()
    )
    assert (weights[:, 1:].max(0) > 0.3).all()  # every joint but the root moves some skin
    assert regressor.min() >= 0 and np.allclose(regressor.sum(1), 1)
    place, wanted = regressor @ body["v_template"], rest_joints()
    np.testing.assert_allclose(place - place.mean(0), wanted - wanted.mean(0), atol=1e-5)
    assert (winding(place, body["v_template"], body["f"].astype(int)) > 0.99).all()


def test_tree_is_the_layers(body, smal):
    parents, numbers = body["kintree_table"]
    assert (
        parents[0] == 2**32 - 1
        and tuple(parents[1:]) == PARENTS[1:]
        and (numbers == np.arange(len(joints.NAMES))).all()
    )
    for leg in (*LEGS, joints.TAIL):
        assert all(PARENTS[b] == a for a, b in zip(leg, leg[1:], strict=False))
    assert [PARENTS[j] for j in (joints.MOUTH, joints.LEFT_EAR, joints.RIGHT_EAR)] == [
        joints.HEAD
    ] * 3
    np.testing.assert_allclose(smal.template.numpy(), body["v_template"], atol=1e-6)


@pytest.mark.parametrize("number", range(len(SHAPES)), ids=SHAPES)
def test_each_shape_direction_keeps_the_body_whole(body, number):
    faces = body["f"].astype(int)
    for amount in (-2.5, 2.5):
        verts = body["v_template"] + amount * body["shapedirs"][:, :, number]
        assert volume(verts, faces) > 0.05
        assert winding(body["J_regressor"] @ verts, verts, faces).min() > 0.99
    assert 0.005 < np.linalg.norm(body["shapedirs"][:, :, number], axis=1).max() < 0.25


def test_shape_directions_are_independent(body):
    directions = body["shapedirs"].reshape(-1, len(SHAPES))
    directions = directions / np.linalg.norm(directions, axis=0)
    assert np.linalg.svd(directions, compute_uv=False).min() > 0.1


def test_drawn_dogs_keep_their_volume_and_their_joints(smal):
    generator = np.random.default_rng(3)
    kinds = list(POSES) * 4
    betas = torch.tensor(
        np.stack(
            [sample_betas(generator, list(BREEDS)[i % len(BREEDS)]) for i in range(len(kinds))]
        )
    ).float()
    family = generator.multivariate_normal(smal.family_mean, smal.family_cov, len(kinds))
    pose = torch.tensor(sample_pose(generator, len(kinds), kinds)).float()
    faces = smal.faces.numpy()
    for shape in (betas, torch.tensor(family).float()):
        rest, posed = smal(shape, torch.zeros_like(pose)), smal(shape, pose)
        for i, kind in enumerate(kinds):
            before = volume(rest.verts[i].double().numpy(), faces)
            verts, place = posed.verts[i].double().numpy(), posed.joints[i].double().numpy()
            assert before > 0.03, kind
            assert 0.9 < volume(verts, faces) / before < 1.1, (
                kind
            )  # the skin bends without collapsing
            assert winding(place[: smal.num_joints], verts, faces).min() > 0.9, kind


def test_poses_stay_inside_the_joint_limits_and_differ():
    pose = torch.tensor(sample_pose(np.random.default_rng(0), 500)).float()
    low, high = priors.joint_limits()
    assert (pose[:, 3:99] >= low).all() and (pose[:, 3:99] <= high).all()
    assert (pose[:, 3:99].std(0) > 0.02).sum() > 50
    again = sample_pose(np.random.default_rng(0), 500)
    assert (again.astype(np.float32) == pose.numpy()).all()


@pytest.mark.parametrize("family", priors.FAMILIES)
def test_priors_prefer_natural_animals(folder, smal, family):
    generator = np.random.default_rng(1)
    term = priors.pose_prior(family, folder)
    natural = torch.tensor(sample_pose(generator, 200)).float()
    assert 0.1 < term(natural) < 1.5
    mixed = torch.stack(
        [
            natural[torch.randperm(200, generator=torch.Generator().manual_seed(k)), k]
            for k in range(105)
        ],
        1,
    )
    assert term(mixed) > 2 * term(natural)  # the joints of a pose belong together
    assert term(natural + 0.7) > 10 * term(natural)
    shape = priors.shape_prior(family, smal, folder)
    mean, _ = shape_families()
    n = len(shape.mean)
    assert np.allclose(shape.mean[:20], mean[1, :20], atol=1e-6) and shape(shape.mean[None]) < 1e-9
    assert shape(shape.mean[None] + 3 * torch.ones(1, n)) > 3


def test_hierarchy_belongs_to_the_body(folder, smal):
    sizes = MeshHierarchy.load(folder / "mesh_down_sampling_4.npz").sizes
    assert sizes[0] == smal.num_verts and len(sizes) == 5
    assert all(3 < a / b < 5 for a, b in zip(sizes, sizes[1:], strict=False))


def test_written_twice_gives_the_same_bytes(folder, tmp_path):
    write_body(tmp_path)
    files = sorted(p.relative_to(folder) for p in Path(folder).rglob("*.npz"))
    assert len(files) == 7
    assert filecmp.cmpfiles(folder, tmp_path, [str(f) for f in files], shallow=False) == (
        [str(f) for f in files],
        [],
        [],
    )
