"""One animal through a video."""

from dataclasses import replace

import numpy as np
import torch

from engine.detect import Animal
from engine.video import _posed, follow, packed, smooth_prediction, unpacked, without_features
from model.outputs import Estimate, ImageFeatures, Prediction
from smal_model import SMAL


def _at(x, y, side=50.0):
    return Animal(np.array([x, y, side, side]), np.ones((4, 4), bool))


def test_a_frame_without_a_detection_lies_between_its_neighbours():
    """The animal walks along a line, another stands still; five frames find nothing."""
    frames = [[_at(300, 20, 30), _at(10.0 * t, 5.0 * t)] for t in range(30)]
    whole = follow(frames)
    for t in (0, 12, 13, 14, 29):
        frames[t] = []
    found = follow(frames)
    for t, (a, b) in enumerate(zip(whole, found, strict=True)):
        near = 1e-9 if 9 <= t <= 20 else 10  # ends repeat the nearest frame
        assert np.abs(a.box - b.box).max() <= near, t
        assert (b.mask is None) == (t in (0, 12, 13, 14, 29))


def test_packed_masks_are_the_same():
    mask = np.random.default_rng(0).random((30, 41)) > 0.7
    again = unpacked(packed(Animal(np.arange(4), mask, "dog")))
    assert (again.mask == mask).all() and again.kind == "dog"
    assert unpacked(packed(Animal(np.arange(4)))).mask is None


def test_frames_at_a_time_change_nothing(synthetic_body, monkeypatch):
    smal = SMAL(synthetic_body / "smal")
    torch.manual_seed(0)
    given = 0.2 * torch.randn(5, 20), 0.2 * torch.randn(5, 105), torch.randn(5, 3), None, None
    whole = smal(*given)
    monkeypatch.setattr("engine.video.AT_A_TIME", 2)
    parts = _posed(smal, *given)
    assert torch.allclose(parts.verts, whole.verts, atol=1e-5)
    assert torch.allclose(parts.joints, whole.joints, atol=1e-5)


def test_offsets_that_some_frames_lack_are_kept(synthetic_body):
    """A stage 1 network's frames have offsets only where a mask refined them."""
    smal = SMAL(synthetic_body / "smal")
    pose, betas, trans = torch.zeros(2, 105), torch.zeros(2, 20), torch.zeros(2, 3)
    body = smal(betas, pose, trans)
    coarse = Estimate(body.verts, body.joints, torch.zeros(2, 1))
    plain = Prediction(coarse, trans, pose, betas, None, ImageFeatures((), torch.zeros(2, 0)))
    refined = replace(plain, refined=coarse, del_v=torch.ones_like(body.verts))
    for parts in ([plain, refined], [refined, plain]):
        out = smooth_prediction([without_features(part) for part in parts], smal)
        moved = out.del_v.mean((1, 2))
        first, last = (0, 1) if parts[0] is plain else (1, 0)
        assert moved[[0, -1]].round().tolist() == [first, last] and out.refined is not None
