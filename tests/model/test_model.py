"""The networks against recorded outputs, the published weights' layout, and slow twins."""

import json
from zlib import crc32

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datasets import strong
from datasets.strong import NUM_DRAWS, strong_change
from model import CoarseModel, CoarseToFine, ImageFeatures
from model.coarse import SmallMapConv2d
from model.graph_layers import GraphConvolution, GraphResBlock, VertexGroupNorm
from smal_model import SMAL, MeshHierarchy, joints, priors
from smal_model.joints import keypoints_of
from util.camera import project

VARIANTS = {
    "local": ("local_feat", {"local_feat": True}),
    "global": (
        "betas_scale_no_local_feat",
        {"local_feat": False, "betas_scale": True, "shape_init": "unity"},
    ),
}


def recorded_weights(model) -> dict:
    """The weights of the recorded outputs: drawn per key, by the CRC of its name."""
    weights = {}
    for key, value in model.state_dict().items():
        rng, last, shape = (
            np.random.RandomState(crc32(key.encode())),
            key.split(".")[-1],
            tuple(value.shape),
        )
        if last == "num_batches_tracked":
            array = np.zeros(shape)
        elif last == "running_var":
            array = 0.5 + rng.rand(*shape)
        elif last == "running_mean":
            array = 0.1 * rng.randn(*shape)
        elif last in ("bias", "b"):
            array = 0.05 * rng.randn(*shape)
        elif len(shape) == 1:
            array = 0.75 + 0.5 * rng.rand(*shape)
        elif "pred_layer" in key:
            array = 1e-3 * rng.randn(*shape)
        else:
            transposed = key.startswith("graphnet") and key.endswith("conv.weight")
            array = rng.randn(*shape) / np.sqrt(shape[0] if transposed else np.prod(shape[1:]))
        weights[key] = torch.tensor(array).to(value.dtype)
    return weights


def _body(folder):
    return (
        SMAL(folder / "smal"),
        MeshHierarchy.load(folder / "mesh_down_sampling_4.npz"),
        priors.unity_betas(folder)[0],
    )


@pytest.fixture(scope="module")
def body(synthetic_body):
    return _body(synthetic_body)


@pytest.fixture(scope="module", params=list(VARIANTS))
def variant(request, shared):
    smal, hierarchy, unity_mean = _body(shared / "samples")
    keys, options = VARIANTS[request.param]
    model = CoarseToFine(smal, hierarchy, unity_mean=unity_mean, **options)
    return request.param, keys, model, recorded_weights(model)


def test_state_dict_has_the_published_keys_and_shapes(variant, shared):
    _, keys, model, _ = variant
    published = json.loads((shared / "golden" / "state_dict_keys.json").read_text())[keys]
    own = {f"module.{k}": list(v.shape) for k, v in model.state_dict().items()}
    assert own == published


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_match_recorded(variant, golden, mode):
    name, _, model, weights = variant
    g = golden(f"network_{name}")
    model.load_state_dict(weights)
    model.train(mode == "train")
    images = torch.tensor(np.random.RandomState(2000).randn(2, 3, 224, 224), dtype=torch.float32)
    with torch.no_grad():
        out = model(images)
    compared = [k for k in g if k.startswith(mode)]
    assert len(compared) >= 7
    for key in compared:
        name = key.removeprefix(f"{mode}_")
        mesh = out.refined if name.endswith("_refined") else out.coarse
        owner = mesh if name.split("_")[0] in ("verts", "joints", "scale") else out
        found = getattr(owner, name.removesuffix("_refined")).numpy()
        np.testing.assert_allclose(
            found, g[key], rtol=0, atol=2e-4 * np.abs(g[key]).max(), err_msg=key
        )


def _slow_lift(refiner, verts, positions, features):
    """`lin1` as in the paper: up-sample maps, sample all channels at all vertices, multiply."""
    size = features.maps[0].shape[-2:]
    maps = torch.cat(
        [F.interpolate(m, size, mode="bilinear", align_corners=False) for m in features.maps], 1
    )
    local = (
        F.grid_sample(maps, positions[:, :, None], align_corners=False).squeeze(-1).transpose(1, 2)
    )
    pooled = features.pooled[:, None].expand(-1, verts.shape[1], -1)
    return refiner.lin1(torch.cat([verts, pooled, local], -1))


@pytest.mark.parametrize("side", [2, 3, 7])
def test_convolution_as_a_product_equals_the_convolution(side):
    torch.manual_seed(side)
    layer = SmallMapConv2d(6, 10, 4, stride=2, padding=1).double()
    x = torch.randn(3, 6, side, side, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, layer.weight, layer.bias, 2, 1)
    weight = torch.randn_like(expected)
    found = layer(x)
    wanted = (x, layer.weight, layer.bias)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(found, expected)


