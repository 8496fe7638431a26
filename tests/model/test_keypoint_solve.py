"""The most likely body for keypoints that were seen: derivatives, convergence, what is not seen."""

import pytest
import torch
from scipy.spatial.transform import Rotation

from model.coarse import GLOBAL_ROTATION
from model.keypoint_maps import Keypoints
from model.keypoint_solve import KeypointSolve, compose, solve_definite
from smal_model import SMAL
from smal_model.joints import KEYPOINT_JOINTS
from smal_model.lbs import kinematic_chain, rodrigues
from util.camera import project

BATCH = 3
NO_MAPS = torch.empty(0)


@pytest.fixture(scope="module")
def smal(synthetic_body):
    return SMAL(synthetic_body / "smal")


def parameters(smal, spread=0.2):
    torch.manual_seed(1)
    pose = spread * torch.randn(BATCH, 3 * smal.num_joints)
    pose[:, :3] += torch.tensor(GLOBAL_ROTATION)
    trans = torch.tensor([0.1, -0.2, 1.0]) + 0.1 * torch.randn(BATCH, 3)
    return torch.full((BATCH, 1), -0.2), trans, pose, 0.3 * torch.randn(BATCH, 20)


def keypoints_of(smal, scale, trans, pose, betas):
    joints = smal(betas, pose, trans).joints
    return joints, project(joints[:, list(KEYPOINT_JOINTS)], scale)


def test_composed_turns_are_the_product_of_their_matrices():
    torch.manual_seed(0)
    turns, rotations = torch.randn(50, 3), 2 * torch.randn(50, 3)
    product = Rotation.from_rotvec(turns.numpy()) * Rotation.from_rotvec(rotations.numpy())
    found = Rotation.from_rotvec(compose(turns, rotations).numpy())
    assert (product.inv() * found).magnitude().max() < 1e-5
    assert torch.allclose(compose(torch.zeros(50, 3), rotations / 3), rotations / 3, atol=1e-5)


def test_definite_equations_are_solved_with_their_derivatives():
    torch.manual_seed(0)
    root, right = torch.randn(2, 5, 5).double(), torch.randn(2, 5, 2).double()

    def solved(root, right, solve=solve_definite):
        return solve(root @ root.mT + torch.eye(5), right)

    wanted = solved(root, right, torch.linalg.solve)
    torch.testing.assert_close(solved(root, right), wanted, rtol=1e-12, atol=1e-12)
    root.requires_grad_()
    right.requires_grad_()
    assert torch.autograd.gradcheck(solved, (root, right))
    wrong = torch.diag_embed(torch.tensor([[1.0, 1, 1], [1, -1, 1]]))
    found = solve_definite(wrong, torch.ones(2, 3, 1))
    assert (found[0] == 1).all() and found[1].isnan().all()


@pytest.mark.parametrize(
    ("parameter", "tolerance"),
    [(0, 0.05), (1, 0.05), (2, 0.05), (48, 0.1), (49, 0.1), (105, 0.02), (106, 0.02), (107, 0.02)]
    + [(108, 0.02), (109, 0.05), (110, 0.05), (112, 0.05)],
)
def test_derivatives_are_those_of_the_body_but_for_its_soft_skin(smal, parameter, tolerance):
    scale, trans, pose, betas = parameters(smal)
    joints, plane = keypoints_of(smal, scale, trans, pose, betas)
    solve = KeypointSolve(smal)
    rotations = rodrigues(pose.unflatten(1, (-1, 3)))
    nothing = torch.zeros(BATCH, smal.num_joints, 3)
    world = kinematic_chain(rotations, nothing, smal.ancestors)[..., :3]
    given = solve.derivative(world, joints, plane, scale)[..., parameter]

    step = torch.zeros(BATCH, 3 * smal.num_joints + 4 + 20)
    step[:, parameter] = 1e-3
    turns, moves, shape = step.split([3 * smal.num_joints, 4, 20], 1)
    above = torch.cat([torch.eye(3).expand(BATCH, 1, 3, 3), world[:, smal.parents[1:]]], 1)
    local = (above.mT @ turns.unflatten(1, (-1, 3, 1))).squeeze(-1)
    moved = (
        (1 + scale) * moves[:, 3:].exp() - 1,
        trans + moves[:, :3],
        compose(local, pose.unflatten(1, (-1, 3))).flatten(1),
        betas + shape,
    )
    difference = (keypoints_of(smal, *moved)[1] - plane)[..., :2].flatten(1) / 1e-3
    assert difference.norm() > 0.03
    assert (given - difference).norm() < tolerance * difference.norm()


