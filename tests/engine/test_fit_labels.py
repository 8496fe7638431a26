"""From fit.py to training: --w_param learns from the fits that are good."""

import numpy as np
import pytest
import torch

import datasets.fits
import fit
from engine.fit_terms import FitSettings
from engine.losses import Criterion, LossWeights
from model.outputs import Estimate, ImageFeatures, Prediction
from smal_model import SMAL
from smal_model.lbs import rodrigues
from smal_model.priors import pose_prior, shape_prior
from tests.commands import SMALL, fails
from tests.engine.few import read_content, stage1

HASTY = FitSettings(headings=2, kept=1, round_steps=(4, 4), body_steps=8, deform_steps=2, modes=20)


@pytest.fixture(scope="module")
def criterion(synthetic_body):
    smal = SMAL(synthetic_body / "smal")
    priors = shape_prior("smal", smal, synthetic_body), pose_prior("smal", synthetic_body)
    weights = LossWeights(kpts=0, betas_prior=0, pose_prior=0, param=3.0)
    return smal, Criterion(weights, smal, *priors)


def _term(smal, criterion, pose, betas, logscale, batch) -> float:
    nothing = Estimate(torch.zeros(2, 1, 3), torch.zeros(2, 41, 3), torch.zeros(2, 1))
    features = ImageFeatures((), torch.zeros(2, 0))
    out = Prediction(nothing, torch.zeros(2, 3), pose, betas, logscale, features)
    terms = criterion(out, batch)
    assert list(terms) == ["param"]
    return float(terms["param"])


def test_the_term_is_zero_at_the_labels_and_counts_what_is_known(criterion):
    smal, loss = criterion
    generator = torch.Generator().manual_seed(0)
    pose = torch.randn(2, 3 * smal.num_joints, generator=generator)
    betas, scales = torch.randn(2, 20, generator=generator), torch.full((2, 6), 0.2)
    batch = {
        "fit_rotations": rodrigues(pose.unflatten(1, (-1, 3))),
        "fit_betas": betas,
        "fit_logscale": scales,
        "has_fit": torch.tensor([True, False]),
        "has_fit_logscale": torch.tensor([True, False]),
    }
    assert _term(smal, loss, pose, betas, scales, batch) == 0
    other = pose.clone()
    other[1] = 0  # of the image without a fit
    assert _term(smal, loss, other, betas, scales, batch) == 0
    assert _term(smal, loss, pose, betas + 1, scales, batch) == pytest.approx(3.0)
    assert _term(smal, loss, pose, betas, scales + 0.1, batch) == pytest.approx(0.03, rel=1e-3)
    assert _term(smal, loss, pose, betas, None, batch) == 0  # a network without log-scales
    batch["has_fit_logscale"] = torch.tensor([False, False])
    assert _term(smal, loss, pose, betas, scales + 0.1, batch) == 0  # a fit without them
    turned = pose.clone()
    turned[0, :3] = 0
    assert _term(smal, loss, turned, betas, scales, batch) > 0.01
    batch["has_fit"] = torch.tensor([False, False])
    assert _term(smal, loss, turned, betas, scales, batch) == 0


def test_training_learns_from_what_fit_py_wrote(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit, "FIT", HASTY)
    run = ["--data_dir", str(few), "--output_dir", str(tmp_path / "fit"), "--device", "cpu"]
    fit.main([*run, "--split", "train", "--num_works", "0"])
    files = sorted((tmp_path / "fit" / "parameters").glob("*.npz"))
    assert len(files) == 6
    fits = [dict(np.load(path)) for path in files]
    names = "pose betas betas_logscale trans scale del_v crop_center crop_side".split()
    names += ["pck", "iou", "pck_refined", "iou_refined"]
    assert all(set(arrays) == set(names) for arrays in fits)
    known = sorted(float(arrays["iou"]) for arrays in fits)
    monkeypatch.setattr(datasets.fits, "LEAST_PCK", 0.0)
    monkeypatch.setattr(datasets.fits, "LEAST_IOU", known[2])  # after so few steps none is good
    options = ["--nEpochs", "1", "--w_param", "7", "--flip"]
    stage1(few, tmp_path / "run", *options, "--fit_dir", str(tmp_path / "fit"))
    assert "--fit_dir: 4 of 6 training images have a good fit." in capsys.readouterr().out
    log = (tmp_path / "run" / "log.txt").read_text()
    assert float(log.partition("  param ")[2].split()[0]) > 0.1
    stored = read_content(tmp_path / "run" / "checkpoint.pth.tar")["training"]
    assert stored["w_param"] == 7 and stored["fit_dir"] == str(tmp_path / "fit")
    monkeypatch.setattr(datasets.fits, "LEAST_IOU", 1.1)
    script = ["main.py", "--data_dir", str(few), *SMALL, "--output_dir", str(tmp_path / "no")]
    few_good = ["--w_param", "7", "--fit_dir", str(tmp_path / "fit")]
    fails(capsys, [*script, *few_good], "holds no fit of a training image with PCK")


def test_one_without_the_other_is_refused(tmp_path, capsys):
    for script in ("main.py", "main_meshgraph.py"):
        run = [script, "--output_dir", str(tmp_path / "out")]
        fails(capsys, [*run, "--w_param", "1"], "--w_param needs --fit_dir")
        fails(capsys, [*run, "--fit_dir", str(tmp_path)], "--fit_dir has no effect without")
    fails(capsys, ["main.py", "--w_param", "-1"], "--w_param", "expected 0 or more")
