"""Heat maps of keypoints: their places, their loss, and the corrections by them."""

import numpy as np
import pytest
import torch

from model import CoarseModel
from model.keypoint_maps import KeypointMaps, cell_centres, map_loss
from smal_model import SMAL
from util.camera import CROP, to_pixels


@pytest.fixture(scope="module")
def model(synthetic_body):
    torch.manual_seed(0)
    return CoarseModel(SMAL(synthetic_body / "smal"), "resnet18", img_res=64, keypoint_maps=True)


def test_cells_lie_where_pixels_do():
    rows_and_columns = to_pixels(cell_centres(4, 8, torch.zeros(())), CROP)
    assert rows_and_columns[0].tolist() == [CROP / 8, CROP / 16]  # first cell: half a cell in
    assert rows_and_columns[8].tolist() == [3 * CROP / 8, CROP / 16]  # next row


def test_maps_that_fit_the_labels_cost_the_least_and_give_their_places():
    torch.manual_seed(0)
    labels = torch.cat([60 + 100 * torch.rand(2, 20, 2), torch.ones(2, 20, 1)], -1)
    maps = torch.zeros(2, 20, 28, 28, requires_grad=True)
    known = torch.tensor([True, True])
    optimizer = torch.optim.Adam([maps], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        total, weight = map_loss(maps, labels, known)
        (total / weight).backward()
        optimizer.step()
    assert (total / weight).item() == pytest.approx(1 + np.log(2 * np.pi), abs=0.01)  # a Gaussian's
    places = maps.flatten(2).softmax(-1) @ cell_centres(28, 28, maps)
    assert (to_pixels(places) - labels[..., :2]).abs().max() < 0.1


def test_loss_of_maps_counts_what_is_labelled():
    maps = torch.randn(3, 20, 5, 7)
    labels = torch.zeros(3, 20, 3)
    labels[0, 4] = torch.tensor([30.0, 70.0, 1.0])
    labels[1, 2] = torch.tensor([-5.0, 70.0, 1.0])  # visible, outside the crop
    known = torch.tensor([True, True, False])
    total, weight = map_loss(maps, labels, known)
    assert weight.item() == pytest.approx(1 + 38 * 0.1)
    log = maps.flatten(2).log_softmax(-1)
    row, column = np.mgrid[0:5, 0:7] + 0.5
    cells = (row - 30 / CROP * 5) ** 2 + (column - 70 / CROP * 7) ** 2
    target = np.exp(-cells / 2).ravel()
    target /= target.sum()
    flat = log.mean(-1)
    hidden = flat[:2].sum() - flat[0, 4] - flat[1, 2]
    wanted = -(log[0, 4].numpy() @ target) - 0.1 * hidden.item()
    assert total.item() == pytest.approx(wanted, rel=1e-5)
    none = torch.zeros(3, dtype=torch.bool)
    assert map_loss(maps, labels, none).tolist() == [0, 0]


def test_corrections_start_small_and_learn_from_the_maps(model):
    images = torch.randn(2, 3, 64, 64)
    out = model.eval()(images)
    assert out.keypoints.maps.shape == (2, 20, 8, 8) and out.keypoints.xy.abs().max() < 1
    model.train()(images).coarse.keypoints_px.sum().backward()
    for part in (model.lift, model.correct):
        assert part[-1].weight.grad.abs().sum() > 0
    # the maps learn from their own labels alone
    assert all(p.grad is None for p in model.keypoint_maps.parameters())
    model.zero_grad()


def test_the_answer_follows_the_maps(model):
    """A keypoint that the maps see elsewhere moves the estimate."""
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for part in (model.lift, model.correct):
            part[-1].weight.normal_(0, 0.05)
        before = model.eval()(images).coarse.keypoints_px
        model.keypoint_maps.maps.bias.uniform_(-3, 3)
        model.keypoint_maps.maps.weight.normal_(0, 1)
        after = model(images).coarse.keypoints_px
    assert (before - after).abs().max() > 1


def test_finer_levels_reach_the_maps():
    torch.manual_seed(0)
    head = KeypointMaps([3, 4, 5, 6]).eval()
    features = [
        torch.randn(1, c, s, s, requires_grad=True) for c, s in ((3, 16), (4, 8), (5, 4), (6, 2))
    ]
    head(features).xy.pow(2).sum().backward()
    assert features[0].grad is None  # stride 4 is not used
    assert all(f.grad.abs().sum() > 0 for f in features[1:])
