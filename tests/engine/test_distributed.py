"""Several processes do what one does: gradients, weights, scores and files; one that dies ends all.

The processes are Gloo's on CPUs, started by torchrun, with tiny networks. Four of them: pytest
--many_processes.
"""

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from engine import loop, resume
from engine.checkpoint import EpochProgress
from engine.device import select_device
from engine.loaders import make_loader
from engine.options import stage1_parser
from engine.signals import Stop
from tests.commands import SMALL
from tests.conftest import ROOT
from util import distributed
from util.errors import InputError

TINY = ("--backbone timm:test_efficientnet --img_res 40 --backbone_weights none").split()
STAGE3 = "--lr 1e-5 --local_feat --w_arap 10000 --w_dice 1000 --w_dice_refine 100"
STAGE3 += " --w_pose_limit_prior 5000"


def _command(processes: int, *arguments) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    start = torchrun if processes > 1 else []
    return [sys.executable, *start, "-m", "tests.engine.worker", *map(str, arguments)]


def _start(processes: int, *arguments, **options) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = _command(processes, *arguments)
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, **options)


def _run(processes: int, *arguments) -> str:
    process = _start(processes, *arguments)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def _train(data, folder, processes: int, script: str, *options):
    """Gradients of the first step, and the checkpoint after an epoch of batches of 8, 8 and 2."""
    common = ["--data_dir", data, "--num_works", "0", "--device", "cpu", "--batch_size", "8"]
    common += ["--nEpochs", "1", "--output_dir", folder / str(processes)]
    gradients = folder / f"gradients{processes}.pt"
    _run(processes, "double", gradients, script, *common, *options)
    checkpoint = folder / str(processes) / "checkpoint.pth.tar"
    return torch.load(gradients), torch.load(checkpoint, weights_only=True)


def _assert_same(one, several):
    """Gradients and weights, computed in float64 (see the worker): nothing but rounding differs.

    Adam enlarges that where a gradient is nearly 0, as of a bias before batch norm, up to its step
    of 1e-4.
    """
    (gradients, checkpoint), (others, other) = one, several
    assert [g is None for g in gradients] == [g is None for g in others]
    pairs = [(a, b) for a, b in zip(gradients, others, strict=True) if a is not None]
    assert all(a.dtype == torch.float64 for a, _ in pairs)
    largest = max(a.abs().max() for a, _ in pairs)
    assert max((a - b).abs().max() for a, b in pairs) < 1e-8 * largest
    for name, value in checkpoint["state_dict"].items():
        found = other["state_dict"][name]
        near = 4e-4 if name.endswith(".bias") else 1e-5  # after three steps
        torch.testing.assert_close(found, value, msg=name, rtol=1e-5, atol=near)
    assert checkpoint["optimizer"]["state"].keys() == other["optimizer"]["state"].keys()
    assert checkpoint["best_score"] == pytest.approx(other["best_score"], abs=0.01)


def _contents(folder) -> dict[str, bytes]:
    """The files of a folder by their paths in it."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    files.pop("fit_args.json", None)  # of the command and its time
    return files


def _assert_same_files(files, others):
    """To the last byte, but for the folder's name in the options of the report."""
    assert files.keys() == others.keys()
    assert [name for name in files if files[name] != others[name]] == ["stanford_report.json"]
    texts = [found["stanford_report.json"].splitlines() for found in (files, others)]
    changed = [a for a, b in zip(*texts, strict=True) if a != b]
    assert len(changed) == 1 and b"output_dir" in changed[0]


def _counts(config) -> list[int]:
    return [2, 4] if config.getoption("--many_processes") else [2]


def test_stage_1_learns_the_same(data, tmp_path, pytestconfig):
    """With four processes, the last batch of two images leaves two of them without any.

    They share a cache, which one of them makes.
    """
    one = _train(data, tmp_path, 1, "main.py", *TINY)
    several = [*TINY, "--cache", tmp_path / "cache"]
    for processes in _counts(pytestconfig):
        _assert_same(one, _train(data, tmp_path, processes, "main.py", *several))
    assert len(list((tmp_path / "cache").iterdir())) == 2, "of the training and validation images"
    log = (tmp_path / "2" / "log.txt").read_text()
    assert log.startswith("2 processes, stage 1 on cpu") and log.count("epoch 1/1") == 1


