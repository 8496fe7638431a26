"""Several processes that train or evaluate as one: who they are, sums over them, how they start.

torchrun starts them and says so in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR);
`start` joins them: NCCL between GPUs, Gloo between CPUs. Alone, every function here is the plain
operation of one process.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_patient: Any = None  # group of all, for those who wait while others still have images to do


class Relaunch(Exception):
    """The command is to start again in `processes` processes of this machine."""

    def __init__(self, processes: int):
        super().__init__(f"{processes} processes")
        self.processes = processes

    def run(self) -> None:
        """Becomes torchrun with this command; does not return."""
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.processes)))
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        sys.stdout.flush()
        os.execv(sys.executable, [*torchrun, f"--nproc_per_node={self.processes}", *sys.argv])


def _number(name: str, default: int) -> int:
    """A number that torchrun sets; the default where no launcher did."""
    return int(os.environ.get(name, default)) if "MASTER_ADDR" in os.environ else default


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank() -> int:
    """Number of this process among those of this machine, from 0."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """Number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def cores() -> int:
    """CPU cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def start() -> None:
    """Joins the processes that torchrun started; nothing where it did not.

    Threads are shared out: cores / processes each, unless OMP_NUM_THREADS asks for 2 or more
    (torchrun itself sets 1). What processes other than the first print to stdout is dropped.
    """
    if _number("WORLD_SIZE", 1) < 2 or dist.is_initialized():
        return
    global _patient
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    _patient = dist.new_group(backend="gloo", timeout=timedelta(days=7))
    if int(os.environ.get("OMP_NUM_THREADS", 1)) < 2:
        torch.set_num_threads(max(1, cores() // local_world_size()))
    if not is_main():
        sys.stdout = open(os.devnull, "w")


def stop() -> None:
    """Leaves the other processes after a run that ended well."""
    if dist.is_initialized():
        dist.destroy_process_group()


class _Total(torch.autograd.Function):
    """The sum over processes, forward; so is its gradient, since each process uses the sum."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return _Total.apply(gradient)


def total(x: torch.Tensor) -> torch.Tensor:
    """The sum over processes of a tensor that has the same shape in all of them; differentiable.

    A loss made of such sums is the same in each process. Its gradient there is the number of
    processes times that process' part, and DistributedDataParallel takes the mean of them: the
    gradient of the loss over the whole batch, however the images are divided.
    """
    return x if world_size() == 1 else _Total.apply(x)


def mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over the entries in all processes, none in some of them included; differentiable."""
    if world_size() == 1:
        return x.mean()
    both = total(torch.stack([x.sum(), x.new_full((), x.numel())]))
    return both[0] / both[1]


def interleaved(items: Sequence) -> list:
    """This process' items of a list that all have, dealt out in turn."""
    return list(items[rank() :: world_size()])


def gather_interleaved(items: list, to_all: bool = True) -> list:
    """The whole list of what `interleaved` dealt out, in its order, in every process.

    Args:
        items: of this process.
        to_all: else only the first process gets it, and the others an empty list.
    """
    if world_size() == 1:
        return items
    parts: list[Any] = [None] * world_size()
    if to_all:
        dist.all_gather_object(parts, items, _patient)
    else:
        dist.gather_object(items, parts if is_main() else None, group=_patient)
        if not is_main():
            return []
    missing = object()
    rows = chain.from_iterable(zip_longest(*parts, fillvalue=missing))
    return [item for item in rows if item is not missing]


def difference(value) -> str:
    """Waits until all processes are here; how their values differ, in all of them, else nothing."""
    first, *others = gather_interleaved([value])
    found = [(n, other) for n, other in enumerate(others, 1) if other != first]
    return f"process 0 has {first}, process {found[0][0]} {found[0][1]}" if found else ""


def barrier() -> None:
    """Waits until all processes are here."""
    if world_size() > 1:
        total(torch.zeros(1))


def copy_buffers(module: nn.Module) -> None:
    """Gives every process the first one's stored buffers (batch norm's running statistics)."""
    if world_size() > 1:
        parameters = {name for name, _ in module.named_parameters()}
        for name, value in module.state_dict().items():
            if name not in parameters:
                dist.broadcast(value, 0)


def alone(module: nn.Module) -> AbstractContextManager:
    """A context in which gradients of a `data_parallel` module stay each process' own."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def data_parallel(module: nn.Module) -> nn.Module:
    """`module` with gradients that are the mean over processes; itself in one process.

    Args:
        module: returns what is differentiated and nothing else, since parameters that this does
            not reach (heads that a published file holds, a term of weight 0) are looked for.
    """
    if world_size() == 1:
        return module
    ddp = nn.parallel.DistributedDataParallel
    buffers = [name for name, _ in module.named_buffers()]  # constants, and copy_buffers' business
    ddp._set_params_and_buffers_to_ignore_for_model(module, buffers)
    return ddp(module, find_unused_parameters=True)
