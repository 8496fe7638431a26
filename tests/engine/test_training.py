"""From options to learning: which weight acts on which term, what each switch does, run folders."""

import json
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
import main_meshgraph
import render
from engine import build, losses
from engine import loop as engine
from engine.options import meshgraph_parser
from model import CoarseModel, CoarseToFine, Estimate
from smal_model import SMAL, MeshHierarchy, priors
from synthetic.writer import make_data
from tests.commands import SMALL, fails
from util.camera import CROP
from util.errors import Finished
from util.scores import MeshScores, Scores


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    make_data(folder, num_images=20, seed=7, num_workers=2)
    for split, indices in (("train", range(6)), ("val", [6]), ("test", [7])):
        np.save(
            folder / "StanfordExtra_v12" / f"{split}_stanford_StanfordExtra_v12.npy",
            np.array(indices),
        )
    return folder


@pytest.fixture(scope="module")
def start(data, tmp_path_factory):
    """A finished stage 1 of one epoch; batches of 3."""
    folder = tmp_path_factory.mktemp("start")
    _stage1(data, folder, "--nEpochs", "1")
    return folder


def _stage1(data, folder, *more, small=SMALL):
    main.main(
        ["--data_dir", str(data), *small, "--batch_size", "3", "--output_dir", str(folder), *more]
    )


def _content(path):
    return torch.load(path, weights_only=True)


def _epochs(folder):
    return [
        line for line in (folder / "log.txt").read_text().splitlines() if line.startswith("epoch ")
    ]


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


def test_options_reach_their_weights(data, start, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        main_meshgraph, "fit", lambda state, criterion, *_, **__: seen.append(criterion)
    )
    options = [f"--w_{name}={weight}" for name, weight in WEIGHTS.items()]
    options += ["--alpha=0.9", "--beta=0.2", "--pretrained", str(start / "checkpoint.pth.tar")]
    folders = ["--data_dir", str(data), "--output_dir", str(tmp_path), "--device", "cpu"]
    main_meshgraph.main([*folders, "--num_works", "0", *options])
    assert seen[0].weights == losses.LossWeights(**WEIGHTS, alpha=0.9, beta=0.2)


def test_a_term_without_weight_is_left_out():
    weights = losses.LossWeights(pose_prior=0, kpts_refine=1)
    assert set(weights.terms) == {"kpts", "betas_prior", "kpts_refine"}


# ---- switches


@pytest.mark.parametrize("name", ["model_best.pth.tar", "checkpoint.pth.tar"])
def test_learning_rate_0_teaches_nothing(data, start, tmp_path, name):
    """From the best epoch's weights, and resumed with its optimiser: batch norm alone moves."""
    _stage1(
        data,
        tmp_path,
        "--nEpochs",
        "2",
        "--lr",
        "0",
        "--resume",
        str(start / name),
        small=SMALL[4:],
    )
    before, after = (_content(f / "checkpoint.pth.tar")["state_dict"] for f in (start, tmp_path))
    changed = {k.rpartition(".")[2] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}


def test_freeze_bn_keeps_the_statistics_and_the_weights_learn(data, start, tmp_path):
    _stage1(
        data,
        tmp_path,
        "--nEpochs",
        "2",
        "--freeze_bn",
        "--resume",
        str(start / "checkpoint.pth.tar"),
        small=SMALL[4:],
    )
    before, after = (_content(f / "checkpoint.pth.tar")["state_dict"] for f in (start, tmp_path))
    changed = {k.rpartition(".")[2] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"weight", "bias"}


def test_start_epoch_is_the_first_one(data, tmp_path):
    _stage1(data, tmp_path, "--nEpochs", "3", "--start_epoch", "2")
    assert [line.split()[1] for line in _epochs(tmp_path)] == ["3/3"]


def _train_images(data, *options):
    args = meshgraph_parser().parse_args(["--data_dir", str(data), *options])
    train, val, *_ = build.open_sets(args, img_res=32)
    assert len(train) == 6 and len(val) == 1
    images = []
    for epoch in range(4):
        train.set_epoch(epoch)
        images.append(torch.stack([train[i]["image"] for i in range(len(train))]))
    return torch.stack(images)  # (epoch, image, 3, 32, 32)


