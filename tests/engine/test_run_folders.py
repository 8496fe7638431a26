"""Run folders: what is kept, moved aside and resumed."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from engine import loop as engine
from engine import run_folder
from tests.commands import SMALL, fails
from tests.engine.few import epochs, read_content, stage1
from util.errors import Finished


def _losses_seen(folder):
    """(step, value) of the loss, as TensorBoard shows them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars("train/loss")]


@pytest.mark.parametrize(
    "option, word",
    [
        ("--output_dir=", "expected a path, found nothing"),
        ("--resume= ", "expected a path, found nothing"),
        ("--cache=", "expected a path, found nothing"),
        ("--img_res=100000", "expected 4096 or less, found 100000"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(capsys, option, word):
    fails(capsys, ["main.py", option], word)


def test_a_first_epoch_after_the_last_is_refused(capsys):
    fails(capsys, ["main.py", "--start_epoch", "5", "--nEpochs", "1"], "leaves none of --nEpochs 1")
    fails(capsys, ["main.py", *SMALL[2:], "--backbone", "timm:../x"], "no such feature extractor")


def test_an_interrupted_run_goes_on_to_the_same_end(few, tmp_path, monkeypatch):
    """Two epochs share a checkpoint; stopped in the fourth, so that the third is done again."""
    monkeypatch.setattr(engine, "VALIDATION_STEPS", 3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stage1(few, whole, "--nEpochs", "4")
    real = engine.train_epoch

    def stop_in_the_fourth(*args, **hooks):
        if args[-1] == "epoch 4/4":
            raise KeyboardInterrupt
        return real(*args, **hooks)

    monkeypatch.setattr(engine, "train_epoch", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        stage1(few, parts, "--nEpochs", "4")
    assert "interrupted; --resume" in (parts / "log.txt").read_text()
    monkeypatch.setattr(engine, "train_epoch", real)
    stage1(
        few, parts, "--nEpochs", "4", "--resume", str(parts / "checkpoint.pth.tar"), small=SMALL[4:]
    )
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        a, b = read_content(whole / name), read_content(parts / name)
        assert a["epoch"] == b["epoch"] and a["best_score"] == b["best_score"]
        assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())
    a, b = ([line.rpartition("|")[0] for line in epochs(folder)] for folder in (whole, parts))
    assert b == a
    assert _losses_seen(parts) == _losses_seen(whole) and len(_losses_seen(whole)) == 4
    first, then = (
        json.loads((parts / name).read_text())["options"]["resume"]
        for name in ("args_1.json", "args.json")
    )
    assert first is None and then == str(parts / "checkpoint.pth.tar")


def test_events_of_a_second_run_are_read_after_those_of_the_first(
    few, start, tmp_path, monkeypatch
):
    """TensorBoard sorts files by name, of whole seconds: 1000.vm.7.10 before 1000.vm.7.9."""
    shutil.copytree(start, tmp_path / "run")
    slept = []
    clock = SimpleNamespace(time=lambda: 1000.25, sleep=slept.append)
    monkeypatch.setattr(run_folder, "time", clock)
    resume = ["--nEpochs", "3", "--resume", str(tmp_path / "run")]
    stage1(few, tmp_path / "run", *resume, small=SMALL[4:])
    assert slept == []
    (tmp_path / "run" / "events.out.tfevents.1000.vm.7.9").touch()
    resume[1] = "4"
    stage1(few, tmp_path / "run", *resume, small=SMALL[4:])
    assert slept == [0.75]


def test_going_on_from_an_older_copy_in_the_folder_loses_nothing(few, start, tmp_path):
    shutil.copytree(start, tmp_path / "run")
    shutil.copy(start / "checkpoint.pth.tar", tmp_path / "run" / "kept.pth.tar")
    (tmp_path / "run" / "log.txt").write_text("newer")
    stage1(
        few,
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
        read_content(tmp_path / "run" / "model_best.pth.tar")["epoch"] == 2
    )  # chosen anew in the new run


def test_other_validation_images_choose_the_best_epoch_anew(few, start, tmp_path):
    shutil.copytree(start, tmp_path / "run")
    content = read_content(start / "checkpoint.pth.tar")
    torch.save(
        content | {"best_score": 2.0}, tmp_path / "run" / "checkpoint.pth.tar"
    )  # no epoch beats it
    shutil.copytree(few, tmp_path / "data")
    checkpoint = str(tmp_path / "run" / "checkpoint.pth.tar")
    stage1(
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
        f"--data_dir {tmp_path / 'data'} (was {few})" in log
        and epochs(tmp_path / "run")[-1].count("best") == 1
    )


def test_a_finished_run_is_left_as_it_is(few, start, tmp_path):
    (tmp_path / "log.txt").write_text("another run")
    with pytest.raises(Finished, match="Nothing to do: 1 of 1 epochs are done"):
        stage1(
            few,
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


def test_evaluate_opens_the_validation_images_only(few, start, tmp_path):
    shutil.copytree(few, tmp_path / "data")
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


def test_sources_and_devices_that_contradict_each_other(few, start, tmp_path, capsys):
    common = ["--data_dir", str(few), "--output_dir", str(tmp_path / "out")]
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
