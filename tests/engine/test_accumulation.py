"""Micro-batches: how batches are cut, and that their gradients add up to that of the batch."""

from dataclasses import replace

import pytest
import torch

from engine import loop
from engine.loaders import EpochBatches, part_sizes
from engine.losses import Criterion, LossWeights
from model import CoarseToFine, body_solve, coarse
from smal_model import SMAL, MeshHierarchy, priors
from tests.commands import fails
from tests.engine.test_bad_days import _spoil
from tests.engine.tiny import CHECKPOINT, content, train
from util import distributed

WEIGHTS = LossWeights(
    pose_limit_prior=100, kpts_refine=2, arap=1000, maps=30, verts=60, pose=10, betas=0.5,
    camera=20, verts_refine=60, param=5, outline=20, kpts_robust=50,
)  # fmt: skip


def test_parts_are_about_equal_and_of_two_images_or_more():
    for number in range(1, 40):
        for parts in range(1, 12):
            sizes = part_sizes(number, parts)
            assert sum(sizes) == number and len(sizes) <= parts
            assert max(sizes) - min(sizes) <= 1
            assert number == 1 or (min(sizes) >= 2 and (len(sizes) == parts or min(sizes) <= 3))


@pytest.mark.parametrize("processes", [2, 3])
def test_a_micro_batch_is_the_same_for_any_number_of_processes(monkeypatch, processes):
    """Of 13 images in batches of 7 and 6, in three parts each."""

    def parts(rank, world):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: world)
        whole = ([2, 2, 3], [2, 2, 2])
        out = []
        for batch, sizes in zip(EpochBatches(13, 7, 0, parts=3), whole, strict=True):
            rest = iter(batch)
            for size in sizes:
                out.append([next(rest) for _ in distributed.interleaved(range(size))])
            assert not list(rest)
        return out

    one = parts(0, 1)
    shares = [parts(rank, processes) for rank in range(processes)]
    for number, part in enumerate(one):
        assert sorted(part) == sorted(sum((share[number] for share in shares), []))
        assert all(share[number] == part[rank::processes] for rank, share in enumerate(shares))


def _labelled(smal, size: int) -> dict:
    """Random images and labels: some without keypoints, some without ground truth."""
    torch.manual_seed(3)
    places = 260 * torch.rand(size, 20, 2) - 10  # some outside the crop
    labels = torch.cat([places, (torch.rand(size, 20, 1) > 0.3).float()], -1)
    return {
        "image": torch.randn(size, 3, 64, 64),
        "name": [f"image {i}" for i in range(size)],
        "keypoints": labels,
        "has_keypoints": torch.tensor([True, True, False, False, True, True, False])[:size],
        "has_truth": torch.tensor([False, False, True, True, False, True, True])[:size],
        "gt_verts": torch.randn(size, smal.num_verts, 3),
        "gt_joints": torch.randn(size, 41, 3),
        "gt_rotations": torch.randn(size, 35, 3, 3),
        "gt_betas": torch.randn(size, 20),
        "gt_scale": torch.rand(size, 1),
        "has_fit": torch.tensor([False, True, False, False, False, False, True])[:size],
        "has_fit_logscale": torch.zeros(size, dtype=torch.bool),
        "fit_rotations": torch.randn(size, 35, 3, 3),
        "fit_betas": torch.randn(size, 20),
        "fit_logscale": torch.zeros(size, 6),
        "has_mask": torch.tensor([True, True, True, False, True, False, True])[:size],
        "area": 20000 * torch.rand(size),
        "mask": (torch.rand(size, 224, 224) < 0.5).float(),
        "mask_weight": torch.rand(size, 1, 1).round() * torch.rand(size, 224, 224),
    }


