"""Networks and loaders as a run starts with them."""

import argparse

import numpy as np
import pytest
import torch

import main_meshgraph
from engine import build
from engine.detect import Animal
from engine.options import stage1_parser
from engine.predict import sample_of
from model import NetworkConfig
from tests.commands import SMALL, fails
from tests.engine.tiny import TINY
from util import distributed
from util.errors import InputError


def _args(data, *more) -> argparse.Namespace:
    return stage1_parser().parse_args(["--data_dir", str(data), *SMALL, *more])


def test_several_processes_freeze_batch_norm_with_the_backbone(data, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    args = _args(data, "--freeze_backbone", "2")
    config = NetworkConfig("resnet18", 64)
    model = build.build_training_model(args, config, None, torch.device("cpu")).train()
    learning = {
        name: module.training
        for name, module in model.encoder.resnet_conv.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    }
    kinds = {type(m).__name__ for m in model.modules() if "BatchNorm" in type(m).__name__}
    assert kinds == {"CpuSyncBatchNorm"}
    for name, trains in learning.items():
        assert trains == ("layer3" in name or "layer4" in name), name


def test_ground_truth_of_another_body_is_refused(data, shared, tmp_path):
    """Its shapes would be learnt as this body's."""
    args = _args(data, "--param_dir", str(shared / "samples"), "--w_betas", "1")
    with pytest.raises(InputError, match="of a body of .* has 3889; give --param_dir .*"):
        build.build_loaders(args, NetworkConfig("resnet18", 64), torch.device("cpu"))


@pytest.mark.parametrize(("size", "fine"), [(33, True), (34, False), (35, False), (36, True)])
def test_a_process_needs_two_images_of_each_batch(data, monkeypatch, size, fine):
    """One image left over joins the batch before it."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    args = _args(data, "--batch_size", "16", "--no_sync_bn")
    sets = build.open_sets(args, 64)
    monkeypatch.setattr(type(sets.train), "__len__", lambda _: size)
    monkeypatch.setattr(build, "open_sets", lambda *_: (sets.train, sets.val, 0, False))
    monkeypatch.setattr(build, "make_loader", lambda *_: None)
    config = NetworkConfig("resnet18", 64)
    if fine:
        build.build_loaders(args, config, torch.device("cpu"))
    else:
        with pytest.raises(InputError, match="fewer than two images"):
            build.build_loaders(args, config, torch.device("cpu"))


def test_files_and_options_that_do_not_go_with_stage_1(data, runs, tmp_path, capsys):
    run = ["main.py", "--data_dir", str(data), *TINY, "--output_dir", str(tmp_path / "run")]
    refiner = str(runs / "stage2" / "checkpoint.pth.tar")
    fails(
        capsys,
        [
            "main.py",
            "--data_dir",
            str(data),
            "--device",
            "cpu",
            "--output_dir",
            str(tmp_path),
            "--resume",
            refiner,
        ],
        "holds a refiner",
        "main_meshgraph.py",
    )
    fails(capsys, [*run, "--resume", "auto", "--start_epoch", "1"], "contradict")


def test_a_run_folder_is_pretrained_too(data, runs, tmp_path):
    options = ["--data_dir", str(data), "--output_dir", str(tmp_path / "run"), "--device", "cpu"]
    options += "--num_works 0 --freezecoarse --num_channels 16 --batch_size 9".split()
    options += ["--pretrained", str(runs / "stage1"), "--resume", "auto", "--nEpochs", "1"]
    main_meshgraph.main(options)
    assert (tmp_path / "run" / "checkpoint.pth.tar").exists()


def test_a_large_photograph_is_made_smaller_first():
    """The crop's place stays that in the photograph, and so, nearly, do its pixels."""
    rows, columns = np.mgrid[0:1500, 0:5000]
    image = np.stack([rows / 6, columns / 20, 128 + 0 * rows], -1).astype(np.uint8)
    mask = (columns > 2000) & (rows > 700)
    box = np.array([0.0, 0.0, 5000, 1500])
    small = sample_of(image, Animal(box, mask), 64, "a")
    whole = sample_of(image[:, :1500], Animal(np.array([0.0, 0, 1500, 1500])), 64, "b")
    assert small["center"].tolist() == [2500, 750]
    assert 200 * float(small["scale"]) == pytest.approx(6000)
    assert 200 * float(whole["scale"]) == pytest.approx(1800)
    place = np.argwhere(small["mask"].numpy() > 0.5)  # row, column of the 224-pixel crop
    corner = (place.min(0) * 6000 / 224 - 3000 + [750, 2500]).round()
    assert abs(corner - [700, 2000]).max() < 40