def test_micro_batches_are_the_same(data, tmp_path, pytestconfig):
    """Silhouettes over each; batch norm leaves gradients of 0, of which Adam makes steps."""
    if not pytestconfig.getoption("--many_processes"):
        pytest.skip("slow: --many_processes")
    options = [*SMALL, "--grad_accum", "3", "--freeze_bn", "--w_dice", "100"]
    one = _train(data, tmp_path, 1, "main.py", *options)
    for processes in (2, 4):
        _assert_same(one, _train(data, tmp_path, processes, "main.py", *options))


def test_stage_3_learns_the_same(data, runs, tmp_path, pytestconfig):
    """Local features, silhouettes of the whole batch, Laplacian and joint limits."""
    options = [*STAGE3.split(), "--resume", runs / "stage2" / "checkpoint.pth.tar"]
    one = _train(data, tmp_path, 1, "main_meshgraph.py", *options)
    for processes in _counts(pytestconfig):
        _assert_same(one, _train(data, tmp_path, processes, "main_meshgraph.py", *options))


def test_a_cache_that_cannot_be_made_is_named_by_all(data, tmp_path, pytestconfig):
    if not pytestconfig.getoption("--many_processes"):
        pytest.skip("slow: --many_processes")
    (tmp_path / "file").write_text("")
    options = ["--data_dir", data, *SMALL, "--cache", tmp_path / "file" / "cache"]
    arguments = tmp_path / "none", "main.py", *options, "--output_dir", tmp_path / "run"
    process = _start(2, *arguments)
    output, _ = process.communicate(timeout=300)
    assert process.returncode and "(Not a directory); give another folder" in output
    assert "closed by peer" not in output


def test_evaluation_writes_the_same_files(data, runs, tmp_path, pytestconfig):
    """Four images in batches of three: to the last byte, but for the options in the report."""
    common = ["eval.py", "--data_dir", data, "--num_works", "0", "--device", "cpu"]
    common += ["--batch_size", "3", "--save_results", "--resume"]
    common += [runs / "stage3" / "checkpoint.pth.tar", "--output_dir"]
    for processes in (1, *_counts(pytestconfig)):
        output = _run(processes, tmp_path / "none", *common, tmp_path / str(processes))
        assert output.count("Results are in") == 1
    files = _contents(tmp_path / "1")
    assert len(files) == 4 * 3 + 4 + 3  # scores, then the page, its library and its license
    for processes in _counts(pytestconfig):
        _assert_same_files(files, _contents(tmp_path / str(processes)))


@pytest.mark.parametrize("split", ["test", "all"])
def test_fits_are_the_same_files(data, tmp_path, split, pytestconfig):
    """Four images in batches of three, with strips; 24 of three splits in batches of five."""
    if split == "all" and not pytestconfig.getoption("--many_processes"):
        pytest.skip("slow: --many_processes")
    common = ["fit.py", "--data_dir", data, "--num_works", "0", "--device", "cpu"]
    common += ["--split", split, "--batch_size", "3" if split == "test" else "5"]
    common += ["--save_results"] if split == "test" else []
    for processes in (1, *_counts(pytestconfig)):
        output = _run(
            processes, tmp_path / "none", *common, "--output_dir", tmp_path / f"{processes}"
        )
        assert output.count("Results are in") == 1
    files = _contents(tmp_path / "1")
    images = 4 if split == "test" else 24
    assert sum(name.startswith("parameters/") for name in files) == images
    for processes in _counts(pytestconfig):
        _assert_same_files(files, _contents(tmp_path / f"{processes}"))


