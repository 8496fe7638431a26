"""Batches: their order, the loader, the way to the device."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from tqdm import tqdm

from util.errors import InputError

TIMEOUT = 50  # seconds without a batch after which a worker counts as stopped
_PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when its parent ends


class EpochBatches(Sampler):
    """Batches of positions, shuffled by (seed, epoch) alone.

    One image left over joins the batch before it: batch norm cannot learn from a single image.

    Args:
        num_images: in the data set.
        batch_size: images a batch.
        seed: random seed.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.epoch, self.first = 0, 0  # first: batches that are left out at the start

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images).tolist()
        size = self.batch_size
        batches = [order[i : i + size] for i in range(0, self.num_images, size)]
        if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            left = batches.pop()
            batches[-1] += left
        return iter(batches[self.first :])

    def __len__(self) -> int:
        full, left = divmod(self.num_images, self.batch_size)
        return max(1, full + (left > 1))


def _start_worker(_):
    """Signals to the whole group are for the main process alone; the worker ends with that."""
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def make_loader(
    dataset,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    shuffle_seed: int | None = None,
) -> DataLoader:
    """A loader in the data set's order, or shuffled anew each epoch.

    Args:
        dataset: what is loaded.
        batch_size: images a batch.
        num_workers: worker processes, at most one a core.
        device: where the batches go.
        shuffle_seed: random seed of the order; None keeps the data set's.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    num_workers = min(num_workers, cores, len(dataset))
    order: dict = {"batch_size": batch_size}
    if shuffle_seed is not None:
        order = {"batch_sampler": EpochBatches(len(dataset), batch_size, shuffle_seed)}
    return DataLoader(
        dataset,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        timeout=TIMEOUT if num_workers else 0,
        generator=torch.Generator(),  # its own: the loader takes no number from the run's
        persistent_workers=num_workers > 0,
        **order,
    )


@contextmanager
def explained_faults() -> Iterator[None]:
    """Turns what data-loader workers end with into an InputError; faults of ours pass."""
    try:
        yield
    except InputError as error:  # torch puts the worker's traceback before it
        if not str(error).startswith("Caught InputError in DataLoader worker"):
            raise
        raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
    except RuntimeError as error:
        reason = str(error).strip().removesuffix(".")
        if reason.startswith("DataLoader timed out"):
            found = f"no data-loader worker gave a batch for {TIMEOUT} s: it is stopped, or waits"
            raise InputError(f"{found} for a disk; see to that, then resume") from error
        if not reason.startswith(("DataLoader worker", "Pin memory thread")):
            raise
        advice = "where memory ran out, take fewer workers or smaller batches, then resume"
        raise InputError(f"a data-loader worker ended ({reason}); {advice}") from error


def set_epoch(loader: DataLoader, epoch: int, first: int = 0) -> None:
    """Chooses the order and the random changes of an epoch.

    Args:
        loader: made with a `shuffle_seed`.
        epoch: number of the epoch.
        first: batches that are left out at its start, without being loaded.
    """
    sampler: Any = loader.batch_sampler
    dataset: Any = loader.dataset
    sampler.epoch, sampler.first = epoch, first
    dataset.set_epoch(epoch)


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
        for k, v in batch.items()
    }


def without_failed(batch: dict) -> dict:
    """The batch without the samples that stand in for images that cannot be read any more."""
    failed = batch.get("failed", [])
    if not any(failed):
        return batch
    for reason in filter(None, failed):
        tqdm.write(f"not scored: {reason}")
    keep = [i for i, reason in enumerate(failed) if not reason]
    return {
        k: v[keep] if isinstance(v, torch.Tensor) else [v[i] for i in keep]
        for k, v in batch.items()
    }
