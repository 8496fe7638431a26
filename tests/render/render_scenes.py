"""Scenes for the renderer's tests, and one way to run them through any backend.

Triton runs on the CUDA device where there is one, and otherwise in its interpreter, in a process of
its own since the interpreter must be chosen before Triton is imported: `python render_scenes.py`
reads lines of two files, scenes and where their results go.
"""

import atexit
import importlib.util
import os
import select
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ["torch", "numba", "triton", "pytorch3d"]


def require(backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"the package {backend} is not installed")


def soup(seed: int, batch: int, triangles: int, spread: float = 0.4) -> tuple:
    """Random triangles, some beyond the image: verts (B, 3F, 3) float32, faces (F, 3) int64."""
    random = np.random.default_rng(seed)
    centres = random.uniform(-1.1, 1.1, (batch, triangles, 1, 3))
    verts = centres + random.normal(0, spread, (batch, triangles, 3, 3))
    verts[..., 2] = 3 + random.uniform(0, 2, (batch, triangles, 1)) + 0.3 * verts[..., 2]
    return verts.reshape(batch, -1, 3).astype(np.float32), np.arange(3 * triangles).reshape(-1, 3)


def scene(verts, faces, size, sigma=1e-4, blur_radius=None, supersample=2) -> dict:
    return {
        "verts": np.asarray(verts, np.float32),
        "faces": np.asarray(faces, np.int64).reshape(-1, 3),
        "size": np.asarray(size),
        "sigma": sigma,
        "blur_radius": -1.0 if blur_radius is None else blur_radius,
        "supersample": supersample,
    }


def run_here(backend: str, scenes: list[dict], device: str = "cpu") -> list[dict]:
    """Each scene's silhouette, gradient of the sum of weights * silhouette, coverage, z-buffer."""
    import render

    results = []
    for s in scenes:
        verts = torch.tensor(s["verts"], requires_grad=True, device=device)
        faces, size = torch.tensor(s["faces"], device=device), tuple(int(n) for n in s["size"])
        result = {}
        if backend != "pytorch3d" or size[0] == size[1]:
            blur_radius = None if s["blur_radius"] < 0 else float(s["blur_radius"])
            sigma = float(s["sigma"])
            silhouette = render.soft_silhouette(verts, faces, size, sigma, blur_radius, backend)
            upstream = weights(silhouette.shape)
            if "broken" in s:
                upstream.flat[s["broken"]] = np.array([np.nan, np.inf])[: len(s["broken"])]
            silhouette.backward(torch.tensor(upstream, device=device))
            result = {"silhouette": silhouette.detach().cpu().numpy()}
            result["grad"] = verts.grad.cpu().numpy()
        nearest = render.rasterize(verts, faces, size, backend)
        covered = render.coverage(verts, faces, size, int(s["supersample"]), backend)
        result |= {name: value.cpu().numpy() for name, value in vars(nearest).items()}
        result["coverage"] = covered.cpu().numpy()
        results.append(result)
    return results


def weights(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(7).uniform(0, 1, shape).astype(np.float32)


def run(backend: str, scenes: list[dict], folder: Path) -> list[dict]:
    """As run_here; Triton on the CUDA device, or in a process of its own."""
    require(backend)
    on_device = torch.cuda.is_available() and "TRITON_INTERPRET" not in os.environ
    if backend != "triton" or on_device:
        return run_here(backend, scenes, "cuda" if backend == "triton" else "cpu")
    given, got = folder / "scenes.npz", folder / "results.npz"
    pack(given, scenes)
    if _interpreter().poll() is not None:  # it ended in an earlier test
        _interpreter.cache_clear()
    process = _interpreter()
    print(given, got, sep="\t", file=process.stdin, flush=True)
    waiting = select.select([process.stdout], [], [], 240)[0]
    answer = process.stdout.readline() if waiting else "no answer in 240 seconds"
    if answer != "done\n":
        process.kill()
        process.wait()
    assert answer == "done\n", answer or f"Triton's process ended with status {process.returncode}"
    return unpack(got)


@cache
def _interpreter() -> subprocess.Popen:
    """A process with Triton's interpreter, which renders the files it is told of, one by one."""
    settings = {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command, environment = [sys.executable, "-u", __file__], os.environ | settings
    process = subprocess.Popen(command, env=environment, **pipes)
    atexit.register(process.kill)
    return process


def pack(path: Path, groups: list[dict]) -> None:
    arrays = {f"{n}/{key}": value for n, group in enumerate(groups) for key, value in group.items()}
    np.savez(path, **arrays)


def unpack(path: Path) -> list[dict]:
    groups: dict[int, dict] = {}
    with np.load(path) as arrays:
        for name, value in arrays.items():
            number, key = name.split("/")
            groups.setdefault(int(number), {})[key] = value
    return [groups[n] for n in sorted(groups)]


if __name__ == "__main__":
    for line in sys.stdin:
        given, got = line.rstrip("\n").split("\t")
        try:
            pack(Path(got), run_here("triton", unpack(Path(given))))
            print("done", flush=True)
        except Exception:
            print(repr(traceback.format_exc()[-2000:]), flush=True)