def test_a_killed_process_ends_the_other_with_the_cause(data, tmp_path):
    options = ["--data_dir", data, "--num_works", "0", "--device", "cpu", "--batch_size", "8"]
    options += ["--output_dir", tmp_path / "run", "--nEpochs", "500"]
    process = _start(2, tmp_path / "g.pt", "main.py", *options, *TINY)
    while not (tmp_path / "run" / "log.txt").exists() or not (tmp_path / "g.pt").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    if not os.path.exists(children):
        process.terminate()
        pytest.skip("needs /proc/PID/task/PID/children of Linux")
    workers = [int(pid) for pid in open(children).read().split()]
    os.kill(workers[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert f"Signal 9 (SIGKILL) received by PID {workers[-1]}" in output
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_to_one_process_saves_and_ends_both(data, tmp_path, number, pytestconfig):
    if not pytestconfig.getoption("--many_processes"):
        pytest.skip("slow: --many_processes")
    """After the same step: the first process saves, and the run resumes."""
    options = ["main.py", "--data_dir", data, "--num_works", "0", "--device", "cpu"]
    options += ["--batch_size", "8", "--output_dir", tmp_path, "--nEpochs"]
    process = _start(2, tmp_path / "g.pt", *options, "500", *SMALL)
    while not (tmp_path / "g.pt").exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    if not os.path.exists(children):
        process.terminate()
        pytest.skip("needs /proc/PID/task/PID/children of Linux")
    os.kill(int(open(children).read().split()[number]), signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "interrupted by SIGTERM" in output
    step = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["step"]
    epochs = str(step // 3 + 1)
    resumed = [*options, epochs, "--resume", tmp_path / "checkpoint.pth.tar"]
    assert "resumes" in _run(2, tmp_path / "g.pt", *resumed)


@pytest.mark.parametrize("processes", [1, 3])
def test_a_run_of_two_resumes_with_another_number(data, tmp_path, processes, pytestconfig):
    if not pytestconfig.getoption("--many_processes"):
        pytest.skip("slow: --many_processes")
    options = ["main.py", "--data_dir", data, "--num_works", "0", "--device", "cpu"]
    options += ["--batch_size", "8", "--output_dir", tmp_path, "--nEpochs"]
    _run(2, tmp_path / "g.pt", *options, "1", *SMALL)
    resumed = ["2", "--resume", tmp_path / "checkpoint.pth.tar"]
    output = _run(processes, tmp_path / "g.pt", *options, *resumed)
    assert "resumes" in output
    log = (tmp_path / "log.txt").read_text()
    assert "epoch 1/1" in log and "epoch 2/2" in log
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["step"] == 6


def test_several_gpus_start_a_process_each(monkeypatch):
    """As far as the choice of device: alone, and as the processes of two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    args = stage1_parser().parse_args(["--gpu_ids", "1,3"])
    with pytest.raises(distributed.Relaunch) as launch:
        select_device(args)
    assert launch.value.processes == 2
    for name, value in (("MASTER_ADDR", "localhost"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    for local, gpu in (("0", 1), ("1", 3)):
        monkeypatch.setenv("LOCAL_RANK", local)
        assert select_device(args) == torch.device("cuda", gpu)
    assert select_device(stage1_parser().parse_args([])) == torch.device("cuda", 1)
    with pytest.raises(InputError, match="2 processes were started"):
        select_device(stage1_parser().parse_args(["--gpu_ids", "0,1,2"]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # two machines with a process each
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match="one process was started"):
        select_device(args)


def _beside(monkeypatch, other):
    """As the first of two processes, of which the second gathers `other` from its values."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "gather_interleaved", lambda own: [*own, *map(other, own)])


def test_processes_that_see_other_images_are_refused(monkeypatch):
    dataset = SimpleNamespace(datasets=[SimpleNamespace(names=["a", "b"]) for _ in range(2)])
    _beside(monkeypatch, lambda own: own.replace("4", "3"))
    with pytest.raises(InputError, match="different usable images .process 0 has 4, .*1 3, "):
        make_loader(dataset, 2, 0, torch.device("cpu"))


def test_processes_that_start_from_other_checkpoints_are_refused(monkeypatch):
    state = SimpleNamespace(epoch=2, progress=EpochProgress(steps=5))
    monkeypatch.setattr(resume, "resume", lambda *_: [])
    _beside(monkeypatch, lambda own: own.replace("epoch 3", "epoch 1"))
    with pytest.raises(InputError, match="epoch 3, step 6, process 1 weights none, epoch 1"):
        resume.open_run(state, None, None, None)


def test_a_process_that_leaves_in_validation_lets_the_others_save():
    def validate():
        raise RuntimeError("Connection closed by peer")

    saved = []
    with pytest.raises(RuntimeError, match="closed by peer"):
        loop._validate(validate, Stop(), lambda: saved.append(1))
    assert saved == [1]