def test_augmentation_is_on_unless_refused_and_mirrors_only_where_asked(data):
    plain, augmented = _train_images(data, "--no_augment"), _train_images(data)
    assert all(torch.equal(plain[0], epoch) for epoch in plain)
    assert not any(
        torch.equal(a, b) for a, b in zip(augmented.flatten(0, 1), plain.flatten(0, 1), strict=True)
    )
    flipped = _train_images(data, "--no_augment", "--flip")
    same = (flipped - plain).abs().flatten(2).mean(-1) < 1e-6
    assert same.any() and not same.all()
    near = (flipped.flip(-1) - plain).abs().flatten(2).mean(-1)[~same]
    assert (
        near < (flipped - plain).abs().flatten(2).mean(-1)[~same]
    ).all()  # mirrored about a pixel's middle, not exactly


def test_each_epoch_has_another_order_and_other_changes(data, tmp_path, monkeypatch):
    orders, images = [], []

    def look(state, criterion, loader, description, **_):
        batches = list(loader)
        index, image = (torch.cat([b[k] for b in batches]) for k in ("index", "image"))
        orders.append(index.tolist())
        images.append(image[index.argsort()])
        return {"loss": 0.0}

    monkeypatch.setattr(engine, "train_epoch", look)
    _stage1(data, tmp_path, "--nEpochs", "3")
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


def test_short_epochs_share_validation_by_count(data, tmp_path, monkeypatch):
    """Two steps an epoch: every third epoch at 5 steps, every one at 1, and always the last."""
    for steps, validated in ((5, ["3/4", "4/4"]), (1, ["1/4", "2/4", "3/4", "4/4"])):
        monkeypatch.setattr(engine, "VALIDATION_STEPS", steps)
        _stage1(data, tmp_path / str(steps), "--nEpochs", "4")
        assert [
            line.split()[1] for line in _epochs(tmp_path / str(steps)) if "val pck" in line
        ] == validated


# ---- run folders


