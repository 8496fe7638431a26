"""Runs what may crash, hang or eat memory in a process of its own."""

import ctypes
import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable

SECONDS, MEMORY = 10, 700 * 2**20  # for one input; memory on top of what the process has already
_CODE = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}
_RAN_CODE = 99


def _forbid(event, args):
    text = event == "exec" and args[0].co_filename == "<string>"  # not a module's import
    if text or event in _CODE:
        os._exit(_RAN_CODE)


def _pages(column):
    """Bytes of this process: 0 all that it addresses, 1 all that is in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[column]) * resource.getpagesize()


def _work(job, items, first, pipe):
    """In the child: its memory, then one line for each item when it begins and when it ends."""
    faulthandler.disable()  # pytest's report of a crash that is expected
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _pages(0) + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.addaudithook(_forbid)
    with os.fdopen(pipe, "w", buffering=1) as out:
        out.write(f"{_pages(1)}\n")
        for item in items[first:]:
            signal.alarm(SECONDS)
            out.write("begin\n")
            try:
                outcome = job(item)
            except MemoryError:
                outcome = "memory"
            except BaseException as error:
                outcome = f"{type(error).__name__}: {error}"
            signal.alarm(0)
            out.write(ascii(str(outcome)[:2000]) + "\n")
    os._exit(0)


def run_all(job: Callable, items: Iterable) -> tuple[list[str], int]:
    """The outcome of `job(item)` for each item, whatever happens.

    Args:
        job: returns or raises something whose text is its outcome.
        items: what it is called with, one after the other in one process, which is replaced when it
            dies.

    Returns:
        The outcomes: the text of what was returned or raised, or `memory`, `hang`, `code` (a
        program, a process or compiled text was started) or `killed by <signal>`; and the largest
        number of bytes by which a process grew.
    """
    items, outcomes, grown = list(items), [], 0
    while len(outcomes) < len(items):
        ctypes.CDLL(None).malloc_trim(0)  # what is free here, a child would use without growing
        source, target = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(source)
            _work(job, items, len(outcomes), target)
        os.close(target)
        begun = False
        with os.fdopen(source) as lines:
            start = int(lines.readline())
            for line in lines:
                begun = line == "begin\n"
                if not begun:
                    outcomes.append(line.strip()[1:-1])
        _, status, usage = os.wait4(child, 0)
        grown = max(grown, usage.ru_maxrss * 1024 - start)
        code = os.waitstatus_to_exitcode(status)
        if code == -signal.SIGALRM:
            outcomes.append("hang")
        elif code:
            dead = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            outcomes.append("code" if code == _RAN_CODE else dead)
        elif begun:
            raise RuntimeError("a process ended within an input")
    return outcomes, grown
