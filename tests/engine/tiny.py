"""A run of a fraction of a second a step, as its command, and ways to disturb it."""

import os

import main
from benchmarks.kills import start
from engine import loop
from engine.checkpoint import load_checkpoint

TINY = (
    "--backbone timm:test_efficientnet --img_res 40 --backbone_weights none --num_works 0 "
    "--device cpu --renderer torch --batch_size 4 --w_betas_prior 0"
).split()
CHECKPOINT = "checkpoint.pth.tar"


def command(data, folder, *more, epochs=2):
    """Arguments of main.py."""
    folders = ["--data_dir", str(data), "--output_dir", str(folder)]
    return [*folders, *TINY, "--nEpochs", str(epochs), *more]


def train(data, folder, *more, epochs=2):
    """A run in this process."""
    main.main(command(data, folder, *more, epochs=epochs))


def train_apart(data, folder, *more, epochs=2):
    """A run in a process of its own: its exit status and what it wrote to the screen."""
    output = folder.with_suffix(".txt")
    pid = start(command(data, folder, *more, epochs=epochs), output)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, output.read_text()


def at_step(monkeypatch, step, action):
    """Calls `action(batch)` when the run takes the batch of a step (counted from 1)."""
    real, count = loop.to_device, [0]

    def to_device(batch, device):
        count[0] += 1
        if count[0] == step:
            action(batch)
        return real(batch, device)

    monkeypatch.setattr(loop, "to_device", to_device)


def content(folder, name=CHECKPOINT):
    """What a run's checkpoint holds."""
    return load_checkpoint(folder / name).content
