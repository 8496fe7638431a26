"""Faults of the user, apart from faults of ours: one line, or a traceback."""

import errno
import multiprocessing
import os
import signal
import sys

from tqdm import tqdm

from . import distributed

# Faults of the machine or of its user: no access, a name too long, a full or failing disk.
_OF_THE_MACHINE = (
    errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EROFS, errno.ENOSPC, errno.EDQUOT,
    errno.EFBIG, errno.ELOOP, errno.EIO,
)  # fmt: skip
_NO_READER = errno.EPIPE, errno.EIO  # of a pipe; of a terminal that is closed


class InputError(ValueError):
    """Something that the user can put right: what was expected, what was found, what to do."""


class Finished(Exception):
    """There is nothing to do; says why."""


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP asked the process to end.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def _interrupt(signum, _):
    tell(b"\n")
    raise Interrupted(signum)


def _program() -> str:
    folder, name = os.path.split(sys.argv[0])
    return f"python -m {os.path.basename(folder)}" if name == "__main__.py" else name


def say(text: str = "") -> None:
    """A line on the screen, beside progress bars; none where nobody reads it any more."""
    try:
        tqdm.write(text)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _NO_READER:
            raise
        _lead_nowhere(sys.stdout.fileno())


def tell(text: bytes) -> None:
    """Writes to the error screen from within a signal's handler, where a closed terminal, which
    sends a signal itself, must stop nothing."""
    try:
        os.write(2, text)
    except OSError:
        _lead_nowhere(2)


def _lead_nowhere(number: int) -> None:
    """From now on what is written to a file descriptor goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def _open_streams() -> None:
    """Gives the process a screen to write to, where it has none, that takes every character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))
        elif name == "stdout" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def run_cli(main, argv=None) -> None:
    """Runs a script's `main(argv)` and ends the process with its exit status.

    An InputError becomes one line and exit status 2, as does a path that the machine does not let
    be read or written; SIGINT (Ctrl-C), SIGTERM and SIGHUP become one line and 130, 143 or 129; a
    fault of ours keeps its traceback. Processes that multiprocessing started end with it. Where
    several GPUs are asked for, the process becomes torchrun with the same command.

    Args:
        main: may return an exit status.
        argv: its arguments; None: the process's.
    """
    _open_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        status = main(argv)
        distributed.stop()
        sys.stdout.flush()
        sys.exit(status)
    except distributed.Relaunch as relaunch:
        relaunch.run()
    except Finished as reason:
        print(reason)
    except InputError as error:
        print(f"{_program()}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # as of `| head`: whoever read the screen has enough
        _lead_nowhere(sys.stdout.fileno())
        sys.exit(128 + getattr(signal, "SIGPIPE", 13))
    except OSError as error:
        if error.errno not in _OF_THE_MACHINE:
            raise
        found = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
        advice = "see to the disk and to who may use it, or give another path"
        print(f"{_program()}: error: {found}; {advice}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + getattr(interrupt, "signum", signal.SIGINT))
    finally:  # a stopped worker would keep the process waiting for ever
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()
