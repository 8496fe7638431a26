"""Checkpoints to pass on: half the size, the same network, nothing of the run's places."""

import json

import pytest
import torch

import eval as eval_script
from engine import publish
from engine.checkpoint import load_checkpoint
from tests.commands import SMALL
from util.errors import InputError


def test_a_published_file_is_small_and_scores_the_same(runs, data, tmp_path):
    source, target = runs / "stage2" / "checkpoint.pth.tar", tmp_path / "few" / "dogs.pth.tar"
    publish.main([str(source), str(target)])
    best = runs / "stage2" / "model_best.pth.tar"
    assert target.stat().st_size < 0.6 * best.stat().st_size
    found, whole = load_checkpoint(target), load_checkpoint(source)
    assert found.options == whole.options and found.stage == 2 and not found.resumable
    assert not {"data_dir", "fit_dir"} & set(found.content["training"])
    assert b"/" + data.name.encode() not in target.read_bytes()
    kinds = {v.dtype for v in found.state_dict.values() if v.ndim > 1 and v.is_floating_point()}
    assert kinds == {torch.float16}
    reports = []
    for number, path in enumerate((source, target)):
        out = tmp_path / str(number)
        arguments = ["--data_dir", str(data), *SMALL[6:], "--local_feat", "--output_dir", str(out)]
        eval_script.main([*arguments, "--resume", str(path)])
        reports.append(json.loads((out / "stanford_report.json").read_text()))
    for name in ("pck", "iou", "pck_refined", "iou_refined"):
        assert reports[1][name] == pytest.approx(reports[0][name], abs=0.01)


def test_the_checkpoint_itself_is_no_place_to_write_to(runs, tmp_path):
    source = runs / "stage2" / "checkpoint.pth.tar"
    before = source.read_bytes()
    (tmp_path / "link.pth.tar").symlink_to(source)
    for target in (source, tmp_path / "link.pth.tar"):
        with pytest.raises(InputError, match="is the checkpoint itself"):
            publish.main([str(source), str(target)])
    with pytest.raises(InputError, match="is a folder; give a file"):
        publish.main([str(source), str(tmp_path)])
    assert source.read_bytes() == before


def test_what_is_no_run_or_too_large_is_refused(runs, tmp_path):
    foreign = tmp_path / "published.pth.tar"
    torch.save({"state_dict": {"w": torch.ones(2, 2)}}, foreign)
    with pytest.raises(InputError, match="does not say what network"):
        publish.publish(foreign, tmp_path / "out.pth.tar")
    content = torch.load(runs / "stage2" / "model_best.pth.tar", weights_only=True)
    del content["checksum"]
    name = next(k for k, v in content["state_dict"].items() if v.ndim > 1)
    content["state_dict"][name][0] = 1e6
    torch.save(content, foreign)
    with pytest.raises(InputError, match="half precision"):
        publish.publish(foreign, tmp_path / "out.pth.tar")
    assert not (tmp_path / "out.pth.tar").exists()
