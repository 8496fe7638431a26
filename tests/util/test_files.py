"""Writes that are whole or not there: flushed, swept when killed, clear when they fail."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from util.errors import InputError
from util.files import atomic_write, sweep_leftovers, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(KeyError), atomic_write(target) as temporary:
        temporary.write_text("half of the new")
        raise KeyError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_the_file_is_flushed_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def record(name):
        def step(*args):
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else args[1]
            steps.append((name, Path(target).name))
            return (fsync if name == "fsync" else replace)(*args)

        return step

    monkeypatch.setattr(os, "fsync", record("fsync"))
    monkeypatch.setattr(os, "replace", record("replace"))
    write_text(tmp_path / "a.txt", "text")
    (first, temporary), *rest = steps
    assert first == "fsync" and temporary.startswith(".a-")
    assert rest == [("replace", "a.txt"), ("fsync", tmp_path.name)]


def test_files_are_readable_by_all(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan")})
    assert stat.S_IMODE((tmp_path / "a.json").stat().st_mode) == 0o644
    assert (tmp_path / "a.json").read_text() == '{\n  "x": null\n}\n'


WRITERS = {
    "bytes": lambda path: path.write_bytes(bytes(2 * 2**20)),
    "arrays": lambda path: np.savez(path, a=np.zeros(2**18)),
    "checkpoint": lambda path: torch.save(torch.zeros(2**19), path),
}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs more rights than this user has")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_sentence_and_the_old_file_stays(small_disk, writer):
    target = small_disk / "a.npz"
    target.write_bytes(b"old")
    with pytest.raises(InputError, match=r"disk is full: a\.npz needs [\d,]+ more bytes"):
        with atomic_write(target, size=2 * 2**20) as temporary:
            WRITERS[writer](temporary)
    assert target.read_bytes() == b"old" and os.listdir(small_disk) == ["a.npz"]


def test_the_bytes_missing_are_counted(tmp_path, monkeypatch):
    """A disk that is full at the flush, as where blocks are given late (a stand-in for one)."""

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"needs 900 more bytes after 100 bytes"):
            with atomic_write(tmp_path / "a.bin", size=1000) as temporary:
                temporary.write_bytes(bytes(100))
    assert os.listdir(tmp_path) == []


def test_a_limit_on_the_size_of_files_counts_as_full(tmp_path):
    script = (
        "import resource, sys; from util.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_text(sys.argv[1], 'x' * 5000)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "a.txt")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "InputError" in found.stderr and "needs 4,000 more bytes" in found.stderr
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is gone or cannot be made"):
        write_text(tmp_path / "file" / "a.txt", "text")
    with pytest.raises(InputError, match="folder is gone"):
        with atomic_write(tmp_path / "folder" / "a.txt") as temporary:
            temporary.unlink()
            temporary.parent.rmdir()
            temporary.write_text("text")

    def refuse(*args):  # root may write anywhere, so a read-only folder is a stand-in here
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(InputError, match="Read-only file system"):
        write_text(tmp_path / "a.txt", "text")


def test_faults_of_the_block_itself_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "missing").read_text()
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        with atomic_write(tmp_path / "a.txt"):
            torch.zeros(3) @ torch.zeros(4)
    assert os.listdir(tmp_path) == []


KILLED = """
import sys, time
from util.files import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_killed_writes_are_swept_and_those_of_living_ones_stay(tmp_path):
    others = [".gitignore", ".hidden-file.txt", "shown-12345678.txt"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".folder-abcdefgh").mkdir()
    old = tmp_path / ".checkpoint.pth-abc12_ef.tar"  # one that an earlier version left
    old.touch()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "best.pth.tar")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with atomic_write(tmp_path / "mine.txt") as temporary:
            temporary.write_text("mine")
            assert sweep_leftovers(tmp_path) == [old]
        (left,) = tmp_path.glob(".best.pth-*")
        process.send_signal(signal.SIGKILL)
    assert left.exists()
    assert sweep_leftovers(tmp_path) == [left]
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == sorted([*others, ".folder-abcdefgh", "mine.txt"])
    assert sweep_leftovers(tmp_path / "missing") == []
