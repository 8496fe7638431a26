"""A script as tests run it in several processes: `-m tests.engine.worker FILE SCRIPT ARGUMENT...`.

The first process writes the gradients of the first optimiser step to FILE, in the order of the
optimiser's parameters, None where there is none. Fits are cut short. With `double` before FILE
networks, body and losses are computed in float64.
"""

import sys
from dataclasses import replace

import torch
from torch import nn

import fit
import render
from engine import evaluate, loop
from model import CoarseModel
from tests.commands import SCRIPTS
from util import distributed
from util.errors import run_cli


def compute_in_float64() -> None:
    """What several processes do is that of one but for rounding: here 1e-16, which decides nothing.

    In float32 a unit that is nearly at 0 turns on or off with the order of a sum, and changes the
    gradients of all layers before it by most of a percent.
    """
    to_float, to, to_device = torch.Tensor.float, nn.Module.to, loop.to_device
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = lambda x: x.double() if x.dtype == torch.float64 else to_float(x)

    nn.Module.to = lambda module, device: to(module, device, torch.float64)

    def double(values):
        wide = {k: v for k, v in values.items() if torch.is_tensor(v) and v.is_floating_point()}
        return values | {k: v.double() for k, v in wide.items()}

    soft, covered = render.soft_silhouette, render.coverage  # of one image, in float32
    render.soft_silhouette = lambda verts, *a, **k: soft(verts.to(torch.float32), *a, **k).double()
    render.coverage = lambda verts, *a, **k: covered(verts.to(torch.float32), *a, **k).double()
    forward = CoarseModel.forward
    CoarseModel.forward = lambda model, image: forward(model, image.double())  # previews too
    for module in (loop, evaluate):
        module.to_device = lambda batch, device: double(to_device(batch, device))


def main(argv) -> None:
    if argv[0] == "double":
        compute_in_float64()
        argv = argv[1:]
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
