"""Memory that is freed is used again without new pages; other C libraries are left alone."""

import os
import subprocess
import sys

import pytest
import torch

from engine import build
from engine.options import stage1_parser
from tests.conftest import ROOT
from util import memory

FAULTS = """
import resource
from util.memory import keep_freed_memory

number = 2**26


def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        b"x" * number  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


mapped, taken = faults(), keep_freed_memory()
faults()
print(mapped, taken, faults())
"""


def test_freed_memory_is_used_again_without_new_pages():
    run = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    mapped, taken, kept = run.stdout.split()
    if taken != "True":
        pytest.skip("needs glibc")
    if int(mapped) < 1000:
        pytest.skip("this allocator keeps memory by itself, or takes huge pages")
    assert int(kept) < 0.01 * int(mapped)


@pytest.mark.parametrize("answer", [ValueError, OSError, AttributeError, "", None, "musl 1.2"])
def test_other_c_libraries_are_left_alone(monkeypatch, answer):
    def confstr(name):
        if isinstance(answer, type):
            raise answer
        return answer

    monkeypatch.setattr(os, "confstr", confstr)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("touched"))
    assert memory.keep_freed_memory() is False


def test_scripts_ask_for_it_on_a_cpu_alone(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(build, "keep_freed_memory", lambda: calls.append(1))
    args = stage1_parser().parse_args(["--output_dir", str(tmp_path), "--device", "cpu"])
    build.prepare(args)
    assert calls == [1]
    monkeypatch.setattr(build, "select_device", lambda args: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(build.render, "check", lambda *_: None)
    build.prepare(args)
    assert calls == [1]
