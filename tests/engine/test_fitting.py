"""Fitting: known bodies are found again, images do not touch each other, labels may be missing."""

from dataclasses import replace

import cv2
import pytest
import torch
import trimesh
from torch.nn.functional import interpolate

import render
from engine import build
from engine.fit_terms import FitSettings, Labels, Terms
from engine.fitting import _headings, _smooth_modes, _struts, fit_images, with_outlines
from model.outputs import Estimate, ImageFeatures, Prediction
from smal_model import SMAL
from smal_model.lbs import rodrigues
from smal_model.priors import pose_prior
from util.metrics import iou, pck

QUICK = FitSettings(
    headings=4,
    kept=2,
    round_steps=(15, 15),
    body_steps=20,
    deform_steps=15,
    deform_size=112,
    modes=60,
)
REFINE = replace(QUICK, body_steps=25, deform_steps=20)


@pytest.fixture(scope="module")
def body(synthetic_body):
    return SMAL(synthetic_body / "smal"), pose_prior("smal", synthetic_body)


@pytest.fixture(scope="module")
def truth(body):
    """Two bodies, seen from the left and from the front."""
    smal, prior = body
    turn = rodrigues(torch.tensor([[0.0, 1.5708, 0.0], [0.0, 0.3, 0.0]]))
    facing = rodrigues(torch.tensor([-1.20919958, 1.20919958, 1.20919958]))
    pose = prior.mean.repeat(2, 1)
    for i in range(2):
        pose[i, :3] = torch.from_numpy(cv2.Rodrigues((turn[i] @ facing).double().numpy())[0][:, 0])
    generator = torch.Generator().manual_seed(0)
    pose[:, 3:] += 0.1 * torch.randn(2, pose.shape[1] - 3, generator=generator)
    betas = torch.tensor(smal.family_mean[:20]).float().repeat(2, 1)
    verts = smal(betas, pose).verts
    trans = -(verts.amin(1) + verts.amax(1)) / 2 + torch.tensor([0.0, 0.05, 1.0])
    return prediction(smal, pose, betas, trans)


def prediction(smal, pose, betas, trans, scale=-0.35):
    scale = torch.full((len(pose), 1), scale)
    out = smal(betas, pose, trans)
    nothing = ImageFeatures((), torch.zeros(len(pose), 0))
    return Prediction(Estimate(out.verts, out.joints, scale), trans, pose, betas, None, nothing)


@pytest.fixture(scope="module")
def batch(body, truth):
    smal, _ = body
    keypoints = torch.cat([truth.coarse.keypoints_px, torch.ones(2, 20, 1)], -1)
    mask = render.coverage(truth.coarse.plane, smal.faces, 224)
    return {"keypoints": keypoints, "mask": mask, "border_mask": torch.ones_like(mask)}


def perturbed(smal, truth):
    generator = torch.Generator().manual_seed(1)
    pose = truth.pose + 0.15 * torch.randn(truth.pose.shape, generator=generator)
    return prediction(smal, pose, truth.betas + 0.3, truth.trans + 0.05)


def scores(smal, estimate, batch):
    drawn = render.coverage(estimate.plane, smal.faces, 224)
    overlap = iou(drawn, batch["mask"], batch["border_mask"])
    return overlap, pck(estimate.keypoints_px, batch["keypoints"], batch["mask"].sum((1, 2)))


def first(batch):
    return {name: value[:1] for name, value in batch.items()}


def test_finds_known_bodies_from_several_headings(body, batch):
    smal, prior = body
    out = fit_images(smal, prior, batch, QUICK)
    overlap, hits = scores(smal, out.refined, batch)
    assert overlap.min() > 0.75
    assert hits.min() > 0.95


