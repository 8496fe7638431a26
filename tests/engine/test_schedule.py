"""Learning-rate schedules, averaged weights, and the end by the clock."""

import copy
import math
import os
import signal

import pytest
import torch

import main
from engine.schedule import AveragedWeights, Schedule
from tests.commands import SMALL
from tests.engine.tiny import CHECKPOINT, TINY, at_step, train
from util.errors import Interrupted


def test_schedules_start_at_the_rate_and_end_where_they_say():
    assert {Schedule(epochs=90).factor(n, n) for n in range(90)} == {1.0}
    step = Schedule("step", epochs=90)
    assert [step.factor(n, n) for n in (0, 59, 60, 79, 80, 89)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    cosine = Schedule("cosine", epochs=90)
    assert cosine.factor(0, 0) == 1 and cosine.factor(44.5, 9) == pytest.approx(0.5, abs=0.01)
    assert cosine.factor(30, 9) == pytest.approx(0.75) and cosine.factor(90, 9) == pytest.approx(0)
    warm = Schedule(warmup=4, epochs=90)
    assert [warm.factor(0, n) for n in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])


def test_a_time_limit_stretches_the_schedule():
    """Epochs or time, whichever is further on."""
    cosine = Schedule("cosine", epochs=90, max_minutes=10)
    assert cosine.factor(0, 0, elapsed=0.5) == pytest.approx(0.5)
    assert cosine.factor(60, 60, elapsed=0.1) == pytest.approx(0.25)
    assert Schedule().elapsed() == 0


def test_average_follows_weights_and_copies_buffers():
    model = torch.nn.BatchNorm1d(3)
    average = AveragedWeights(model, 0.9)
    expected = model.weight.detach().clone()
    for step in range(1, 200):
        with torch.no_grad():
            model.weight.add_(step)
            model.running_mean.add_(step)
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert torch.allclose(average.model.weight, expected)
    assert torch.equal(average.model.running_mean, model.running_mean)
    assert not torch.equal(average.model.weight, model.weight)


def test_schedule_and_average_resume_exactly(data, tmp_path):
    """Four epochs with warm-up, cosine and averaged weights, at once and in two parts."""
    options = ["--data_dir", str(data), *TINY, "--batch_size", "9", "--nEpochs", "4", "--warmup"]
    options += ["3", "--schedule", "cosine", "--ema", "0.9", "--output_dir"]
    main.main([*options, str(tmp_path / "whole")])

    class Stop(Exception):
        pass

    patch = pytest.MonkeyPatch()
    with patch.context() as context, pytest.raises(Stop):
        real = main.fit

        def two_epochs(state, *args, **options):
            state.schedule = copy.copy(state.schedule)  # of four epochs
            real(state, *args, **options | {"epochs": 2})
            raise Stop

        context.setattr(main, "fit", two_epochs)
        main.main([*options, str(tmp_path / "parts")])
    resumed = ["--resume", str(tmp_path / "parts" / "checkpoint.pth.tar")]
    main.main([*options, str(tmp_path / "parts"), *resumed])
    whole, parts = (
        torch.load(tmp_path / name / "checkpoint.pth.tar", weights_only=True)
        for name in ("whole", "parts")
    )
    for key in ("state_dict", "learning_weights"):
        for name, value in whole[key].items():
            assert torch.equal(value, parts[key][name]), (key, name)
    moved = [k for k, v in whole["state_dict"].items() if not v.equal(whole["learning_weights"][k])]
    assert moved and not any("running" in name for name in moved)


def test_the_time_before_a_stop_counts(data, tmp_path, monkeypatch):
    """A run that resumes has what is left of --max_minutes, and the rate does not jump back."""
    options = [*"--schedule cosine --max_minutes 10".split()]
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(Schedule, "minutes", lambda _: 8.0)
        with pytest.raises(Interrupted):
            train(data, tmp_path, *options)
    seen, real = [], Schedule.factor
    monkeypatch.setattr(Schedule, "factor", lambda *args: seen.append(real(*args)) or seen[-1])
    train(data, tmp_path, *options, "--resume", "auto", epochs=3)
    assert 0 < seen[0] < 0.5 * (1 + math.cos(0.8 * math.pi)) + 1e-6
    stored = torch.load(tmp_path / CHECKPOINT)
    assert 8 < stored["minutes"] < 10


def test_max_minutes_ends_the_run_with_a_checkpoint(data, tmp_path):
    options = ["--data_dir", str(data), *SMALL, "--nEpochs", "50", "--max_minutes", "0.01"]
    main.main([*options, "--output_dir", str(tmp_path)])
    log = (tmp_path / "log.txt").read_text()
    assert "ended after 0.01 minutes" in log and "val pck" in log
    assert math.isfinite(torch.load(tmp_path / "checkpoint.pth.tar")["best_score"])
