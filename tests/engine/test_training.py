"""From options to learning: which weight acts on which term, what each switch does, run folders."""

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

import main_meshgraph
import render
from engine import build, losses
from engine import loop as engine
from engine.loaders import PLANES, Loader, make_loader, set_epoch, to_device
from engine.options import meshgraph_parser
from model import CoarseModel, CoarseToFine, Estimate
from smal_model import SMAL, MeshHierarchy, priors
from tests.commands import SMALL
from tests.engine.few import epochs, read_content, stage1
from util.camera import CROP
from util.scores import MeshScores, Scores

# ---- losses


WEIGHTS = {
    "kpts": 2.0,
    "betas_prior": 3.0,
    "pose_prior": 5.0,
    "kpts_refine": 7.0,
    "dice": 11.0,
    "dice_refine": 13.0,
    "pose_limit_prior": 17.0,
    "arap": 19.0,
}


def test_each_weight_multiplies_its_own_term(synthetic_body):
    """Eight weights, no two alike, and unequal alpha and beta, against the bare losses."""
    smal = SMAL(synthetic_body / "smal")
    hierarchy = MeshHierarchy.load(synthetic_body / "mesh_down_sampling_4.npz")
    model = CoarseToFine(smal, hierarchy, backbone="resnet18", img_res=64)
    prior = (
        priors.shape_prior("smal", smal, synthetic_body),
        priors.pose_prior("smal", synthetic_body),
    )
    with torch.no_grad():
        torch.manual_seed(1)
        out = model.eval()(torch.randn(2, 3, 64, 64))
        out.pose = 2 * torch.randn(2, 105)  # beyond the limits
        moved = out.coarse.verts + 0.1 * torch.randn(out.coarse.verts.shape)
        out.refined = Estimate(moved, out.coarse.joints + 0.1, out.coarse.scale)
        labelled = torch.cat([224 * torch.rand(2, 20, 2), torch.ones(2, 20, 1)], -1)
        mask = torch.zeros(2, CROP, CROP)
        mask[:, 40:140, 60:200] = 1
        known = torch.tensor([True, True])
        weight = torch.ones_like(mask)
        batch = {"keypoints": labelled, "mask": mask, "mask_weight": weight, "has_keypoints": known}
        weights = losses.LossWeights(**WEIGHTS, alpha=0.9, beta=0.2)
        terms = losses.Criterion(weights, smal, *prior)(out, batch)

        def dice(estimate):
            silhouette = render.soft_silhouette(estimate.plane, smal.faces, CROP)
            return losses.tversky_loss(silhouette, mask, 0.9, 0.2)

        laplacian = losses.mesh_laplacian(smal.faces.numpy(), smal.num_verts)
        bare = {
            "kpts": losses.keypoint_loss(out.coarse.keypoints_px, labelled),
            "kpts_refine": losses.keypoint_loss(out.refined.keypoints_px, labelled),
            "betas_prior": prior[0](out.betas),
            "pose_prior": prior[1](out.pose),
            "pose_limit_prior": losses.joint_limit_loss(out.pose, *priors.joint_limits()),
            "dice": dice(out.coarse),
            "dice_refine": dice(out.refined),
            "arap": losses.laplacian_loss(out.refined.verts, out.coarse.verts, laplacian),
        }
    assert set(terms) == set(WEIGHTS) == set(bare)
    assert len({round(v.item(), 6) for v in bare.values()}) == len(bare)
    assert all(v > 0 for v in bare.values())
    for name, value in bare.items():
        assert terms[name].item() == pytest.approx(WEIGHTS[name] * value.item(), rel=1e-4), name


def test_images_without_a_label_count_in_no_term(synthetic_body):
    """A third image, without mask and keypoints, changes neither silhouette nor keypoint terms."""
    smal = SMAL(synthetic_body / "smal")
    prior = (
        priors.shape_prior("smal", smal, synthetic_body),
        priors.pose_prior("smal", synthetic_body),
    )
    weights = losses.LossWeights(kpts=1, betas_prior=0, pose_prior=0, dice=1)
    criterion = losses.Criterion(weights, smal, *prior)
    torch.manual_seed(2)
    labels = torch.cat([224 * torch.rand(3, 20, 2), torch.ones(3, 20, 1)], -1)
    mask = (torch.rand(3, CROP, CROP) > 0.5).float()
    known = torch.tensor([True, True, False])
    model = CoarseModel(smal, "resnet18", img_res=64).eval()
    with torch.no_grad():
        out = model(torch.randn(3, 3, 64, 64))
        weight = known[:, None, None].expand(3, CROP, CROP).float()
        batch = {"keypoints": labels, "mask": mask, "mask_weight": weight, "has_keypoints": known}
        three = criterion(out, batch)
        out.coarse = Estimate(
            *(x[:2] for x in (out.coarse.verts, out.coarse.joints, out.coarse.scale))
        )
        two = criterion(out, {k: v[:2] for k, v in batch.items()})
    for name in ("kpts", "dice"):
        assert three[name].item() == pytest.approx(two[name].item(), rel=1e-5)


