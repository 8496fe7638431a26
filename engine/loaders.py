"""Batches: their order, the loader, the way to the device."""

from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate

from util import distributed


class EpochBatches(Sampler):
    """Batches of positions, shuffled by (seed, epoch) alone; of several processes, one's part.

    All have as many batches, and no image twice; of a small last batch some may have none. One
    image left over joins the batch before it: batch norm cannot learn from a single image.

    Args:
        num_images: in the data set.
        batch_size: images a batch, of all processes together.
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
        return map(distributed.interleaved, batches)

    def __len__(self) -> int:
        full, left = divmod(self.num_images, self.batch_size)
        return max(1, full + (left > 1))


class _Collate:
    """default_collate, and of no samples a batch of none."""

    def __init__(self, dataset):
        self.like = default_collate([dataset[0]])

    def __call__(self, samples: list) -> dict:
        return default_collate(samples) if samples else {k: v[:0] for k, v in self.like.items()}


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

    Several processes share each shuffled batch. In the data set's order they take whole batches in
    turn, so that each is computed as one process would.

    Args:
        dataset: what is loaded.
        batch_size: images a batch.
        num_workers: worker processes, at most one a core that this process has to itself.
        device: where the batches go.
        shuffle_seed: random seed of the order; None keeps the data set's.
    """
    cores = max(1, distributed.cores() // distributed.local_world_size())
    num_workers = min(num_workers, cores, len(dataset))
    several, collate = distributed.world_size() > 1, None
    if shuffle_seed is not None:
        batches: Any = EpochBatches(len(dataset), batch_size, shuffle_seed)
        collate = _Collate(dataset) if several else None
    else:
        positions = range(len(dataset))
        whole = [positions[i : i + batch_size] for i in positions[::batch_size]]
        batches = distributed.interleaved(whole)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        persistent_workers=num_workers > 0,
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
