"""The device of a process, and what it can do."""

import argparse

import torch

from util import distributed
from util.errors import InputError


def select_device(args: argparse.Namespace) -> torch.device:
    """--device, else this process' GPU of --gpu_ids, else the CPU with one line that says so.

    Raises:
        Relaunch: --gpu_ids names several GPUs, and no launcher started a process for each.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    ids, local = args.gpu_ids, distributed.local_rank()
    processes = distributed.local_world_size()
    if args.device:
        try:
            device = torch.device(args.device)
        except RuntimeError:
            device = None
        if device is None or device.type not in ("cpu", "cuda"):
            raise InputError(f"--device {args.device}: expected cpu, cuda or cuda:NUMBER")
        if device.type == "cpu":
            return device
        if not count:
            raise InputError(
                f"--device {args.device}: no CUDA device is available here; use --device cpu"
            )
        ids = [device.index or 0]
    elif min(ids) < 0:
        return torch.device("cpu")
    elif not count:
        if distributed.is_main():
            print("No GPU found: running on the CPU.")
        return torch.device("cpu")
    given = f"--device {args.device}" if args.device else f"--gpu_ids {','.join(map(str, ids))}"
    if processes > 1 and len(ids) == 1:
        ids = list(range(processes))  # torchrun alone: a GPU for each
        given = f"{processes} processes on this machine"
    if max(ids) >= count:
        raise InputError(f"{given}: this machine has GPUs 0 to {count - 1}")
    if processes == 1 and len(ids) > 1 and distributed.world_size() == 1:
        raise distributed.Relaunch(len(ids))
    if len(ids) != processes:
        found = "one process was" if processes == 1 else f"{processes} processes were"
        raise InputError(f"{given}: {found} started on this machine; give a GPU for each")
    return torch.device("cuda", ids[local])


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is worth while: without it in hardware it would take many times as long."""
    if device.type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        found = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not found:
        print(f"--bf16: this {device.type.upper()} device has no bfloat16; training in float32.")
    return found
