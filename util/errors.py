"""Faults of the user, apart from faults of ours: one line, or a traceback."""

import os
import sys

from . import distributed


class InputError(ValueError):
    """Something that the user can put right: what was expected, what was found, what to do."""


class Finished(Exception):
    """There is nothing to do; says why."""


def run_cli(main, argv=None) -> None:
    """Runs a script's `main(argv)` and ends the process with its exit status.

    An InputError becomes one line and exit status 2, an interruption (Ctrl-C) one line and 130; a
    fault of ours keeps its traceback. Where several GPUs are asked for, the process becomes
    torchrun with the same command.

    Args:
        main: may return an exit status.
        argv: its arguments; None: the process's.
    """
    try:
        status = main(argv)
        distributed.stop()
        sys.exit(status)
    except distributed.Relaunch as relaunch:
        relaunch.run()
    except Finished as reason:
        print(reason)
    except InputError as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
