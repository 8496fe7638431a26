"""Checkpoints: reading (published ones too) and writing."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from smal_model.files import written_aside

_MULTIARRAY = np._core.multiarray
# NumPy scalars occur in published checkpoints (scores); nothing else is admitted beyond tensors and plain values.
_NUMPY_SCALARS = [
    (_MULTIARRAY.scalar, "numpy.core.multiarray.scalar"),
    (_MULTIARRAY.scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "bool")),
]


@dataclass
class Checkpoint:
    """state_dict without the `module.` prefix; options: what shaped the network, None in files that store none; content: the
    whole file. `coarse_only`: the file is of stage 1."""

    path: Path
    state_dict: dict[str, torch.Tensor]
    options: dict | None
    content: dict

    @property
    def coarse_only(self) -> bool:
        return not any(key.startswith("graphnet.") for key in self.state_dict)

    @property
    def stage(self) -> int | None:
        """1, 2 or 3; None in files that do not say."""
        return self.content.get("stage")


def load_checkpoint(path, option="--resume") -> Checkpoint:
    """Reads a checkpoint without running anything it contains. Raises FileNotFoundError or ValueError naming `option`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{option} {path}: there is no such file; give the path of a checkpoint")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file can raise nearly anything
        asked = re.search(r"GLOBAL ([\w.]+)", str(e))
        reason = f"it asks for {asked[1]}" if asked else "it is damaged, or no PyTorch file"
        raise ValueError(f"{option} {path} is not a checkpoint that can be read safely ({reason})") from None
    state_dict = content.get("state_dict", content) if isinstance(content, dict) else None
    items = state_dict.items() if isinstance(state_dict, dict) else ()
    if not items or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in items):
        raise ValueError(f"{option} {path} holds no network weights; expected a dict with `state_dict`")
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    if all(key.startswith("meshnet.") for key in state_dict):
        state_dict = {key.removeprefix("meshnet."): value for key, value in state_dict.items()}
    return Checkpoint(path, state_dict, content.get("options"), content)


def load_weights(module: nn.Module, state_dict: dict, path):
    """Loads all weights, or none: raises ValueError that lists every missing, unexpected and misshapen key."""
    own = module.state_dict()
    faults = [f"missing {k}" for k in own if k not in state_dict] + [f"unexpected {k}" for k in state_dict if k not in own]
    for key in own.keys() & state_dict.keys():
        if own[key].shape != state_dict[key].shape:
            faults.append(f"{key} is {tuple(state_dict[key].shape)}, expected {tuple(own[key].shape)}")
    if faults:
        raise ValueError(
            f"the weights in {path} do not fit this network ({len(faults)} keys); give the options it was trained with "
            f"(--local_feat, --betas_scale, --backbone, ...): {'; '.join(sorted(faults))}"
        )
    module.load_state_dict(state_dict)


def save_checkpoint(path, content: dict):
    """Writes aside, then renames: a crash leaves the old file."""
    with written_aside(path) as temporary:
        torch.save(content, temporary)