def test_options_reach_their_weights(few, start, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        main_meshgraph, "fit", lambda state, criterion, *_, **__: seen.append(criterion)
    )
    options = [f"--w_{name}={weight}" for name, weight in WEIGHTS.items()]
    options += ["--alpha=0.9", "--beta=0.2", "--pretrained", str(start / "checkpoint.pth.tar")]
    folders = ["--data_dir", str(few), "--output_dir", str(tmp_path), "--device", "cpu"]
    main_meshgraph.main([*folders, "--num_works", "0", *options])
    assert seen[0].weights == losses.LossWeights(**WEIGHTS, alpha=0.9, beta=0.2)


def test_a_term_without_weight_is_left_out():
    weights = losses.LossWeights(pose_prior=0, kpts_refine=1)
    assert set(weights.terms) == {"kpts", "betas_prior", "kpts_refine"}


# ---- switches


@pytest.mark.parametrize("name", ["model_best.pth.tar", "checkpoint.pth.tar"])
def test_learning_rate_0_teaches_nothing(few, start, tmp_path, name):
    """From the best epoch's weights, and resumed with its optimiser: batch norm alone moves."""
    stage1(
        few, tmp_path, "--nEpochs", "2", "--lr", "0", "--resume", str(start / name), small=SMALL[4:]
    )
    before, after = (
        read_content(f / "checkpoint.pth.tar")["state_dict"] for f in (start, tmp_path)
    )
    changed = {k.rpartition(".")[2] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


def test_freeze_bn_keeps_the_statistics_and_the_weights_learn(few, start, tmp_path):
    stage1(
        few,
        tmp_path,
        "--nEpochs",
        "2",
        "--freeze_bn",
        "--resume",
        str(start / "checkpoint.pth.tar"),
        small=SMALL[4:],
    )
    before, after = (
        read_content(f / "checkpoint.pth.tar")["state_dict"] for f in (start, tmp_path)
    )
    changed = {k.rpartition(".")[2] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"weight", "bias"}


def test_start_epoch_is_the_first_one(few, tmp_path):
    stage1(few, tmp_path, "--nEpochs", "3", "--start_epoch", "2")
    assert [line.split()[1] for line in epochs(tmp_path)] == ["3/3"]


def _train_images(few, *options):
    args = meshgraph_parser().parse_args(["--data_dir", str(few), *options])
    train, val, *_ = build.open_sets(args, img_res=32)
    assert len(train) == 6 and len(val) == 1
    images = []
    for epoch in range(4):
        train.set_epoch(epoch)
        images.append(torch.stack([train[i]["image"] for i in range(len(train))]))
    return torch.stack(images)  # (epoch, image, 3, 32, 32)


def test_workers_that_were_started_first_load_the_same(few):
    args = meshgraph_parser().parse_args(["--data_dir", str(few)])
    images = build.open_sets(args, img_res=32).train
    first, later = (make_loader(images, 2, 2, torch.device("cpu")) for _ in range(2))
    first.start_workers()
    workers = first.workers
    assert len(workers) == 2 and not later.workers and len(first) == len(later) == 3
    for _ in range(2):
        for a, b in zip(first, later, strict=True):
            assert a["name"] == b["name"] and torch.equal(a["image"], b["image"])
    assert first.workers == workers  # none was started anew


def test_an_epoch_that_is_begun_early_is_that_epoch(few):
    args = meshgraph_parser().parse_args(["--data_dir", str(few)])
    images = build.open_sets(args, img_res=32).train

    def read(loader, epoch, first=0):
        set_epoch(loader, epoch, first)
        batches = list(loader)
        kept = [torch.cat([batch[k] for batch in batches]) for k in ("index", "image")]
        return kept if batches else None

    with_workers, alone = (make_loader(images, 2, n, torch.device("cpu"), 0) for n in (2, 0))
    for epoch in range(3):
        for ours, plain in zip(read(with_workers, epoch), read(alone, epoch), strict=True):
            assert torch.equal(ours, plain)
        set_epoch(with_workers, epoch + 1)
        with_workers.begin()
    skipped = read(with_workers, 3, first=1)  # begun whole
    for ours, plain in zip(skipped, read(alone, 3, first=1), strict=True):
        assert torch.equal(ours, plain) and len(ours) == 4


def test_the_next_epoch_is_begun_before_validation(few, tmp_path, monkeypatch):
    seen: list = []
    real = Loader.begin

    def begin(loader):
        seen.append(loader.batch_sampler.epoch)
        real(loader)

    monkeypatch.setattr(Loader, "begin", begin)
    monkeypatch.setattr(engine, "_validate", lambda *_: seen.append("validated"))
    monkeypatch.setattr(engine, "VALIDATION_STEPS", 1)
    stage1(few, tmp_path, "--nEpochs", "3")
    assert seen == [1, "validated", 2, "validated", "validated"]


@pytest.mark.parametrize("seed", [None, 0])
def test_batches_are_samples_with_fewer_bytes_on_their_way(few, seed):
    args = meshgraph_parser().parse_args(["--data_dir", str(few)])
    sets = build.open_sets(args, img_res=32)
    images = sets.val if seed is None else sets.train
    batch = next(iter(make_loader(images, 3, 0, torch.device("cpu"), seed)))
    assert ("inside" in batch) == ("border_mask" in batch) == (seed is None)  # scores alone do
    assert {batch[k].dtype for k in PLANES if k in batch} == {torch.bool}
    there = {i: n for n, i in enumerate(images.indices)}
    expected = default_collate([images[there[int(i)]] for i in batch["index"]])
    moved = to_device(batch, torch.device("cpu"))
    assert expected.keys() == moved.keys()
    for name, value in moved.items():
        if isinstance(value, list):
            assert value == expected[name], name
        else:
            assert value.dtype == expected[name].dtype and torch.equal(value, expected[name]), name


def test_augmentation_is_on_unless_refused_and_mirrors_only_where_asked(few):
    plain, augmented = _train_images(few, "--no_augment"), _train_images(few)
    assert all(torch.equal(plain[0], epoch) for epoch in plain)
    assert not any(
        torch.equal(a, b) for a, b in zip(augmented.flatten(0, 1), plain.flatten(0, 1), strict=True)
    )
    flipped = _train_images(few, "--no_augment", "--flip")
    same = (flipped - plain).abs().flatten(2).mean(-1) < 1e-6
    assert same.any() and not same.all()
    near = (flipped.flip(-1) - plain).abs().flatten(2).mean(-1)[~same]
    assert (
        near < (flipped - plain).abs().flatten(2).mean(-1)[~same]
    ).all()  # mirrored about a pixel's middle, not exactly


def test_each_epoch_has_another_order_and_other_changes(few, tmp_path, monkeypatch):
    orders, images = [], []

    def look(state, criterion, loader, description, **_):
        batches = list(loader)
        index, image = (torch.cat([b[k] for b in batches]) for k in ("index", "image"))
        orders.append(index.tolist())
        images.append(image[index.argsort()])
        return {"loss": 0.0}

    monkeypatch.setattr(engine, "train_epoch", look)
    stage1(few, tmp_path, "--nEpochs", "3")
    assert len({tuple(order) for order in orders}) == 3 and all(
        sorted(order) == sorted(orders[0]) for order in orders
    )
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert not any(torch.equal(x, y) for x, y in zip(images[a], images[b], strict=True))


def test_best_epoch_is_chosen_by_the_refined_mesh():
    def scores(pck, iou):
        return MeshScores(np.array(pck), {}, np.array(iou), np.array(iou), np.zeros((2, 20)))

    coarse = scores([1.0, 1.0], [1.0, 1.0])
    assert Scores(["a", "b"], {"coarse": coarse}).selection_score() == 1
    refined = scores([0.2, float("nan")], [0.5, 0.1])
    both = Scores(["a", "b"], {"coarse": coarse, "refined": refined})
    assert both.selection_score() == pytest.approx((0.2 + 0.3) / 2)


def test_short_epochs_share_validation_by_count(few, tmp_path, monkeypatch):
    """Two steps an epoch: every third epoch at 5 steps, every one at 1, and always the last."""
    for steps, validated in ((5, ["3/4", "4/4"]), (1, ["1/4", "2/4", "3/4", "4/4"])):
        monkeypatch.setattr(engine, "VALIDATION_STEPS", steps)
        stage1(few, tmp_path / str(steps), "--nEpochs", "4")
        assert [
            line.split()[1] for line in epochs(tmp_path / str(steps)) if "val pck" in line
        ] == validated
