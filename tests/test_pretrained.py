"""The network that comes with the program: its scores on photographs, and demo.py's use of it."""

import json
import shutil

import numpy as np
import pytest

import demo
import eval as eval_script
from engine.prediction_options import PRETRAINED
from util.errors import InputError


def test_its_scores_on_the_twelve_photographs(shared, synthetic_body, tmp_path):
    folder = tmp_path / "StanfordExtra_v12"
    folder.mkdir()
    source = shared / "samples" / folder.name
    (folder / "Images").symlink_to(source / "Images")
    shutil.copy(source / f"{folder.name}.json", folder)
    np.save(folder / f"test_stanford_{folder.name}.npy", np.arange(12))
    data = ["--data_dir", str(tmp_path), "--param_dir", str(synthetic_body), "--num_works", "0"]
    out = ["--output_dir", str(tmp_path / "out"), "--device", "cpu", "--local_feat"]
    eval_script.main([*data, *out, "--resume", str(PRETRAINED)])
    report = json.loads((tmp_path / "out" / "stanford_report.json").read_text())
    assert report["pck"] == pytest.approx(0.865, abs=0.01)
    assert report["pck_refined"] == pytest.approx(0.853, abs=0.01)
    assert report["iou"] == pytest.approx(0.730, abs=0.005)
    assert report["iou_refined"] == pytest.approx(0.757, abs=0.005)


def test_demo_takes_it_with_its_own_body_and_fits_to_the_outline_it_sees(shared, tmp_path, capsys):
    photograph = next((shared / "samples/photographs").glob("*.jpg"))
    run = [str(photograph), "--output_dir", str(tmp_path), "--detector", "none", "--device", "cpu"]
    with pytest.raises(InputError, match="--param_dir .*has its own body; leave it out"):
        demo.main([*run, "--param_dir", str(shared / "samples")])
    assert demo.main([*run, "--data_dir", str(shared / "samples")]) == 0  # holds another body
    assert demo.main([*run, "--refine", "--output_dir", str(tmp_path / "fitted")]) == 0
    assert "not refined" not in capsys.readouterr().err
    (alone,), (fitted,) = (f.glob("*_estimate.npz") for f in (tmp_path, tmp_path / "fitted"))
    with np.load(alone) as before, np.load(fitted) as after:
        assert np.abs(before["verts_coarse"] - after["verts_coarse"]).max() > 0.01
