"""The SMAL layer against recorded values, closed forms and finite differences."""

import dataclasses
import shutil

import numpy as np
import pytest
import scipy.spatial.transform
import torch

from smal_model import SMAL, BodyJoints, joints, lbs, load_body
from smal_model.smal import align_template
from util.errors import InputError


@pytest.fixture(scope="module")
def published(shared):
    """SMAL's own mesh, with which the recorded values were made."""
    return SMAL(shared / "samples" / "smal")


@pytest.fixture(scope="module")
def smal(synthetic_body):
    layer = SMAL(synthetic_body / "smal")
    layer.posedirs.normal_(
        0, 1e-3, generator=torch.Generator().manual_seed(0)
    )  # the synthetic body has none
    layer.has_posedirs = True
    return layer


@pytest.mark.parametrize(
    "table, key, change, sentence",
    [
        (
            "my_smpl_00781_4_all",
            "f",
            lambda a: a + 1,
            "names vertices 1 to 3916; the body has 3916",
        ),
        (
            "my_smpl_00781_4_all",
            "shapedirs",
            lambda a: a[..., :19],
            "cluster_means of .* has shape .*27.*, expected .*19",
        ),
        (
            "my_smpl_00781_4_all",
            "kintree_table",
            lambda a: a[0],
            r"kintree_table in .* expected 2 dim",
        ),
        ("my_smpl_00781_4_all", "weights", lambda a: a[:-1], "weights of .* has shape"),
        ("my_smpl_data_00781_4_all", "cluster_cov", lambda a: a[:1], "cluster_cov of .* has shape"),
    ],
)
def test_files_that_do_not_belong_together(synthetic_body, tmp_path, table, key, change, sentence):
    shutil.copytree(synthetic_body / "smal", tmp_path / "smal")
    with np.load(tmp_path / "smal" / f"{table}.npz") as arrays:
        content = dict(arrays)
    np.savez(tmp_path / "smal" / f"{table}.npz", **content | {key: change(content[key])})
    with pytest.raises(ValueError, match=sentence):
        SMAL(tmp_path / "smal")


@pytest.mark.parametrize("variant", ["plain", "logscale", "deformed"])
def test_layer_matches_recorded_values_and_gradients(published, golden, variant):
    g = golden("smal_layer")
    t = {k: torch.tensor(v, dtype=torch.float32) for k, v in g.items()}
    betas, pose = t["betas"].requires_grad_(), t["pose"].requires_grad_()
    del_v = t["del_v"] if variant == "deformed" else None
    logscale = t["betas_logscale"] if variant == "logscale" else None
    out = published(betas, pose, t["trans"], del_v, logscale)
    for name in ("verts", "joints"):
        recorded = g[f"{variant}_{name}"]
        tolerance = 1e-6 * max(1, np.abs(recorded).max())
        np.testing.assert_allclose(
            getattr(out, name).detach().numpy(), recorded, rtol=0, atol=tolerance
        )
    numbers = torch.arange(out.joints.shape[1])[None, :, None]
    (out.verts.pow(2).sum() + (numbers * out.joints).sum()).backward()
    for name, grad in (("betas", betas.grad), ("pose", pose.grad)):
        recorded = g[f"{variant}_grad_{name}"]
        np.testing.assert_allclose(
            grad.numpy(), recorded, rtol=0, atol=1e-3 * np.abs(recorded).max()
        )


def test_family_mean_matches_recorded(published, golden):
    np.testing.assert_allclose(
        published.family_mean, golden("smal_layer")["shape_mean_41"], atol=1e-6
    )


def test_template_is_mirror_symmetric(published, shared):
    from smal_model.tables import load_table

    symmetry = load_table(shared / "samples" / "smal", "symIdx")["symIdx"]
    v = published.template.numpy()
    off_plane = np.setdiff1d(np.arange(len(v)), joints.MIRROR_PLANE_VERTICES)
    assert (v[list(joints.MIRROR_PLANE_VERTICES), 1] == 0).all()
    np.testing.assert_allclose(v[off_plane], v[symmetry[off_plane]] * [1, -1, 1], atol=1e-7)


def test_gradients_agree_with_finite_differences(smal):
    """Directional derivatives in double precision, along random directions of every input."""
    import copy

    layer = copy.deepcopy(smal).double()
    rng = torch.Generator().manual_seed(0)

    def draw(*shape, scale):
        return (scale * torch.randn(*shape, generator=rng, dtype=torch.float64)).requires_grad_()

    inputs = [
        draw(1, 20, scale=1.0),
        draw(1, 105, scale=0.3),
        draw(1, 3, scale=1.0),
        draw(1, smal.num_verts, 3, scale=0.01),
    ]
    inputs.append(draw(1, 6, scale=0.2))
    target = torch.randn(1, smal.num_verts, 3, generator=rng, dtype=torch.float64)

    def loss(*x):
        out = layer(*x)
        return (out.verts * target).sum() + out.joints.pow(2).sum()

    grads = torch.autograd.grad(loss(*inputs), inputs)
    for i, (x, grad) in enumerate(zip(inputs, grads, strict=True)):
        direction = torch.randn(x.shape, generator=rng, dtype=torch.float64)
        step = 1e-5
        with torch.no_grad():
            ends = [
                loss(*[y + sign * step * direction if j == i else y for j, y in enumerate(inputs)])
                for sign in (1, -1)
            ]
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert torch.isclose(numeric, (grad * direction).sum(), rtol=1e-6), i


