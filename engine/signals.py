"""SIGTERM, SIGINT and SIGHUP while a run trains: it saves and leaves between two steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from util import distributed
from util.errors import Interrupted, tell


class Stop:
    """What the signals asked for; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._now = self._agreed = False

    @property
    def due(self) -> bool:
        """Whether a signal has arrived, and all processes know it."""
        return self.signum is not None and (self._agreed or distributed.world_size() == 1)

    def agree(self) -> None:
        """All processes know now that one of them has taken a signal."""
        if self.signum is None:
            self.signum = signal.SIGTERM
        self._agreed = True

    def check(self) -> None:
        """Raises Interrupted where that is due."""
        if self.signum is not None and self.due:
            raise Interrupted(self.signum)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside the block, where nothing can be left half done, a signal raises as it arrives."""
        self.check()
        self._now = True
        try:
            yield
        finally:
            self._now = False

    def handle(self, signum: int, _) -> None:
        """Takes a signal."""
        if self.signum is not None:
            if distributed.world_size() > 1:
                return  # torchrun passes on what has often reached the processes already
            if signum == getattr(signal, "SIGHUP", None):
                return  # both the shell and the system send it when a terminal is closed
            tell(b"\nleft at once\n")
            os._exit(128 + signum)
        self.signum = signum
        if self._now:
            tell(b"\n")
            raise Interrupted(signum)
        tell(b"\nstops after this step; a second signal leaves at once\n")


@contextmanager
def deferred() -> Iterator[Stop]:
    """Inside the block, SIGTERM, SIGINT and SIGHUP (the terminal is gone) wait for `Stop.check`;
    signals that are ignored stay so.

    In a thread, to which no signal comes, it does nothing.
    """
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [signal.SIGTERM, signal.SIGINT]
        numbers += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
        before = {n: h for n in numbers if (h := signal.getsignal(n)) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
