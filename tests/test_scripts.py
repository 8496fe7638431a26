"""The user's commands on synthetic dogs: three stages, evaluation, resuming, and bad input."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import eval as eval_script
import main
import main_meshgraph
from tests.commands import SMALL, fails
from tests.conftest import ROOT


def _weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def test_run_folders_say_what_was_run(runs):
    for stage, epochs in (("stage1", 2), ("stage2", 1), ("stage3", 1)):
        folder = runs / stage
        options = json.loads((folder / "args.json").read_text())["options"]
        assert (
            options["backbone"] == "resnet18" and options["img_res"] == 64
        )  # stages 2 and 3 have it from the checkpoint
        lines = (folder / "log.txt").read_text().splitlines()
        assert sum(line.startswith("epoch ") for line in lines) == epochs
        assert (
            list(folder.glob("events.out.tfevents.*")) and (folder / "model_best.pth.tar").exists()
        )
        assert not [
            name for name in os.listdir(folder) if name.startswith(".")
        ]  # nothing half-written


def test_tensorboard_has_each_term_and_pictures(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs / "stage3"))
    events.Reload()
    terms = "kpts betas_prior pose_prior kpts_refine dice dice_refine pose_limit_prior arap loss"
    terms = terms.split()
    assert {f"train/{t}" for t in terms} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["val"]


def test_stage_2_leaves_the_coarse_network_alone_and_stage_3_does_not(runs):
    stage1, stage2, stage3 = (
        _weights(runs / s / "checkpoint.pth.tar") for s in ("stage1", "stage2", "stage3")
    )
    assert all(torch.equal(stage1[k], stage2[f"meshnet.{k}"]) for k in stage1)
    assert not torch.equal(
        stage2["meshnet.encoder.enc_conv1.0.weight"], stage3["meshnet.encoder.enc_conv1.0.weight"]
    )


def test_evaluation_writes_what_it_says(runs, data, tmp_path, capsys):
    arguments = [
        "--data_dir",
        str(data),
        "--output_dir",
        str(tmp_path),
        "--resume",
        str(runs / "stage3" / "checkpoint.pth.tar"),
    ]
    eval_script.main(
        [
            *arguments,
            *"--gpu_ids 0 --local_feat --save_results --num_works 0 --batch_size 3".split(),
        ]
    )
    report = json.loads((tmp_path / "stanford_report.json").read_text())
    with open(tmp_path / "per_image.csv") as file:
        rows = list(csv.DictReader(file))
    assert (
        report["num_images"]
        == len(rows)
        == len(np.load(data / "StanfordExtra_v12" / "test_stanford_StanfordExtra_v12.npy"))
    )
    for key in (
        "pck",
        "iou",
        "pck_refined",
        "iou_refined",
        "pa_mpvpe",
        "pa_mpvpe_refined",
        "pa_mpjpe",
        "pa_mpjpe_refined",
    ):
        assert report[key] == pytest.approx(
            np.mean([float(r[key]) for r in rows if r[key]]), abs=1e-5
        )
    assert (
        set(report["pck_by_group"])
        == set(report["pck_refined_by_group"])
        == {"legs", "tail", "ears", "face"}
    )
    assert "PCK@0.15" in capsys.readouterr().out and (tmp_path / "stanford_report.txt").exists()
    for row in rows:
        assert (tmp_path / f"{row['name']}.png").stat().st_size > 1000
        with np.load(tmp_path / f"{row['name']}.npz") as arrays:
            expected = "verts verts_refined joints joints_refined keypoints_row_col"
            expected += " keypoints_refined_row_col pose betas trans scale"
            assert set(expected.split() + ["pck", "pck_refined", "iou", "iou_refined"]) <= set(
                arrays
            )
            assert arrays["iou"] == pytest.approx(float(row["iou"]), abs=1e-6)
            assert (
                arrays["keypoints_row_col"].shape == (20, 2)
                and arrays["verts"].shape == arrays["verts_refined"].shape
            )


def test_evaluation_in_one_batch_or_several_gives_the_same(runs, data, tmp_path):
    for size in ("1", "32"):
        arguments = [
            "--data_dir",
            str(data),
            "--output_dir",
            str(tmp_path / size),
            "--batch_size",
            size,
            "--num_works",
            "0",
        ]
        eval_script.main(
            [
                *arguments,
                "--resume",
                str(runs / "stage2" / "checkpoint.pth.tar"),
                "--dataset",
                "animal_pose",
            ]
        )
    a, b = (json.loads((tmp_path / s / "animal_pose_report.json").read_text()) for s in ("1", "32"))
    assert a["iou_refined"] == pytest.approx(b["iou_refined"], abs=1e-4) and a[
        "pck"
    ] == pytest.approx(b["pck"], abs=1e-6)


def test_continued_run_equals_an_uninterrupted_one(runs, data, tmp_path):
    """Two epochs at once, against one, a stop, and one more: the same weights to the last bit."""
    common = ["--data_dir", str(data), *SMALL, "--batch_size", "8"]
    main.main([*common, "--nEpochs", "1", "--output_dir", str(tmp_path)])
    common = [
        c for c in common if c not in ("--backbone", "resnet18", "--img_res", "64")
    ]  # from the checkpoint
    main.main(
        [
            *common,
            "--nEpochs",
            "2",
            "--output_dir",
            str(tmp_path),
            "--resume",
            str(tmp_path / "checkpoint.pth.tar"),
        ]
    )
    whole, parts = (
        _weights(runs / "stage1" / "checkpoint.pth.tar"),
        _weights(tmp_path / "checkpoint.pth.tar"),
    )
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    assert not list(tmp_path.glob("previous_*"))  # the run went on in its folder


def test_run_continued_elsewhere_leaves_that_folder_s_run(runs, data, tmp_path):
    """--resume of one folder with --output_dir of another: what that held is moved aside."""
    shutil.copytree(runs / "stage1", tmp_path / "run")
    (tmp_path / "run" / "log.txt").write_text("another run")
    arguments = [
        "--data_dir",
        str(data),
        "--num_works",
        "0",
        "--device",
        "cpu",
        "--batch_size",
        "8",
        "--nEpochs",
        "3",
    ]
    main.main(
        [
            *arguments,
            "--output_dir",
            str(tmp_path / "run"),
            "--resume",
            str(runs / "stage1" / "checkpoint.pth.tar"),
        ]
    )
    assert (tmp_path / "run" / "previous_1" / "log.txt").read_text() == "another run"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert (
        "epoch 3/3" in log
        and "epoch 2/3" not in log
        and (tmp_path / "run" / "model_best.pth.tar").exists()
    )


def test_best_epoch_starts_a_new_run_and_other_options_are_said(runs, data, tmp_path):
    arguments = [
        "--data_dir",
        str(data),
        *SMALL[4:],
        "--batch_size",
        "9",
        "--nEpochs",
        "1",
        "--bf16",
        "--flip",
        "--no_augment",
    ]
    main.main(
        [
            *arguments,
            "--output_dir",
            str(tmp_path / "a"),
            "--resume",
            str(runs / "stage1" / "model_best.pth.tar"),
        ]
    )
    assert "starts from" in (tmp_path / "a" / "log.txt").read_text()
    arguments = [
        "--data_dir",
        str(data),
        *SMALL[4:],
        "--batch_size",
        "9",
        "--nEpochs",
        "3",
        "--lr",
        "0.001",
    ]
    main.main(
        [
            *arguments,
            "--output_dir",
            str(tmp_path / "b"),
            "--resume",
            str(runs / "stage1" / "checkpoint.pth.tar"),
        ]
    )
    assert (
        "--batch_size 9 (was 8), --lr 0.001 (was 0.0001)"
        in (tmp_path / "b" / "log.txt").read_text()
    )


def test_evaluate_option_reports_the_validation_images(runs, data, tmp_path):
    arguments = [
        "--data_dir",
        str(data),
        *SMALL[4:],
        "--output_dir",
        str(tmp_path / "out"),
        "--evaluate",
        "--local_feat",
    ]
    main_meshgraph.main(
        [*arguments, "--resume", str(runs / "stage2" / "checkpoint.pth.tar"), "--save_results"]
    )
    report = json.loads((tmp_path / "out" / "stanford_report.json").read_text())
    assert report["num_images"] == 2 and report["checkpoint"].endswith("checkpoint.pth.tar")
    assert (
        len(list((tmp_path / "out").glob("*.png"))) == 2
        and not (tmp_path / "out" / "args.json").exists()
    )


def test_weights_of_another_body_are_refused(runs, shared, tmp_path, capsys):
    fails(
        capsys,
        [
            "eval.py",
            "--data_dir",
            str(shared / "samples"),
            "--resume",
            str(runs / "stage2" / "checkpoint.pth.tar"),
        ],
        "was trained on a body of 3916 vertices, this one has 3889",
    )


def test_a_new_run_moves_the_old_one_aside(runs, data, tmp_path):
    shutil.copytree(runs / "stage1", tmp_path / "run")
    main.main(
        [
            "--data_dir",
            str(data),
            *SMALL,
            "--batch_size",
            "32",
            "--nEpochs",
            "1",
            "--output_dir",
            str(tmp_path / "run"),
        ]
    )
    old = _weights(tmp_path / "run" / "previous_1" / "checkpoint.pth.tar")
    assert all(
        torch.equal(v, old[k]) for k, v in _weights(runs / "stage1" / "checkpoint.pth.tar").items()
    )


def test_training_set_without_validation_split(data, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "StanfordExtra_v12" / "val_stanford_StanfordExtra_v12.npy").unlink()
    # 18 images, 2 validate, 16 are left: a batch of 15, and one left over, which joins it.
    main.main(
        [
            "--data_dir",
            str(folder),
            *SMALL,
            "--batch_size",
            "15",
            "--nEpochs",
            "1",
            "--output_dir",
            str(tmp_path / "run"),
        ]
    )
    assert "No validation split: 2 of the 18 training images" in capsys.readouterr().out


def test_what_takes_seconds_to_import_waits_until_it_is_needed():
    """Help and messages about bad input come before torchvision, timm and compilers are read."""
    slow = {"torchvision", "timm", "torch._dynamo", "numba"}
    code = "import sys, demo, eval, fit, main, main_meshgraph\n"
    code += f"print(sorted({slow!r} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
