"""Published checkpoints and recorded results, through the whole."""

import json

import numpy as np
import pytest
import torch

import eval as eval_script
from engine.build import load_network
from engine.checkpoint import load_checkpoint
from model import NetworkConfig


def _published(shared, path, layout="local_feat"):
    """Random weights under the published keys and prefix, NumPy scalars, old file format."""
    layout = json.loads((shared / "golden" / "state_dict_keys.json").read_text())[layout]
    generator = torch.Generator().manual_seed(0)
    state = {
        k: torch.zeros(s, dtype=torch.int64)
        if k.endswith("tracked")
        else 0.02 * torch.randn(s, generator=generator)
        for k, s in layout.items()
    }
    state = {k: v.abs() + 0.5 if k.endswith("running_var") else v for k, v in state.items()}
    content = {"epoch": 7, "state_dict": state, "best_acc": np.float64(0.5)}
    torch.save(content, path, _use_new_zipfile_serialization=False)


def test_its_weights_tell_whether_features_are_local(shared, tmp_path):
    """For demo.py, app.py and fit.py, which have no option that says it."""
    path = tmp_path / "stage3.pth.tar"
    _published(shared, path)
    checkpoint = load_checkpoint(path)
    assert checkpoint.options == {"local_feat": True}
    folder = shared / "samples"
    load_network(NetworkConfig.from_dict(checkpoint.options, True), folder, checkpoint)
    checkpoint.state_dict["graphnet.lin1.W"] = torch.zeros(512, 3 + 2048)
    assert checkpoint.options == {"local_feat": False}


def test_published_layout_goes_through_evaluation(shared, tmp_path):
    path = tmp_path / "stage3.pth.tar"
    _published(shared, path)
    arguments = [
        "--data_dir",
        str(shared / "samples"),
        "--output_dir",
        str(tmp_path / "out"),
        "--resume",
        str(path),
    ]
    eval_script.main([*arguments, *"--gpu_ids 0 --local_feat --save_results --num_works 0".split()])
    report = json.loads((tmp_path / "out" / "stanford_report.json").read_text())
    assert report["num_images"] == 4 and 0 <= report["pck_refined"] <= 1
    annotations = shared / "samples" / "StanfordExtra_v12"
    entries = json.loads((annotations / "StanfordExtra_v12.json").read_text())
    split = np.load(annotations / "test_stanford_StanfordExtra_v12.npy")
    names = {entries[i]["img_path"].removesuffix(".jpg").replace("/", "_") for i in split}
    assert (
        names
        == {p.stem for p in (tmp_path / "out").glob("*.png")}
        == {p.stem for p in (tmp_path / "out").glob("*.npz")}
    )
    assert (tmp_path / "out" / "per_image.csv").exists()


def test_evaluation_matches_the_recorded_run(shared, golden, tmp_path):
    """Four photographs through the whole, with the recorded weights."""
    from model import CoarseToFine
    from smal_model import SMAL, MeshHierarchy
    from tests.model.test_model import recorded_weights

    folder = shared / "samples"
    model = CoarseToFine(
        SMAL(folder / "smal"), MeshHierarchy.load(folder / "mesh_down_sampling_4.npz")
    )
    torch.save({"state_dict": recorded_weights(model)}, tmp_path / "w.pth.tar")
    g = golden("eval_run")
    for split in ("train", "val", "test"):
        arguments = [
            "--data_dir",
            str(folder),
            "--output_dir",
            str(tmp_path / "out"),
            "--resume",
            str(tmp_path / "w.pth.tar"),
        ]
        eval_script.main(
            [
                *arguments,
                "--split",
                split,
                *"--local_feat --save_results --num_works 0 --device cpu".split(),
            ]
        )
    entries = json.loads((folder / "StanfordExtra_v12" / "StanfordExtra_v12.json").read_text())
    for i, index in enumerate(g["index"]):
        name = entries[index]["img_path"].removesuffix(".jpg").replace("/", "_")
        with np.load(tmp_path / "out" / f"{name}.npz") as arrays:
            for key in ("verts", "verts_refined", "keypoints_row_col", "keypoints_refined_row_col"):
                recorded = g[f"{i}_{key}"]
                # one grey level in a picture is 1 part in 255; the recorded weights carry it on
                np.testing.assert_allclose(
                    arrays[key], recorded, rtol=0, atol=1e-3 * np.abs(recorded).max(), err_msg=key
                )
            for key in ("pck", "pck_refined"):
                assert arrays[key] == pytest.approx(float(g[f"{i}_{key}"]), abs=1e-6)
