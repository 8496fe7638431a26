"""The forward and backward pass of a step as a CUDA graph: recorded once, then replayed.

A step launches thousands of small kernels, which takes the host longer than the device takes to run
them. A graph launches all at once, with the same results; but where a silhouette needs more room
than it was recorded with, it is NaN.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from tqdm import tqdm

WARM_UP = 3  # steps of one shape before it is recorded; libraries choose their kernels meanwhile

Terms = dict[str, torch.Tensor]


class RecordedGradients:
    """Leaves a batch's gradients in the parameters, as what it records does.

    Batches of another shape than the recorded one (the last of an epoch) are computed.

    Args:
        compute: sets the parameters' `grad`, from None, and returns numbers about the batch; asks
            the device for nothing.
        parameters: that learn.
        wanted: False computes every batch.
    """

    def __init__(
        self,
        compute: Callable[[dict], Terms],
        parameters: Iterable[nn.Parameter],
        wanted: bool = True,
    ):
        self.compute, self.parameters = compute, list(parameters)
        self.wanted = wanted
        self.seen: Counter[tuple] = Counter()
        self.inputs: dict[str, torch.Tensor] = {}
        self.terms: Terms = {}
        self.recorded: tuple = ()  # names, shapes and types of the inputs
        self.graph: torch.cuda.CUDAGraph | None = None
        self.replayed = False  # whether the last batch was

    def __call__(self, batch: dict) -> Terms:
        """The numbers about a batch on the device; they change at the next one."""
        tensors = {name: v for name, v in batch.items() if isinstance(v, torch.Tensor)}
        shapes = tuple((name, v.shape, v.dtype) for name, v in tensors.items())
        if self.wanted and self.graph is None:
            self.seen[shapes] += 1
            if self.seen[shapes] > WARM_UP:
                self._record(tensors)
                self.recorded = shapes
        self.replayed = False
        if self.graph is None or shapes != self.recorded:
            return self.compute(batch)
        self.replayed = True
        for name, tensor in tensors.items():
            self.inputs[name].copy_(tensor, non_blocking=True)
        self.graph.replay()
        for parameter, grad in zip(self.parameters, self.grads, strict=True):
            parameter.grad = grad
        return dict(self.terms)

    def _record(self, tensors: dict) -> None:
        device = self.parameters[0].device
        self.inputs = {k: torch.empty_like(v, device=device) for k, v in tensors.items()}
        graph = torch.cuda.CUDAGraph()
        try:
            with captured(graph, device):
                self.terms = self.compute(self.inputs)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            tqdm.write(f"Steps are not recorded as a CUDA graph, and take longer: {reason}")
            self.wanted, self.inputs, self.terms = False, {}, {}
        else:
            self.graph = graph
            self.grads = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None


@contextmanager
def captured(graph: torch.cuda.CUDAGraph, device: torch.device) -> Iterator[None]:
    """Captures what is launched inside on a device.

    Where that fails, stream and random numbers are as before: torch leaves its own stream, and a
    generator that believes itself captured.
    """
    with torch.cuda.device(device):
        before = torch.cuda.current_stream()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        kept = generator.clone_state()
        # other threads pin batches meanwhile
        mode: dict = {"stream": torch.cuda.Stream(), "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(graph, **mode):
                yield
        except BaseException:
            generator.graphsafe_set_state(kept)
            raise
        finally:
            torch.cuda.set_stream(before)
