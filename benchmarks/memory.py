"""Memory, open files and processes over many epochs of a small run.

    python -m benchmarks.memory --epochs 200

Prints what the training process and its workers hold after each tenth epoch; at the end the memory
must be within 2 % of that after 60 epochs.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from engine.run_folder import LOG
from synthetic.writer import make_data
from util.errors import InputError

from .kills import start

TINY = (
    "--backbone timm:test_efficientnet --img_res 40 --backbone_weights none --num_works 1 "
    "--device cpu --batch_size 4"
).split()
SETTLED, ALLOWED = 60, 1.02  # epochs after which memory stays; factor that it may still grow by


def family(pid: int) -> list[int]:
    """A process and all that it started, as Linux tells."""
    found = [pid]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent == pid:
            found += family(int(folder.name))
    return found


def memory(pids: list[int]) -> float:
    """MiB in use by processes; pages that they share count for each, so that copying adds none."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            total += int(line.split()[1]) if line.startswith("VmRSS:") else 0
    return total / 1024


def run(data: Path, folder: Path, epochs: int) -> list[tuple[int, float, int, int]]:
    """Epoch, MiB, open files and processes, each tenth epoch."""
    command = ["--data_dir", str(data), "--output_dir", str(folder), *TINY]
    pid, rows = start([*command, "--nEpochs", str(epochs)], folder.with_suffix(".txt")), []
    while not os.waitpid(pid, os.WNOHANG)[0]:
        time.sleep(0.2)
        text = (folder / LOG).read_text() if (folder / LOG).exists() else ""
        done = sum(line.startswith("epoch ") for line in text.splitlines())
        if done >= 10 * (len(rows) + 1) and done < epochs:
            pids = family(pid)
            files = sum(len(os.listdir(f"/proc/{p}/fd")) for p in pids)
            rows.append((done, memory(pids), files, len(pids)))
            print(f"epoch {done}: {rows[-1][1]:.1f} MiB, {files} open files", flush=True)
    if not rows:
        raise InputError(f"the run failed: {folder.with_suffix('.txt').read_text()[-2000:]}")
    return rows


def cli(argv=None) -> int:
    """Command line; returns 1 where memory grew."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--data_dir", type=Path, help="data set (default: 70 synthetic images)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data_dir or Path(folder) / "data"
        if args.data_dir is None:
            make_data(data, num_images=70, seed=0, num_workers=1)
        rows = run(data, Path(folder) / "run", args.epochs)
    settled = next((row[1] for row in rows if row[0] >= SETTLED), rows[-1][1])
    print(f"{rows[-1][1] / settled - 1:+.1%} from epoch {SETTLED} to {rows[-1][0]}")
    return rows[-1][1] > ALLOWED * settled


if __name__ == "__main__":
    sys.exit(cli())
