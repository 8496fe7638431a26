"""A run's folder: what was run, a line an epoch, TensorBoard events, checkpoints."""

import shlex
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from util.files import write_json

CHECKPOINT, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
_OWN_FILES = ("args*.json", "log.txt", CHECKPOINT, BEST, "events.out.tfevents.*")


class SilentRun:
    """What processes other than the first do with their results: nothing."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __enter__(self) -> "SilentRun":
        return self

    def __exit__(self, *_) -> None:
        pass

    def line(self, *_) -> None:
        pass

    scalars = image = line


class RunFolder:
    """Opens `folder`, which exists, for a run and writes `args.json`.

    Nothing in the folder is lost: a run that is already there and is not continued is moved to
    `previous_N` inside it, and the `args.json` of one that is continued becomes `args_N.json`.

    Args:
        folder: of the run.
        options: of the command, by name.
        device: on which it runs.
        continued: whether the run in the folder resumes.
        step: steps done before.
    """

    def __init__(self, folder, options: dict, device: torch.device, continued: bool, step: int):
        self.folder = Path(folder)
        if not continued:
            self._move_previous()
        elif (self.folder / "args.json").exists():
            (self.folder / "args.json").rename(self._unused("args_{}.json"))
        about = {
            "command": shlex.join(sys.argv),
            "started": datetime.now().isoformat(timespec="seconds"),
            "torch": torch.__version__,
            "device": str(device),
            "options": options,
        }
        write_json(self.folder / "args.json", about)
        # purge_step hides what a crash left beyond the checkpoint
        self.writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind, *_) -> None:
        checkpoint = self.folder / CHECKPOINT
        if kind is KeyboardInterrupt and checkpoint.exists():
            self.line(f"interrupted; --resume {checkpoint} resumes")
        self.writer.close()

    def _unused(self, pattern: str) -> Path:
        number = 1
        while (path := self.folder / pattern.format(number)).exists():
            number += 1
        return path

    def _move_previous(self):
        old = [path for pattern in _OWN_FILES for path in self.folder.glob(pattern)]
        if old:
            target = self._unused("previous_{}")
            target.mkdir()
            for path in old:
                path.rename(target / path.name)
            print(f"{self.folder} held a run; it was moved to {target}.")

    def line(self, text: str) -> None:
        """One line on the screen and in log.txt."""
        tqdm.write(text)
        with open(self.folder / "log.txt", "a") as file:
            file.write(text + "\n")

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Values for TensorBoard as `<group>/<name>`."""
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """An image (H, W, 3) uint8 for TensorBoard."""
        self.writer.add_image(name, image, step, dataformats="HWC")
        self.writer.flush()
