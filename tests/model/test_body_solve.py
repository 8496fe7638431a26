"""The most likely body for keypoints and outline together: what is seen, what is in doubt."""

import pytest
import torch
from torch.nn import functional as F

from model.body_solve import BodySolve
from model.coarse import GLOBAL_ROTATION
from model.keypoint_maps import Keypoints, cell_centres
from model.keypoint_solve import KeypointSolve, compose, view_rows, world_rotations
from model.outputs import Answer, Estimate, Prediction
from render import coverage
from smal_model import SMAL, MeshHierarchy
from smal_model.joints import keypoints_of
from util.camera import project

BATCH, LEVEL, CELLS = 3, 2, 24


@pytest.fixture(scope="module")
def networks(synthetic_body):
    hierarchy = MeshHierarchy.load(synthetic_body / "mesh_down_sampling_4.npz")
    smal = SMAL(synthetic_body / "smal")
    return smal, hierarchy, KeypointSolve(smal), BodySolve(smal, hierarchy, LEVEL)


def answer(smal, changed=0.0, scale=-0.2, seed=1):
    torch.manual_seed(1)
    pose = 0.2 * torch.randn(BATCH, 3 * smal.num_joints)
    pose[:, :3] += torch.tensor(GLOBAL_ROTATION)
    trans = torch.tensor([0.1, -0.2, 1.0]) + 0.1 * torch.randn(BATCH, 3)
    betas = 0.3 * torch.randn(BATCH, 20)
    torch.manual_seed(seed)
    turns = changed * torch.tensor([0.3, 1.0, 0.3]) * torch.randn(BATCH, smal.num_joints, 3)
    pose = compose(turns, pose.unflatten(1, (-1, 3))).flatten(1)
    trans, betas = trans + changed * 0.2 * torch.randn(BATCH, 3), betas + changed * torch.randn(20)
    body = smal(betas, pose, trans)
    return Answer(
        Estimate(body.verts, body.joints, torch.full((BATCH, 1), scale)), trans, pose, betas
    )


def plane_of(estimate):
    return project(keypoints_of(estimate.joints), estimate.scale)[..., :2]


def peaks(places, width=1.0):
    """(..., H, W) logits of Gaussians, `width` cells wide at places (..., 2)."""
    centres = cell_centres(CELLS, CELLS, places)
    cells = (centres - places[..., None, :]).square().sum(-1) * (CELLS / 2) ** 2
    return (-cells / (2 * width**2)).unflatten(-1, (CELLS, CELLS))


def prediction(smal, before, maps=None, outline=None):
    none = torch.empty(0)
    maps = torch.zeros(BATCH, 20, CELLS, CELLS) if maps is None else maps
    keypoints = Keypoints(maps, none, none, none, none)
    outline = torch.zeros(BATCH, 56, 56) if outline is None else outline
    coarse = before.estimate
    return Prediction(
        coarse, none, none, none, None, none, keypoints=keypoints, outline=outline, before=before
    )


def outline_of(estimate, smal):
    mask = coverage(estimate.plane, smal.faces, 224)
    return 20 * (F.adaptive_avg_pool2d(mask, 56) - 0.5)


def overlap(estimate, wanted, smal):
    seen, true = (coverage(e.plane, smal.faces, 224) > 0.5 for e in (estimate, wanted))
    return ((seen & true).sum((1, 2)) / (seen | true).sum((1, 2))).mean()


def test_the_body_comes_to_the_keypoints_and_the_outline(networks):
    smal, _, solve, body_solve = networks
    true, before = answer(smal), answer(smal, changed=0.15, seed=2)
    apart = (plane_of(before.estimate) - plane_of(true.estimate)).norm(dim=-1).mean()
    maps, outline = peaks(plane_of(true.estimate)), outline_of(true.estimate, smal)
    with torch.no_grad():
        alone = body_solve(prediction(smal, before, maps), solve)
        only = body_solve(prediction(smal, before, None, outline), solve)
        both = body_solve(prediction(smal, true, maps, outline), solve)
    left = (plane_of(alone.estimate) - plane_of(true.estimate)).norm(dim=-1).mean()
    assert apart > 0.08 and left < 0.25 * apart
    first = overlap(before.estimate, true.estimate, smal)
    found = [overlap(a.estimate, true.estimate, smal) for a in (alone, only, both)]
    assert first < 0.75 and min(found[:2]) > first + 0.1, (first, found)
    assert found[2] > 0.9  # the outline is smoothed: legs come out thicker
    again = smal(both.betas, both.pose, both.trans)  # the parameters are those of the vertices
    assert torch.allclose(again.verts, both.estimate.verts, atol=1e-5)