def test_heading_is_that_of_the_keypoints(body, truth, batch):
    smal, prior = body
    out = fit_images(smal, prior, {"keypoints": batch["keypoints"]}, QUICK)
    found, true = rodrigues(out.pose[:, :3]), rodrigues(truth.pose[:, :3])
    cosine = ((found.mT @ true).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    assert cosine.min() > 0.85  # about 30 degrees


def test_an_answer_is_kept_more_where_few_keypoints_are_labelled(body, truth, batch):
    """By `w_start_alone` instead of `w_start`; and its keypoints count, those in the mask most."""
    smal, prior = body
    terms, start = Terms(smal, prior, QUICK), perturbed(smal, truth)
    state = {"pose": truth.pose, "betas": truth.betas}
    few = batch | {"keypoints": batch["keypoints"] * torch.tensor([1.0, 1, 0])}
    many, alone = (terms.departure(state, Labels.of(b), start) for b in (batch, few))
    torch.testing.assert_close(alone, many * QUICK.w_start_alone / QUICK.w_start)
    assert not terms.start_keypoints(truth.coarse, Labels.of(batch), start).any()
    inside = terms.start_keypoints(truth.coarse, Labels.of(few), start)
    moved = few | {"mask": few["mask"].roll(60, 1)}
    outside = terms.start_keypoints(truth.coarse, Labels.of(moved), start)
    assert (inside > 0).all() and (outside < 0.5 * inside).all()


def test_images_do_not_touch_each_other(body, batch):
    smal, prior = body
    settings = replace(QUICK, round_steps=(3, 3), body_steps=4, deform_steps=4)
    both, alone = (
        fit_images(smal, prior, batch, settings),
        fit_images(smal, prior, first(batch), settings),
    )
    torch.testing.assert_close(both.refined.verts[:1], alone.refined.verts, atol=1e-3, rtol=0)


@pytest.mark.parametrize("names", [("mask",), ("keypoints",), ("mask", "keypoints")])
def test_refinement_improves_what_it_is_given(body, truth, batch, names):
    smal, prior = body
    start = perturbed(smal, truth)
    given = {name: batch[name] for name in names}
    out = fit_images(smal, prior, given, REFINE, start)
    before, after = scores(smal, start.coarse, batch), scores(smal, out.refined, batch)
    improved = {"mask": 0, "keypoints": 1}
    for name in names:
        assert (after[improved[name]] >= before[improved[name]]).all()
    if "mask" in names:
        assert (after[0] > before[0] + 0.1).all()
    assert torch.equal(start.pose, perturbed(smal, truth).pose)


def test_an_outline_is_the_mask_of_images_that_have_none(
    body, synthetic_body, truth, batch, monkeypatch
):
    smal, _ = body
    start = perturbed(smal, truth)
    start.outline = 16 * interpolate(batch["mask"][:, None], 56, mode="area")[:, 0] - 8
    given = batch | {"mask_weight": torch.ones_like(batch["mask"])}
    given["mask"] = batch["mask"].flip(0)
    given["has_mask"] = torch.tensor([True, False])
    found = with_outlines(given, start)
    assert torch.equal(found["mask"][0], given["mask"][0]) and found["has_mask"].all()
    assert (found["mask"][1] - batch["mask"][1]).abs().mean() < 0.01
    whole = start.outline.clone()
    start.outline[0] = -8
    empty = with_outlines(given | {"has_mask": torch.tensor([False, False])}, start)
    assert empty["has_mask"].tolist() == [False, True]
    assert Labels.of({"mask": empty["mask"]}).known.tolist() == [0, 1]  # the first keeps its answer
    start.outline = whole
    monkeypatch.setattr(build, "REFINEMENT", REFINE)
    # to the outline alone: the data set's own labels, here wrong ones, change nothing
    refine = build.build_refiner(smal, synthetic_body, "auto", "outline")
    given["keypoints"] = given["keypoints"].flip(0)
    out = refine(given, start)
    before, after = (scores(smal, mesh, batch)[0] for mesh in (start.coarse, out.refined))
    assert (after > before + 0.1).all()


def test_refined_mesh_is_smooth(body, batch):
    smal, prior = body
    out = fit_images(smal, prior, batch, QUICK)
    _, stretch = _smooth_modes(smal, QUICK)
    assert stretch(out.del_v).norm(dim=-1).max() < 2.5
    torch.testing.assert_close(
        out.refined.verts, smal(out.betas, out.pose, out.trans, out.del_v, out.betas_logscale).verts
    )


def test_lines_through_thin_parts_are_inside(body):
    """By the winding number of their middles: the solid angles of all faces over 4 pi.

    Van Oosterom and Strackee, IEEE Transactions on Biomedical Engineering 1983.
    """
    smal, _ = body
    across, lines = _struts(smal)
    verts = smal.template.double()
    assert len(lines) > smal.num_verts / 5
    torch.testing.assert_close(lines.norm(dim=-1), torch.ones(len(lines)))
    middles = verts[across.columns.view(-1, 2)].mean(1)[::20]  # (S, 3)
    a, b, c = (verts[smal.faces][None] - middles[:, None, None]).unbind(2)  # (S, F, 3) each
    x, y, z = (corner.norm(dim=-1) for corner in (a, b, c))
    above = (a * torch.linalg.cross(b, c)).sum(-1)
    below = x * y * z + (a * b).sum(-1) * z + (b * c).sum(-1) * x + (c * a).sum(-1) * y
    winding = 2 * torch.atan2(above, below).sum(1) / (4 * torch.pi)
    assert (winding.round() == 1).float().mean() > 0.98


def test_a_body_without_thin_parts_has_no_such_lines():
    sphere = trimesh.creation.icosphere(2)  # 162 vertices

    class Ball:
        template = torch.tensor(sphere.vertices).float()
        faces = torch.tensor(sphere.faces.astype("int64"))
        num_verts = len(template)

    across, lines = _struts(Ball)
    assert len(lines) == 162  # among so few neighbours is the other side
    sphere = trimesh.creation.icosphere(4)
    Ball.template, Ball.num_verts = torch.tensor(sphere.vertices).float(), len(sphere.vertices)
    Ball.faces = torch.tensor(sphere.faces.astype("int64"))
    across, lines = _struts(Ball)
    assert across(Ball.template[None]).shape == (1, 0, 3) and lines.shape == (0, 3)


def test_a_leg_that_the_mask_lacks_is_not_folded_into_a_blade(body, truth, batch):
    """Nothing else holds it: seen edge-on a blade covers nothing, and no edge is the shorter."""
    smal, prior = body
    across, lines = _struts(smal)
    settings = replace(QUICK, body_steps=0, deform_steps=100, modes=300)
    start = prediction(smal, truth.pose[:1], truth.betas[:1], truth.trans[:1])
    mask = batch["mask"][:1].clone()
    rows = mask.sum(2).nonzero()[:, 1]
    mask[:, int(rows.max()) - 30 :] = 0
    least = []
    for weight in (0.0, QUICK.w_thin):
        given = {"mask": mask, "border_mask": torch.ones_like(mask)}
        out = fit_images(smal, prior, given, replace(settings, w_thin=weight), start)
        least.append((lines + across(out.del_v)).norm(dim=-1).min())
    assert least[0] < 0.4 and least[1] > 0.6


def test_the_shape_of_a_body_whose_legs_the_mask_lacks_keeps_them(body, truth, batch):
    """Legs in water: the thinner the shape makes them, the less of them is outside the mask."""
    smal, prior = body
    across, lines = _struts(smal)
    keypoints, mask = batch["keypoints"][:1].clone(), batch["mask"][:1].clone()
    keypoints[:, :12, 2] = 0  # of the legs
    rows = mask.sum(2).nonzero()[:, 1]
    mask[:, int(rows.max()) - 45 :] = 0
    given = {"keypoints": keypoints, "mask": mask, "border_mask": torch.ones_like(mask)}
    least = []
    for weight in (0.0, QUICK.w_thin):
        settings = replace(QUICK, body_steps=100, deform_steps=0, w_betas=0.02, w_thin=weight)
        betas = fit_images(smal, prior, given, settings).betas
        shaped = (betas @ smal.shapedirs[:20]).view(1, -1, 3)
        least.append((lines + across(shaped)).norm(dim=-1).min())
    assert least[0] < 0.65 and least[1] > 0.7


def test_image_without_labels_keeps_the_answer(body, truth, batch):
    smal, prior = body
    start = perturbed(smal, truth)
    blank = {name: value.clone() for name, value in batch.items()}
    blank["mask"][1] = 0
    blank["keypoints"][1] = 0
    settings = replace(REFINE, body_steps=2, deform_steps=2)
    out = fit_images(smal, prior, blank, settings, start)
    torch.testing.assert_close(out.refined.verts[1], start.coarse.verts[1], atol=1e-5, rtol=0)
    assert not torch.equal(out.refined.verts[0], start.coarse.verts[0])


def test_unknown_part_of_the_mask_does_not_count(body, truth, batch):
    smal, prior = body
    terms = Terms(smal, prior, QUICK)
    border = torch.ones(2, 224, 224)
    border[:, :, 100:] = 0
    one, other = batch["mask"].clone(), batch["mask"].clone()
    other[:, :, 104:] = 1
    costs = []
    for mask in (one, other):
        labels = Labels.of({"mask": mask, "border_mask": border})
        costs.append(terms.silhouette(truth.coarse, labels, 112, 1e-4))
        costs.append(terms.outside(truth.coarse, labels))
    torch.testing.assert_close(costs[0], costs[2])
    torch.testing.assert_close(costs[1], costs[3])


def test_outside_term_sees_thin_parts(body, truth, batch):
    smal, prior = body
    terms, labels = Terms(smal, prior, QUICK), Labels.of(batch)
    assert terms.outside(truth.coarse, labels).max() < 0.01
    moved = truth.coarse.verts.clone()
    moved[:, 0, 0] += 0.5
    far = Estimate(moved, truth.coarse.joints, truth.coarse.scale)
    assert (terms.outside(far, labels) > terms.outside(truth.coarse, labels)).all()


def test_headings_start_on_the_labels(body, batch):
    smal, prior = body
    terms, labels = Terms(smal, prior, QUICK), Labels.of({"mask": batch["mask"]})
    state = _headings(terms, labels)
    plane = terms.estimate(state).plane[..., :2]
    centre = (plane.amin(1) + plane.amax(1)) / 2  # (N, 2) x, y
    rows, columns = (m.nonzero() for m in (batch["mask"][0].sum(1), batch["mask"][0].sum(0)))
    wanted = torch.stack([columns.float().mean() / 112 - 1, 1 - rows.float().mean() / 112])
    assert (centre[: QUICK.headings] - wanted).abs().max() < 0.05


def test_a_mask_that_is_not_given_is_far_from_nothing(body, truth, batch):
    """Keypoints alone: the network's own hold those that are not labelled."""
    smal, prior = body
    few = batch["keypoints"].clone()
    few[:, 4:] = 0
    labels = Labels.of({"keypoints": few, "mask_weight": torch.ones(2, 224, 224)})
    terms, start = Terms(smal, prior, QUICK), perturbed(smal, truth)
    assert (terms.start_keypoints(truth.coarse, labels, start) > 0.1).all()
    assert (terms.outside(truth.coarse, labels) == 0).all()


def test_a_batch_without_labels_is_refused(body):
    smal, prior = body
    with pytest.raises(ValueError, match="neither keypoints nor mask"):
        fit_images(smal, prior, {"image": torch.zeros(1, 3, 224, 224)}, QUICK)
