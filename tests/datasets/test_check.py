"""python -m datasets.check"""

import subprocess
import sys
from pathlib import Path

import datasets
from datasets import check

from .small_set import edit, photo_path

ROOT = Path(datasets.__file__).resolve().parents[1]


def run_check(capsys, data_dir: Path) -> tuple[int, str]:
    code = check.main(["--dataset", "stanford", "--data_dir", str(data_dir)])
    return code, capsys.readouterr().out


def test_check_prints_one_table_of_all_splits(small_set, capsys):
    assert run_check(capsys, small_set) == (0, "stanford: 4 images in train, test, 0 unusable\n")

    def change(entries):
        photo_path(small_set, 0).unlink()
        entries[1]["seg"] = ""
        entries[3]["img_bbox"] = [0, 0, 0, 0]

    edit(small_set, change)
    code, out = run_check(capsys, small_set)
    lines = out.splitlines()
    assert code == 1 and len(lines) == 5
    assert lines[0].split() == ["index", "split", "name", "problem"]
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["0", "train", "breed_dog_0"],
        ["3", "train", "breed_dog_3"],
        ["1", "test", "breed_dog_1"],
    ]
    assert "empty mask" in lines[3] and lines[4] == "stanford: 4 images in train, test, 3 unusable"


def test_check_as_a_command_says_what_is_missing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "datasets.check",
        "--dataset",
        "animal_pose",
        "--data_dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "animal_pose_data.json is missing" in done.stderr
