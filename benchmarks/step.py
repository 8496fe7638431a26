"""Where the time of a training step goes, stage 1 and stage 3, against a plain twin in one run.

    python -m benchmarks.step                                    # 64 synthetic images, short
    python -m benchmarks.step --stages 3 --backbone resnet50 --img_res 224 --batch_size 32 --bf16

Phases exclude each other: a body inside the coarse network counts as body. The twin has the same
weights, images and losses, with PyTorch's own convolutions and layout and the plain renderer; its
steps and ours alternate, ours first. On a GPU each phase waits for the device; further steps are
taken as the scripts take them, as one CUDA graph each, and then in a profile, which tells how much
of the time the device is busy.
"""

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import render
from datasets import build_dataset
from engine import build
from engine.checkpoint import TrainState
from engine.cuda_graph import WARM_UP
from engine.loaders import make_loader, set_epoch, to_device
from engine.loop import step_gradients
from engine.losses import Criterion, LossWeights
from model import CoarseToFine, NetworkConfig, RefinerConfig, build_backbone
from model.coarse import SmallMapConv2d
from smal_model.priors import pose_prior, shape_prior
from synthetic.writer import make_data
from util.files import write_json
from util.memory import keep_freed_memory

NUM_IMAGES = 64  # synthetic ones, where no data is given
STAGES = {
    1: LossWeights(),
    3: LossWeights(pose_limit_prior=5000, dice=1000, dice_refine=100, kpts_refine=1, arap=1e4),
}
PHASES = (
    "loading", "coarse network", "refiner", "body", "silhouettes", "Laplacian", "other losses",
    "backward", "optimiser",
)  # fmt: skip


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data_dir", type=Path, help="data set (default: 64 synthetic images)")
    add("--stages", type=int, nargs="+", choices=STAGES, default=list(STAGES))
    add("--backbone", default="resnet18")
    add("--img_res", type=int, default=160)
    add("--batch_size", type=int, default=4)
    add("--steps", type=int, default=3, help="timed, after one that is not")
    add("--num_works", type=int, default=0, help="data-loader workers")
    add("--threads", type=int, default=torch.get_num_threads())
    add("--bf16", action="store_true", help="ours in bfloat16")
    add("--no_plain", action="store_true", help="without the twin")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--json", type=Path, default=Path("logs/benchmark_step.json"), help="results")
    return parser.parse_args(argv)


class Clock:
    """Seconds of phases by name; time in an inner phase does not count for the outer one."""

    def __init__(self, device: torch.device):
        self.device, self.waits = device, True
        self.seconds: dict[str, float] = defaultdict(float)
        self.running: list[str] = []
        self.last = 0.0

    def _turn(self) -> None:
        """Ends what runs, on the device too."""
        if self.device.type == "cuda" and self.waits:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.running:
            self.seconds[self.running[-1]] += now - self.last
        self.last = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what happens inside for a phase."""
        self._turn()
        self.running.append(name)
        try:
            yield
        finally:
            self._turn()
            self.running.pop()

    def wrap(self, function, name: str):
        """A function whose time counts for a phase."""

        def timed(*args, **kwargs):
            with self.phase(name):
                return function(*args, **kwargs)

        return timed


class Stage:
    """Networks, losses and optimiser of a stage, with a clock in them.

    Args:
        args: of the command.
        number: of the stage.
        model: CoarseModel or CoarseToFine.
        folder: of smal/ and priors/.
        plain: whether it is the plain twin.
    """

    def __init__(self, args: argparse.Namespace, number: int, model, folder: Path, plain: bool):
        self.device = torch.device(args.device)
        self.model, self.clock = model.to(self.device).train(), Clock(self.device)
        priors = shape_prior("smal", model.smal, folder), pose_prior("smal", folder)
        renderer = "torch" if plain else "auto"
        self.criterion = Criterion(STAGES[number], model.smal, *priors, renderer).to(self.device)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-5, fused=not plain)
        parts: list[tuple[nn.Module, str]] = [(model.smal, "body")]
        if isinstance(model, CoarseToFine):
            parts += [(model.meshnet, "coarse network"), (model.graphnet, "refiner")]
        else:
            parts += [(model, "coarse network")]
        if self.criterion.laplacian is not None:
            parts += [(self.criterion.laplacian, "Laplacian")]
        for module, name in parts:
            module.forward = self.clock.wrap(module.forward, name)

    def step(self, batches: Iterator[dict]) -> float:
        """A training step, timed; its loss."""
        phase = self.clock.phase
        silhouettes = self.clock.wrap(render.soft_silhouette, "silhouettes")
        with phase("loading"):
            batch = to_device(next(batches), self.device)
        with mock.patch.object(render, "soft_silhouette", silhouettes):
            out = self.model(batch["image"])
            with phase("other losses"):
                loss = sum(self.criterion(out, batch).values())
        with phase("backward"):
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with phase("optimiser"):
            self.optimizer.step()
        return loss.item()


def plain_twin(model: nn.Module) -> nn.Module:
    """A copy of networks with PyTorch's own convolutions, all in its own layout."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, SmallMapConv2d):
            module.forward = lambda x, own=module: nn.Conv2d.forward(own, x)  # type: ignore
        if getattr(module, "channels_last", False):
            module.channels_last = False  # type: ignore[assignment]
    return twin.to(memory_format=torch.contiguous_format)


