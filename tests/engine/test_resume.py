"""Runs that resume as if nothing had happened, and those that must not."""

import contextlib
import os
import pty
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import torch
from tqdm import tqdm

from benchmarks import kills
from engine import loop
from engine.run_folder import BEST, PREVIOUS
from tests.commands import fails
from tests.conftest import ROOT
from tests.engine.tiny import CHECKPOINT, at_step, command, content, train, train_apart
from util.errors import InputError, Interrupted


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two epochs of five steps, undisturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(data, folder)
    return folder


def _term(_):
    os.kill(os.getpid(), signal.SIGTERM)


def test_ten_kills_lose_nothing(data, tmp_path):
    found = kills.run(data, tmp_path, kills=10, seed=3)
    assert found.losses == [] and found.kills == 10 and found.runs >= 1


def test_a_run_killed_in_its_progress_bar_stops_no_other(data, tmp_path, monkeypatch):
    tqdm(disable=True)  # this process has made the lock
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda _: (tqdm.get_lock().acquire(), os.kill(os.getpid(), 9)))
        assert train_apart(data, tmp_path / "killed")[0] == -9
    monkeypatch.setattr(kills, "RUN_LIMIT", 60)
    assert train_apart(data, tmp_path / "other")[0] == 0


def test_a_signal_between_two_epochs_saves(data, tmp_path, monkeypatch):
    real = loop._finish_epoch
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_finish_epoch", lambda *given: (real(*given), _term(0)))
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(data, tmp_path / "run", epochs=30)  # fewer than the validated one's number
    found = content(tmp_path / "run")
    assert found["epoch"] == 1 and found["step"] == 5


@pytest.mark.parametrize("step", [2, 5, 8])
def test_stopped_inside_an_epoch_it_resumes_to_the_same_end(
    data, whole, tmp_path, monkeypatch, step
):
    """In the first epoch, after its last step, and in the second."""
    with monkeypatch.context() as patch:
        at_step(patch, step, _term)
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(data, tmp_path / "run")
    assert "interrupted by SIGTERM; --resume" in (tmp_path / "run" / "log.txt").read_text()
    assert content(tmp_path / "run")["step"] == step
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    train(data, tmp_path / "run", "--resume", "auto")
    assert kills.compare(whole, tmp_path / "run") == []


def test_a_signal_in_validation_saves_and_resumes_there(data, whole, tmp_path, monkeypatch):
    import engine.evaluate

    with monkeypatch.context() as patch:
        patch.setattr(engine.evaluate, "score", lambda *_: _term(None))
        with pytest.raises(Interrupted):
            train(data, tmp_path / "run")
    assert content(tmp_path / "run")["progress"]["steps"] == 5
    assert content(tmp_path / "run")["epoch"] == 1
    train(data, tmp_path / "run", "--resume", "auto")
    assert kills.compare(whole, tmp_path / "run") == []


def test_images_that_were_done_are_not_loaded_again(data, tmp_path, monkeypatch):
    from datasets.labelled import LabelledImages

    train(data, tmp_path / "run", "--save_every", "3", epochs=1)
    shutil.copy(tmp_path / "run" / PREVIOUS, tmp_path / "run" / CHECKPOINT)
    seen, real = [], LabelledImages.load
    monkeypatch.setattr(LabelledImages, "load", lambda s, *i: seen.append(s.split) or real(s, *i))
    train(data, tmp_path / "run", "--resume", "auto", epochs=1)
    assert content(tmp_path / "run")["step"] == 5
    assert seen.count("train") == 18 - 3 * 4


def test_the_random_state_of_all_three_is_restored(data, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    train(data, tmp_path / "run", "--resume", "auto", epochs=3)
    state = content(whole)["random_state"]
    assert set(state) == {"python", "numpy", "torch"}
    assert state["python"][1] == random.getstate()[1]
    assert (state["numpy"][1].numpy() == np.random.get_state()[1]).all()


def test_exit_status_of_signals(data, tmp_path, monkeypatch):
    for name, status in (("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)):
        with monkeypatch.context() as patch:
            number = getattr(signal, name)
            at_step(patch, 2, lambda _, number=number: os.kill(os.getpid(), number))
            found, said = train_apart(data, tmp_path / name)
        assert found == status and "Traceback" not in said, said
        assert f"interrupted by {name}; --resume" in said
        assert content(tmp_path / name)["step"] == 2


def test_a_closed_terminal_saves(data, tmp_path):
    """Its signal comes with a screen that takes no more, neither bars nor lines."""
    arguments = command(data, tmp_path / "run", epochs=4000)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "main.py", *arguments])
    os.set_blocking(terminal, False)
    end = time.time() + 120
    while time.time() < end and not (tmp_path / "run" / CHECKPOINT).exists():
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65536)
        time.sleep(0.05)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.splitlines()[-1].startswith("interrupted by SIGHUP; --resume")
    assert content(tmp_path / "run")["step"] >= 5


