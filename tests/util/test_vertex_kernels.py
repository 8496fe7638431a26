"""Triton's kernels of the refiner: interpreted on the CPU, compiled for a GPU, and run on one."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from util import vertex_kernels

ROOT = Path(__file__).parents[2]
pytest.importorskip("triton", reason="Triton is not installed")

INTERPRET = """
import numpy as np, scipy.sparse, torch
from torch.nn import functional as F
from util import triton_vertices as kernels, vertex_kernels

print("compared:", vertex_kernels.compare(kernels, "cpu"))
random = np.random.default_rng(0)
for batch, rows, columns, channels, type in (
    (1, 5, 9, 3, torch.float32), (3, 77, 200, 24, torch.float32), (1, 30, 20, 300, torch.float32),
    (2, 40, 40, 16, torch.bfloat16), (0, 4, 5, 8, torch.float32), (2, 3, 4, 8, torch.float32),
):
    matrix = scipy.sparse.random(rows, columns, 0.1, "csr", np.float32, random)
    parts = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data
    parts = tuple(map(torch.from_numpy, parts))
    x = torch.randn(batch, columns, channels).to(type)
    y = kernels.sparse_product(parts, rows, x)
    expected = torch.from_numpy(matrix.toarray()) @ x.float()
    assert y.shape == expected.shape and y.dtype == type
    torch.testing.assert_close(y, expected.to(type))
for batch, verts, channels, type in (
    (1, 150, 64, torch.float32), (1, 1, 8, torch.float32), (3, 128, 40, torch.float32),
    (2, 130, 16, torch.bfloat16), (0, 9, 16, torch.float32),
):
    x = (3 + torch.randn(batch, verts, channels)).to(type).requires_grad_()
    weight, bias = torch.randn(2, channels).unbind()
    weight.requires_grad_(), bias.requires_grad_()
    upstream = torch.randn(batch, verts, channels).to(type)
    y = kernels.norm_relu(x, weight, bias, 1e-5)
    grads = torch.autograd.grad(y, (x, weight, bias), upstream)
    plain = x.detach().float().requires_grad_()
    if batch:
        expected = F.group_norm(plain.transpose(1, 2), channels // 8, weight, bias).transpose(1, 2)
    else:
        expected = plain * weight + bias
    expected = F.relu(expected)
    expected_grads = torch.autograd.grad(expected, (plain, weight, bias), upstream.float())
    near = dict(rtol=2e-2, atol=2e-2) if type == torch.bfloat16 else dict(rtol=1e-4, atol=1e-4)
    assert y.dtype == grads[0].dtype == type
    torch.testing.assert_close(y.float(), expected, **near)
    for ours, theirs in zip(grads, expected_grads):
        torch.testing.assert_close(ours.float(), theirs, **near)
x = torch.zeros(1, 4, 8)
x[0, 2, 3] = torch.nan
assert kernels.norm_relu(x, torch.ones(8), torch.zeros(8), 1e-5).isnan().all()
print("done")
"""

COMPILE = """
import triton, util.triton_vertices as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

for kernel in (kernels._product, kernels._norm_forward, kernels._norm_backward):
    names = kernel.arg_names
    for type in ("*fp32", "*bf16"):
        kinds = dict.fromkeys(("x", "y", "grad", "out"), type) | {"eps": "fp32"}
        kinds |= {"starts": "*i64", "columns": "*i64"}
        kinds |= dict.fromkeys(
            ("values", "weight", "bias", "mean", "scale", "by_bias", "by_weight"), "*fp32"
        )
        fixed = {"HEIGHT": 4, "WIDTH": 32, "ROWS": kernels.ROWS, "GROUP": kernels.GROUP}
        signature = {n: "constexpr" if n in fixed else kinds.get(n, "i32") for n in names}
        values = {(names.index(n),): v for n, v in fixed.items() if n in names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        print(len(compiled.asm["cubin"]) > 1000)
"""


def run(code: str, **settings: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | settings
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_interpreted_they_give_what_plain_pytorch_gives():
    assert run(INTERPRET, TRITON_INTERPRET="1") == "compared: None\ndone\n"


def test_they_compile_for_a_gpu(tmp_path):
    assert run(COMPILE, TRITON_CACHE_DIR=str(tmp_path)).count("True") == 6


def test_wrong_kernels_are_found():
    def product(parts, num_rows, x):
        starts, columns, values = parts
        rows = torch.arange(num_rows).repeat_interleave(starts.diff())
        dense = torch.zeros(num_rows, x.shape[1]).index_put_((rows, columns), values)
        return (dense @ x.float()).to(x.dtype)

    def norm(x, weight, bias, eps):
        return vertex_kernels._plain_norm_relu(x.float(), weight, bias).to(x.dtype)

    class WrongGradient(torch.autograd.Function):
        """The plain norm, with another gradient by x."""

        @staticmethod
        def forward(ctx, x, weight, bias):
            ctx.save_for_backward(x, weight, bias)
            return norm(x, weight, bias, 1e-5)

        @staticmethod
        def backward(ctx, grad):
            given = [value.detach().requires_grad_() for value in ctx.saved_tensors]
            with torch.enable_grad():
                found = torch.autograd.grad(norm(*given, 1e-5), given, grad)
            return 1.05 * found[0], *found[1:]

    def compare(product, norm):
        module = SimpleNamespace(sparse_product=product, norm_relu=norm)
        return vertex_kernels.compare(module, "cpu")

    assert compare(product, norm) is None
    start = "sparse products of torch.float32 are"
    assert compare(lambda *given: 1.001 * product(*given), norm) == f"{start} wrong"
    start = "group norms of torch.float32 are"
    assert compare(product, lambda *given: 1.001 * norm(*given)) == f"{start} wrong"
    wrong = compare(product, lambda x, weight, bias, eps: WrongGradient.apply(x, weight, bias))
    assert wrong == "gradients of group norms of torch.float32 are wrong"

    def rough(*given):  # in bfloat16 alone
        return (1 + 0.05 * (given[2].dtype == torch.bfloat16)) * product(*given)

    assert compare(rough, norm) == "sparse products of torch.bfloat16 are wrong"


def test_on_the_cpu_and_in_float64_plain_pytorch_is_used():
    assert vertex_kernels.kernels_for(torch.zeros(1, 2, 3)) is None
    device = torch.device("cuda")
    double = SimpleNamespace(is_cuda=True, dtype=torch.float64, device=device)
    assert vertex_kernels.kernels_for(double) is None  # type: ignore[arg-type]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_they_are_used():
    for index in range(torch.cuda.device_count()):
        x = torch.zeros(1, 2, 8, device=f"cuda:{index}")
        with torch.autocast("cuda", torch.bfloat16), torch.no_grad():
            assert vertex_kernels.kernels_for(x).__name__ == "util.triton_vertices"
