"""The outline: its loss, and what it tells the vertices."""

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from model import CoarseModel, ImageFeatures
from model.coarse import GLOBAL_ROTATION
from model.outline import BLURS, STEPS, TOLD, OutlineMap, VertexOutline, outline_loss
from model.refiner import Refiner
from render import coverage
from smal_model import SMAL, MeshHierarchy
from smal_model.lbs import rodrigues, skin
from util.camera import project
from util.errors import InputError

LEVEL = 2
SIZE = [-1 - 3 * STEPS]  # where the numbers hold the log of a body unit's size


@pytest.fixture(scope="module")
def body(synthetic_body):
    hierarchy = MeshHierarchy.load(synthetic_body / "mesh_down_sampling_4.npz")
    return SMAL(synthetic_body / "smal"), hierarchy


def test_loss_is_the_entropy_of_the_cells_that_count():
    torch.manual_seed(0)
    logits, mask = torch.randn(2, 4, 4), (torch.rand(2, 8, 8) < 0.5).float()
    weight = torch.ones(2, 8, 8)
    weight[1] = 0  # an image without a mask
    weight[0, :2, :2] = 0  # a cell of which nothing is sure
    weight[0, 2, 2] = 0  # and one that is half sure
    total, cells = outline_loss(logits, mask, weight)
    wanted = 0.0
    for row in range(4):
        for column in range(4):
            here = slice(2 * row, 2 * row + 2), slice(2 * column, 2 * column + 2)
            for inside, counts in zip(
                mask[0][here].flatten(), weight[0][here].flatten(), strict=True
            ):
                p = logits[0, row, column].sigmoid()
                wanted -= counts / 4 * (inside * p.log() + (1 - inside) * (1 - p).log())
    assert cells.item() == pytest.approx(14.75)
    assert total.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("limbs", [False, True])
def test_slopes_are_derivatives_by_the_offsets(body, limbs):
    """Of what each vertex sees of a probability that rises as a plane, its joints held."""
    smal, hierarchy = body
    torch.manual_seed(3)
    logscale = torch.tensor([[0.2, -0.1, 0.3, 0.1, -0.2, 0.1]]) if limbs else None
    pose = 0.3 * torch.randn(1, 3 * smal.num_joints)
    pose[:, :3] += torch.tensor(GLOBAL_ROTATION)
    scale, trans = torch.tensor([[50.0]]), torch.tensor([0.0, 0.0, 4000.0])  # seen from far away
    across, up, constant = 0.21, -0.13, 0.45
    x = (torch.arange(48) + 0.5) / 24 - 1
    probability = constant + across * x - up * x[:, None]

    offset = torch.zeros(1, smal.num_verts, 3, requires_grad=True)
    joints = (smal.J_regressor @ smal.template)[None]
    bones = smal.transforms(rodrigues(pose.view(1, -1, 3)), joints, logscale)
    verts = skin(smal.template + offset, bones, smal.weights) + trans
    plane = project(verts, scale)
    value = 2 * (constant + across * plane[..., 0] + up * plane[..., 1] - 0.5)
    (by_offset,) = torch.autograd.grad(value.sum(), offset, retain_graph=True)
    (by_depth,) = torch.autograd.grad(verts[..., 2].sum(), offset)
    told = VertexOutline(smal, hierarchy, LEVEL)
    seen, _ = told(probability.logit()[None], verts, scale, pose, logscale)
    assert seen.shape == (1, hierarchy.sizes[LEVEL], TOLD) and seen.abs().max() < 10

    for level in range(LEVEL):  # a selection of the vertices
        plane, value, by_offset, by_depth = (
            hierarchy.down(t if t.ndim == 3 else t[..., None], level)
            for t in (plane, value, by_offset, by_depth)
        )
    inside = (plane[0, :, :2].abs() < 0.3).all(1)  # blurs do not reach the border of the map
    assert inside.sum() > 50
    values = seen[0, :, [0, 1, 3]]  # the third says whether the edge is near
    depth, *slopes = seen[0, :, 4 : 7 + 3 * len(BLURS)].split(3, 1)
    torch.testing.assert_close(depth, by_depth[0], rtol=1e-3, atol=1e-3)
    cells, size = 48 / 2, seen[0, :, SIZE].exp()  # of a unit of the plane; of the body, in those
    for number, (blur, slope) in enumerate(zip(BLURS, slopes, strict=True)):
        assert (values[inside, number] - value[0, inside, 0]).abs().max() < 1e-3
        found = (slope / blur * cells * size)[inside]
        assert found.abs().max() > 0.03
        torch.testing.assert_close(found, by_offset[0, inside], rtol=0.01, atol=5e-4)


