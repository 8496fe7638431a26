"""The scripts' commands as tests run them."""

import pytest

import eval as eval_script
import fit
import main
import main_meshgraph
from util.errors import InputError

SMALL = (
    "--backbone resnet18 --img_res 64 --backbone_weights none --num_works 0 --device cpu".split()
)
SCRIPTS = {
    "main.py": main,
    "main_meshgraph.py": main_meshgraph,
    "eval.py": eval_script,
    "fit.py": fit,
}


def fails(capsys, arguments, *words):
    """Runs a command that must end with a fault of the user, whose message has these words."""
    with pytest.raises((SystemExit, InputError)) as stop:
        SCRIPTS[arguments[0]].main(arguments[1:])
    if isinstance(stop.value, SystemExit):
        assert stop.value.code == 2
        message = capsys.readouterr().err.strip().splitlines()[-1]
    else:
        message = str(stop.value)
    for word in words:
        assert word in message, message
