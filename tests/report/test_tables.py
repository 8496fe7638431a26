"""Reports: intervals, paired differences, and what a prediction that is no number counts."""

import math

import numpy as np
import pytest
import torch

from engine.evaluate import score
from model.outputs import Estimate, ImageFeatures, Prediction
from report.tables import format_markdown, summarize
from smal_model import SMAL
from util.metrics import GROUPS
from util.scores import MeshScores, Scores, interval, pck_at


def test_intervals_are_those_of_the_normal_distribution():
    """Of the mean of many values: 1.96 standard errors to both sides."""
    values = np.random.default_rng(1).standard_normal(400) + 3
    low, high = interval(np.append(values, math.nan))
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert np.isnan(interval(values[:1])).all()


def _mesh(pck, iou):
    pck, iou = np.array(pck), np.array(iou)
    groups = dict.fromkeys(GROUPS, pck)
    return MeshScores(pck, groups, iou, iou, np.where(pck[:, None] > 0.5, 0.01, 1.0))


def test_the_last_column_is_the_gain_of_the_refined_mesh():
    meshes = {"coarse": _mesh([0.2, 0.4], [0.5, 0.7]), "refined": _mesh([0.3, 0.5], [0.7, 0.9])}
    report = summarize(Scores(["a", "b"], meshes)) | {"dataset": "stanford"}
    lines = format_markdown(report).splitlines()
    assert lines[0] == "| stanford, 2 images | coarse | refined | refined - coarse |"
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in lines}
    assert rows["PCK@0.15 (%)"][2].strip() == "+10.0 [+10.0, +10.0]"  # paired: without a spread
    assert rows["IoU (%)"][0].strip() == "60.0 [50.0, 70.0]"
    assert rows["IoU (%)"][2].strip() == "+20.0 [+20.0, +20.0]"


@pytest.fixture(scope="module")
def scored(synthetic_body):
    """A body's scores against its own silhouette and keypoints, two images."""
    smal = SMAL(synthetic_body / "smal")
    pose = torch.zeros(2, 3 * smal.num_joints)
    pose[:, :3] = torch.tensor([-1.20919958, 1.20919958, 1.20919958])
    out = smal(torch.zeros(2, 20), pose, torch.tensor([[0.0, 0, 1]] * 2))
    estimate = Estimate(out.verts, out.joints, torch.zeros(2, 1))
    nothing = ImageFeatures((), torch.zeros(2, 0))
    found = Prediction(estimate, torch.zeros(2, 3), pose, torch.zeros(2, 20), None, nothing)
    keypoints = torch.cat([estimate.keypoints_px, torch.ones(2, 20, 1)], -1)
    everywhere, yes = torch.ones(2, 224, 224), torch.ones(2, dtype=torch.bool)
    mask = torch.zeros(2, 224, 224)
    mask[:, 60:160, 60:160] = 1
    batch = {
        "name": ["a", "b"], "mask": mask, "keypoints": keypoints, "mask_weight": everywhere,
        "border_mask": everywhere, "inside": everywhere, "area": mask.sum((1, 2)),
        "has_mask": yes, "has_keypoints": yes,
    }  # fmt: skip
    return smal, found, batch


def test_what_is_unsure_or_outside_counts_in_no_clean_overlap(scored):
    """A wrong label there changes nothing; elsewhere it does."""
    smal, out, batch = scored
    part = torch.ones(2, 224, 224)
    part[:, 1::2] = 0
    wrong = torch.where(part > 0, batch["mask"], 1 - batch["mask"])
    for name in ("inside", "mask_weight"):
        given = batch | {name: part}
        before = score(out, given, smal).meshes["coarse"].iou_clean
        after = score(out, given | {"mask": wrong}, smal).meshes["coarse"].iou_clean
        assert np.array_equal(before, after) and (0.05 < before).all() and (before < 0.95).all()
    whole = score(out, batch, smal).meshes["coarse"].iou_clean
    assert (whole != score(out, batch | {"mask": wrong}, smal).meshes["coarse"].iou_clean).all()


def test_a_keypoint_that_is_no_number_is_missed_at_every_threshold(scored):
    smal, out, batch = scored
    joints = out.coarse.joints.clone()
    joints[1] = math.nan
    broken = Estimate(out.coarse.verts, joints, out.coarse.scale)
    parts = Prediction(broken, out.trans, out.pose, out.betas, None, out.features)
    found = score(parts, batch, smal).meshes["coarse"]
    assert found.pck.tolist() == [1, 0]
    for threshold in (0.05, 0.15):
        assert pck_at(found.errors, threshold).tolist() == [1, 0]
