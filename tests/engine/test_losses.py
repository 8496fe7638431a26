"""Losses and priors against recorded values, closed forms and finite differences."""

import numpy as np
import pytest
import torch

from engine import losses
from model.outputs import Estimate
from smal_model import SMAL, priors
from smal_model.lbs import rodrigues
from smal_model.priors import GaussianPrior
from util.metrics import aligned_error

REL = 1e-5


def test_plain_losses_match_recorded_values(golden):
    g = {k: torch.tensor(v) for k, v in golden("losses").items()}
    found = {
        "kp_l2": losses.keypoint_loss(g["kp_pred"], g["kp_gt"]),
        "tversky_06_04": losses.tversky_loss(g["sil"][:, 0], g["seg"][:, 0], 0.6, 0.4),
        "joint_limits": losses.joint_limit_loss(g["pose"], *priors.joint_limits()),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(g[name].item(), rel=REL), name


def test_laplacian_matches_recorded_value(golden):
    g, faces = golden("losses"), golden("renderer")["body_side/faces"]
    predicted, reference = torch.tensor(g["lap_pred"]), torch.tensor(g["lap_ref"])
    laplacian = losses.mesh_laplacian(faces, predicted.shape[1])
    assert losses.laplacian_loss(predicted, reference, laplacian).item() == pytest.approx(
        float(g["laplacian"]), rel=REL
    )


def test_priors_match_recorded_values(shared, golden):
    g = {k: torch.tensor(v) for k, v in golden("losses").items()}
    folder = shared / "samples"
    smal = SMAL(folder / "smal")
    found = {
        "shape_prior_smal": priors.shape_prior("smal", smal, folder)(g["betas20"]),
        "shape_prior_unity": priors.shape_prior("unity", smal, folder)(g["betas26"]),
        "pose_prior_smal": priors.pose_prior("smal", folder)(g["pose"]),
        "pose_prior_unity": priors.pose_prior("unity", folder)(g["pose"]),
    }
    for name, value in found.items():
        assert value.item() == pytest.approx(g[name].item(), rel=REL), name


def test_joint_limit_table_is_the_recorded_one(shared):
    import json

    table = json.loads((shared / "golden" / "joint_limits.json").read_text())
    low, high = priors.joint_limits()
    np.testing.assert_allclose(low.numpy(), np.ravel([j["lo"] for j in table]), rtol=1e-6)
    np.testing.assert_allclose(high.numpy(), np.ravel([j["hi"] for j in table]), rtol=1e-6)


def test_silhouettes_of_some_images_are_those_with_the_others_counted_nowhere(synthetic_body):
    """The first is what a CPU computes, the second a GPU, which would have to wait to choose."""
    smal = SMAL(synthetic_body / "smal")
    prior = priors.shape_prior("smal", smal, synthetic_body), None
    criterion = losses.Criterion(losses.LossWeights(dice=1), smal, *prior)
    torch.manual_seed(0)
    verts = smal.template + torch.tensor([0.0, 0.0, 1.0]) + 0.1 * torch.randn(4, 1, 3)
    estimate = Estimate(verts, torch.zeros(4, 41, 3), torch.zeros(4, 1))
    mask, needed = (torch.rand(4, 224, 224) < 0.5).float(), torch.tensor([1, 0, 0, 1]).bool()
    batch = {"mask": mask, "mask_weight": (torch.rand(4, 224, 224) < 0.9).float()}
    counted = batch["mask_weight"] * needed[:, None, None]
    some = criterion._silhouette(estimate, batch, needed)
    others = criterion._silhouette(estimate, batch | {"mask_weight": counted})
    every = criterion._silhouette(estimate, batch)
    assert some.item() == pytest.approx(others.item(), rel=1e-6) != every.item()


def test_hidden_keypoints_cost_nothing_but_count_in_the_mean():
    labelled = torch.tensor([[[10.0, 20.0, 1.0], [0.0, 0.0, 0.0]]])
    predicted = torch.tensor([[[13.0, 16.0], [500.0, -500.0]]])
    assert losses.keypoint_loss(predicted, labelled).item() == (9 + 16) / 4


def test_robust_keypoints_cost_half_at_the_scale_and_one_at_most():
    torch.manual_seed(0)
    labels = torch.cat([100 * torch.rand(3, 20, 2), torch.ones(3, 20, 1)], -1)
    area, known = torch.tensor([10000.0, 400.0, 900.0]), torch.tensor([True, True, False])
    off = torch.zeros(3, 20, 2)
    found = [losses.robust_keypoint_loss(labels[..., :2] + off, labels, area, known)]
    off[0, 3, 1], off[1, 4, 0] = 15.0, -3.0  # ROBUST of the roots 100 and 20
    found.append(losses.robust_keypoint_loss(labels[..., :2] + off, labels, area, known))
    off[0, 3, 1], off[2] = 1e6, 50.0  # what has no labels counts in nothing
    found.append(losses.robust_keypoint_loss(labels[..., :2] + off, labels, area, known))
    labels[1, 4, 2] = 0  # hidden ones are 0, and count in the mean
    found.append(losses.robust_keypoint_loss(labels[..., :2] + off, labels, area, known))
    wanted = [0, 1 / 40, 1.5 / 40, 1 / 40]
    assert [f.item() for f in found] == pytest.approx(wanted, abs=1e-6)


def test_robust_keypoints_are_measured_by_the_mask_and_without_one_by_the_box(synthetic_body):
    smal = SMAL(synthetic_body / "smal")
    prior = priors.shape_prior("smal", smal, synthetic_body), None
    criterion = losses.Criterion(losses.LossWeights(kpts_robust=1), smal, *prior)
    verts = smal.template[None] + torch.tensor([0.0, 0.0, 1.0])
    estimate = Estimate(verts, 0.1 * torch.randn(1, 41, 3) + verts.mean(1), torch.zeros(1, 1))
    labels = torch.cat([estimate.keypoints_px + 20, torch.ones(1, 20, 1)], -1)
    mask = torch.zeros(1, 224, 224)
    mask[0, :40, :100] = 1
    yes = torch.ones(1, dtype=torch.bool)
    batch = {"keypoints": labels, "has_keypoints": yes, "mask": mask, "area": torch.full((1,), 9e3)}
    for has_mask, area in ((yes, 4e3), (~yes, 9e3)):
        found = criterion._robust_keypoints(estimate, batch | {"has_mask": has_mask})
        given = estimate.keypoints_px, labels, torch.tensor([area]), yes
        assert found.item() == pytest.approx(losses.robust_keypoint_loss(*given).item())


def test_tversky_of_a_perfect_and_an_empty_silhouette():
    mask = torch.zeros(2, 8, 8)
    mask[:, 2:6, 2:6] = 1
    assert losses.tversky_loss(mask, mask, 0.6, 0.4).item() == pytest.approx(0, abs=1e-6)
    assert losses.tversky_loss(torch.zeros_like(mask), mask, 0.6, 0.4).item() == pytest.approx(
        1, abs=1e-4
    )
    wide = torch.ones_like(mask)  # 32 true, 96 false positives
    assert losses.tversky_loss(wide, mask, 0.6, 0.4).item() == pytest.approx(
        1 - 32 / (32 + 0.6 * 96), rel=1e-5
    )


def test_laplacian_ignores_translation_and_sees_one_moved_vertex():
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    verts = torch.randn(1, 4, 3, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    laplacian = losses.mesh_laplacian(faces, 4)
    assert losses.laplacian_loss(verts + 3, verts, laplacian).item() == pytest.approx(0, abs=1e-5)
    moved = verts.clone()
    moved[0, 0, 0] += 1  # its own row changes by its degree 3, each neighbour's by 1
    assert losses.laplacian_loss(moved, verts, laplacian).item() == pytest.approx(
        (3 + 1 + 1 + 1) / 4, rel=1e-5
    )


def _cases():
    g = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    labelled = torch.cat([50 * draw(2, 20, 2), (draw(2, 20, 1) > 0).double()], -1)
    mask = torch.rand(2, 6, 6, generator=g, dtype=torch.float64)
    low, high = (x.double() for x in priors.joint_limits())
    faces = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    laplacian = losses.mesh_laplacian(faces, 4).double()
    coarse = draw(2, 4, 3)
    prior = GaussianPrior(np.ones(9), np.arange(81.0).reshape(9, 9) / 40, skip=3).double()
    return {
        "keypoints": (lambda x: losses.keypoint_loss(x, labelled), 50 * draw(2, 20, 2)),
        "tversky": (
            lambda x: losses.tversky_loss(x, mask, 0.6, 0.4),
            torch.rand(2, 6, 6, generator=g, dtype=torch.float64),
        ),
        "joint_limits": (lambda x: losses.joint_limit_loss(x, low, high), draw(2, 105)),
        "laplacian": (lambda x: losses.laplacian_loss(x, coarse, laplacian), draw(2, 4, 3)),
        "prior": (prior, draw(2, 9)),
    }


@pytest.mark.parametrize("name", list(_cases()))
def test_gradients_agree_with_finite_differences(name):
    function, x = _cases()[name]
    assert torch.autograd.gradcheck(function, x.requires_grad_(), eps=1e-6, atol=1e-6)


def test_pose_prior_does_not_see_the_global_rotation():
    prior = GaussianPrior(np.zeros(9), np.eye(9), skip=3)
    a, b = torch.zeros(1, 9), torch.zeros(1, 9)
    b[:, :3] = 5
    assert prior(a).item() == prior(b).item() == 0


def test_wrong_length_is_named():
    with pytest.raises(ValueError, match="9 numbers"):
        GaussianPrior(np.zeros(9), np.eye(9))(torch.zeros(2, 8))


def _two_estimates():
    torch.manual_seed(0)
    verts, joints = torch.randn(2, 9, 3), torch.randn(2, 41, 3)
    truth = {"gt_verts": verts, "gt_joints": joints, "gt_scale": torch.tensor([[0.5], [-0.2]])}
    return Estimate(verts, joints, truth["gt_scale"]), truth


def test_ground_truth_terms_are_zero_at_the_truth_and_closed_forms_beside_it():
    same, truth = _two_estimates()
    assert losses.root_distance(same, truth).tolist() == [0, 0]
    assert losses.camera_distance(same, truth).abs().max() < 1e-6
    shift = torch.tensor([0.3, -0.4, 2.0])
    moved = Estimate(same.verts + shift, same.joints + shift, same.scale)
    assert losses.root_distance(moved, truth).abs().max() < 1e-6  # the roots in one place
    depth = 20 + truth["gt_joints"][:, 0, 2]
    ratio = ((depth + 2) / depth).log()
    assert torch.allclose(losses.camera_distance(moved, truth), 0.7 + 1.1 * ratio, atol=1e-6)
    stretched = Estimate(same.verts * 1, same.joints, same.scale)
    stretched.verts[1, 4] += torch.tensor([3.0, 0, 4.0])
    assert losses.root_distance(stretched, truth).tolist() == pytest.approx([0, 5 / 9])


def test_aligned_vertices_are_taught_their_shape_not_their_place():
    """A gradient step goes to the ground truth as the best similarity transform has it."""
    torch.manual_seed(1)
    truth = torch.randn(2, 50, 3)
    turn = rodrigues(torch.tensor([[0.3, -1.0, 0.5], [2.0, 0.1, 0.0]]))
    place = torch.tensor([1.0, -2.0, 3.0])
    alike = 1.7 * truth @ turn.mT + place
    assert aligned_error(alike, truth).max() < 1e-5
    bent = (alike + 0.2 * torch.randn(2, 50, 3)).requires_grad_()
    before = aligned_error(bent, truth)
    (gradient,) = torch.autograd.grad(before.sum(), bent)
    after = aligned_error(bent - gradient, truth)
    assert (after < 0.97 * before).all() and gradient.sum(1).abs().max() < 0.1
    nothing = torch.zeros(1, 50, 3, requires_grad=True)  # of an image without ground truth
    aligned_error(nothing, torch.zeros(1, 50, 3)).sum().backward()
    assert (nothing.grad == 0).all()


def test_distance_of_rotations():
    angle = torch.tensor(0.3)
    pose = torch.zeros(1, 6)
    pose[0, 5] = angle
    eye = torch.eye(3).expand(1, 2, 3, 3)
    wanted = 4 * (1 - angle.cos()) / 2  # |R - 1|^2 = 4 (1 - cos), over two joints
    assert losses.rotation_distance(pose, eye).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_terms_of_ground_truth_count_the_images_that_have_it():
    errors = torch.tensor([1.0, 5.0, 100.0])
    known = torch.tensor([True, True, False])
    assert losses._mean_known(errors, known, lambda sums: sums).item() == 3
    assert losses._mean_known(errors, ~known | known, lambda sums: sums).item() == pytest.approx(
        106 / 3
    )
    assert losses._mean_known(errors, torch.zeros(3, dtype=torch.bool), lambda s: s).item() == 0