def test_fast_feature_lift_equals_sampling_every_channel(body):
    smal, hierarchy, _ = body
    model = CoarseToFine(smal, hierarchy, backbone="resnet18")
    refiner = model.graphnet.double()
    torch.nn.init.normal_(refiner.lin1.W, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    maps = tuple(
        torch.randn(2, c, s, s, generator=g, dtype=torch.float64)
        for c, s in zip(refiner.feature_channels, (56, 28, 14, 7), strict=True)
    )
    features = ImageFeatures(maps, maps[-1].mean((2, 3)))
    verts = torch.randn(2, 50, 3, generator=g, dtype=torch.float64, requires_grad=True)
    positions = (
        2.4 * torch.rand(2, 50, 2, generator=g, dtype=torch.float64) - 1.2
    )  # some outside the image
    weights = torch.randn(2, 50, 512, generator=g, dtype=torch.float64)
    parameters = [verts, refiner.lin1.W, refiner.lin1.b]
    fast, slow = (
        f(verts, positions, features) for f in (refiner._lift, lambda *a: _slow_lift(refiner, *a))
    )
    torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)
    grads = [torch.autograd.grad((x * weights).sum(), parameters) for x in (fast, slow)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("maps", [False, True])
def test_bfloat16_gives_nearly_the_same_where_gradients_are_taken(body, maps):
    smal, hierarchy, _ = body
    torch.manual_seed(0)
    network = {"backbone": "resnet18", "img_res": 64, "num_channels": 32}
    network |= {"keypoint_maps": maps, "outline": maps}
    model = CoarseToFine(smal, hierarchy, **network).eval()  # batch norm enlarges rounding
    image = torch.randn(2, 3, 64, 64)

    def run():
        model.zero_grad(set_to_none=True)
        out = model(image)
        (1e3 * out.refined.verts.square().sum() + out.coarse.verts.sum()).backward()
        grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return out, grads

    exact, exact_grads = run()
    model.use_bf16()
    out, grads = run()
    assert {m.dtype for m in out.features.maps} == {torch.bfloat16}
    assert {v.dtype for v in (out.refined.verts, out.del_v, out.pose)} == {torch.float32}
    assert grads.keys() == exact_grads.keys()
    size = exact.del_v.abs().mean()
    assert (out.del_v - exact.del_v).abs().mean() < 0.1 * size
    with torch.no_grad():
        assert torch.equal(model(image).del_v, exact.del_v)


def test_refiner_does_not_train_the_image_network(body):
    """Gradients of del_v reach the coarse network through the vertex positions alone."""
    smal, hierarchy, _ = body
    model = CoarseToFine(smal, hierarchy, backbone="resnet18").train()
    coarse = model.meshnet(torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    verts = coarse.coarse.verts.detach().requires_grad_()
    model.graphnet(verts, coarse.coarse.scale, coarse.features).pow(2).sum().backward()
    assert verts.grad.abs().max() > 0
    assert all(p.grad is None for p in model.meshnet.parameters())


def test_group_norm_on_vertices_equals_the_channels_first_one():
    x = torch.randn(3, 11, 32, requires_grad=True)
    norm = VertexGroupNorm(32)
    torch.nn.init.normal_(norm.weight)
    reference = F.group_norm(x.transpose(1, 2), 4, norm.weight, norm.bias).transpose(1, 2)
    weights = torch.randn_like(x)
    torch.testing.assert_close(norm(x), reference)
    (a,), (b,) = (torch.autograd.grad((y * weights).sum(), x) for y in (norm(x), reference))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_residual_block_follows_its_formula():
    block = GraphResBlock(16, 32)
    x, a = torch.randn(2, 5, 16), torch.rand(5, 5)
    y = F.relu(
        F.group_norm(x.transpose(1, 2), 2, block.pre_norm.weight, block.pre_norm.bias)
    ).transpose(1, 2)
    y = y @ block.lin1.W.T + block.lin1.b
    y = F.relu(F.group_norm(y.transpose(1, 2), 2)).transpose(1, 2)
    y = a @ (y @ block.conv.weight) + block.conv.bias
    y = F.relu(F.group_norm(y.transpose(1, 2), 2)).transpose(1, 2)
    y = y @ block.lin2.W.T + block.lin2.b + x @ block.skip_conv.W.T + block.skip_conv.b
    torch.testing.assert_close(block(x, lambda v: a @ v), y, rtol=1e-4, atol=1e-4)


def test_initial_values(body):
    smal, _, unity_mean = body
    torch.manual_seed(0)
    model = CoarseModel(
        smal, backbone="resnet18", betas_scale=True, shape_init="unity", unity_mean=unity_mean
    )
    heads = model.code_predictor
    np.testing.assert_allclose(
        heads["betas_predictor"].pred_layer.bias.detach(), unity_mean[:20], atol=6e-4
    )
    np.testing.assert_allclose(
        heads["betas_scale_predictor"].pred_layer.bias.detach(), unity_mean[20:], atol=6e-4
    )
    assert heads["pose_predictor"].pred_layer.weight.std().item() == pytest.approx(1e-4, rel=0.1)
    assert model.encoder.enc_conv1[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    for name, mean in (("pred_layer_xy", 0.0), ("pred_layer_z", 0.0)):
        layer = getattr(heads["trans_predictor"], name)
        assert layer.weight.std().item() == pytest.approx(1e-4, rel=0.25)
        assert (layer.bias - mean).abs().max() < 6e-4
    conv = GraphConvolution(30, 20)
    bound = 6 / 50**0.5  # of the published code: not Glorot's square root of 6 / 50
    assert 0.95 * bound < conv.weight.abs().max() <= bound
    assert 0.7 * bound < conv.bias.abs().max() <= bound
    plain = CoarseModel(smal, backbone="resnet18", betas_scale=True)
    np.testing.assert_allclose(
        plain.code_predictor["betas_predictor"].pred_layer.bias.detach(),
        smal.family_mean[:20],
        atol=6e-4,
    )
    np.testing.assert_allclose(
        plain.code_predictor["betas_scale_predictor"].pred_layer.bias.detach(), 0, atol=6e-4
    )


def test_untrained_animal_faces_the_camera_upright(body):
    """With the initial rotation the head is near the camera and the legs point down."""
    smal, _, _ = body
    model = CoarseModel(smal, backbone="resnet18").eval()
    with torch.no_grad():
        out = model(torch.zeros(1, 3, 224, 224))
    head, tail, paws, back = (out.coarse.joints[0, i] for i in (16, 25, [10, 14, 20, 24], 3))
    assert head[2] < tail[2] and (paws[:, 1] < back[1]).all()
    nose = project(out.coarse.joints[:, 35:36], out.coarse.scale)[0, 0]
    assert nose[:2].abs().max() < 1


@pytest.mark.parametrize("img_res", [33, 64, 96, 112, 160, 224])
def test_other_image_sizes(body, img_res):
    smal, hierarchy, _ = body
    model = CoarseToFine(
        smal, hierarchy, backbone="resnet18", img_res=img_res, num_channels=32
    ).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 3, img_res, img_res))
    verts = out.refined.verts
    assert verts.shape == (1, smal.num_verts, 3) and torch.isfinite(verts).all()
    sides = [m.shape[-1] for m in out.features.maps]
    assert sides == [-(-img_res // stride) for stride in (4, 8, 16, 32)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_pose_that_is_no_number_gives_meshes_that_are_none(body, value):
    """So that the step is skipped and its images are named."""
    smal, hierarchy, _ = body
    model = CoarseToFine(smal, hierarchy, backbone="resnet18", img_res=64, num_channels=32).eval()
    with torch.no_grad():
        model.meshnet.code_predictor["pose_predictor"].pred_layer.bias[7] = value
        out = model(torch.zeros(1, 3, 64, 64))
    assert out.coarse.verts.isnan().any() and out.refined.verts.isnan().any()


@pytest.mark.parametrize("betas_scale", [False, True])
def test_a_process_may_have_no_image(body, betas_scale):
    smal, hierarchy, _ = body
    model = CoarseToFine(
        smal, hierarchy, "resnet18", img_res=64, num_channels=32, betas_scale=betas_scale,
        keypoint_maps=True, outline=True,
    ).eval()  # fmt: skip
    out = model(strong_change(torch.zeros(0, 3, 64, 64), torch.zeros(0, NUM_DRAWS)))
    assert out.refined.verts.shape == (0, smal.num_verts, 3)
    out.refined.verts.sum().backward()


def test_freezing_holds_weights_and_batch_norm_statistics(body):
    smal, hierarchy, _ = body
    model = CoarseToFine(smal, hierarchy, backbone="resnet18", num_channels=32, img_res=64)
    model.freeze_coarse()
    before = {k: v.clone() for k, v in model.meshnet.state_dict().items()}
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    graph = model.graphnet.lin1.W.detach().clone()
    model(torch.randn(2, 3, 64, 64)).refined.verts.pow(2).sum().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.meshnet.state_dict().items())
    assert not torch.equal(graph, model.graphnet.lin1.W)


def test_faults_are_named(body):
    smal, hierarchy, _ = body
    with pytest.raises(ValueError, match="unknown backbone"):
        CoarseModel(smal, backbone="vgg")
    with pytest.raises(ValueError, match="33 is the least"):
        CoarseModel(smal, backbone="resnet18", img_res=32)
    with pytest.raises(ValueError, match="num_layers"):
        CoarseToFine(smal, hierarchy, backbone="resnet18", num_layers=9)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 224, 224\)"):
        CoarseModel(smal, backbone="resnet18")(torch.zeros(1, 3, 112, 112))


def test_what_is_asked_for_first_in_inference_mode_serves_training_too():
    """Constants that are copied to a device once."""
    for cached in (joints._keypoint_index, strong._normalization, strong._noise):
        cached.cache_clear()
    images, draws = torch.randn(1, 3, 32, 32), torch.rand(1, NUM_DRAWS)
    with torch.inference_mode():
        keypoints_of(torch.zeros(1, 41, 3))
        strong_change(images, draws)
    bodies = torch.zeros(1, 41, 3, requires_grad=True)
    keypoints_of(bodies).sum().backward()
    assert bodies.grad.sum() == 60
    images.requires_grad_()
    strong_change(images, draws).sum().backward()
