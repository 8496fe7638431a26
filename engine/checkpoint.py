"""What a checkpoint holds, how it is written, and how ours, older and published ones are read.

A file of ours is a dict: `state_dict` (weights), `options` (NetworkConfig), `stage` (1, 2, 3),
`training` (what steers learning), `num_verts` (of the body), `epoch`, `step`, `best_score`, and, in
`checkpoint.pth.tar` alone, `optimizer` and `random_state`. Where weights are averaged, `state_dict`
holds the average, which validation scores, and `learning_weights` those that learn. Published files
hold `state_dict` under the prefix `module.` and no options.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from model import CoarseToFine, NetworkConfig, Networks
from util import distributed
from util.errors import InputError
from util.files import atomic_write

from .schedule import AveragedWeights, Schedule

_MULTIARRAY = np._core.multiarray
# NumPy scalars occur in published files (scores); beyond them tensors and plain values alone.
_NUMPY_SCALARS: list = [
    (_MULTIARRAY.scalar, "numpy.core.multiarray.scalar"),
    (_MULTIARRAY.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "bool")),
]


@dataclass
class Checkpoint:
    """A file that was read.

    path: where it lies.
    state_dict: weights, without the prefixes `module.` and, for stage 1, `meshnet.`.
    content: the whole file.
    """

    path: Path
    state_dict: dict[str, torch.Tensor]
    content: dict

    @property
    def options(self) -> dict:
        """What shaped the network, flat; empty in files that do not say."""
        return self.content.get("options") or {}

    @property
    def refined(self) -> bool:
        """Whether there is a refiner in it."""
        return any(key.startswith("graphnet.") for key in self.state_dict)

    @property
    def stage(self) -> int | None:
        """1, 2 or 3; None in files that do not say."""
        return self.content.get("stage")

    @property
    def resumable(self) -> bool:
        """Whether a run can resume from it: files without optimiser state are only a start."""
        return "optimizer" in self.content


@dataclass
class TrainState:
    """All that a run must have to continue as if nothing had happened.

    model, optimizer: as they are.
    config: of the networks. stage: 1, 2 or 3. training: what steers learning, by option.
    schedule: of the learning rate. average: of the weights, or None.
    epoch, step: done so far. best_score: of the best epoch. resumed: it continues another's run.
    """

    model: Networks
    optimizer: torch.optim.Optimizer
    config: NetworkConfig
    stage: int
    training: dict = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)
    average: AveragedWeights | None = None
    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf
    resumed: bool = False

    @property
    def scored(self) -> Networks:
        """The networks that are evaluated: with averaged weights where there are some."""
        return self.average.model if self.average else self.model

    def weights_dict(self) -> dict:
        """The content of `model_best.pth.tar`."""
        return {
            "state_dict": self.scored.state_dict(),
            "options": self.config.to_dict(),
            "stage": self.stage,
            "training": self.training,
            "num_verts": self.model.smal.num_verts,
            "epoch": self.epoch,
            "step": self.step,
            "best_score": self.best_score,
        }

    def state_dict(self) -> dict:
        """The content of `checkpoint.pth.tar`."""
        state = {"optimizer": self.optimizer.state_dict(), "random_state": torch.get_rng_state()}
        if self.average:
            state["learning_weights"] = self.model.state_dict()
        return self.weights_dict() | state

    def load_state_dict(self, content: dict) -> None:
        """Continues where a run of this stage stood; averaged weights came with the model."""
        if "learning_weights" in content:
            self.model.load_state_dict(content["learning_weights"])
        torch.set_rng_state(content["random_state"])
        self.epoch, self.step = content["epoch"], content["step"]
        self.best_score = content.get("best_score", -math.inf)

    def load_optimizer(self, checkpoint: Checkpoint) -> None:
        """Takes over the optimiser's state, but not its learning rate."""
        if not checkpoint.resumable:
            raise InputError(
                f"{checkpoint.path} holds no optimiser state; checkpoint.pth.tar files do"
            )
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(checkpoint.content["optimizer"])
        except ValueError as error:
            reason = f"the optimiser state in {checkpoint.path} is of other parameters ({error})"
            raise InputError(f"{reason}: start without it") from None
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


def load_checkpoint(path) -> Checkpoint:
    """Reads a checkpoint without running anything that it contains.

    Raises:
        InputError: there is no such file, it asks for code, or it holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the path of a checkpoint")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is damaged, or no PyTorch file"
        raise InputError(f"{path} is not a checkpoint that can be read safely ({reason})") from None
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    items = state_dict.items() if isinstance(state_dict, dict) else ()
    if not items or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in items):
        raise InputError(f"{path} holds no network weights; expected a dict with `state_dict`")
    state_dict = {key.removeprefix("module."): value for key, value in items}
    if all(key.startswith("meshnet.") for key in state_dict):
        state_dict = {key.removeprefix("meshnet."): value for key, value in state_dict.items()}
    return Checkpoint(path, state_dict, content)


def load_weights(model: Networks, checkpoint: Checkpoint) -> None:
    """Loads a checkpoint into a network: stage 1 files into `meshnet`, others into all.

    Raises:
        InputError: it was trained on another body, or its weights do not fit; lists every key.
    """
    trained_on = checkpoint.content.get("num_verts", model.smal.num_verts)
    if trained_on != model.smal.num_verts:
        raise InputError(
            f"{checkpoint.path} was trained on a body of {trained_on} vertices, this one has "
            f"{model.smal.num_verts}; give the data folder of that body"
        )
    coarse_alone = isinstance(model, CoarseToFine) and not checkpoint.refined
    part: nn.Module = model.meshnet if coarse_alone else model  # type: ignore[assignment]
    faults = misfits(part, checkpoint.state_dict)
    if faults:
        raise InputError(
            f"the weights in {checkpoint.path} do not fit this network ({len(faults)} keys); "
            f"give the network options it was trained with: {'; '.join(faults)}"
        )
    part.load_state_dict(checkpoint.state_dict)


def misfits(module: nn.Module, state_dict: dict) -> list[str]:
    """Every missing, unexpected and misshapen key, sorted; empty where the weights fit."""
    own = module.state_dict()
    faults = [f"missing {k}" for k in own.keys() - state_dict.keys()]
    faults += [f"unexpected {k}" for k in state_dict.keys() - own.keys()]
    for key in own.keys() & state_dict.keys():
        found, wanted = tuple(state_dict[key].shape), tuple(own[key].shape)
        if found != wanted:
            faults.append(f"{key} is {found}, expected {wanted}")
    return sorted(faults)


def save_checkpoint(path, content: dict) -> None:
    """Writes a checkpoint whole: a crash leaves the old file. Of several processes, the first."""
    if not distributed.is_main():
        return
    with atomic_write(path) as temporary:
        torch.save(content, temporary)
