"""The forward and backward pass of a step as a CUDA graph: recorded once, then replayed.

A step launches thousands of small kernels, which takes the host longer than the device takes to run
them. A graph launches all at once, with the same results.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from tqdm import tqdm

WARM_UP = 3  # steps of one shape before it is recorded; libraries choose their kernels meanwhile

Terms = dict[str, torch.Tensor]


class RecordedGradients:
    """Leaves a batch's gradients in the parameters, as what it records does.

    Batches of another shape than the recorded one (the last of an epoch) are computed as before.

    Args:
        compute: sets the parameters' `grad`, from None, and returns numbers about the batch; asks
            the device for nothing.
        parameters: that learn.
        wanted: False computes all batches as before.
    """

    def __init__(
        self,
        compute: Callable[[dict], Terms],
        parameters: Iterable[nn.Parameter],
        wanted: bool = True,
    ):
        self.compute, self.parameters = compute, list(parameters)
        self.wanted, self.seen = wanted, 0
        self.shapes: dict = {}
        self.graph: torch.cuda.CUDAGraph | None = None
        self.replayed = False  # whether the last batch was

    def __call__(self, batch: dict) -> Terms:
        """The numbers about a batch on the device; they change at the next one."""
        tensors = {name: v for name, v in batch.items() if isinstance(v, torch.Tensor)}
        shapes = {name: (v.shape, v.dtype) for name, v in tensors.items()}
        if self.wanted and self.graph is None:
            self.seen = self.seen + 1 if shapes == self.shapes else 1
            self.shapes = shapes
            if self.seen > WARM_UP:
                self._record(tensors)
        self.replayed = False
        if self.graph is None or shapes != self.shapes:
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
            # other threads pin batches meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self.terms = self.compute(self.inputs)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            tqdm.write(f"Steps are not recorded as a CUDA graph, and take longer: {reason}")
            self.wanted = False
        else:
            self.graph = graph
            self.grads = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
