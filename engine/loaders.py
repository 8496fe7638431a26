"""Batches: their order, the loader, the way to the device."""

import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler


class EpochBatches(Sampler):
    """Batches of positions, shuffled by (seed, epoch) alone.

    One image left over joins the batch before it: batch norm cannot learn from a single image.

    Args:
        num_images: in the data set.
        batch_size: images a batch.
        seed: random seed.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int):
        self.num_images, self.batch_size, self.seed, self.epoch = num_images, batch_size, seed, 0

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images).tolist()
        size = self.batch_size
        batches = [order[i : i + size] for i in range(0, self.num_images, size)]
        if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            left = batches.pop()
            batches[-1] += left
        return iter(batches)

    def __len__(self) -> int:
        full, left = divmod(self.num_images, self.batch_size)
        return max(1, full + (left > 1))


def _start_worker(_):
    cv2.setNumThreads(0)


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
        persistent_workers=num_workers > 0,
        **order,
    )


def set_epoch(loader: DataLoader, epoch: int) -> None:
    """Chooses the order and the random changes of an epoch."""
    sampler: Any = loader.batch_sampler
    dataset: Any = loader.dataset
    sampler.epoch = epoch
    dataset.set_epoch(epoch)


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`."""
    return {
        k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
        for k, v in batch.items()
    }