def _losses_seen(folder):
    """(step, value) of the loss, as TensorBoard shows them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars("train/loss")]


def test_an_interrupted_run_goes_on_to_the_same_end(data, tmp_path, monkeypatch):
    """Two epochs share a checkpoint; stopped in the fourth, so that the third is done again."""
    monkeypatch.setattr(engine, "VALIDATION_STEPS", 3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _stage1(data, whole, "--nEpochs", "4")
    real = engine.train_epoch

    def stop_in_the_fourth(*args, **hooks):
        if args[-1] == "epoch 4/4":
            raise KeyboardInterrupt
        return real(*args, **hooks)

    monkeypatch.setattr(engine, "train_epoch", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        _stage1(data, parts, "--nEpochs", "4")
    assert "interrupted; --resume" in (parts / "log.txt").read_text()
    monkeypatch.setattr(engine, "train_epoch", real)
    _stage1(
        data,
        parts,
        "--nEpochs",
        "4",
        "--resume",
        str(parts / "checkpoint.pth.tar"),
        small=SMALL[4:],
    )
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        a, b = _content(whole / name), _content(parts / name)
        assert a["epoch"] == b["epoch"] and a["best_score"] == b["best_score"]
        assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    a, b = ([line.rpartition("|")[0] for line in _epochs(folder)] for folder in (whole, parts))
    assert b == a
    assert _losses_seen(parts) == _losses_seen(whole) and len(_losses_seen(whole)) == 4
    first, then = (
        json.loads((parts / name).read_text())["options"]["resume"]
        for name in ("args_1.json", "args.json")
    )
    assert first is None and then == str(parts / "checkpoint.pth.tar")


def test_going_on_from_an_older_copy_in_the_folder_loses_nothing(data, start, tmp_path):
    shutil.copytree(start, tmp_path / "run")
    shutil.copy(start / "checkpoint.pth.tar", tmp_path / "run" / "kept.pth.tar")
    (tmp_path / "run" / "log.txt").write_text("newer")
    _stage1(
        data,
        tmp_path / "run",
        "--nEpochs",
        "2",
        "--resume",
        str(tmp_path / "run" / "kept.pth.tar"),
        small=SMALL[4:],
    )
    assert (tmp_path / "run" / "previous_1" / "log.txt").read_text() == "newer"
    assert (tmp_path / "run" / "previous_1" / "checkpoint.pth.tar").exists()
    assert (
        _content(tmp_path / "run" / "model_best.pth.tar")["epoch"] == 2
    )  # chosen anew in the new run


def test_other_validation_images_choose_the_best_epoch_anew(data, start, tmp_path):
    shutil.copytree(start, tmp_path / "run")
    content = _content(start / "checkpoint.pth.tar")
    torch.save(
        content | {"best_score": 2.0}, tmp_path / "run" / "checkpoint.pth.tar"
    )  # no epoch beats it
    shutil.copytree(data, tmp_path / "data")
    checkpoint = str(tmp_path / "run" / "checkpoint.pth.tar")
    _stage1(
        tmp_path / "data",
        tmp_path / "run",
        "--nEpochs",
        "2",
        "--resume",
        checkpoint,
        small=SMALL[4:],
    )
    log = (tmp_path / "run" / "log.txt").read_text()
    assert (
        f"--data_dir {tmp_path / 'data'} (was {data})" in log
        and _epochs(tmp_path / "run")[-1].count("best") == 1
    )


def test_a_finished_run_is_left_as_it_is(data, start, tmp_path):
    (tmp_path / "log.txt").write_text("another run")
    with pytest.raises(Finished, match="Nothing to do: 1 of 1 epochs are done"):
        _stage1(
            data,
            tmp_path,
            "--nEpochs",
            "1",
            "--resume",
            str(start / "checkpoint.pth.tar"),
            small=SMALL[4:],
        )
    assert [p.name for p in tmp_path.iterdir()] == ["log.txt"] and (
        tmp_path / "log.txt"
    ).read_text() == "another run"


def test_evaluate_opens_the_validation_images_only(data, start, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    annotations = tmp_path / "data" / "StanfordExtra_v12" / "StanfordExtra_v12.json"
    entries = json.loads(annotations.read_text())
    entries[0]["seg"] = ""  # of the training images
    annotations.write_text(json.dumps(entries))
    options = [
        "--evaluate",
        "--resume",
        str(start / "checkpoint.pth.tar"),
        "--num_works",
        "0",
        "--device",
        "cpu",
    ]
    main.main(
        [
            "--data_dir",
            str(tmp_path / "data"),
            "--output_dir",
            str(tmp_path / "out"),
            "--batch_size",
            "1",
            *options,
        ]
    )
    report = json.loads((tmp_path / "out" / "stanford_report.json").read_text())
    assert report["num_images"] == 1 and report["excluded"] == 0


def test_sources_and_devices_that_contradict_each_other(data, start, tmp_path, capsys):
    common = ["--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    checkpoint = ["--resume", str(start / "checkpoint.pth.tar")]
    fails(
        capsys,
        ["main.py", *common, *checkpoint, "--backbone_weights", "file.pth"],
        "give one of the two",
    )
    fails(
        capsys, ["eval.py", *common, *checkpoint, "--device", "meta"], "--device meta: expected cpu"
    )
    for script in ("eval.py", "main.py"):
        options = (
            ["--device", "cpu", "--nEpochs", "2"] if script == "main.py" else ["--device", "cpu"]
        )
        nowhere = ["--output_dir", "/proc/nothing"]
        fails(
            capsys,
            [script, *common[:2], *checkpoint, *options, *nowhere],
            "--output_dir /proc/nothing cannot be made",
        )
    torch.save({"state_dict": {1: torch.zeros(1)}}, tmp_path / "numbers.pth.tar")
    fails(
        capsys,
        ["eval.py", *common, "--resume", str(tmp_path / "numbers.pth.tar")],
        "holds no network weights",
    )
    assert not (tmp_path / "out").exists()