def test_of_two_peaks_the_one_that_fits_the_other_keypoints_counts(networks):
    smal, _, solve, body_solve = networks
    true, before = answer(smal), answer(smal, changed=0.08, seed=3)
    places = plane_of(true.estimate)
    maps = peaks(places)
    wrong = places[:, 0] + torch.tensor([0.5, 0.2])  # as high a peak, where no such leg can be
    maps[:, 0] = torch.maximum(maps[:, 0], peaks(wrong))
    with torch.no_grad():
        found = plane_of(body_solve(prediction(smal, before, maps), solve).estimate)
    first = (plane_of(before.estimate) - places)[:, 0].norm(dim=-1)
    assert first.mean() > 0.02  # and the mean of both peaks is 0.27 away
    assert (found - places)[:, 0].norm(dim=-1).max() < 0.015


def test_nothing_seen_the_network_is_believed(networks):
    smal, _, solve, body_solve = networks
    before = answer(smal)
    with torch.no_grad():
        found = body_solve(prediction(smal, before), solve)
    for name in ("trans", "pose", "betas"):
        assert torch.allclose(getattr(found, name), getattr(before, name), atol=2e-3), name


def test_the_body_is_seen_by_the_coarse_answers_camera(networks):
    """The focal length was corrected since: place and size in the image stay as they were."""
    smal, _, solve, body_solve = networks
    before, out = answer(smal, scale=-0.4), prediction(smal, answer(smal, scale=0.3))
    out.before = before
    with torch.no_grad():
        found = body_solve(out, solve).estimate
    assert (found.scale == 0.3).all()
    assert (plane_of(found) - plane_of(before.estimate)).abs().max() < 0.08  # perspective differs
    wide = plane_of(Estimate(found.verts, before.estimate.joints, found.scale))
    assert (wide - plane_of(before.estimate)).abs().max() > 0.2


def test_derivatives_of_vertices_are_those_of_the_body_but_for_its_soft_skin(networks):
    smal, _, _, body_solve = networks
    start = answer(smal)
    verts, carried = body_solve._down(start.estimate.verts), body_solve.carried
    plane = project(verts, start.estimate.scale)
    world = world_rotations(start.pose, smal.ancestors)
    rows = view_rows(plane, start.estimate.scale)
    given = carried(rows, plane[..., :2], verts, start.estimate.joints, world)
    count = smal.num_joints
    for joint, axis in ((0, 1), (6, 1), (8, 0), (16, 1)):
        turn = torch.zeros(BATCH, count, 3)
        turn[:, joint, axis] = 1e-3
        pose = compose(turn, start.pose.unflatten(1, (-1, 3))).flatten(1)
        moved = body_solve._down(smal(start.betas, pose, start.trans).verts)
        moved = project(moved, start.estimate.scale)
        wanted = (moved - plane)[..., :2].flatten(1) / 1e-3
        own = given[..., 3 * joint : 3 * joint + 3] @ carried.above(world)[:, joint]
        assert wanted.norm() > 0.1
        assert (own[..., axis] - wanted).norm() < 0.1 * wanted.norm(), (joint, axis)


def test_widths_and_the_network_learn_through_it(networks):
    smal, hierarchy, solve, _ = networks
    body_solve = BodySolve(smal, hierarchy, LEVEL)
    true, before = answer(smal), answer(smal, changed=0.1, seed=4)
    before.pose.requires_grad_()
    body = smal(before.betas, before.pose, before.trans)
    before.estimate = Estimate(body.verts, body.joints, before.estimate.scale)
    maps, outline = peaks(plane_of(true.estimate), 2), outline_of(true.estimate, smal)
    found = body_solve(prediction(smal, before, maps, outline), solve)
    (found.estimate.verts - true.estimate.verts).square().sum().backward()
    for value in (before.pose, *body_solve.parameters()):
        assert value.grad.isfinite().all() and value.grad.abs().sum() > 0
    assert not any(p.grad is not None for p in solve.parameters())


def test_a_body_at_the_camera_stays_finite(networks):
    smal, _, solve, body_solve = networks
    before = answer(smal)
    trans = before.trans.clone()
    trans[:, 2] = torch.tensor([-19.9, -20.0, -25.0])
    body = smal(before.betas, before.pose, trans)
    scale = before.estimate.scale
    near = Answer(Estimate(body.verts, body.joints, scale), trans, before.pose, before.betas)
    maps = peaks(torch.rand(BATCH, 20, 2) - 0.5)
    with torch.no_grad():
        found = body_solve(prediction(smal, near, maps), solve)
    assert all(getattr(found, name).isfinite().all() for name in ("trans", "pose", "betas"))
    assert (20 + found.estimate.joints[:, 0, 2]).min() > 2.5


def test_what_is_no_number_does_not_end_the_process(networks):
    """The backward pass of sampling at NaN does on a CPU; the step is to be skipped instead."""
    smal, hierarchy, solve, _ = networks
    before = answer(smal)
    before.pose[1] = float("nan")
    before.pose.requires_grad_()
    found = BodySolve(smal, hierarchy, LEVEL)(prediction(smal, before), solve)
    assert found.pose[0].isfinite().all() and found.estimate.verts[1].isnan().any()
    found.estimate.verts.square().sum().backward()
