"""How the time of a training step scales with processes, at a fixed number of images a process.

    python -m benchmarks.scaling                          # 1, 2, 4 processes, ResNet-50, stage 3
    python -m benchmarks.scaling --backbone resnet18 --img_res 64 --batch_size 2

Runs torchrun for each number of processes with random images on the synthetic body, and prints
images a second, efficiency against one process, and gradient bytes. On CPUs the processes share the
machine's cores: efficiency above cores / processes is not to be expected.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from engine import build
from engine.loop import Step
from engine.losses import Criterion, LossWeights
from model import NetworkConfig, RefinerConfig, build_backbone
from model.batch_norm import synchronize_batch_norm
from smal_model.priors import pose_prior, shape_prior
from synthetic.body import write_body
from util import distributed
from util.camera import CROP
from util.files import write_json

WEIGHTS = LossWeights(pose_limit_prior=5000, dice=1000, dice_refine=100, kpts_refine=1, arap=1e4)


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--processes", type=int, nargs="+", default=[1, 2, 4])
    add("--batch_size", type=int, default=4, help="images a process")
    add("--steps", type=int, default=5, help="timed, after one that is not")
    add("--backbone", default="resnet50")
    add("--img_res", type=int, default=224)
    add("--json", type=Path, default=Path("logs/benchmark_scaling.json"), help="results")
    add("--body", type=Path, help=argparse.SUPPRESS)  # in the processes that are timed
    args = parser.parse_args(argv)
    if min(*args.processes, args.batch_size, args.steps) < 1:
        parser.error("--processes, --batch_size and --steps: expected 1 or more")
    return args


def measure(args: argparse.Namespace) -> None:
    """One process of several: the first prints the median time of a step as JSON."""
    distributed.start()
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", distributed.local_rank()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    torch.manual_seed(0)
    config = NetworkConfig(args.backbone, args.img_res, refiner=RefinerConfig(local_feat=True))
    model = build.build_network(config, args.body, build_backbone(args.backbone)).to(device)
    if distributed.world_size() > 1:
        synchronize_batch_norm(model, device)
    priors = shape_prior("smal", model.smal, args.body), pose_prior("smal", args.body)
    criterion = Criterion(WEIGHTS, model.smal, *priors).to(device)
    step = distributed.data_parallel(Step(model, criterion))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)
    size = args.batch_size
    batch = {
        "image": torch.randn(size, 3, args.img_res, args.img_res, device=device),
        "mask": (torch.rand(size, CROP, CROP, device=device) > 0.5).float(),
        "keypoints": CROP * torch.rand(size, 20, 3, device=device),
        "mask_weight": torch.ones(size, CROP, CROP, device=device),
        "has_mask": torch.ones(size, dtype=torch.bool, device=device),
        "has_keypoints": torch.ones(size, dtype=torch.bool, device=device),
    }
    times = []
    for _ in range(args.steps + 1):
        distributed.barrier()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        sum(step(batch).values()).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    gradients = [p.grad.nbytes for p in model.parameters() if p.grad is not None]
    parameters = sum(p.numel() for p in model.parameters())
    row = {"seconds": statistics.median(times[1:]), "gradient_bytes": sum(gradients)}
    print(json.dumps(row | {"parameters": parameters, "device": str(device)}))
    distributed.stop()


def main(args: argparse.Namespace) -> None:
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as body:
        write_body(Path(body))
        shares = ("backbone", "img_res", "batch_size", "steps")
        options = [f"--{name}={getattr(args, name)}" for name in shares]
        for count in args.processes:
            launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            script = ["-m", "benchmarks.scaling", *options, f"--body={body}"]
            command = [sys.executable, *launch, *script]
            threads = str(max(1, distributed.cores() // count))
            environment = os.environ | {"OMP_NUM_THREADS": threads}
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            if run.returncode:
                sys.exit(run.stderr)
            row = {"processes": count} | json.loads(run.stdout.splitlines()[-1])
            row["images_per_second"] = count * args.batch_size / row["seconds"]
            first = (rows or [row])[0]
            gain = row["images_per_second"] / first["images_per_second"]
            row["efficiency"] = gain * first["processes"] / count
            rows.append(row)
            print(
                f"{count:3} processes  {row['seconds']:8.3f} s a step  "
                f"{row['images_per_second']:8.2f} images/s  efficiency {row['efficiency']:5.2f}  "
                f"{row['gradient_bytes'] / 1e6:.1f} MB of gradients  ({row['device']})"
            )
    machine = {"machine": platform.processor() or platform.machine(), "cores": distributed.cores()}
    write_json(args.json, machine | {"options": options, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    arguments = parse_args()
    (measure if arguments.body else main)(arguments)
