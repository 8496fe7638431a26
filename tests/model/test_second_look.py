"""The second look: heat maps corrected by a body, and the body posed by them once more."""

import pytest
import torch

from model import CoarseToFine, second_look
from model.keypoint_maps import WIDTH, Keypoints, map_loss
from model.second_look import SecondLook
from smal_model import SMAL, MeshHierarchy
from tests.model.test_body_solve import CELLS, answer, networks, outline_of, peaks, plane_of
from tests.model.test_body_solve import prediction as prediction_of
from util.camera import HALF_CROP
from util.errors import InputError

__all__ = ["networks"]  # a fixture


def keypoints(maps):
    none = torch.empty(0)
    torch.manual_seed(5)
    return Keypoints(maps, none, none, none, torch.randn(len(maps), WIDTH, CELLS, CELLS))


def test_at_first_it_changes_nothing_and_what_it_sees_learns_nothing():
    maps = torch.randn(2, 20, CELLS, CELLS, requires_grad=True)
    outline = torch.randn(2, 48, 48, requires_grad=True)
    places = torch.rand(2, 20, 2, requires_grad=True)
    look = SecondLook()
    found = look(keypoints(maps), outline, places)
    assert torch.equal(found, maps)
    found.square().sum().backward()
    assert maps.grad is None and outline.grad is None and places.grad is None
    assert look.last.weight.grad.abs().sum() > 0


def test_it_learns_which_of_two_places_the_body_is_at(monkeypatch):
    """Each map has two equal peaks; the body is, with some error, at one of them."""
    monkeypatch.setattr(second_look, "BLOCKS", 1)
    torch.manual_seed(0)
    look = SecondLook()
    optimizer = torch.optim.Adam(look.parameters(), lr=2e-3)
    outline = torch.zeros(4, 48, 48)

    def scene():
        both = 1.4 * torch.rand(2, 4, 20, 2) - 0.7
        maps = torch.maximum(peaks(both[0]), peaks(both[1]))
        labels = torch.ones(4, 20, 3)
        labels[..., 0] = HALF_CROP * (1 - both[0, ..., 1])
        labels[..., 1] = HALF_CROP * (1 + both[0, ..., 0])
        seen = look(keypoints(maps), outline, both[0] + 0.05 * torch.randn(4, 20, 2))
        known = torch.ones(4, dtype=torch.bool)
        return [sums[0] / sums[1] for sums in (map_loss(m, labels, known) for m in (maps, seen))]

    for _ in range(40):
        optimizer.zero_grad()
        scene()[1].backward()
        optimizer.step()
    before, after = scene()
    assert after < before - 0.3, (before, after)  # log 2 = 0.69 is to be had


def test_the_body_follows_the_maps_of_the_second_look(networks):
    smal, _, solve, body_solve = networks
    true, other = answer(smal), answer(smal, changed=0.1, seed=3)
    outline = outline_of(true.estimate, smal)
    told = []

    def look(places):
        told.append(places)
        return peaks(plane_of(true.estimate))

    with torch.no_grad():
        out = prediction_of(smal, other, peaks(plane_of(other.estimate)), outline)
        alone = body_solve(out, solve)
        again = body_solve(out, solve, look)
    apart = [(plane_of(x.estimate) - plane_of(true.estimate)).norm(dim=-1) for x in (alone, again)]
    assert apart[0].mean() > 0.04 and apart[1].mean() < 0.3 * apart[0].mean()
    (places,) = told
    torch.testing.assert_close(places, plane_of(alone.estimate))


@pytest.fixture(scope="module")
def model(synthetic_body):
    torch.manual_seed(0)
    smal = SMAL(synthetic_body / "smal")
    hierarchy = MeshHierarchy.load(synthetic_body / "mesh_down_sampling_4.npz")
    network = {"backbone": "resnet18", "img_res": 64, "num_channels": 16}
    return CoarseToFine(
        smal, hierarchy, **network, keypoint_maps=True, outline=True, second_look=True
    ).eval()


def test_an_image_changes_the_widths_that_the_body_is_posed_with(model):
    out = model(torch.randn(2, 3, 64, 64))
    prior, noise, edge = model.body_solve._widths(out)
    assert torch.equal(prior[0], prior[1]) and torch.equal(noise[0], noise[1])  # at first alike
    out.refined.verts.square().sum().backward()
    gradient = model.body_solve.doubt.weight.grad
    assert gradient.isfinite().all() and (gradient.abs().sum(1) > 0).sum() > 100
    with torch.no_grad():
        model.body_solve.doubt.weight.normal_(0, 1e-3)
        changed = model.body_solve._widths(out)
        model.body_solve.doubt.weight.zero_()
    for old, new in zip((prior, noise, edge), changed, strict=True):
        assert (new - old).abs().min() > 0 and (new[0] - new[1]).abs().max() > 0


def test_it_needs_the_outline(synthetic_body):
    hierarchy = MeshHierarchy.load(synthetic_body / "mesh_down_sampling_4.npz")
    with pytest.raises(InputError, match="--outline"):
        CoarseToFine(SMAL(synthetic_body / "smal"), hierarchy, "resnet18", second_look=True)
