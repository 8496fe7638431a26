"""A run's folder: what was run, a line an epoch, TensorBoard events, checkpoints."""

import math
import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from util.errors import InputError, say
from util.files import atomic_write, lock_folder, sweep_leftovers, write_json, write_text

from .checkpoint import TrainState
from .checkpoint_files import write_file

CHECKPOINT, BEST = "checkpoint.pth.tar", "model_best.pth.tar"
PREVIOUS = "checkpoint_previous.pth.tar"  # the one before CHECKPOINT
DAMAGED = "checkpoint_damaged.pth.tar"  # a CHECKPOINT that could not be read
LOG = "log.txt"
SKIPPED = "skipped_{}.npz"  # a batch whose step was skipped
MOST_SKIPPED_FILES = 10
_OWN_FILES = (
    "args*.json", LOG, CHECKPOINT, BEST, PREVIOUS, DAMAGED, SKIPPED.format("*"),
    "events.out.tfevents.*",
)  # fmt: skip
MESH_VIEW = {  # of TensorBoard's mesh viewer, three.js: y is up, the camera looks along -z
    "camera": {"cls": "PerspectiveCamera", "fov": 40},
    "lights": [
        {"cls": "AmbientLight", "color": "#ffffff", "intensity": 0.75},
        {"cls": "DirectionalLight", "color": "#ffffff", "intensity": 0.5, "position": [0, 1, 2]},
    ],
    "material": {"cls": "MeshStandardMaterial", "roughness": 1, "metalness": 0},
}


def write_command(path: Path, options: dict, device: str) -> None:
    """Writes what is run: command, time, PyTorch's version, device and all options, as JSON."""
    about = {
        "command": shlex.join(sys.argv),
        "started": datetime.now().isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "device": device,
        "options": options,
    }
    write_json(path, about)


class SilentRun:
    """What processes other than the first do with their results: nothing."""

    save_every = 0

    def __enter__(self) -> "SilentRun":
        return self

    def __exit__(self, *_) -> None:
        pass

    def line(self, *_) -> None:
        pass

    scalars = image = mesh = save = save_best = skipped = line


