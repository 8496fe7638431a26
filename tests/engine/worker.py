"""A script as tests run it in several processes: `-m tests.engine.worker FILE SCRIPT ARGUMENT...`.

The first process writes the gradients of the first optimiser step to FILE, in the order of the
optimiser's parameters, None where there is none. Fits are cut short.
"""

import sys
from dataclasses import replace

import torch

import fit
from tests.commands import SCRIPTS
from util import distributed
from util.errors import run_cli


def main(argv) -> None:
    path, script, *arguments = argv
    step = torch.optim.Adam.step

    def first(optimizer):
        parameters = optimizer.param_groups[0]["params"]
        if distributed.is_main():
            torch.save([p.grad for p in parameters], path)
        torch.optim.Adam.step = step
        return optimizer.step()

    torch.optim.Adam.step = first
    few = {"headings": 2, "kept": 1, "round_steps": (2, 2), "body_steps": 2, "deform_steps": 2}
    fit.FIT = replace(fit.FIT, modes=20, **few)
    SCRIPTS[script].main(arguments)


if __name__ == "__main__":
    run_cli(main, sys.argv[1:])
