"""PCK and IoU against recorded values, hand-computed cases and what must not change."""

import pytest
import torch

from util.metrics import GROUPS, aligned_error, best_rotation, iou, pck

AREA = 100.0 * 100.0  # 0.15 of its root is 15 pixels


@pytest.fixture
def recorded(golden):
    arrays = {k: torch.from_numpy(v) for k, v in golden("metrics").items()}
    norm = arrays["keypoints_norm"].clone()  # (B, K, 3): x, y in [-1, 1], visible
    arrays["keypoints"] = torch.stack(
        [112 * (norm[..., 1] + 1), 112 * (norm[..., 0] + 1), norm[..., 2]], -1
    )
    arrays["area"] = arrays["seg"][:, 0].float().sum((1, 2))
    return arrays


def assert_same(value: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(value.double(), expected.double(), atol=1e-6, rtol=0, equal_nan=True)


@pytest.mark.parametrize("group", [None, *GROUPS])
def test_pck_is_the_recorded_one(recorded, group):
    value = pck(recorded["pred_row_col"], recorded["keypoints"], recorded["area"], group=group)
    assert_same(value, recorded["pck" if group is None else f"pck_{group}"])


def test_iou_is_the_recorded_one(recorded):
    value = iou(recorded["sil"][:, 0], recorded["seg"][:, 0].float(), recorded["border_mask"][:, 0])
    assert_same(value, recorded["iou"])


def make_keypoints(visible: list[int]) -> torch.Tensor:
    keypoints = torch.zeros(1, 20, 3)
    keypoints[0, :, :2] = 50
    keypoints[0, visible, 2] = 1
    return keypoints


def test_pck_counts_strictly_nearer_visible_keypoints():
    keypoints = make_keypoints([0, 1, 12, 16])
    pred = keypoints[..., :2].clone()
    pred[0, 0, 0] += 12.4  # near enough along the rows
    pred[0, 1, 1] -= 12.5  # exactly at the threshold: not nearer
    pred[0, 2] += 100  # not visible
    pred[0, 12] += 9  # 12.7 away along the diagonal
    area = torch.tensor([AREA])
    for group, expected in {None: 0.5, "legs": 0.5, "tail": 0.0, "face": 1.0}.items():
        assert pck(pred, keypoints, area, 0.125, group).tolist() == [expected]
    assert pck(pred, keypoints, area, 0.125, "ears").isnan().all()
    assert pck(pred, keypoints, area).tolist() == [1.0]  # all within 15 pixels


def test_pck_takes_more_joints_than_labels_and_misses_what_is_no_number():
    keypoints = make_keypoints([0, 1])
    pred = torch.full((1, 41, 2), 50.0)
    pred[0, 1, 0] = float("nan")
    assert pck(pred, keypoints, torch.tensor([AREA])).tolist() == [0.5]


def test_the_groups_hold_each_keypoint_once():
    assert sorted(i for group in GROUPS.values() for i in group) == list(range(20))


def test_iou_by_hand():
    silhouette = torch.zeros(1, 4, 4)
    silhouette[0, 0] = torch.tensor([1.0, 0.5, 0.0, 1.0])
    mask = torch.zeros(1, 4, 4)
    mask[0, 0] = torch.tensor([1.0, 1.0, 0.25, 0.0])
    border = torch.ones(1, 4, 4)
    assert iou(silhouette, mask, border).item() == pytest.approx(1.5 / 4)
    border[0, 0, 3] = 0  # the false pixel lies outside the photograph: taken as right
    assert iou(silhouette, mask, border).item() == pytest.approx(2.5 / 4)
    assert iou(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), border).isnan().all()


def test_nothing_is_changed(recorded):
    keys = ("pred_row_col", "keypoints", "area", "sil", "seg", "border_mask")
    before = {k: recorded[k].clone() for k in keys}
    for group in [None, *GROUPS]:
        pck(recorded["pred_row_col"], recorded["keypoints"], recorded["area"], group=group)
    iou(recorded["sil"][:, 0], recorded["seg"][:, 0].float(), recorded["border_mask"][:, 0])
    assert all(torch.equal(before[k], recorded[k]) for k in keys)


def test_wrong_shapes_and_names_are_refused():
    keypoints, area = make_keypoints([0]), torch.tensor([AREA])
    with pytest.raises(ValueError, match="expected .B, K, 3."):
        pck(torch.zeros(1, 20, 2), keypoints[..., :2], area)
    with pytest.raises(ValueError, match="20 or more"):
        pck(torch.zeros(1, 19, 2), keypoints, area)
    with pytest.raises(
        ValueError, match="unknown group 'nose': choose one of legs, tail, ears, face"
    ):
        pck(torch.zeros(1, 20, 2), keypoints, area, group="nose")
    with pytest.raises(ValueError, match="expected the same"):
        iou(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5), torch.zeros(1, 4, 4))


def test_aligned_error_ignores_similarities_and_sees_the_rest():
    from scipy.spatial.transform import Rotation

    generator = torch.Generator().manual_seed(0)
    true = torch.randn(2, 40, 3, generator=generator)
    turn = torch.tensor(
        Rotation.from_rotvec([[0.3, -2.0, 1.0], [3.0, 0.1, 0.2]]).as_matrix(), dtype=torch.float32
    )
    moved = 2.5 * true @ turn.transpose(1, 2) + torch.tensor([5.0, -1.0, 3.0])
    torch.testing.assert_close(aligned_error(moved, true), torch.zeros(2), atol=1e-5, rtol=0)
    assert (
        aligned_error(true * torch.tensor([-1.0, 1.0, 1.0]), true) > 0.3
    ).all()  # a mirror image is another shape
    moved[1, 3, 2] = torch.nan
    assert aligned_error(moved, true).isnan().tolist() == [False, True]
    # Opposite displacements along a direction where neither scaling nor turning the cloud helps.
    square = torch.tensor([[[1.0, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]]])
    bent = square + torch.tensor([0.0, 0.0, 1.0]) * torch.tensor([1.0, -1, 1, -1])[:, None] * 0.1
    scale = 8 / (8 + 4 * 0.1**2)  # the best scale shrinks the bent square
    expected = ((2**0.5 * (1 - scale)) ** 2 + (0.1 * scale) ** 2) ** 0.5
    assert aligned_error(bent, square).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["near", "unrelated", "mirrored", "flat", "tiny", "nothing"])
def test_the_best_rotation_is_that_of_the_singular_value_decomposition(kind):
    generator = torch.Generator().manual_seed(1)
    t = torch.randn(50, 30, 3, dtype=torch.float64, generator=generator)
    p = torch.randn(t.shape, dtype=torch.float64, generator=generator)
    if kind != "unrelated":
        p = t + 0.1 * p
    if kind == "mirrored":
        p = p * torch.tensor([-1.0, 1, 1])
    if kind == "flat":
        p[..., 2] = t[..., 2] = 0
    if kind == "tiny":
        p, t = 1e-9 * p, 1e-9 * t
    if kind == "nothing":
        p = 0 * p
    product = p.mT @ t
    rotation, trace = best_rotation(product)
    u, s, vh = torch.linalg.svd(product.mT)
    sign = torch.ones_like(s)
    sign[:, 2] = torch.det(u @ vh).sign()
    torch.testing.assert_close(trace, (s * sign).sum(1), rtol=1e-12, atol=0)
    if kind == "nothing":  # any rotation is as good
        assert (trace == 0).all() and rotation.isfinite().all()
    else:
        torch.testing.assert_close(rotation, u * sign[:, None] @ vh, rtol=0, atol=1e-7)
