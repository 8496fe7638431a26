"""Faults of the user, apart from faults of ours: one line, or a traceback."""

import multiprocessing
import os
import signal
import sys

from . import distributed


class InputError(ValueError):
    """Something that the user can put right: what was expected, what was found, what to do."""


class Finished(Exception):
    """There is nothing to do; says why."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM asked the process to end.

    Args:
        signum: number of the signal.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def _interrupt(signum, _):
    raise Interrupted(signum)


def _program() -> str:
    folder, name = os.path.split(sys.argv[0])
    return f"python -m {os.path.basename(folder)}" if name == "__main__.py" else name


def run_cli(main, argv=None) -> None:
    """Runs a script's `main(argv)` and ends the process with its exit status.

    An InputError becomes one line and exit status 2, SIGINT (Ctrl-C) and SIGTERM one line and 130
    or 143; a fault of ours keeps its traceback. Processes that multiprocessing started end with it.
    Where several GPUs are asked for, the process becomes torchrun with the same command.

    Args:
        main: may return an exit status.
        argv: its arguments; None: the process's.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status = main(argv)
        distributed.stop()
        sys.exit(status)
    except distributed.Relaunch as relaunch:
        relaunch.run()
    except Finished as reason:
        print(reason)
    except InputError as error:
        print(f"{_program()}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + getattr(interrupt, "signum", signal.SIGINT))
    finally:  # a stopped worker would keep the process waiting for ever
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in multiprocessing.active_children():
            child.kill()
