"""Faults under way: numbers, images, workers, disks. Each ends as promised."""

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import main
from datasets.labelled import LabelledImages
from engine import build, loaders, loop, losses
from tests.conftest import ROOT
from tests.engine.tiny import CHECKPOINT, at_step, content, train, train_apart
from util.errors import InputError

# ---- machines


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"),
    ],
)
def test_workers_without_shared_memory_say_so(fault):
    with pytest.raises(InputError, match="--shm-size"), loaders.explained_faults():
        raise fault
    for other in (OSError(errno.EBADF, "bad"), RuntimeError("of ours")):
        with pytest.raises(type(other), match=str(other.args[-1])), loaders.explained_faults():
            raise other


def test_what_killed_processes_left_is_cleared(tmp_path):
    inside = tmp_path / "parameters"
    inside.mkdir()
    for folder in (tmp_path, inside):
        (folder / ".dog-abcd1234.npz").write_bytes(b"half")
        (folder / ".hidden").write_bytes(b"of the user")
    before = sorted(tmp_path.rglob("*"))
    build.make_output_dir(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before, "a folder of somebody else"
    (tmp_path / "demo_args.json").write_text("{}")
    build.make_output_dir(tmp_path)
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert found == [".hidden", "demo_args.json", "parameters/.hidden"]


# ---- numbers that are not finite


def _spoil(monkeypatch, steps):
    """The loss is NaN in these steps, and so is what batch norm remembers."""
    real, count = losses.Criterion.forward, [0]

    def forward(self, out, batch):
        count[0] += 1
        terms = real(self, out, batch)
        return {k: v * float("nan") for k, v in terms.items()} if count[0] in steps else terms

    monkeypatch.setattr(losses.Criterion, "forward", forward)


def test_a_step_that_is_not_finite_is_skipped_logged_and_kept(data, tmp_path, monkeypatch):
    _spoil(monkeypatch, [5])
    train(data, tmp_path / "a", "--save_every", "4", epochs=1)
    before, after = (
        content(tmp_path / "a", n) for n in ("checkpoint_previous.pth.tar", CHECKPOINT)
    )
    assert before["step"] == 4 and after["step"] == 5
    assert all(torch.equal(v, after["state_dict"][k]) for k, v in before["state_dict"].items())
    with np.load(tmp_path / "a" / "skipped_5.npz") as batch:
        names = batch["name"].tolist()
        assert batch["image"].shape == (len(names), 3, 40, 40)
    log = (tmp_path / "a" / "log.txt").read_text()
    assert "step 5 was skipped" in log and all(name in log for name in names)
    assert "skipped 1" in log.splitlines()[-1] and "nan" not in log.splitlines()[-1]


def test_a_gradient_that_is_not_finite_is_skipped_too(data, tmp_path, monkeypatch):
    def spoil(batch):
        (name, weight), *_ = seen[0].model.named_parameters()
        weight.register_hook(lambda gradient: gradient * float("inf"))

    seen, real = [], loop.train_epoch
    monkeypatch.setattr(loop, "train_epoch", lambda s, *a, **k: seen.append(s) or real(s, *a, **k))
    at_step(monkeypatch, 3, spoil)
    train(data, tmp_path / "run", epochs=1)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("was skipped") == 3 and "skipped 3" in log
    assert all(torch.isfinite(v).all() for v in content(tmp_path / "run")["state_dict"].values())


def test_ten_in_a_row_stop_the_run_with_the_checkpoint_from_before(data, tmp_path, monkeypatch):
    _spoil(monkeypatch, range(7, 100))
    with pytest.raises(InputError, match="the loss is not finite.* in 10 steps in a row"):
        train(data, tmp_path / "run", "--save_every", "3", epochs=20)
    assert content(tmp_path / "run")["step"] == 6
    assert len(list((tmp_path / "run").glob("skipped_*.npz"))) == 10


def test_detect_anomaly_names_the_operation(data, tmp_path, monkeypatch):
    _spoil(monkeypatch, [2])
    try:
        with pytest.warns(UserWarning), pytest.raises(RuntimeError, match="returned nan values"):
            train(data, tmp_path / "run", "--detect_anomaly")
    finally:
        torch.autograd.set_detect_anomaly(False)


def test_the_gradient_is_clipped(data, tmp_path, monkeypatch):
    norms, real = [], torch.optim.Adam.step

    def step(self, *args):
        gradients = [p.grad for p in self.param_groups[0]["params"] if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return real(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    train(data, tmp_path / "run", "--grad_clip", "0.5", epochs=1)
    assert norms == pytest.approx([0.5] * 5, rel=1e-3)


# ---- images


def _lose_images(monkeypatch, folder, count):
    """Removes training images once the data set is open; their names."""
    lost, real = [], build.build_loaders

    def build_loaders(*args):
        found = real(*args)
        dataset = found.train.dataset
        for i in range(count):
            (dataset.images / dataset.entries[dataset.indices[i]]["img_path"]).unlink()
            lost.append(dataset.names[i])
        return found

    monkeypatch.setattr(build, "build_loaders", build_loaders)
    return lost


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_vanishes_is_replaced_counted_and_named(data, tmp_path, monkeypatch, workers):
    shutil.copytree(data, tmp_path / "data")
    lost = _lose_images(monkeypatch, tmp_path / "data", 1)
    train(tmp_path / "data", tmp_path / "run", "--num_works", workers)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert (
        log.count("could not be read and were replaced: 1 (") == 2 and log.count(lost[0] + ":") == 2
    )


def test_more_than_one_in_a_hundred_stop_the_run(data, tmp_path, monkeypatch):
    shutil.copytree(data, tmp_path / "data")
    lost = _lose_images(monkeypatch, tmp_path / "data", 2)
    with pytest.raises(
        InputError, match="could not be read and were replaced: 2 .*more than 1 %"
    ) as stop:
        train(tmp_path / "data", tmp_path / "run")
    assert all(name in str(stop.value) for name in lost)


# ---- workers


def _signal_workers(number):
    """Signals this process' workers, not those that a fork left in its list."""

    def act(_):
        for child in multiprocessing.active_children():
            if child._parent_pid == os.getpid():
                os.kill(child.pid, number)

    return act


def test_a_killed_worker_ends_the_run_with_its_cause(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loaders, "TIMEOUT", 5)
    at_step(monkeypatch, 6, _signal_workers(signal.SIGKILL))
    more = ["--num_works", "2", "--save_every", "5"]
    status, said = train_apart(data, tmp_path / "run", *more, epochs=30)
    assert status == 2 and "Traceback" not in said, said
    assert "data-loader worker" in said.splitlines()[-1] and "ended" in said.splitlines()[-1]
    assert content(tmp_path / "run")["step"] == 5


@pytest.fixture
def all_end(tmp_path, monkeypatch):
    """Fails where a data-loader worker of the test outlives it."""
    path, real = tmp_path / "workers", loaders._start_worker

    def start(number):
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        real(number)

    monkeypatch.setattr(loaders, "_start_worker", start)
    yield
    workers, deadline = path.read_text().split(), time.monotonic() + 5
    while any(os.path.exists(f"/proc/{pid}") for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("all_end")
def test_workers_ignore_the_group_s_signals_and_end_with_the_run(data, tmp_path, monkeypatch):
    def act(_):
        _signal_workers(signal.SIGTERM)(_)
        _signal_workers(signal.SIGINT)(_)
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, 2, act)
    status, said = train_apart(data, tmp_path / "run", "--num_works", "2")
    assert status == 143 and content(tmp_path / "run")["step"] == 2, said


FAULT = """
import sys, torch
from datasets import build_dataset
from engine.loaders import make_loader
def script():
    dataset = build_dataset("stanford", sys.argv[1], "train", img_res=32)
    for batch in make_loader(dataset, 2, 2, torch.device("cpu"), 0):
        raise ZeroDivisionError("a fault of the script")
script()
"""


def test_workers_end_with_a_script_that_stops_with_a_fault(data):
    """Its traceback keeps the loader, whose workers ignore SIGTERM."""
    command = [sys.executable, "-c", FAULT, str(data)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.endswith("a fault of the script"), done.stderr


def _stop_while_loading(monkeypatch, split):
    """A worker stops itself before it reads an image of a split."""
    real = LabelledImages.load

    def load(self, *item):
        if self.split == split and multiprocessing.parent_process() is not None:
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(self, *item)

    monkeypatch.setattr(LabelledImages, "load", load)


def _stop_with_batches(monkeypatch):
    """Both workers are stopped, their batches waiting for the main process."""
    at_step(monkeypatch, 6, lambda _: (time.sleep(1), _signal_workers(signal.SIGSTOP)(_)))


STOPS = {
    "with a batch ready": _stop_with_batches,
    "before the first batch": lambda monkeypatch: _stop_while_loading(monkeypatch, "train"),
    "in validation": lambda monkeypatch: _stop_while_loading(monkeypatch, "val"),
}


def _limit(monkeypatch, seconds):
    """A run that takes longer is killed: SIGALRM."""
    real = main.main
    monkeypatch.setattr(main, "main", lambda argv: (signal.alarm(seconds), real(argv))[1])


@pytest.mark.usefixtures("all_end")
@pytest.mark.parametrize("moment", STOPS)
def test_a_stopped_worker_ends_the_run_with_its_cause(data, tmp_path, monkeypatch, moment):
    monkeypatch.setattr(loaders, "STOPPED", 2)
    STOPS[moment](monkeypatch)
    _limit(monkeypatch, 60)
    status, said = train_apart(data, tmp_path / "run", "--num_works", "2")
    assert status == 2, said
    assert "error: a data-loader worker" in said.splitlines()[-1]
    assert "was stopped for 2 s and killed" in said.splitlines()[-1]


@pytest.mark.usefixtures("all_end")
def test_workers_that_are_stopped_at_the_end_do_not_keep_the_run(data, tmp_path, monkeypatch):
    real = main.fit

    def fit(*args, **options):
        real(*args, **options)
        _signal_workers(signal.SIGSTOP)(None)
        signal.alarm(30)
        time.sleep(4)

    monkeypatch.setattr(main, "fit", fit)
    monkeypatch.setattr(loaders, "STOPPED", 2)
    status, said = train_apart(data, tmp_path / "run", "--num_works", "2")
    assert status == 0 and "ignored" not in said, said
    assert "epoch 2/2" in (tmp_path / "run" / "log.txt").read_text()


# ---- disks


@pytest.fixture
def small_disk(tmp_path):
    """A file system of six MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs more rights than this user has")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_in_a_sentence_and_the_checkpoint_is_whole(
    data, tmp_path, monkeypatch, small_disk
):
    at_step(monkeypatch, 4, lambda _: (small_disk / "other").write_bytes(bytes(5 * 10**6 // 2)))
    status, said = train_apart(data, small_disk / "run", "--save_every", "3", epochs=20)
    assert status == 2 and "Traceback" not in said, said
    assert f"{small_disk / 'run'} is full: checkpoint.pth.tar needs" in said.splitlines()[-1]
    assert content(small_disk / "run")["step"] == 3
    assert not list((small_disk / "run").glob(".*"))


def test_a_folder_that_vanishes_is_named(data, tmp_path, monkeypatch):
    at_step(monkeypatch, 4, lambda _: shutil.rmtree(tmp_path / "run"))
    with pytest.raises(InputError, match="run is gone, and with it the checkpoints"):
        train(data, tmp_path / "run", "--save_every", "3")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_becomes_read_only_is_named(data, monkeypatch, small_disk):
    def protect(_):
        mount = ["mount", "--bind", "-o", "ro", str(small_disk), str(small_disk)]
        subprocess.run(mount, check=True)

    at_step(monkeypatch, 4, protect)
    try:
        with pytest.raises(InputError, match=r"run.*cannot be written.*Read-only file system"):
            train(data, small_disk / "run", "--save_every", "3")
        assert content(small_disk / "run")["step"] == 3
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)
