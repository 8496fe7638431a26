"""How fast soft silhouettes are, forward and backward, and how much memory they take.

    python -m benchmarks.render --quick             # batch sizes 1 and 8 at 224 pixels: two minutes
    python -m benchmarks.render                     # everything, slow backends for one image only
    python -m benchmarks.render --slow_batches 1 8  # and for eight (minutes for PyTorch3D on a CPU)

The meshes are the two recorded bodies of tests/data/renderer.npz, a little moved and scaled from
image to image. Rows are measured one at a time, each in a process of its own, against the plain
PyTorch reference and, where it can be imported, PyTorch3D with 100 faces a pixel and with as many
as these meshes need. Times are the best of several runs.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

import render
from render import torch_reference as reference

ROOT = Path(__file__).resolve().parents[1]
SIGMA, BLUR_RADIUS = 1e-4, 9.21024e-4
OPERATIONS = {"forward": 73, "backward": 124}  # a pair, as numba_cpu.py is compiled, fused: two


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--batches", type=int, nargs="+", default=[1, 8, 32], help="batch sizes")
    add("--sizes", type=int, nargs="+", default=[112, 224, 448], help="pixels, square images")
    add("--slow_batches", type=int, nargs="*", default=[1], help="for the reference and PyTorch3D")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--quick", action="store_true", help="batch sizes 1 and 8 at 224 pixels")
    add("--no_pytorch3d", action="store_true", help="leave PyTorch3D out where it is installed")
    add("--json", type=Path, default=Path("logs/benchmark_render.json"), help="results")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    if args.quick:
        args.batches, args.sizes = [1, 8], [224]
    fast = render.choose_backend("auto", torch.zeros(0, device=args.device))
    pairs = {size: count_pairs(*bodies(1, size), size) for size in args.sizes}
    with_pytorch3d = not args.no_pytorch3d and importlib.util.find_spec("pytorch3d") is not None
    threads, machine = torch.get_num_threads(), platform.processor() or platform.machine()
    print(f"{machine}, {threads} threads, device {args.device}")
    result = {"device": args.device, "threads": threads, "torch": torch.__version__, "pairs": pairs}

    result["peak"] = isolated(peak_operations, args.device)
    print(f"Peak: {result['peak'] / 1e9:.0f} G operations/s in float32, by a matrix product.")
    for size, count in pairs.items():
        print(
            f"{size} pixels, one image: {count['reached']:,} face-pixel pairs within the blur "
            f"({count['boxes']:,} in faces' boxes), up to {count['most']} faces at a pixel."
        )
    print("Operations a pair:", *(f"{count} {name}" for name, count in OPERATIONS.items()), "\n")
    if fast == "numba":
        seconds = result["first_call_seconds"] = first_calls()
        print("First call, forward and backward:", end=" ")
        print(f"{seconds['cold']:.1f} s compiling, {seconds['cached']:.2f} s from the cache.\n")

    result["rows"] = []
    titles = f"{'forward':>10} {'backward':>10} {'an image':>10} {'memory':>9} {'of peak':>7}"
    print(f"{'batch':>5} {'size':>5} {'backend':<16} {titles}")
    for size in args.sizes:
        for batch in args.batches:
            backends = [(fast, None)]
            if batch in args.slow_batches:
                backends += [("torch", None)]
                if with_pytorch3d:
                    backends += [("pytorch3d", 100), ("pytorch3d", pairs[size]["most"])]
            for backend, faces_per_pixel in backends:
                row = isolated(measure, backend, batch, size, args.device, faces_per_pixel)
                if backend == fast:
                    work = pairs[size]["reached"] * batch * sum(OPERATIONS.values())
                    row["fraction_of_peak"] = work / seconds_of(row) / result["peak"]
                result["rows"].append(row)
                print_row(row)
    result["faces"] = [
        isolated(measure, fast, 8, 224, args.device, None, every) for every in (4, 2, 1)
    ]
    print("\nGrowth with the faces (batch 8, 224 pixels):")
    for row in result["faces"]:
        print(f"  {row['faces']:6,} faces: {1e3 * seconds_of(row):8.1f} ms")
    print_ratios(result["rows"], fast)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1))
    print(f"\nWritten to {args.json}")


def seconds_of(row: dict) -> float:
    return row["forward"] + row["backward"]


def name_of(row: dict) -> str:
    return row["backend"] + (f" K={row['faces_per_pixel']}" if row["faces_per_pixel"] else "")


def print_row(row: dict) -> None:
    memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.0f} MiB"
    fraction = f"{row['fraction_of_peak']:.0%}" if "fraction_of_peak" in row else ""
    forward, backward, each = row["forward"], row["backward"], seconds_of(row) / row["batch"]
    print(
        f"{row['batch']:5} {row['size']:5} {name_of(row):<16} {1e3 * forward:7.1f} ms "
        f"{1e3 * backward:7.1f} ms {1e3 * each:7.2f} ms {memory:>9} {fraction:>7}",
        flush=True,
    )


def print_ratios(rows: list[dict], fast: str) -> None:
    """How many times longer an image takes the other backends, in the largest batch of each."""
    for size in sorted({row["size"] for row in rows}):
        each = {name_of(r): seconds_of(r) / r["batch"] for r in rows if r["size"] == size}
        for name, seconds in each.items():
            if name != fast:
                times = f"{seconds / each[fast]:,.0f} times"
                print(f"{size} pixels: an image takes {name} {times} as long as {fast}")


def bodies(batch: int, size: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """The recorded bodies in turn, moved and scaled a little: verts (B, V, 3), faces (F, 3)."""
    with np.load(ROOT / "tests" / "data" / "renderer.npz") as arrays:
        meshes = [torch.tensor(arrays[f"{n}/verts"][0]) for n in ("body_side", "body_turned")]
        faces = torch.tensor(arrays["body_side/faces"]).long()
    change = torch.Generator().manual_seed(size)
    verts = torch.stack([meshes[b % 2] for b in range(batch)])
    if batch > 1:
        verts[..., :2] *= 1 + 0.2 * torch.rand(batch, 1, 1, generator=change)
        verts[..., :2] += 0.2 * torch.rand(batch, 1, 2, generator=change) - 0.1
    return verts.to(device), faces.to(device)


def count_pairs(verts: torch.Tensor, faces: torch.Tensor, size: int) -> dict:
    """Face-pixel pairs of one image: within the blur, in boxes; the most at a pixel."""
    mesh, square = verts[0], (size, size)
    _, _, height, width = reference.pixel_box(mesh[faces], square, BLUR_RADIUS**0.5)
    at_pixel = torch.zeros(size * size, dtype=torch.int64)
    for face, row, column in reference._pairs(mesh, faces, square, BLUR_RADIUS**0.5):
        corners = mesh[faces[face]]
        points = reference._pixel_centres(row, column, square, mesh)
        near = reference._squared_distance(points, corners[..., :2]) < BLUR_RADIUS
        near |= (reference._edge_functions(points, corners) > 0).all(1)
        at_pixel.index_add_(0, row * size + column, near.long())
    return {
        "faces": len(faces),
        "reached": int(at_pixel.sum()),
        "boxes": int((height * width).sum()),
        "most": int(at_pixel.max()),
    }


def isolated(function, *arguments):
    """Call in a new process, so that memory is its own and threads start afresh."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(
    backend: str, batch: int, size: int, device: str, faces_per_pixel: int | None, every: int = 1
) -> dict:
    """One row: seconds forward and backward (best of the runs) and peak memory in bytes."""
    verts, faces = bodies(batch, size, device)
    faces = faces[::every]

    def silhouette(verts: torch.Tensor, faces: torch.Tensor) -> torch.Tensor:
        if faces_per_pixel is None:
            return render.soft_silhouette(verts, faces, size, SIGMA, BLUR_RADIUS, backend)
        from render import pytorch3d

        blur = SIGMA, BLUR_RADIUS
        return pytorch3d.soft_silhouette(verts, faces, (size, size), *blur, faces_per_pixel)

    def run(verts: torch.Tensor, faces: torch.Tensor) -> tuple[float, float]:
        verts = verts.requires_grad_()
        start = _now(device)
        image = silhouette(verts, faces)
        middle = _now(device)
        image.backward(torch.ones_like(image))
        return middle - start, _now(device) - middle

    run(verts[:1].clone(), faces[:50])  # loads and compiles
    before = _start_memory(device)
    times = [run(verts, faces)]
    peak = _peak_memory(device, before)
    deadline = time.perf_counter() + 3
    while time.perf_counter() < deadline and len(times) < 200:
        times.append(run(verts, faces))
    forward, backward = min(times, key=sum)
    return {
        "backend": backend,
        "batch": batch,
        "size": size,
        "faces": len(faces),
        "faces_per_pixel": faces_per_pixel,
        "runs": len(times),
        "forward": forward,
        "backward": backward,
        "median": float(np.median([sum(t) for t in times])),
        "peak_bytes": peak,
    }


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def _start_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: highest memory from now on
    except OSError:
        return None
    return _proc_status("VmRSS")


def _peak_memory(device: str, before: int | None) -> int | None:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() - before
    return None if before is None else _proc_status("VmHWM") - before


def _proc_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak_operations(device: str) -> float:
    """Floating point operations a second in float32 that a matrix product reaches."""
    matrix, best = torch.rand(2048, 2048, device=device), float("inf")
    for _ in range(20):
        start = _now(device)
        matrix @ matrix
        best = min(best, _now(device) - start)
    return 2 * 2048**3 / best


FIRST_CALL = """
import time, torch
from benchmarks.render import bodies
import render, render.numba_cpu
verts, faces = bodies(1, 224)
verts.requires_grad_()
start = time.perf_counter()
render.soft_silhouette(verts, faces, 224, backend="numba").sum().backward()
print(time.perf_counter() - start)
"""


def first_calls() -> dict:
    """Seconds of a process's first forward and backward call: compiling, and from the cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        command = [sys.executable, "-c", FIRST_CALL]
        cold, cached = (
            float(subprocess.check_output(command, env=environment, cwd=ROOT)) for _ in range(2)
        )
    return {"cold": cold, "cached": cached}


if __name__ == "__main__":
    main(parse_args())
