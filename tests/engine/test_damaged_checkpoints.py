"""Checkpoints that are damaged or lie: one sentence, never an abort, never wrong weights."""

import io
import os
import random
import resource
import shutil
import traceback
import zipfile

import pytest
import torch

import main
from engine.checkpoint import load_checkpoint, load_weights
from engine.checkpoint_files import checksum, read_file, write_file
from tests.engine.tiny import CHECKPOINT, content, train
from util.errors import InputError

GIB = 2**30


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A run of one epoch: its state, and its checkpoint."""
    folder, states = tmp_path_factory.mktemp("damaged") / "run", []
    train(data, folder, epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main, "fit", lambda state, *_, **__: states.append(state))
        train(data, folder, "--resume", "auto", epochs=2)
    return states[0], folder / CHECKPOINT


def use(state, path):
    """Resumes from a file and takes a step."""
    checkpoint = load_checkpoint(path)
    load_weights(state.model, checkpoint)
    state.load_state_dict(checkpoint)
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()


def damage(path, target, rng):
    """Writes a damaged copy: bytes changed, cut, or changed in the pickle with sums that fit."""
    data = bytearray(path.read_bytes())
    how = rng.choice(("flip", "bytes", "cut", "pickle", "pickle", "pickle"))
    if how == "cut":
        data = data[: rng.randrange(len(data))]
    elif how == "pickle":
        out = io.BytesIO()
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
            for member in old.infolist():
                record = bytearray(old.read(member))
                if member.filename.endswith("data.pkl"):
                    for _ in range(rng.choice((1, 1, 2, 8))):
                        record[rng.randrange(len(record))] = rng.randrange(256)
                new.writestr(member.filename, bytes(record))
        data = out.getvalue()
    else:
        for _ in range(1 if how == "flip" else rng.randrange(1, 2000)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    target.write_bytes(data)
    return how


def try_damage(state, path, folder, count, seed=0):
    """Tries damaged files in a child; what went wrong, if anything, and how many were refused."""
    report = folder / "report.txt"
    pid = os.fork()
    if not pid:
        status, refused = 1, 0
        try:
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + GIB, used + GIB))
            rng = random.Random(seed)
            for number in range(count):
                how = damage(path, folder / "damaged.pth.tar", rng)
                report.write_text(f"{number} {how}")
                try:
                    use(state, folder / "damaged.pth.tar")
                except InputError as error:
                    assert "damaged.pth.tar" in str(error), error
                    refused += 1
            report.write_text(f"refused {refused}")
            status = 0
        except BaseException:
            report.write_text(report.read_text() + traceback.format_exc())
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, report.read_text()


def test_damaged_files_end_in_a_sentence(run, tmp_path):
    status, report = try_damage(*run, tmp_path, count=80)
    assert status == 0, report
    assert int(report.split()[1]) >= 60


LIES = {
    "exp_avg": lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    "exp_avg_sq": lambda c: c["optimizer"]["state"][1].update(exp_avg_sq=torch.zeros(1).half()),
    "steps": lambda c: c["optimizer"]["state"][0].update(step=torch.zeros(2)),
    "parameters": lambda c: c["optimizer"]["param_groups"][0]["params"].pop(),
    "state": lambda c: c["optimizer"].update(state=[1, 2]),
    "random state": lambda c: c["random_state"].update(torch=torch.zeros(7, dtype=torch.uint8)),
    "Python's random state": lambda c: c["random_state"].update(python=(3, (1, 2), None)),
    "negative random state": lambda c: c["random_state"].update(python=(3, (-1,) * 625, None)),
    "no random state": lambda c: c.pop("random_state"),
    "epoch": lambda c: c.update(epoch=-1),
    "no epoch": lambda c: c.pop("epoch"),
    "best": lambda c: c.update(best_score=float("nan")),
    "option": lambda c: c["options"].update(img_res="64"),
    "large option": lambda c: c["options"].update(img_res=10**9),
    "training": lambda c: c["training"].update(lr=torch.zeros(2)),
    "log": lambda c: c.update(log=[1]),
    "progress": lambda c: c["progress"].update(steps="many"),
    "stage": lambda c: c.update(stage=7),
    "weights": lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.ones(1)}),
    "view": lambda c: c["state_dict"].update(x=torch.zeros(1).expand(10**12)),
}


@pytest.mark.parametrize("name", LIES)
def test_files_that_lie_end_in_a_sentence(run, tmp_path, name):
    state, path = run
    lie = torch.load(path, weights_only=True)
    LIES[name](lie)
    torch.save(lie, tmp_path / "lie.pth.tar")
    with pytest.raises(InputError, match="lie.pth.tar"):
        use(state, tmp_path / "lie.pth.tar")


def test_weights_changed_after_writing_are_refused(run, tmp_path):
    changed = torch.load(run[1], weights_only=True)
    weights = next(iter(changed["state_dict"].values()))
    weights.view(-1)[0] += 1
    torch.save(changed, tmp_path / "changed.pth.tar")
    with pytest.raises(InputError, match="not those that were written .checksum."):
        load_checkpoint(tmp_path / "changed.pth.tar")
    del changed["checksum"]  # as in older files
    torch.save(changed, tmp_path / "changed.pth.tar")
    use(run[0], tmp_path / "changed.pth.tar")


def test_one_flipped_bit_anywhere_in_the_weights_is_found(run, tmp_path):
    data = bytearray(run[1].read_bytes())
    with zipfile.ZipFile(run[1]) as archive:
        member = max(archive.infolist(), key=lambda m: m.file_size)
    data[member.header_offset + member.file_size // 2] ^= 1
    (tmp_path / "flipped.pth.tar").write_bytes(data)
    with pytest.raises(InputError, match="it is damaged"):
        load_checkpoint(tmp_path / "flipped.pth.tar")


def test_an_archive_that_unpacks_to_much_is_refused_before_it_does(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2**22)}}, tmp_path / "plain.pth.tar")
    with zipfile.ZipFile(tmp_path / "plain.pth.tar") as old:
        with zipfile.ZipFile(tmp_path / "bomb.pth.tar", "w", zipfile.ZIP_DEFLATED) as new:
            for member in old.infolist():
                new.writestr(member.filename, old.read(member))
    assert (tmp_path / "bomb.pth.tar").stat().st_size < 2**20
    with pytest.raises(InputError, match="would unpack to more than it holds"):
        load_checkpoint(tmp_path / "bomb.pth.tar")


def test_the_file_before_stays_until_the_new_one_can_be_read(run, tmp_path, monkeypatch):
    shutil.copy(run[1], tmp_path / CHECKPOINT)
    before = (tmp_path / CHECKPOINT).read_bytes()
    save = torch.save

    def save_badly(value, path):
        save(value, path)
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            file.write(b"\xff" * 100)

    monkeypatch.setattr(torch, "save", save_badly)
    with pytest.raises(InputError, match="cannot be read back after writing"):
        write_file(tmp_path / CHECKPOINT, read_file(run[1]), tmp_path / "previous")
    assert (tmp_path / CHECKPOINT).read_bytes() == before
    assert os.listdir(tmp_path) == [CHECKPOINT]


def test_the_checksum_sees_names_shapes_and_values():
    plain = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    others = (
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(2, 3), "b": torch.ones(2).double()},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 1.0000001])},
    )
    sums = {checksum(weights) for weights in (plain, *others)}
    assert len(sums) == 5 and checksum(dict(reversed(plain.items()))) in sums


def test_a_finished_epoch_is_in_the_log_of_its_checkpoint(run):
    assert content(run[1].parent)["log"][-1].startswith("epoch 1/1 ")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_of_a_training_that_diverged_are_refused(run, tmp_path, value):
    state = content(run[1].parent)
    name = next(k for k, v in state["state_dict"].items() if v.is_floating_point())
    state["state_dict"][name].view(-1)[-1] = value
    write_file(tmp_path / CHECKPOINT, state)
    with pytest.raises(InputError, match=f"{name} in .* not finite.*take another checkpoint"):
        load_checkpoint(tmp_path / CHECKPOINT)
