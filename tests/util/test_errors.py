"""What ends a script: faults of the user and of the machine in a line, ours with a traceback."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from util import errors
from util.errors import run_cli, say


@pytest.fixture(autouse=True)
def _signals():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _raising(fault):
    def main(_):
        raise fault

    return main


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS])
def test_what_the_machine_does_not_let_us_do_is_one_line(number, capsys):
    for path in ("/closed/place", None):
        with pytest.raises(SystemExit) as stop:
            run_cli(_raising(OSError(number, os.strerror(number), path)))
        message = capsys.readouterr().err
        assert stop.value.code == 2 and message.count("\n") == 1
        assert os.strerror(number) in message and (path is None or path in message)


def test_other_faults_keep_their_traceback():
    for fault in (OSError(errno.EBADF, "bad"), OSError("of a library"), KeyError("ours")):
        with pytest.raises(type(fault)):
            run_cli(_raising(fault))


def test_a_screen_of_few_characters_takes_all(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    with pytest.raises(SystemExit):
        run_cli(lambda _: print("/tmp/ü"))
    assert screen.buffer.getvalue() == b"/tmp/\\xfc\n"


def test_a_process_without_screens_gets_some(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with pytest.raises(SystemExit) as stop:
        run_cli(_raising(errors.InputError("nobody sees this")))
    assert stop.value.code == 2


def test_who_stops_reading_the_screen_stops_nothing():
    """Lines of a run go on without a reader; a command that only prints ends quietly."""
    code = "import sys; from util.errors import run_cli, say\n"
    code += "def main(_):\n for i in range(9999): {}\n open(sys.argv[1], 'w').write('done')\n"
    code += "run_cli(main)"
    for line, done in (("say('x' * 99)", True), ("print('x' * 99)", False)):
        read, write = os.pipe()
        path = f"/tmp/{os.getpid()}_{done}"
        command = [sys.executable, "-c", code.format(line), path]
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True
        )
        os.close(write)
        os.close(read)
        assert process.communicate(timeout=60)[1] == ""
        assert os.path.exists(path) == done
        assert process.returncode == (0 if done else 128 + signal.SIGPIPE)
        if done:
            os.unlink(path)


def test_a_line_is_said_at_once(capsys):
    say("here")
    assert capsys.readouterr().out == "here\n"