def endless(loader) -> Iterator[dict]:
    """Batches of one epoch after the other."""
    epoch = 0
    while True:
        set_epoch(loader, epoch)
        yield from loader
        epoch += 1


def whole_steps(stage: Stage, config: NetworkConfig, number: int, batches: Iterator[dict]):
    """A function that takes a training step as the scripts do, its images, whether in a graph."""
    stage.clock.waits = False
    state = TrainState(stage.model, stage.optimizer, config, number)
    gradients = step_gradients(state, stage.criterion)

    size = len(next(batches)["image"])

    def step() -> None:
        batch = next(b for b in batches if len(b["image"]) == size)  # not the last of an epoch
        stage.optimizer.zero_grad(set_to_none=True)
        torch.stack([*gradients(batch).values()]).tolist()
        stage.optimizer.step()

    for _ in range(WARM_UP + 2):
        step()
    return step, size, gradients.replayed


def seconds_and_busy(step: Callable[[], None], steps: int) -> tuple[float, float]:
    """Seconds a step, and the fraction of the time, of as many again, in which a kernel runs."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
        profiled = time.perf_counter() - start
    kernels = (event for event in found.events() if event.device_type.name == "CUDA")
    spans = sorted((e.time_range.start, e.time_range.end) for e in kernels)
    busy, end = 0.0, 0.0
    for first, last in spans:  # kernels of several streams overlap
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return seconds, busy / 1e6 / profiled


def measure(args: argparse.Namespace, number: int, data: Path) -> dict:
    """A stage and its twin: medians of the seconds of each phase, losses of the first step."""
    refiner = RefinerConfig(local_feat=True) if number == 3 else None
    config = NetworkConfig(args.backbone, args.img_res, refiner=refiner)
    torch.manual_seed(0)
    model = build.build_network(config, data, build_backbone(args.backbone))
    stages = {} if args.no_plain else {"plain": Stage(args, number, plain_twin(model), data, True)}
    if args.bf16:
        model.use_bf16()
    stages = {"ours": Stage(args, number, model, data, False)} | stages
    dataset = build_dataset("stanford", data, "train", img_res=args.img_res, augment=True)
    load = args.batch_size, args.num_works, torch.device(args.device), 0
    batches = {name: endless(make_loader(dataset, *load)) for name in stages}
    rows: dict = {name: [] for name in stages}
    losses = {}
    for count in range(args.steps + 1):
        for name, stage in stages.items():
            stage.clock.seconds.clear()
            loss = stage.step(batches[name])
            rows[name].append(dict(stage.clock.seconds))
            if count == 0:
                losses[name] = loss
    result: dict = {"stage": number, "first_loss": losses}
    for name, steps in rows.items():
        timed = steps[1:] or steps
        result[name] = {p: statistics.median(s.get(p, 0.0) for s in timed) for p in PHASES}
        result[name]["step"] = statistics.median(sum(s.values()) for s in timed)
    if args.device.startswith("cuda"):
        step, size, replayed = whole_steps(stages["ours"], config, number, batches["ours"])
        seconds, busy = seconds_and_busy(step, args.steps)
        whole = {"seconds": seconds, "images_per_second": size / seconds, "busy_fraction": busy}
        result["whole"] = whole | {"cuda_graph": replayed}
    return result


def print_table(row: dict) -> None:
    """The phases of a stage, milliseconds."""
    ours, plain = row["ours"], row.get("plain")
    print(f"\nStage {row['stage']:<12} {'ours':>9} {'plain':>9}   ratio")
    for name in (*PHASES, "step"):
        line = f"{name:18} {1e3 * ours[name]:9.1f}"
        if plain:
            ratio = f"{plain[name] / ours[name]:7.2f}" if ours[name] else ""
            line += f" {1e3 * plain[name]:9.1f} {ratio}"
        if ours[name] or (plain and plain[name]):
            print(line)
    if whole := row.get("whole"):
        how = "a CUDA graph" if whole["cuda_graph"] else "kernels launched one by one"
        print(f"As the scripts take it ({how}), loaded: {1e3 * whole['seconds']:.1f} ms a step,")
        print(f"{whole['images_per_second']:.0f} images a second; the device is busy", end=" ")
        print(f"{whole['busy_fraction']:.0%} of the time.")


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    if args.device == "cpu":
        keep_freed_memory()  # for both
    machine = platform.processor() or platform.machine()
    if args.device.startswith("cuda"):
        machine = torch.cuda.get_device_name(args.device)
    about = {"machine": machine, "torch": torch.__version__, "threads": args.threads}
    print(f"{machine}, torch {torch.__version__}, {args.threads} threads; milliseconds a step of")
    print(f"{args.batch_size} images at {args.img_res} pixels, {args.backbone}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data = args.data_dir or Path(folder)
        if args.data_dir is None:
            make_data(data, num_images=NUM_IMAGES, seed=0, num_workers=1)
        for number in args.stages:
            rows.append(measure(args, number, data))
            print_table(rows[-1])
    options = {k: v for k, v in vars(args).items() if k != "json"}
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, about | {"options": options, "rows": rows})
    print(f"Written to {args.json}")


if __name__ == "__main__":
    main(parse_args())
