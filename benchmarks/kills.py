"""Kills a small run again and again (kill -9), resumes it, and looks for what was lost.

    python -m benchmarks.kills --kills 200

A third of the kills come at any moment, a third while a checkpoint is being written, a third within
300 ms after that. At the end of each run weights, optimiser, random state, best checkpoint, log and
TensorBoard's scalars must be those of an undisturbed run to the last bit, times apart.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

import main
from datasets.stanford import StanfordExtra
from engine.checkpoint import load_checkpoint
from engine.run_folder import BEST, CHECKPOINT, LOG, PREVIOUS
from synthetic.writer import make_data
from util.errors import InputError, run_cli

TINY = (
    "--backbone timm:test_efficientnet --img_res 40 --backbone_weights none --num_works 0 "
    "--device cpu --renderer torch --batch_size 4 --save_every 3 --nEpochs 14"
).split()
AFTER = 0.3  # seconds after a checkpoint
MOMENTS = ("any", "saving", "saved")
RUN_LIMIT = 600  # seconds


@dataclass
class Outcome:
    """What a series of kills came to; losses: sentences."""

    kills: int = 0
    resumes: int = 0
    starts: int = 0
    runs: int = 0
    losses: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.resumes} resumes, {self.starts} starts anew, "
            f"{self.runs} runs, {len(self.losses)} losses"
        )


def start(command: list[str], output: Path) -> int:
    """Runs the training script in a child of this process, which has everything imported.

    A child that takes longer than RUN_LIMIT is ended by SIGALRM.
    """
    pid = os.fork()
    if pid:
        return pid
    status = 1
    signal.alarm(RUN_LIMIT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    # tqdm's lock is one for all processes: killed with it in hand, a child would stop all others
    tqdm.set_lock(threading.RLock())
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    try:
        file = open(output, "w", buffering=1)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        run_cli(main.main, command)
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        os._exit(status)


def _identity(path: Path):
    """Tells one version of a file from the next."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _wait_or_kill(pid: int, folder: Path, moment: str, rng: random.Random, length: float) -> bool:
    """Kills a run at a moment of the kind asked for; False where it ended before."""
    start, saved = time.monotonic(), _identity(folder / CHECKPOINT)
    due = start + rng.uniform(0, length / 2) if moment == "any" else start + RUN_LIMIT
    passed = rng.randrange(3)  # checkpoints that are let pass
    while time.monotonic() < due:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        now = _identity(folder / CHECKPOINT)
        if moment == "saving" and passed <= 0 and any(folder.glob(".*-*")):
            due = time.monotonic() + rng.uniform(0, 0.02)
            moment = "soon"
        if now != saved:
            saved, passed = now, passed - 1
            if moment == "saved" and passed < 0:
                due = time.monotonic() + rng.uniform(0, AFTER)
                moment = "soon"
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def newest_step(folder: Path) -> int:
    """Steps that the newest whole checkpoint of a folder holds; -1 where there is none."""
    for name in (CHECKPOINT, PREVIOUS):
        try:
            content = load_checkpoint(folder / name).content
        except InputError:
            continue
        return content["step"]
    return -1


def _differences(a, b, where: str) -> list[str]:
    """Paths at which two values differ."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if list(map(str, a)) != list(map(str, b)):
            return [where]
        return [d for k in a for d in _differences(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in _differences(x, y, f"{where}/{i}")]
    return [] if a == b else [where]


def _timeless(lines: list[str]) -> list[str]:
    return [re.sub(r"\|  [\d.]+ s$", "", line) for line in lines]


def _scalars(folder: Path) -> dict:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def compare(whole: Path, parts: Path) -> list[str]:
    """What differs between the folders of two finished runs, times apart."""
    found = []
    for name in (CHECKPOINT, BEST):
        a, b = (load_checkpoint(folder / name).content for folder in (whole, parts))
        for content in (a, b):
            content["log"] = _timeless(content.get("log", []))
        found += _differences(a, b, name)
    a, b = (_timeless((folder / LOG).read_text().splitlines()) for folder in (whole, parts))
    found += _differences(a, b, LOG)
    found += _differences(_scalars(whole), _scalars(parts), "events")
    return [f"{parts.name}: {path} differs" for path in found]


def run(data: Path, out: Path, kills: int, seed: int = 0, options: list[str] = TINY) -> Outcome:
    """Runs until so many kills were survived, and one run more to its end.

    Args:
        data: folder of a data set with its body.
        out: folder for the runs.
        kills: number of them.
        seed: of the moments.
        options: of the runs.
    """
    torch.set_num_threads(1)
    rng, outcome = random.Random(seed), Outcome()
    command = ["--data_dir", str(data), *options, "--resume", "auto", "--output_dir"]
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    pid = start([*command, str(out / "whole")], out / "whole.txt")
    if os.waitpid(pid, 0)[1]:
        raise InputError(f"the undisturbed run failed: {(out / 'whole.txt').read_text()[-2000:]}")
    length = time.monotonic() - began
    while outcome.kills < kills:
        folder, step = out / f"run_{outcome.runs}", -1
        ended = False
        while not ended:
            pid = start([*command, str(folder)], out / "last.txt")
            if outcome.kills < kills:
                ended = not _wait_or_kill(pid, folder, rng.choice(MOMENTS), rng, length)
                outcome.kills += not ended
            else:
                os.waitpid(pid, 0)
                ended = True
            said = (out / "last.txt").read_text()
            outcome.resumes += "; resumes " in said
            outcome.starts += "it starts anew" in said
            now = newest_step(folder)
            if now < step or "Traceback" in said or "error:" in said:
                outcome.losses.append(f"{folder.name}: step {step} before, {now} after: {said}")
            step = now
        outcome.losses += compare(out / "whole", folder)
        outcome.runs += 1
        shutil.rmtree(folder)
        print(outcome, flush=True)
    return outcome


def cli(argv=None) -> int:
    """Command line; returns 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", type=Path, help="data set (default: 20 synthetic images)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data_dir or Path(folder) / "data"
        if args.data_dir is None:
            make_data(data, num_images=20, seed=0, num_workers=1)
            StanfordExtra.split_path(data, "val").unlink()  # so few leave it empty
        found = run(data, Path(folder) / "runs", args.kills, args.seed)
    print("\n".join(found.losses))
    return bool(found.losses)


if __name__ == "__main__":
    sys.exit(cli())