@pytest.mark.parametrize(("steps", "rounding"), [(0, 1e-5), (coarse.STEPS, 1e-4)])
def test_gradients_and_terms_add_up_to_those_of_the_batch(
    synthetic_body, monkeypatch, steps, rounding
):
    """All terms but the silhouettes, labels spread unevenly over parts of 2, 2 and 3 images.

    The equations of the steps to what is seen enlarge rounding, in batches of any size.
    """
    monkeypatch.setattr(coarse, "STEPS", steps)
    monkeypatch.setattr(body_solve, "ROUNDS", body_solve.ROUNDS[:steps])
    monkeypatch.setattr(body_solve, "AGAIN", body_solve.AGAIN[:steps])
    torch.manual_seed(0)
    smal = SMAL(synthetic_body / "smal")
    hierarchy = MeshHierarchy.load(synthetic_body / "mesh_down_sampling_4.npz")
    network = {"backbone": "resnet18", "img_res": 64, "num_channels": 16}
    network |= {"keypoint_maps": True, "outline": True, "second_look": bool(steps)}
    weights = replace(WEIGHTS, maps_refine=30.0 if steps else 0.0)
    model = CoarseToFine(smal, hierarchy, **network).eval()
    model.meshnet.training = True  # for the losses before the steps; batch norm stays as it is
    folder = synthetic_body
    prior = priors.shape_prior("smal", smal, folder), priors.pose_prior("smal", folder)
    step = loop.Step(model, Criterion(weights, smal, *prior))
    batch = _labelled(smal, 7)
    found = []
    for parts in (1, 3):
        model.zero_grad(set_to_none=True)
        terms = loop.add_gradients(step, batch, torch.device("cpu"), parts)
        found.append((terms, {n: p.grad for n, p in model.named_parameters()}))
    (terms, gradients), (others, other) = found
    assert terms.keys() == others.keys() > {*weights.terms, "loss"}
    for name, value in terms.items():
        assert others[name].item() == pytest.approx(value.item(), rel=1e-4), name
    largest = max(g.abs().max() for g in gradients.values() if g is not None)
    for name, gradient in gradients.items():
        assert (gradient is None) == (other[name] is None), name
        if gradient is not None:
            assert (gradient - other[name]).abs().max() < rounding * largest, name


def test_a_run_with_micro_batches_resumes_exactly_and_learns_almost_the_same(data, tmp_path):
    """Batches of 4, 4, 4, 4 and 2; with frozen batch norm only rounding differs."""
    parts = ["--grad_accum", "2"]
    train(data, tmp_path / "one", "--freeze_bn", epochs=1)
    train(data, tmp_path / "two", "--freeze_bn", *parts, epochs=1)
    one, two = (content(tmp_path / name) for name in ("one", "two"))
    assert one["step"] == two["step"] == 5 and two["training"]["grad_accum"] == 2
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], value, rtol=1e-3, atol=1e-3, msg=name)

    train(data, tmp_path / "whole", *parts, epochs=2)
    train(data, tmp_path / "half", *parts, epochs=1)
    train(data, tmp_path / "half", *parts, "--resume", "auto", epochs=2)
    whole, half = (content(tmp_path / name) for name in ("whole", "half"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, half["state_dict"][name]), name


def test_a_micro_batch_that_is_not_finite_skips_the_whole_step(data, tmp_path, monkeypatch):
    """The ninth micro-batch, of the last step: nothing of that step stays."""
    _spoil(monkeypatch, [9])
    train(data, tmp_path, "--grad_accum", "2", "--save_every", "4", epochs=1)
    before, after = (content(tmp_path, n) for n in ("checkpoint_previous.pth.tar", CHECKPOINT))
    assert before["step"] == 4 and after["step"] == 5
    assert all(torch.equal(v, after["state_dict"][k]) for k, v in before["state_dict"].items())
    assert "skipped 1" in (tmp_path / "log.txt").read_text().splitlines()[-1]


def test_parts_of_less_than_two_images_are_refused(data, tmp_path, capsys):
    run = ["main.py", "--data_dir", str(data), "--output_dir", str(tmp_path)]
    fails(capsys, [*run, "--batch_size", "5", "--grad_accum", "3"], "--grad_accum 3", "two images")
    fails(capsys, [*run, "--grad_accum", "0"], "1 or more")
