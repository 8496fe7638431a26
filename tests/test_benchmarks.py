"""The benchmarks' plain twins compute what ours compute, and phases make up a step."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks import loader, scaling, step
from datasets import build_dataset
from datasets.transforms import draw_augmentation


@pytest.mark.parametrize("img_res", [96, 224])
@pytest.mark.parametrize("augment", [False, True])
def test_the_plain_item_is_ours_but_for_rounding(data, img_res, augment):
    """Turned crops are blended in bytes here and in floats there, on another grid of weights."""
    dataset = build_dataset("stanford", data, "train", img_res=img_res, augment=augment)
    turned = 0
    for item in range(6):
        index = dataset.indices[item]
        change = draw_augmentation(np.random.default_rng((0, 0, index)), augment, flip=False)
        entry = dataset.entries[index]
        path = dataset.images / entry["img_path"]
        twin, sample = loader.plain_item(path, entry, img_res, change), dataset[item]
        turned += change.angle != 0
        assert torch.equal(twin["keypoints"], sample["keypoints"])
        for name in ("image", "mask", "border_mask", "inside"):
            apart = (twin[name] - sample[name]).abs()
            if change.angle and name == "image":  # resampled once, the twin twice, which
                a, b = (F.avg_pool2d(each[name], 5, 1) for each in (twin, sample))
                assert (a - b).abs().mean() < 0.01  # blurs; a degree off gives 0.03
            elif change.angle:
                assert apart.mean() < 0.02, name
            elif name == "border_mask":
                assert apart.mean() < 1e-3
            else:
                assert apart.max() < 1e-4, name
        if change.angle:
            other = replace(change, angle=-change.angle)
            wrong = loader.plain_item(path, entry, img_res, other)
            assert (wrong["mask"] - sample["mask"]).abs().mean() > 0.02
    assert bool(turned) == augment


def test_the_plain_mask_is_ours(data):
    dataset = build_dataset("stanford", data, "train")
    entry = dataset.entries[dataset.indices[0]]
    mask, _ = dataset.read_labels(entry)
    plain = loader.plain_mask(entry["seg"], entry["img_height"], entry["img_width"])
    assert mask.any() and np.array_equal(mask, plain)


def test_the_phases_of_a_step_make_it_up_and_the_twin_has_its_loss(data, tmp_path, capsys):
    path = tmp_path / "step.json"
    options = ["--data_dir", str(data), "--img_res", "64", "--batch_size", "2", "--steps", "0"]
    step.main(step.parse_args([*options, "--device", "cpu", "--json", str(path)]))
    found = json.loads(path.read_text())
    assert found["threads"] == 1 and found["torch"] == torch.__version__
    assert [row["stage"] for row in found["rows"]] == [1, 3]
    for row in found["rows"]:
        absent = {"refiner", "silhouettes", "Laplacian"} if row["stage"] == 1 else set()
        for name in ("ours", "plain"):
            seconds = dict(row[name])
            total = seconds.pop("step")
            assert total == pytest.approx(sum(seconds.values()))
            assert {phase for phase, value in seconds.items() if value == 0} == absent
        assert row["first_loss"]["plain"] == pytest.approx(row["first_loss"]["ours"], rel=1e-3)
    assert "silhouettes" in capsys.readouterr().out


def test_scaling_counts_the_images_of_all_processes(tmp_path):
    path = tmp_path / "scaling.json"
    with pytest.raises(SystemExit):
        scaling.parse_args(["--processes", "0"])
    options = "--processes 2 --backbone resnet18 --img_res 64 --batch_size 2 --steps 1".split()
    scaling.main(scaling.parse_args([*options, "--json", str(path)]))
    (row,) = json.loads(path.read_text())["rows"]
    assert 0 < row["gradient_bytes"] <= 4 * row["parameters"]
    assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
    assert row["efficiency"] == 1  # of itself
