"""What a checkpoint holds, and how ours, older and published ones are read.

A file of ours is a dict: `state_dict` (weights), `checksum` (of them), `options` (NetworkConfig),
`stage` (1, 2, 3), `training` (what steers learning), `num_verts` (of the body), `epoch`, `step`,
`best_score`, and, in `checkpoint.pth.tar` alone, what `TrainState.state_dict` adds. Where weights
are averaged, `state_dict` holds the average, which validation scores, and `learning_weights`, in
`checkpoint.pth.tar` alone, those that learn. Published files
hold `state_dict` under the prefix `module.` and no options.
"""

import math
import random
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model import CoarseToFine, NetworkConfig, Networks
from model.config import RefinerConfig
from util.errors import InputError

from .checkpoint_files import checksum, read_file
from .schedule import AveragedWeights, Schedule

LARGEST_OPTION = 4096  # of the network options that are numbers
_KINDS: dict[str, Any] = {
    "options": dict, "training": dict, "stage": int, "num_verts": int, "epoch": int, "step": int,
    "best_score": float, "minutes": float, "log": list, "progress": dict, "skipped": int,
    "learning_weights": dict,
}  # fmt: skip

PUBLISHED_INPUTS = 3 + 2048  # of the published refiner at a vertex, without local features


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
        """What shaped the network, flat; of files that do not say, what the weights tell."""
        first = self.state_dict.get("graphnet.lin1.W")
        if "options" in self.content or first is None:
            return self.content.get("options") or {}
        return {"local_feat": first.shape[-1] > PUBLISHED_INPUTS}

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
class EpochProgress:
    """What is done of an epoch that is not over.

    dataset_size: images in an epoch. steps: done. images: that counted.
    sums: of each term over those images. seconds: it took.
    skipped: steps with a loss or gradient that was not finite.
    failed: images that could not be read, each with its fault.
    """

    dataset_size: int = 0
    steps: int = 0
    images: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass
class TrainState:
    """All that a run must have to continue as if nothing had happened.

    model, optimizer: as they are.
    config: of the networks. stage: 1, 2 or 3. training: what steers learning, by option.
    grad_clip: largest norm of the gradient. schedule: of the learning rate.
    average: of the weights, or None. grad_accum: micro-batches of a step.
    cuda_graph: record steps on a GPU (engine.cuda_graph).
    epoch, step: done so far. best_score: of the best epoch. resumed: it continues another's run.
    progress: in the epoch under way. skipped: steps in a row that were not finite. log: log.txt.
    """

    model: Networks
    optimizer: torch.optim.Optimizer
    config: NetworkConfig
    stage: int
    training: dict = field(default_factory=dict)
    grad_clip: float = math.inf
    schedule: Schedule = field(default_factory=Schedule)
    average: AveragedWeights | None = None
    grad_accum: int = 1
    cuda_graph: bool = True
    epoch: int = 0
    step: int = 0
    best_score: float = -math.inf
    resumed: bool = False
    progress: EpochProgress = field(default_factory=EpochProgress)
    skipped: int = 0
    log: list[str] = field(default_factory=list)

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
        state = {
            "optimizer": self.optimizer.state_dict(),
            "random_state": random_state(self.model.device),
            "progress": asdict(self.progress),
            "skipped": self.skipped,
            "log": list(self.log),
        }
        if self.schedule.max_minutes is not None:
            state["minutes"] = self.schedule.minutes()
        if self.average:
            state["learning_weights"] = self.model.state_dict()
        return self.weights_dict() | state

    def load_state_dict(self, checkpoint: Checkpoint) -> None:
        """Continues where a run of this stage stood; averaged weights came with the model.

        Raises:
            InputError: the optimiser's or the random state or the learning weights do not fit.
        """
        content = checkpoint.content
        self.load_optimizer(checkpoint)
        if learning := content.get("learning_weights"):
            if faults := misfits(self.model, learning):
                reason = f"the learning weights in {checkpoint.path} do not fit"
                raise InputError(f"{reason} ({'; '.join(faults)}); take another file")
            self.model.load_state_dict(learning)
        try:
            set_random_state(content["random_state"], self.model.device)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as e:
            raise InputError(
                f"the random state in {checkpoint.path} is damaged ({e}); take another file"
            ) from None
        self.epoch, self.step = content["epoch"], content["step"]
        self.best_score = content.get("best_score", -math.inf)
        self.progress = EpochProgress(**content.get("progress", {}))
        self.skipped, self.log = content.get("skipped", 0), list(content.get("log", []))
        self.schedule.started -= 60 * content.get("minutes", 0.0)

    def load_optimizer(self, checkpoint: Checkpoint) -> None:
        """Takes over the optimiser's state, but not its learning rate.

        Raises:
            InputError: the file holds none, or that of other parameters.
        """
        if not checkpoint.resumable:
            raise InputError(
                f"{checkpoint.path} holds no optimiser state; checkpoint.pth.tar files do"
            )
        saved, own = checkpoint.content["optimizer"], self.optimizer.state_dict()
        fault = _optimizer_fault(saved, own, self.optimizer)
        if fault:
            reason = f"the optimiser state in {checkpoint.path} is of other parameters ({fault})"
            raise InputError(f"{reason}: start from model_best.pth.tar of that run")
        self.optimizer.load_state_dict(own | {"state": saved["state"]})


