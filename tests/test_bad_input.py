"""Bad input to the scripts ends in one line that says what to do, before any work starts."""

import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

import main
from engine import build
from tests.commands import SMALL, fails
from tests.conftest import ROOT
from util.errors import InputError


class _Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_bad_input_ends_the_process_without_a_traceback(tmp_path):
    command = [
        sys.executable,
        "eval.py",
        "--resume",
        "nowhere.pth.tar",
        "--output_dir",
        str(tmp_path / "out"),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert (
        result.stderr
        == "eval.py: error: nowhere.pth.tar: there is no such file; give the path of a checkpoint\n"
    )


def test_results_that_could_not_be_written_stop_before_the_work(tmp_path, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(build.tempfile, "TemporaryFile", refuse)
    with pytest.raises(InputError, match="out cannot be written to .Read-only.*another folder"):
        build.make_output_dir(tmp_path / "out")


def test_weights_without_end_are_refused(capsys):
    fails(capsys, ["main.py", "--w_kpts", "inf"], "--w_kpts: inf: expected less")


def test_the_family_is_that_of_the_checkpoint(data, runs, capsys):
    """Of a fit that starts from a network."""
    checkpoint = runs / "stage2" / "checkpoint.pth.tar"
    command = ["fit.py", "--data_dir", data, "--resume", checkpoint, "--shape_family_id", "2"]
    fails(capsys, list(map(str, command)), "--shape_family_id 2 (the checkpoint has 1)")


def test_missing_body(tmp_path, capsys):
    fails(
        capsys,
        ["main.py", "--data_dir", str(tmp_path), *SMALL, "--output_dir", str(tmp_path / "out")],
        "my_smpl_00781_4_all.pkl", "smal.is.tue.mpg.de", "python -m synthetic",
    )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_body_that_runs_a_program(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "smal", tmp_path / "smal")
    (tmp_path / "smal" / "symIdx.pkl").write_bytes(pickle.dumps({"symIdx": _Evil()}, protocol=2))
    fails(
        capsys,
        ["main.py", "--data_dir", str(data), "--param_dir", str(tmp_path), *SMALL]
        + ["--output_dir", str(tmp_path / "out")],
        "was not read", "system",
    )  # fmt: skip
    assert not (tmp_path / "pwned").exists()


BAD_OPTIONS = {
    "resume": ("eval.py --resume nowhere.pth.tar", "nowhere.pth.tar: there is no such file"),
    "nothing to evaluate": ("eval.py", "--resume is missing"),
    "data set": ("eval.py --dataset cats --resume x", "argument --dataset: invalid choice: 'cats'"),
    "two sources": (
        "main_meshgraph.py --resume {stage2} --pretrained {stage1}",
        "give one of them",
    ),
    "other network": (
        "eval.py --resume {stage2} --num_channels 64",
        "--num_channels 64 (the checkpoint has 32)",
    ),
    "other backbone": (
        "main_meshgraph.py --pretrained {stage1} --backbone resnet50",
        "--backbone resnet50 (the checkpoint has resnet18)",
    ),
    "unity prior": ("main.py --prior_betas unity", "needs --betas_scale"),
    "frozen random weights": ("main_meshgraph.py --freezecoarse", "--freezecoarse needs"),
    "weights of another stage": ("main.py --resume {stage2}", "holds a refiner"),
    "single images": ("main.py --batch_size 1 --backbone_weights none", "--batch_size 1"),
    "image weights": (
        "main.py --backbone_weights nothing.pth",
        "expected imagenet, none or an existing file",
    ),
    "renderer": ("eval.py --resume {stage2} --renderer triton", "triton"),
    "nothing to learn": (
        "main_meshgraph.py --pretrained {stage1} --freezecoarse --w_kpts_refine 0",
        "nothing to learn from",
    ),
    "no optimiser": ("main.py --resume {best1} --load_optimizer", "holds no optimiser state"),
    "results": ("main.py --save_results", "--save_results goes with --evaluate"),
}


@pytest.mark.parametrize("script", ["main.py", "eval.py"])
def test_output_folder_that_is_a_file_and_checkpoint_that_is_none(
    runs, data, tmp_path, capsys, script
):
    (tmp_path / "file").write_text("junk")
    arguments = [script, "--data_dir", str(data), "--device", "cpu", "--resume"]
    checkpoint = str(runs / "stage1" / "checkpoint.pth.tar")
    fails(
        capsys,
        [*arguments, checkpoint, "--output_dir", str(tmp_path / "file" / "run")],
        "is a file; give a folder",
    )
    fails(
        capsys,
        [*arguments, str(tmp_path / "file")],
        "is not a checkpoint that can be read safely (it is damaged",
    )
    assert (tmp_path / "file").read_text() == "junk"


@pytest.mark.parametrize("name", list(BAD_OPTIONS))
def test_bad_options_end_in_one_sentence(runs, data, tmp_path, name, capsys):
    command, sentence = BAD_OPTIONS[name]
    files = {s: runs / s / "checkpoint.pth.tar" for s in ("stage1", "stage2")}
    command = command.format(**files, best1=runs / "stage1" / "model_best.pth.tar")
    fails(
        capsys,
        [
            *command.split(),
            "--data_dir",
            str(data),
            "--output_dir",
            str(tmp_path / "out"),
            "--device",
            "cpu",
        ],
        sentence,
    )
    assert not (tmp_path / "out").exists()


def test_checkpoint_that_runs_a_program(data, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Evil()}, tmp_path / "evil.pth.tar")
    fails(
        capsys,
        ["eval.py", "--data_dir", str(data), "--resume", str(tmp_path / "evil.pth.tar")],
        "is not a checkpoint that can be read safely (it asks for",
    )
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "fault, sentence", [("list", "list"), ("index", "names entry 1000000, but the list holds 24")]
)
def test_faulty_annotations(runs, data, tmp_path, fault, sentence, capsys):
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    if fault == "list":
        (folder / "StanfordExtra_v12" / "StanfordExtra_v12.json").write_text('{"a": 1}')
    else:
        np.save(
            folder / "StanfordExtra_v12" / "test_stanford_StanfordExtra_v12.npy",
            np.array([0, 10**6]),
        )
    fails(
        capsys,
        [
            "eval.py",
            "--data_dir",
            str(folder),
            "--resume",
            str(runs / "stage1" / "checkpoint.pth.tar"),
        ],
        sentence,
    )


def test_non_finite_loss_stops_the_run(runs, data, tmp_path):
    checkpoint = torch.load(runs / "stage1" / "checkpoint.pth.tar", weights_only=True)
    checkpoint["state_dict"]["code_predictor.scale_predictor.pred_layer.bias"].fill_(3e38)
    del checkpoint["checksum"]  # of the weights as they were
    torch.save(checkpoint, tmp_path / "nan.pth.tar")
    with pytest.raises(InputError, match="the loss is not finite.*kpts"):
        main.main(
            [
                "--data_dir",
                str(data),
                "--num_works",
                "0",
                "--device",
                "cpu",
                "--output_dir",
                str(tmp_path / "out"),
            ]
            + ["--nEpochs", "3", "--resume", str(tmp_path / "nan.pth.tar")]
        )
