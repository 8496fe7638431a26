"""Faults of the user, apart from faults of ours: what the user can put right ends in one line, anything else in a traceback."""

import os
import sys


class InputError(ValueError):
    """Something that the user can put right: says what was expected, what was found and what to do, in one sentence."""


def run_cli(main, argv=None) -> None:
    """Runs a script's `main(argv)` and ends the process with its exit status.

    An InputError becomes one line and exit status 2, an interruption (Ctrl-C) one line and 130; a fault of ours keeps its
    traceback. `main` may return an exit status.
    """
    try:
        sys.exit(main(argv))
    except InputError as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
