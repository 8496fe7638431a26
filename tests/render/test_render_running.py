"""How the fast backends run: many threads, forks, little memory, a read-only folder."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import render
from tests.render.render_scenes import ROOT, require, soup


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, **options)


def gradient(seed: int, size: int = 64) -> torch.Tensor:
    verts, faces = soup(seed, 2, 60, 0.1)
    verts, faces = torch.tensor(verts, requires_grad=True), torch.tensor(faces)
    silhouette = render.soft_silhouette(verts, faces, size, 1e-3, backend="numba")
    silhouette.square().sum().backward()
    return verts.grad


def test_several_threads_at_once():
    require("numba")
    expected = [gradient(seed) for seed in range(6)]
    results: dict[tuple[int, int], torch.Tensor] = {}

    def work(seed: int) -> None:
        for turn in range(5):
            results[seed, turn] = gradient(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 30
    assert all(torch.equal(result, expected[seed]) for (seed, _), result in results.items())


def _in_child(queue) -> None:
    queue.put(gradient(1).numpy())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork():
    """As in a data loader's worker: the parent's helper threads do not exist there."""
    require("numba")
    expected = gradient(1).numpy()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,), daemon=True)
    child.start()
    result = queue.get(timeout=60)
    child.join(10)
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_thread_counts_agree(threads):
    require("numba")
    before, expected = torch.get_num_threads(), gradient(2)
    try:
        torch.set_num_threads(threads)
        result = gradient(2)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_memory_is_a_few_images_and_the_vertices():
    require("numba")
    gradient(3)
    batch, size = 4, 200
    verts, faces = soup(3, batch, 500, 0.1)
    verts, faces = torch.tensor(verts, requires_grad=True), torch.tensor(faces)
    image = batch * size * size * 4
    tracemalloc.start()
    render.soft_silhouette(verts, faces, size, backend="numba").sum().backward()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * image + 8 * verts.numel() * 4 + 8 * faces.numel() + 500_000


def test_reference_memory_does_not_grow_with_the_faces(monkeypatch):
    sizes = []
    original = render.torch_reference._squared_distance
    monkeypatch.setattr(
        render.torch_reference,
        "_squared_distance",
        lambda points, corners: (sizes.append(len(points)), original(points, corners))[1],
    )
    monkeypatch.setattr(render.torch_reference, "PAIRS_PER_CHUNK", 1000)
    verts, faces = (torch.tensor(x) for x in soup(3, 1, 40, 0.5))
    result = render.soft_silhouette(verts, faces, 32, backend="torch")
    assert max(sizes) <= 1000 and len(sizes) > 3
    monkeypatch.undo()
    whole = render.soft_silhouette(verts, faces, 32, backend="torch")
    assert torch.allclose(result, whole, atol=1e-6)


SCRIPT = """
import torch, render, render.numba_cpu
verts = torch.tensor([[[-0.5, -0.5, 1], [0.5, -0.5, 1], [0, 0.5, 1.0]]])
print(render.soft_silhouette(verts, torch.tensor([[0, 1, 2]]), 8, backend="numba").sum().item() > 1)
stats = render.numba_cpu._soft_forward.stats
print(len(stats.cache_hits), len(stats.cache_misses))
"""


def test_compiled_code_is_kept_in_another_folder_where_the_package_is_read_only(tmp_path):
    require("numba")
    package = tmp_path / "installed"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "render", package / "render", ignore=ignore)
    (package / "render" / "__pycache__").write_text("a file, so that there can be no such folder")
    environment = os.environ | {"PYTHONPATH": str(package), "HOME": str(tmp_path)}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    environment.pop("NUMBA_CACHE_DIR", None)
    for expected in ("0 1", "1 0"):  # compiled, then read
        done = python("-B", "-c", SCRIPT, env=environment, cwd=tmp_path)
        assert done.stdout.split("\n")[:2] == ["True", expected], done.stderr[-2000:]
    assert list(Path(tmp_path / "cache").rglob("*.nbi"))


def test_auto_takes_plain_pytorch_where_a_backend_cannot_be_imported(monkeypatch):
    monkeypatch.setattr(render, "_faults", {})
    real = render._load

    def load(name, verts):
        if name == "numba":
            raise OSError("libLLVM is of another version")
        return real(name, verts)

    monkeypatch.setattr(render, "_load", load)
    with pytest.warns(UserWarning, match="libLLVM is of another version; using 'torch' instead"):
        assert render.check("cpu") == "torch"
    with pytest.raises(RuntimeError, match="libLLVM"):  # said once, kept
        render.check("cpu", "numba")


def test_importing_the_package_imports_no_backend():
    names = "numba", "triton.language", "pytorch3d", "render.numba_cpu"
    code = f"import sys, render; print([m for m in {names} if m in sys.modules])"
    done = python("-c", code, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


COMPILE = """
import triton, render.triton_cuda as cuda
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
kinds = dict.fromkeys(("counts", "starts", "cursors", "face"), "*i64") | {"covered": "*u8"}
kinds |= dict.fromkeys(("boxes", "faces", "entries"), "*i32")
numbers = {"reach", "scale", "limit", "factor"}
floats = {"verts", "records", "product", "upstream", "grad", "depth", "bary"}
constants = {n: getattr(cuda, n) for n in ("TILE", "FACES", "RECORD", "CHUNK")}
constants |= {"SOFT": True, "ROWS": cuda.WINDOW[0], "COLUMNS": cuda.WINDOW[1]}
kinds |= dict.fromkeys(floats, "*fp32") | dict.fromkeys(numbers, "fp32")
aligned = [["tt.divisibility", 16]]
# Numbers that are 1 and those that 16 divides are compiled in: as launched for a batch of 224 x 224
# pixels (28 x 28 tiles), for one row of them, and for a shape without such numbers.
launches = [{"height": 224, "width": 224}, {"height": 1, "tiles_down": 1, "width": 224}, {}]
for name, options in cuda.OPTIONS.items():
    kernel = getattr(cuda, name)
    names = kernel.arg_names
    for special in launches:
        fixed = constants | {n: v for n, v in special.items() if v == 1}
        values = {(names.index(n),): v for n, v in fixed.items() if n in names}
        signature = {n: "constexpr" if n in fixed else kinds.get(n, "i32") for n in names}
        attributes = {
            (names.index(n),): aligned
            for n in names
            if signature[n][0] == "*" or special.get(n, 1) % 16 == 0
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        print(name, len(compiled.asm["cubin"]) > 1000)
"""


def test_triton_kernels_compile_for_a_gpu(tmp_path):
    """For an H100 or H200, without one at hand: this says nothing of their speed."""
    require("triton")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    done = python("-c", COMPILE, env=environment)
    assert done.stdout.count("True") == 18, done.stdout + done.stderr[-2000:]


def test_triton_honours_deterministic_algorithms():
    require("triton")
    from render.triton_cuda import _alert_not_deterministic

    _alert_not_deterministic()
    try:
        torch.use_deterministic_algorithms(True)
        with pytest.raises(RuntimeError, match="'triton' are not deterministic"):
            _alert_not_deterministic()
        torch.use_deterministic_algorithms(True, warn_only=True)
        with pytest.warns(UserWarning, match="'triton' are not deterministic"):
            _alert_not_deterministic()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_triton_on_a_side_stream_and_on_the_last_device():
    require("triton")
    verts, faces = (torch.tensor(x) for x in soup(13, 2, 50, 0.2))
    expected = render.soft_silhouette(verts, faces, 40, 1e-3, backend="torch")
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    stream = torch.cuda.Stream(last)
    with torch.cuda.stream(stream):
        moved = verts.to(last).requires_grad_()
        silhouette = render.soft_silhouette(moved, faces.to(last), 40, 1e-3, backend="triton")
        silhouette.sum().backward()
    stream.synchronize()
    assert torch.allclose(silhouette.detach().cpu(), expected, atol=1e-4)
    assert moved.grad.isfinite().all() and moved.grad.any()
