"""Data sets with broken images: they are named, and change nothing for the rest."""

import copy
import json
import shutil
import struct

import cv2
import numpy as np
import pytest
import torch

import eval as eval_script
import main
from datasets import check
from datasets.images import simplejpeg
from tests.datasets.small_set import encode
from tests.engine.tiny import TINY

LIST = "StanfordExtra_v12.json"
SPLIT = "{}_stanford_StanfordExtra_v12.npy"
NAN = float("nan")


def _bytes(change):
    """Damages the file."""
    return lambda entry, path: path.write_bytes(change(path.read_bytes()))


def _labels(change):
    """Damages the entry."""
    return lambda entry, path: entry.update(change(entry))


def _joint(*values):
    return _labels(lambda e: {"joints": [list(values), *e["joints"][1:]]})


def _huge_header(data):
    """The same JPEG, promising 30,000 x 30,000 pixels."""
    place = next(i for m in (b"\xff\xc0", b"\xff\xc2") if (i := data.find(m)) > 0)
    return data[: place + 5] + struct.pack(">HH", 30000, 30000) + data[place + 9 :]


def _scrambled(data):
    """The same JPEG with a stretch of ones among its coded pixels, which no code begins with."""
    place = data.rindex(b"\xff\xda") + (len(data) - data.rindex(b"\xff\xda")) // 2
    return data[:place] + b"\xff\x00" * 8 + data[place + 16 :]


def _mask(change):
    return _labels(lambda e: {"seg": encode(change(np.ones((e["img_height"], e["img_width"]))))})


def _replace(path, image):
    assert cv2.imwrite(str(path), image)


WAYS = {  # what is done to an entry and its image's file
    "missing": lambda entry, path: path.unlink(),
    "folder": lambda entry, path: (path.unlink(), path.mkdir()),
    "zero-byte": _bytes(lambda data: b""),
    "web page": _bytes(lambda data: b"<html>not found</html>"),
    "truncated": _bytes(lambda data: data[: len(data) // 2]),
    "huge header": _bytes(_huge_header),
    "other size": lambda entry, path: _replace(path, np.zeros((50, 60, 3), np.uint8)),
    "short runs": _mask(lambda mask: mask[:, 1:]),
    "cut runs": _labels(lambda e: {"seg": e["seg"] + "o"}),
    "empty mask": _mask(lambda mask: 0 * mask),
    "no mask": _labels(lambda e: {"seg": ""}),
    "far joint": _joint(1e9, 1, 1),
    "infinite joint": _joint(float("inf"), 1, 1),
    "many joints": _labels(lambda e: {"joints": e["joints"] * 2}),
    "no joints": _labels(lambda e: {"joints": []}),
    "box outside": _labels(lambda e: {"img_bbox": [9000, 9000, 50, 50]}),
    "flat box": _labels(lambda e: {"img_bbox": [10, 10, 0, 50]}),
    "box of NaN": _labels(lambda e: {"img_bbox": [NAN, 10, 50, 50]}),
    "absolute path": lambda entry, path: entry.update(img_path=str(path)),
    "path outside": _labels(lambda e: {"img_path": "../Images/" + e["img_path"]}),
    "long path": _labels(lambda e: {"img_path": f"{'long/' * 60}broken_long_path.jpg"}),
    "no UTF-8": _labels(lambda e: {"img_path": "n0/broken_no_UTF-8_\udcff.jpg"}),
}
if simplejpeg is not None:
    WAYS["scrambled"] = _bytes(_scrambled)


def _add_broken(folder, split):
    """Adds to a split a copy of an image of it for each way, broken in that way; their indices."""
    root = folder / "StanfordExtra_v12"
    entries = json.loads((root / LIST).read_text())
    good = np.load(root / SPLIT.format(split))
    order, broken = good.tolist(), []
    for i, (way, damage) in enumerate(WAYS.items()):
        entry = copy.deepcopy(entries[good[i % len(good)]])
        path = root / "Images" / "n0" / f"broken_{way.replace(' ', '_')}.jpg"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(root / "Images" / entry["img_path"], path)
        entry["img_path"] = f"n0/{path.name}"
        damage(entry, path)
        broken.append(len(entries))
        order.insert(i % (len(order) + 1), len(entries))
        entries.append(entry)
    broken.append(len(entries))  # the same photograph with the same labels again
    order.append(len(entries))
    entries.append(entries[good[0]])
    (root / LIST).write_text(json.dumps(entries))
    np.save(root / SPLIT.format(split), order)
    return broken


def _unlabel(folder):
    """Writes a joint of every entry as NaN, which is read as not visible."""
    path = folder / "StanfordExtra_v12" / LIST
    entries = json.loads(path.read_text())
    for entry in entries:
        entry["joints"][3] = [NAN, NAN, 1]
    path.write_text(json.dumps(entries))


@pytest.fixture
def folders(data, tmp_path):
    """A data set, and one with broken images among the test and the training images besides."""
    clean, mixed = tmp_path / "clean", tmp_path / "mixed"
    for folder in (clean, mixed):
        shutil.copytree(data, folder)
        root = folder / "StanfordExtra_v12"
        np.save(root / SPLIT.format("test"), np.arange(6, 24))
        np.save(root / SPLIT.format("train"), np.arange(6))
        np.save(root / SPLIT.format("val"), [6, 7])
        _unlabel(folder)
    return clean, mixed


@pytest.mark.parametrize("split", ["test", "train"])
def test_check_names_each_broken_image_once(folders, capsys, split):
    clean, mixed = folders
    assert check.main(["--data_dir", str(clean)]) == 0
    capsys.readouterr()
    broken = _add_broken(mixed, split)
    assert check.main(["--data_dir", str(mixed)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(f"{len(broken)} unusable")
    rows = [line.split() for line in lines[1:-1]]
    assert sorted((int(row[0]), row[1]) for row in rows) == [(i, split) for i in broken]


def test_the_rest_is_scored_as_without_the_broken_images(folders, runs, tmp_path, capsys):
    clean, mixed = folders
    broken = _add_broken(mixed, "test")
    tables = []
    for folder in folders:
        out = tmp_path / f"{folder.name}_results"
        arguments = ["--data_dir", str(folder), "--output_dir", str(out), "--num_works", "0"]
        arguments += ["--resume", str(runs / "stage1" / "checkpoint.pth.tar"), "--batch_size", "5"]
        eval_script.main([*arguments, "--device", "cpu"])
        tables.append((out / "per_image.csv").read_bytes())
        report = json.loads((out / "stanford_report.json").read_text())
        assert report["num_images"] == 18
        assert report["excluded"] == (len(broken) if folder == mixed else 0)
    assert tables[0] == tables[1] and tables[0].count(b"\n") == 19
    assert f"Unusable images left out: {len(broken)}" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_rest_is_learnt_as_without_the_broken_images(folders, tmp_path, workers):
    clean, mixed = folders
    broken = _add_broken(mixed, "train")
    for folder in folders:
        out = tmp_path / f"{folder.name}_run"
        arguments = ["--data_dir", str(folder), "--output_dir", str(out), *TINY, "--nEpochs", "1"]
        main.main([*arguments, "--num_works", workers])
    runs = [tmp_path / f"{folder.name}_run" for folder in folders]
    states = [
        torch.load(run / "checkpoint.pth.tar", weights_only=True)["state_dict"] for run in runs
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    log = (runs[1] / "log.txt").read_text()
    assert f"{len(broken)} unusable" in log and "could not be read" not in log, log