def test_the_head_learns_a_mask():
    torch.manual_seed(0)
    mask = torch.zeros(2, 224, 224)
    mask[0, 30:150, 60:200], mask[1, 100:180, 20:120] = 1, 1
    shown = F.adaptive_avg_pool2d(mask, 16)[:, None]
    finest = torch.randn(2, 24, 16, 16) + 3 * shown
    pyramid = torch.randn(2, 96, 8, 8) + 3 * F.avg_pool2d(shown, 2)
    head = OutlineMap(24, 96)
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        logits = head(finest, pyramid)
        total, cells = outline_loss(logits, mask, torch.ones_like(mask))
        (total / cells).backward()
        optimizer.step()
    assert logits.shape == (2, 16, 16) and (total / cells).item() < 0.25
    assert ((logits > 0) == (shown[:, 0] > 0.5)).float().mean() > 0.95


@pytest.mark.parametrize("heading", [0.0, 1.5, 3.0])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_refiner_follows_the_outline(body, heading, axis):
    """A body seen with an outline beside it moves there, before anything is learned."""
    smal, hierarchy = body
    torch.manual_seed(0)
    betas = torch.tensor(smal.family_mean[None, :20]).float()
    turn = Rotation.from_rotvec([0, heading, 0]) * Rotation.from_rotvec(GLOBAL_ROTATION)
    pose = 0.1 * torch.randn(1, 3 * smal.num_joints)
    pose[:, :3] = torch.tensor(turn.as_rotvec())
    trans, scale = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[-0.3]])
    coarse = smal(betas, pose, trans).verts
    silhouette = coverage(project(coarse, scale), smal.faces, 224)
    assert silhouette.mean() > 0.03
    logits = 20 * F.adaptive_avg_pool2d(silhouette, 56) - 10
    told = VertexOutline(smal, hierarchy, LEVEL)
    refiner = Refiner(hierarchy, [8, 8, 8, 8], False, 16, LEVEL, outline=True).eval()
    features = ImageFeatures((), torch.zeros(1, 8))
    seen = []
    with torch.no_grad():
        for cells in (-1, 1):
            lacks = told(logits.roll(-cells if axis else cells, 2 - axis), coarse, scale, pose)
            del_v = told.held(refiner(coarse, scale, features, lacks), pose)
            plane = project(smal(betas, pose, trans, del_v).verts, scale)
            seen.append(plane.mean(1)[0])
    apart = seen[1] - seen[0]  # of outlines that are 4 / 56 of half a crop apart
    assert 0.003 < apart[axis] < 4 / 56 and apart[1 - axis].abs() < 0.9 * apart[axis]


def test_offsets_turn_with_the_body(body):
    """As if the joints stayed, for a body that is turned as a whole."""
    smal, hierarchy = body
    torch.manual_seed(0)
    pose = torch.zeros(2, 3 * smal.num_joints)
    pose[:, :3] = torch.randn(2, 3)
    betas, del_v = torch.zeros(2, 20), 0.1 + 0.1 * torch.randn(2, smal.num_verts, 3)
    told = VertexOutline(smal, hierarchy, LEVEL)
    moved = smal(betas, pose, None, told.held(del_v, pose)).verts - smal(betas, pose).verts
    wanted = (rodrigues(pose[:, None, :3]) @ del_v[..., None]).squeeze(-1)
    torch.testing.assert_close(moved, wanted, atol=1e-5, rtol=0)


def test_it_needs_the_keypoints_maps(body):
    with pytest.raises(InputError, match="needs keypoint_maps"):
        CoarseModel(body[0], "resnet18", img_res=64, outline=True)
