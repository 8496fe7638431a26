"""Batches: their order, the loader, the way to the device."""

import atexit
import errno
import hashlib
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice, pairwise
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, default_collate
from tqdm import tqdm

from util import distributed
from util.errors import InputError
from util.memory import end_with_parent, keep_freed_memory

TIMEOUT = 50  # seconds without a batch after which the run ends
PLANES = "mask_weight", "border_mask", "inside"  # of 0 and 1: bool on their way to the device
STOPPED = 30  # seconds after which a stopped worker is killed


def part_sizes(num_images: int, parts: int) -> list[int]:
    """Sizes of the micro-batches of a batch: about equal, each of two images or more.

    Args:
        num_images: in the batch, of all processes together.
        parts: wanted; a small batch has fewer.
    """
    parts = max(1, min(parts, num_images // 2))  # batch norm cannot learn from a single image
    ends = [num_images * i // parts for i in range(parts + 1)]
    return [end - start for start, end in pairwise(ends)]


class EpochBatches(Sampler):
    """Batches of positions, shuffled by (seed, epoch) alone; of several processes, one's part.

    All have as many batches, and no image twice; of a small last batch some may have none. One
    image left over joins the batch before it: batch norm cannot learn from a single image. The
    processes share each micro-batch, which is thus the same for any number of them.

    Args:
        num_images: in the data set.
        batch_size: images a batch, of all processes together.
        seed: random seed.
        parts: micro-batches of a batch.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, parts: int = 1):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.parts = parts
        self.epoch, self.first = 0, 0  # first: batches that are left out at the start

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images).tolist()
        size = self.batch_size
        batches = [order[i : i + size] for i in range(0, self.num_images, size)]
        if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            left = batches.pop()
            batches[-1] += left
        return map(self._share, batches[self.first :])

    def _share(self, batch: list[int]) -> list[int]:
        """This process' images of each micro-batch, one after the other."""
        rest = iter(batch)
        sizes = part_sizes(len(batch), self.parts)
        shares = [distributed.interleaved(list(islice(rest, size))) for size in sizes]
        return list(chain.from_iterable(shares))

    def __len__(self) -> int:
        full, left = divmod(self.num_images, self.batch_size)
        return max(1, full + (left > 1))


class _Collate:
    """default_collate with fewer bytes: planes of 0 and 1 as bool.

    Args:
        dataset: gives what a batch of no samples looks like; None where there is none.
    """

    def __init__(self, dataset=None):
        self.like = {} if dataset is None else self([dataset[0]])

    def __call__(self, samples: list) -> dict:
        if not samples:
            return {name: values[:0] for name, values in self.like.items()}
        return default_collate([self._smaller(sample) for sample in samples])

    def _smaller(self, sample: dict) -> dict:
        return sample | {name: sample[name].bool() for name in PLANES if name in sample}


def _start_worker(_):
    """Signals to the whole group are for the main process alone; the worker ends with that."""
    cv2.setNumThreads(0)
    keep_freed_memory()  # an item's large arrays would cost a thousand page faults
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    end_with_parent()


_killed: list[int] = []  # workers that were stopped for too long
_blocks: list[str] = []  # of `explained_faults` that are open: outside them no worker is killed


def _stopped(pid: int) -> bool:
    """Whether a child is stopped; ChildProcessError where it has ended."""
    return os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None


def _kill_stopped(pids: tuple[int, ...]) -> None:
    """Kills workers that are stopped for too long, until all have ended."""
    seconds = dict.fromkeys(pids, 0)  # counted, not timed: this process may be stopped with them
    while seconds:
        time.sleep(1)
        for pid in list(seconds):
            try:
                seconds[pid] = seconds[pid] + 1 if _stopped(pid) and _blocks else 0
            except ChildProcessError:
                del seconds[pid]
                continue
            if seconds[pid] >= STOPPED:
                _killed.append(pid)
                os.kill(pid, signal.SIGKILL)
                break  # one is enough to end the run; a second would fall into its handling


def _end(workers: list) -> None:
    """Ends workers at exit: those of a loader that an exception keeps ignore being asked to."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would report them as a fault
    for worker in workers:
        worker.kill()


class Loader(DataLoader):
    """Kills workers that are stopped: while they hold a batch, torch waits without a limit."""

    workers: tuple[int, ...] = ()
    begun: Iterator | None = None

    def begin(self) -> None:
        """Lets the workers load what the next iteration gives; batches follow without a wait.

        A worker that does not answer is found by that iteration.
        """
        self.begun = None
        if self.num_workers:
            with suppress(RuntimeError):
                self.begun = super().__iter__()

    def __iter__(self):
        begun, self.begun = self.begun, None
        return begun or super().__iter__()

    def _get_iterator(self):
        iterator: Any = super()._get_iterator()
        if self.num_workers:
            atexit.register(_end, iterator._workers)
        if self.num_workers and hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            self.workers = tuple(worker.pid for worker in iterator._workers)
            threading.Thread(target=_kill_stopped, args=(self.workers,), daemon=True).start()
        return iterator

    def start_workers(self) -> None:
        """Starts the workers of a loader in the data set's order; they load nothing yet.

        A fork copies the locks that other threads hold, with nobody to open them, and where batches
        are pinned a thread is at work while another loader runs ahead.
        """
        if self.num_workers:
            batches: Any = self.batch_sampler
            held = batches[:]
            batches.clear()
            iter(self)
            batches.extend(held)

    def __del__(self):
        """Lets stopped workers run, so that they end when asked to."""
        for pid in self.workers:
            with suppress(ChildProcessError):
                if _stopped(pid):
                    os.kill(pid, signal.SIGCONT)


def _names(dataset) -> list[str]:
    """Of all images, of all data sets that make up this one."""
    parts = getattr(dataset, "datasets", None)
    return list(chain.from_iterable(map(_names, parts))) if parts else dataset.names


def make_loader(
    dataset,
    batch_size: int,
    num_workers: int,
    device: torch.device,
    shuffle_seed: int | None = None,
    parts: int = 1,
) -> Loader:
    """A loader in the data set's order, or shuffled anew each epoch.

    Several processes share each shuffled batch. In the data set's order they take whole batches in
    turn, so that each is computed as one process would.

    Args:
        dataset: what is loaded.
        batch_size: images a batch.
        num_workers: worker processes, at most one a core that this process has to itself.
        device: where the batches go.
        shuffle_seed: random seed of the order; None keeps the data set's.
        parts: micro-batches of a shuffled batch.
    """
    if distributed.world_size() > 1:
        names = _names(dataset)
        digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
        if found := distributed.difference(f"{len(names)}, {digest}"):
            wanted = "see to each machine's copy of the data (python -m datasets.check)"
            raise InputError(f"the processes see different usable images ({found}): {wanted}")
    cores = max(1, distributed.cores() // distributed.local_world_size())
    num_workers = min(num_workers, cores, len(dataset))
    if num_workers:  # made here, the workers' sockets lie in it, and it goes with this process
        multiprocessing.util.get_temp_dir()
    several, collate = distributed.world_size() > 1, _Collate()
    if shuffle_seed is not None:
        batches: Any = EpochBatches(len(dataset), batch_size, shuffle_seed, parts)
        collate = _Collate(dataset if several else None)
    else:
        positions = range(len(dataset))
        whole = [positions[i : i + batch_size] for i in positions[::batch_size]]
        batches = distributed.interleaved(whole)
    return Loader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
        timeout=TIMEOUT if num_workers else 0,
        generator=torch.Generator(),  # its own: the loader takes no number from the run's
        persistent_workers=num_workers > 0,
    )


@contextmanager
def explained_faults() -> Iterator[None]:
    """Turns what data-loader workers end with into an InputError; faults of ours pass."""
    _killed.clear()
    _blocks.append("open")
    try:
        yield
    except InputError as error:  # torch puts the worker's traceback before it
        if not str(error).startswith("Caught InputError in DataLoader worker"):
            raise
        raise InputError(str(error).strip().rpartition("InputError: ")[2]) from None
    except (RuntimeError, EOFError, OSError) as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename
        if full or "shared memory" in str(error):
            reason = " ".join(str(error).split())[:200]
            found = f"data-loader workers find no room in shared memory ({reason})"
            advice = "enlarge /dev/shm (docker run --shm-size) or take --num_works 0"
            raise InputError(f"{found}; {advice}") from error
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            raise
        reason = str(error).strip().removesuffix(".") or type(error).__name__
        ours = not reason.startswith(("DataLoader timed out", "DataLoader worker", "Pin memory"))
        if ours and isinstance(error, RuntimeError):  # others come of a worker that ends in a batch
            raise
        if _killed:
            found = f"a data-loader worker (process {_killed[0]}) was stopped for {STOPPED} s"
            raise InputError(f"{found} and killed; let them run, then resume") from error
        if reason.startswith("DataLoader timed out"):
            found = f"no data-loader worker gave a batch for {TIMEOUT} s: it is stopped, or waits"
            raise InputError(f"{found} for a disk; see to that, then resume") from error
        advice = "where memory ran out, take fewer workers or smaller batches, then resume"
        raise InputError(f"a data-loader worker ended ({reason}); {advice}") from error
    finally:
        _blocks.pop()


def set_epoch(loader: Loader, epoch: int, first: int = 0) -> None:
    """Chooses the order and the random changes of an epoch.

    Args:
        loader: made with a `shuffle_seed`.
        epoch: number of the epoch.
        first: batches that are left out at its start, without being loaded.
    """
    sampler: Any = loader.batch_sampler
    dataset: Any = loader.dataset
    if (sampler.epoch, sampler.first) != (epoch, first):
        loader.begun = None
    sampler.epoch, sampler.first = epoch, first
    dataset.set_epoch(epoch)


def to_device(batch: dict, device: torch.device) -> dict:
    """The batch with its tensors on `device`, as the data set's samples have them."""
    moved = {
        k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v
        for k, v in batch.items()
    }
    return moved | {name: moved[name].float() for name in PLANES if name in moved}


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
