"""What changes while training goes on: the learning rate, and averaged weights."""

import copy
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

SCHEDULES = ("constant", "step", "cosine")
STEPS = ((2 / 3, 0.1), (8 / 9, 0.01))  # `step`: from this part of the run on, this factor


@dataclass
class Schedule:
    """The learning rate, as a factor of its start, by the epochs that are done, or the time.

    kind: one of SCHEDULES.
    warmup: steps in which the factor rises from 0 to 1.
    epochs: of the whole run.
    max_minutes: ends the run, and stretches the schedule to that time; None: no limit.
    """

    kind: str = "constant"
    warmup: int = 0
    epochs: int = 1
    max_minutes: float | None = None
    started: float = field(default_factory=time.monotonic)  # earlier where a run resumes

    def minutes(self) -> float:
        """Since the start, without the time between a stop and a resume."""
        return (time.monotonic() - self.started) / 60

    def elapsed(self) -> float:
        """Part of `max_minutes` that is over; 0 without a limit."""
        return 0.0 if self.max_minutes is None else self.minutes() / self.max_minutes

    def factor(self, epochs: float, step: int, elapsed: float = 0.0) -> float:
        """Of the learning rate after `epochs`, in all `step` steps; `elapsed` of the time."""
        done = min(1.0, max(epochs / self.epochs, elapsed))
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        if self.kind == "cosine":
            return rise * 0.5 * (1 + math.cos(math.pi * done))
        if self.kind == "step":
            return rise * min([1.0] + [factor for start, factor in STEPS if done >= start])
        return rise


class AveragedWeights:
    """An exponential moving average of a model's weights, in a model of its own.

    Args:
        model: to follow; its buffers are copied as they are.
        decay: what the average keeps in a step; less in the first steps, (1 + n) / (10 + n).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model: Any = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes the weights after `step` steps into the average."""
        new = 1 - min(self.decay, (1 + step) / (10 + step))
        followed = model.state_dict()
        learning = {name for name, _ in model.named_parameters()}
        for name, value in self.model.state_dict().items():
            if name in learning:
                value.lerp_(followed[name], new)
            else:
                value.copy_(followed[name])