class RunFolder:
    """Opens `folder`, which exists, for a run and writes `args.json`.

    Nothing in the folder is lost: a run that is already there and is not continued is moved to
    `previous_N` inside it, and the `args.json` of one that is continued becomes `args_N.json`. The
    log of a run that is continued is that of its checkpoint: what came after is done again.

    Args:
        folder: of the run.
        options: of the command, by name.
        state: of the run; its log is written to.
        continued: whether the run in the folder resumes.
        save_every: steps between two checkpoints within an epoch; 0: none.
    """

    def __init__(
        self, folder, options: dict, state: TrainState, continued: bool, save_every: int = 0
    ):
        self.folder, self.state, self.save_every = Path(folder), state, save_every
        try:
            self._lock = lock_folder(self.folder)
        except BlockingIOError:
            found = f"{self.folder} is the folder of a run that another process is at"
            raise InputError(f"{found}; wait for its end, or give another --output_dir") from None
        try:
            self._begin(options, continued)
        except BaseException:
            self._unlock()
            raise

    def _begin(self, options, continued):
        state = self.state
        sweep_leftovers(self.folder)
        if not continued:
            self._move_previous()
            state.log = []
        elif (self.folder / "args.json").exists():
            (self.folder / "args.json").rename(self._unused("args_{}.json"))
        if continued and not state.log and (self.folder / LOG).exists():  # older checkpoints
            state.log = (self.folder / LOG).read_text("utf-8", "replace").splitlines()
        write_command(self.folder / "args.json", options, str(state.model.device))
        self._write_log()
        # purge_step hides what a crash left beyond the checkpoint; an epoch's events follow it
        purge_step = state.step + (state.progress.steps == 0)
        # TensorBoard reads files in the order of their names, which have the second they begin in.
        now = time.time()
        if list(self.folder.glob(f"events.out.tfevents.{int(now)}.*")):
            time.sleep(int(now) + 1 - now)
        with self._reported():
            self.writer = SummaryWriter(str(self.folder), purge_step=purge_step)
            *start, self._end = _hparams(state, options)
            for summary in start:
                self.writer._get_file_writer().add_summary(summary)

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, kind, error, _) -> None:
        checkpoint = self.folder / CHECKPOINT
        if kind is not None and issubclass(kind, KeyboardInterrupt) and checkpoint.exists():
            by = f" by {error}" if str(error) else ""
            self.line(f"interrupted{by}; --resume {checkpoint} resumes")
        try:
            with self._reported():
                if kind is None:
                    self.writer._get_file_writer().add_summary(self._end)
                self.writer.close()
        except InputError:
            if kind is None:  # else the first fault is the one to tell
                raise
        finally:
            self._unlock()

    def _unlock(self):
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

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

    def _write_log(self):
        write_text(self.folder / LOG, "".join(line + "\n" for line in self.state.log))

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Names the folder where it cannot be written to, or is gone."""
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder} is gone, and with it the checkpoints of this run; give another "
                "folder, or start again"
            )
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise InputError(
                f"{self.folder} cannot be written to ({reason}); see to the disk, then resume"
            ) from error

    def line(self, text: str) -> None:
        """One line on the screen and in log.txt."""
        say(text)
        self.state.log.append(text)
        with self._reported():
            self._write_log()

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Values for TensorBoard as `<group>/<name>`."""
        with self._reported():
            for name, value in values.items():
                self.writer.add_scalar(f"{group}/{name}", value, step)

    def image(self, name: str, image: np.ndarray, step: int) -> None:
        """An image (H, W, 3) uint8 for TensorBoard."""
        with self._reported():
            self.writer.add_image(name, image, step, dataformats="HWC")

    def mesh(self, name: str, verts, faces, colors, step: int) -> None:
        """A mesh for TensorBoard.

        Args:
            name: its tag; tags are sorted.
            verts: (V, 3) array, x right, y up, z towards the viewer.
            faces: (F, 3) array.
            colors: (V, 3) array, red green blue in [0, 1].
            step: of the run.
        """
        values = verts, np.round(255 * colors), faces
        points, paint, corners = (torch.from_numpy(np.ascontiguousarray(v))[None] for v in values)
        with self._reported():
            self.writer.add_mesh(name, points, paint, corners, MESH_VIEW, step)

    def save(self) -> None:
        """Writes the checkpoint; the one before stays as PREVIOUS."""
        with self._reported():
            self.writer.flush()  # no event of what the checkpoint holds is lost
            write_file(self.folder / CHECKPOINT, self.state.state_dict(), self.folder / PREVIOUS)

    def save_best(self) -> None:
        """Writes the weights as those of the best epoch."""
        with self._reported():
            write_file(self.folder / BEST, self.state.weights_dict())

    def skipped(self, batch: dict, values: dict[str, float], names: list[str]) -> None:
        """Logs a batch whose step was skipped, and keeps the first ones for a look.

        Args:
            batch: of this process' images.
            values: of its losses and the norm of the gradient.
            names: of the images in all processes.
        """
        found = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        text = f"step {self.state.step} was skipped, it is not finite: {found}; "
        text += f"images {', '.join(names)}"
        if len(list(self.folder.glob(SKIPPED.format("*")))) < MOST_SKIPPED_FILES:
            path = self.folder / SKIPPED.format(self.state.step)
            arrays: dict = {
                k: v.cpu().numpy() if isinstance(v, torch.Tensor) else np.array(v)
                for k, v in batch.items()
            }
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays)
            part = "them" if len(names) == len(batch["name"]) else "those of process 0"
            text += f"; {path.name} holds {part}"
        self.line(text)


def _hparams(state: TrainState, options: dict) -> tuple:
    """TensorBoard's summaries of what steers the run and of the names of its best scores."""
    values = state.training | state.config.to_dict()
    values |= {"stage": state.stage, "nEpochs": options.get("nEpochs")}
    # what is infinite (no limit) would break TensorBoard's page
    values = {k: v for k, v in values.items() if v not in (math.inf, -math.inf)}
    scores = ["score", "pck", "iou"]
    if state.config.refiner:
        scores += ["pck_refined", "iou_refined"]
    return hparams(values, dict.fromkeys([f"best/{name}" for name in scores]))