def test_a_folder_is_of_one_run_at_a_time(data, tmp_path, monkeypatch):
    at_step(monkeypatch, 3, lambda _: seen.append(fails_beside()))

    def fails_beside():
        with monkeypatch.context() as patch:
            patch.setattr(loop, "to_device", real)
            with pytest.raises(InputError, match="another process is at; wait for its end"):
                train(data, tmp_path / "run", epochs=1)
        return sorted(path.name for path in (tmp_path / "run").iterdir())

    real, seen = loop.to_device, []
    train(data, tmp_path / "run", epochs=1)
    assert len(seen) == 1 and "previous_1" not in seen[0]
    train(data, tmp_path / "run", epochs=1)  # it is free again
    assert (tmp_path / "run" / "previous_1").is_dir()


def test_a_second_signal_leaves_at_once(data, tmp_path, monkeypatch):
    at_step(monkeypatch, 2, lambda _: (_term(_), _term(_)))
    found, said = train_apart(data, tmp_path / "run")
    assert found == 143 and "left at once" in said
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_auto_starts_anew_where_there_is_nothing(data, tmp_path, capsys):
    train(data, tmp_path / "run", "--resume", "auto", epochs=1)
    assert "holds no checkpoint: it starts anew" in capsys.readouterr().out


def test_a_run_folder_stands_for_its_newest_checkpoint(data, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    train(data, tmp_path / "run", "--resume", str(tmp_path / "run"), epochs=3)
    assert content(tmp_path / "run")["epoch"] == 3
    assert not list((tmp_path / "run").glob("previous_*"))
    with pytest.raises(InputError, match="holds no checkpoint.pth.tar"):
        train(data, tmp_path / "other", "--resume", str(tmp_path))


def test_auto_takes_the_newest_whole_checkpoint(data, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    train(data, folder, "--save_every", "4")
    (folder / CHECKPOINT).write_bytes((folder / CHECKPOINT).read_bytes()[:100_000])
    (folder / ".checkpoint.pth-abcdefgh.tar").touch()  # of a save that was killed
    train(data, folder, "--resume", "auto", "--save_every", "4")
    said = capsys.readouterr().out
    assert "is damaged" in said and f"{PREVIOUS} is used instead" in said
    assert (folder / "checkpoint_damaged.pth.tar").exists()
    assert not list(folder.glob(".*"))
    assert kills.compare(whole, folder) == []
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="no checkpoint in .* can be read"):
        train(data, folder, "--resume", "auto")


def test_auto_refuses_what_changes_the_meaning_and_says_the_rest(data, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    options = ["--seed", "5"], ["--batch_size", "3"], ["--no_augment"], ["--flip"]
    for option in options:
        run = command(data, tmp_path / "run", "--resume", "auto", *option, epochs=3)
        fails(capsys, ["main.py", *run], "is of a run with other options", option[0])
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before
    train(data, tmp_path / "run", "--resume", "auto", "--lr", "1e-3", "--w_kpts", "5", epochs=3)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "--w_kpts 5.0 (was 10.0)" in log and "--lr 0.001 (was 0.0001)" in log


def test_auto_refuses_a_run_of_another_stage(data, runs, tmp_path, capsys):
    shutil.copytree(runs / "stage2", tmp_path / "run")
    options = ["--data_dir", str(data), "--output_dir", str(tmp_path / "run"), "--device", "cpu"]
    options += ["--num_works", "0", "--resume", "auto"]
    fails(capsys, ["main_meshgraph.py", *options], "is of stage 2, this is stage 3")


def test_pretrained_weights_go_with_auto(data, runs, tmp_path):
    import main_meshgraph

    options = ["--data_dir", str(data), "--output_dir", str(tmp_path / "run"), "--device", "cpu"]
    options += "--num_works 0 --freezecoarse --num_channels 16 --batch_size 9".split()
    options += ["--pretrained", str(runs / "stage1" / CHECKPOINT), "--resume", "auto", "--nEpochs"]
    for epochs in (1, 2):
        main_meshgraph.main([*options, str(epochs)])
        assert content(tmp_path / "run")["epoch"] == epochs
    assert content(tmp_path / "run", BEST)["stage"] == 2