def test_steps_reach_keypoints_that_are_certain_and_ignore_those_that_are_not(smal):
    scale, trans, pose, betas = parameters(smal)
    true = keypoints_of(smal, scale, trans, pose, betas)[1][..., :2]
    seen = true.clone()
    seen[:, 5] += 0.8  # claimed far off, but of no certainty
    variance = torch.full((BATCH, 20), 1e-4)
    variance[:, 5] = 1e4
    keypoints = Keypoints(NO_MAPS, seen, torch.ones(BATCH, 20), variance, NO_MAPS)
    torch.manual_seed(2)
    state = (
        scale + 0.05,
        trans + 0.05 * torch.randn(BATCH, 3),
        pose + 0.1 * torch.randn(pose.shape),
        betas + 0.1 * torch.randn(betas.shape),
    )
    solve = KeypointSolve(smal)
    joints, plane = keypoints_of(smal, *state)
    before = (plane[..., :2] - true).norm(dim=-1)
    with torch.no_grad():
        for _ in range(5):
            state = solve(*state, joints, keypoints)
            joints, plane = keypoints_of(smal, *state)
    after = (plane[..., :2] - true).norm(dim=-1)
    certain = [k for k in range(20) if k != 5]
    assert before.mean() > 0.05 and after[:, certain].max() < 0.1 * before.mean()
    assert after[:, 5].max() < 2 * before[:, 5].max()


def test_no_certainty_no_step(smal):
    state = parameters(smal)
    joints, plane = keypoints_of(smal, *state)
    seen = plane[..., :2] + 0.5
    nothing = Keypoints(NO_MAPS, seen, torch.ones(BATCH, 20), torch.full((BATCH, 20), 1e8), NO_MAPS)
    after = KeypointSolve(smal)(*state, joints, nothing)
    for old, new in zip(state, after, strict=True):
        assert torch.allclose(old, new, atol=1e-4)


def test_widths_and_earlier_estimates_learn_through_a_step(smal):
    state = [value.requires_grad_() for value in parameters(smal)]
    joints, plane = keypoints_of(smal, *state)
    seen = Keypoints(
        NO_MAPS,
        plane[..., :2].detach() + 0.1,
        torch.ones(3, 20),
        torch.full((3, 20), 0.01),
        NO_MAPS,
    )
    solve = KeypointSolve(smal)
    after = solve(*state, joints, seen)
    keypoints_of(smal, *after)[1].square().sum().backward()
    for value in (*state, *solve.parameters()):
        assert value.grad.isfinite().all() and value.grad.abs().sum() > 0


def test_a_body_at_the_camera_steps_back_and_no_step_is_wild(smal):
    scale, trans, pose, betas = parameters(smal)
    trans[:, 2] = torch.tensor([-19.9, -20.0, -25.0])
    scale[:] = -0.9
    joints, plane = keypoints_of(smal, scale, trans, pose, betas)
    seen = torch.rand(BATCH, 20, 2) - 0.5
    keypoints = Keypoints(NO_MAPS, seen, torch.ones(3, 20), torch.full((BATCH, 20), 1e-4), NO_MAPS)
    state = KeypointSolve(smal)(scale, trans, pose, betas, joints, keypoints)
    assert all(value.isfinite().all() for value in state)
    root = keypoints_of(smal, *state)[0][:, 0, 2]
    assert (20 + root).min() > 2.5  # and projects to finite places
    assert (state[3] - betas).abs().max() <= 1