@pytest.mark.parametrize("bends", [True, False])
def test_joints_alone_are_those_of_the_vertices(smal, bends):
    import copy

    layer = copy.deepcopy(smal).double()
    layer.has_posedirs = bends
    alone = BodyJoints(layer)
    rng = torch.Generator().manual_seed(1)
    sizes = {20: 1.0, 105: 0.5, 3: 1.0, 6: 0.3}
    inputs = [
        (scale * torch.randn(4, n, generator=rng, dtype=torch.float64)).requires_grad_()
        for n, scale in sizes.items()
    ]
    target = torch.randn(4, 41, 3, generator=rng, dtype=torch.float64)
    betas, pose, trans, logscale = inputs
    expected = layer(betas, pose, trans, betas_logscale=logscale).joints
    found = alone(betas, pose, trans, logscale)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)
    grads = [torch.autograd.grad((j * target).sum(), inputs) for j in (expected, found)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, atol=1e-8, rtol=1e-8)
    without = layer(betas, pose, trans).joints
    torch.testing.assert_close(alone(betas, pose, trans), without, atol=1e-10, rtol=0)


def test_rodrigues_is_the_rotation():
    vectors = np.random.default_rng(0).normal(size=(50, 3))
    expected = scipy.spatial.transform.Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(lbs.rodrigues(torch.tensor(vectors)).numpy(), expected, atol=1e-7)


def test_kinematic_chain_equals_a_joint_by_joint_loop():
    rng = np.random.default_rng(1)
    parents = [-1, 0, 0, 1, 3, 2, 5]
    above = lbs.ancestors(parents)
    assert above.tolist() == [[7, 0, 0, 1, 3, 2, 5], [7, 7, 7, 0, 1, 0, 2]]
    rotations = lbs.rodrigues(torch.tensor(rng.normal(size=(2, 7, 3))))
    rest, scales = (
        torch.tensor(rng.normal(size=(2, 7, 3))),
        torch.tensor(rng.uniform(0.5, 2, (2, 7, 3))),
    )
    found = lbs.kinematic_chain(rotations, rest, above, scales)
    for b in range(2):
        world = []
        for j, p in enumerate(parents):
            local = torch.eye(4, dtype=torch.float64)
            above = torch.eye(3).double() if p < 0 else torch.diag(scales[b, p])
            local[:3, :3] = torch.linalg.inv(above) @ rotations[b, j] @ torch.diag(scales[b, j])
            local[:3, 3] = rest[b, j] - (rest[b, p] if p >= 0 else 0)
            world.append(local if p < 0 else world[p] @ local)
            expected = world[j].clone()
            expected[:3, 3] -= world[j][:3, :3] @ rest[b, j]
            torch.testing.assert_close(found[b, j], expected[:3])


def test_zero_pose_gives_the_shaped_template_and_trans_moves_it(smal):
    zero = torch.zeros(1, 105)
    out = smal(torch.zeros(1, 20), zero, torch.tensor([[1.0, 2, 3]]))
    torch.testing.assert_close(
        out.verts[0], smal.template + torch.tensor([1.0, 2, 3]), atol=1e-5, rtol=0
    )


def test_global_rotation_is_rigid(smal):
    rng = torch.Generator().manual_seed(0)
    betas, pose = torch.randn(1, 20, generator=rng), 0.3 * torch.randn(1, 105, generator=rng)
    turned = pose.clone()
    turned[:, :3] = torch.tensor([0.3, -1.0, 2.0])
    a, b = smal(betas, pose).verts[0], smal(betas, turned).verts[0]
    i = torch.arange(0, len(a), 97)
    a, b = (torch.nn.functional.pdist(x[i].double()) for x in (a, b))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_alignment_by_hand():
    template = np.array(
        [[1.0, 1, 0], [1.0, 3, 0], [2.0, 2, 0]]
    )  # 0 and 1 are mirror images, 2 is on the plane
    aligned = align_template(template, np.array([2]), np.array([1, 0, 2]))
    mean = template.mean()
    np.testing.assert_allclose(
        aligned, [[1 - mean, -1, -mean], [1 - mean, 1, -mean], [2 - mean, 0, -mean]]
    )


def test_wrong_inputs_are_named(smal):
    with pytest.raises(ValueError, match=r"pose has shape \(1, 104\), expected \(1, 105\)"):
        smal(torch.zeros(1, 20), torch.zeros(1, 104))
    with pytest.raises(ValueError, match="del_v"):
        smal(torch.zeros(1, 20), torch.zeros(1, 105), del_v=torch.zeros(1, 5, 3))


def test_a_body_can_be_injected(synthetic_body):
    body = load_body(synthetic_body / "smal")
    layer, injected = SMAL(synthetic_body / "smal"), SMAL(body)
    for (name, a), (_, b) in zip(layer.named_buffers(), injected.named_buffers(), strict=True):
        assert torch.equal(a, b), name
    larger = SMAL(dataclasses.replace(body, template=2 * body.template, faces=body.faces[:100]))
    torch.testing.assert_close(larger.template, 2 * layer.template)
    assert larger.faces.shape == (100, 3)
    with pytest.raises(InputError, match=r"f of my_smpl_00781_4_all in .* has shape \(100, 2\)"):
        dataclasses.replace(body, faces=body.faces[:100, :2])


def test_unknown_family_is_refused(synthetic_body):
    with pytest.raises(ValueError, match="families 0 to"):
        SMAL(synthetic_body / "smal", shape_family_id=99)
