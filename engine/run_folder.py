"""A run's folder: what was run, a line an epoch, TensorBoard events, checkpoints."""

import json
import shlex
import sys
from datetime import datetime
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from smal_model.files import written_aside

CHECKPOINT, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
_OWN_FILES = ("args*.json", "log.txt", CHECKPOINT, BEST, "events.out.tfevents.*")


def write_json(path, value):
    """Writes aside, then renames. NaN becomes null."""
    with written_aside(path) as temporary:
        temporary.write_text(json.dumps(_jsonable(value), indent=2, allow_nan=False) + "\n")


def _jsonable(value):
    if isinstance(value, dict):
        return {str(k): _jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(v) for v in value]
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return value if isinstance(value, int | str | bool | None) else str(value)


class RunFolder:
    """Opens `folder`, which exists, for a run and writes `args.json`. step: steps done before.

    Nothing in the folder is lost: a run that is already there and is not continued is moved to `previous_N` inside it, and the
    `args.json` of one that is continued becomes `args_N.json`.
    """

    def __init__(self, folder, args, device, continued: bool, step: int):
        self.folder = Path(folder)
        if not continued:
            self._move_previous()
        elif (self.folder / "args.json").exists():
            (self.folder / "args.json").rename(self._unused("args_{}.json"))
        write_json(
            self.folder / "args.json",
            {
                "command": shlex.join(sys.argv),
                "started": datetime.now().isoformat(timespec="seconds"),
                "torch": torch.__version__,
                "device": str(device),
                "options": vars(args),
            },
        )
        self.writer = SummaryWriter(self.folder, purge_step=step + 1)  # hides what a crash left beyond the checkpoint

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

    def line(self, text: str):
        """One line on the screen and in log.txt."""
        tqdm.write(text)
        with open(self.folder / "log.txt", "a") as file:
            file.write(text + "\n")

    def scalars(self, group: str, values: dict[str, float], step: int):
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def picture(self, name: str, picture, step: int):
        """picture: (H, W, 3) uint8."""
        self.writer.add_image(name, picture, step, dataformats="HWC")
        self.writer.flush()

    def close(self):
        self.writer.close()
