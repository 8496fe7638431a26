"""Options of demo.py, app.py and fit.py: defaults, and values that make no sense."""

from pathlib import Path

import pytest

from engine.prediction_options import app_parser, demo_parser, fit_parser


def test_defaults_of_fit():
    assert vars(fit_parser().parse_args([])) == {
        "data_dir": Path("data"),
        "param_dir": None,
        "output_dir": Path("logs/fit"),
        "dataset": "stanford",
        "split": "test",
        "resume": None,
        "shape_family_id": None,
        "save_results": False,
        "batch_size": 8,
        "num_works": 4,
        "gpu_ids": [0],
        "device": None,
        "renderer": "auto",
        "seed": 0,
    }


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--batch_size", "0", "--batch_size: 0: expected 1 or more"),
        ("--batch_size", "many", "--batch_size: 'many': expected a whole number"),
        ("--num_works", "-1", "--num_works: -1: expected 0 or more"),
        ("--seed", "-1", "--seed: -1: expected 0 or more"),
        ("--seed", str(2**63), "--seed: 9.22337e+18: expected less than 9.22337e+18"),
        ("--gpu_ids", "x", "--gpu_ids: 'x': expected numbers of GPUs"),
        ("--split", "some", "--split: invalid choice: 'some'"),
        ("--data", "data", "unrecognized arguments"),  # no abbreviations
    ],
)
def test_senseless_values_are_refused(capsys, option, value, told):
    with pytest.raises(SystemExit):
        fit_parser().parse_args([option, value])
    assert told in capsys.readouterr().err


def test_boxes_and_ports(capsys):
    common = ["--checkpoint", "file.pth"]
    assert demo_parser().parse_args(["a.jpg", *common, "--bbox", "1,2,30,40"]).bbox == (
        1,
        2,
        30,
        40,
    )
    for box in ("1,2,30", "1,2,30,1", "1,2,x,40", "1,2,nan,40", "nan,2,30,40", "1,2,inf,40"):
        with pytest.raises(SystemExit):
            demo_parser().parse_args(["a.jpg", *common, "--bbox", box])
        assert "expected x,y,width,height in pixels" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        app_parser().parse_args([*common, "--port", "0"])
    assert "--port: 0: expected 1 or more" in capsys.readouterr().err