def _optimizer_fault(saved, own: dict, optimizer: torch.optim.Optimizer) -> str | None:
    """Why a saved state of Adam does not fit; None where it does."""
    try:
        counts = [len(group["params"]) for group in saved["param_groups"]]
        state = dict(saved["state"])
    except (TypeError, LookupError, ValueError):
        return "it is damaged"
    if counts != [len(group["params"]) for group in own["param_groups"]]:
        return f"groups of {counts}"
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        if not isinstance(index, int) or not 0 <= index < len(parameters):
            return f"parameter {index}"
        if not isinstance(values, dict) or set(values) != {"step", "exp_avg", "exp_avg_sq"}:
            return f"other values of parameter {index}"
        for name, value in values.items():
            shape = () if name == "step" else tuple(parameters[index].shape)
            if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
                return f"{name} of parameter {index} is no tensor of float32"
            if tuple(value.shape) != shape:
                return f"{name} of parameter {index} is {tuple(value.shape)}, expected {shape}"
    return None


def random_state(device: torch.device) -> dict:
    """The random state of Python, NumPy and PyTorch as plain values and tensors."""
    numpy_state: tuple = np.random.get_state(legacy=True)  # type: ignore[assignment]
    name, keys, *rest = numpy_state
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_random_state(state, device: torch.device) -> None:
    """Sets what `random_state` gave; older files hold PyTorch's alone, as a tensor."""
    if isinstance(state, torch.Tensor):
        return torch.set_rng_state(state)
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def load_checkpoint(path) -> Checkpoint:
    """Reads a checkpoint without running anything that it contains.

    Raises:
        InputError: there is no such file, it asks for code, is damaged, or holds no weights.
    """
    path = Path(path)
    content = read_file(path)
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    items = state_dict.items() if isinstance(state_dict, dict) else ()
    if not items or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in items):
        raise InputError(f"{path} holds no network weights; expected a dict with `state_dict`")
    if "state_dict" in content and "checksum" in content:
        if content["checksum"] != checksum(dict(items)):
            raise InputError(
                f"the weights in {path} are not those that were written (checksum): take another "
                "file, or delete its entry `checksum` where the change is meant"
            )
    for key, value in items:
        if value.is_floating_point() and not value.isfinite().all():
            found = f"{key} in {path} holds values that are not finite, of a training that diverged"
            raise InputError(f"{found}; take another checkpoint")
    if "stage" in content and (fault := _content_fault(content)):
        raise InputError(f"{path} is damaged ({fault}); take another checkpoint")
    state_dict = {key.removeprefix("module."): value for key, value in items}
    if all(key.startswith("meshnet.") for key in state_dict):
        state_dict = {key.removeprefix("meshnet."): value for key, value in state_dict.items()}
    return Checkpoint(path, state_dict, content)


def _content_fault(content: dict) -> str | None:
    """What a file of ours holds that none of ours does; None where all is well."""
    for name, kind in _KINDS.items():
        value: Any = content.get(name, kind())
        if not isinstance(value, kind) or (kind is int and value < 0) or value != value:
            return f"{name} is {value!r:.50}"
    if content["stage"] not in (1, 2, 3) or not {"epoch", "step"} <= content.keys():
        return "it lacks its stage, epoch or step"
    defaults: dict = vars(NetworkConfig()) | vars(RefinerConfig())
    for name, value in content.get("options", {}).items():
        if name in defaults and name != "refiner" and type(value) is not type(defaults[name]):
            return f"option {name} is {value!r:.50}"
        if type(value) is int and not -1 <= value <= LARGEST_OPTION:
            return f"option {name} is {value}"
    if not all(_is_plain(value) for value in content.get("training", {}).values()):
        return "its training options"
    if not all(isinstance(v, torch.Tensor) for v in content.get("learning_weights", {}).values()):
        return "its learning weights"
    if not all(isinstance(line, str) for line in content.get("log", [])):
        return "its log"
    own, progress = EpochProgress(), content.get("progress", {})
    if not {f.name for f in fields(own)} >= set(progress) or any(
        type(value) is not type(getattr(own, name)) for name, value in progress.items()
    ):
        return "its progress in the epoch"
    if not all(type(v) is float for v in progress.get("sums", {}).values()):
        return "its sums of losses"
    if not all(isinstance(v, str) for v in progress.get("failed", [])):
        return "its list of images"
    return None


def _is_plain(value) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


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
        elif state_dict[key].is_floating_point() != own[key].is_floating_point():
            faults.append(f"{key} is of {state_dict[key].dtype}, expected {own[key].dtype}")
    return sorted(faults)
