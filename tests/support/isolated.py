"""Work that may crash or never end, in a process of its own, with a time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SLOWER = 4 if "MSHAREFS_SANITIZE" in os.environ else 1


def isolated(work: Callable[[Callable[[str], None]], None], *, seconds: int = 30) -> None:
    """Run `work(say)` in a child; anything but a plain return fails the test.

    The last words of the work tell how far it was, even if it crashed or was ended because it took
    too long, as for an endless loop in C.
    """
    said = os.memfd_create("said")  # not a pipe: that would fill, and nobody reads yet
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setpgid(0, 0)
            limit(seconds * SLOWER)
            work(lambda text: _say(said, text))
            status = 0
        except BaseException:  # noqa: BLE001  # whatever it is, the parent must read it
            _say(said, traceback.format_exc())
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # processes that it started and could not end
    text = os.pread(said, 1 << 20, 0).decode()
    os.close(said)
    if status:
        raise AssertionError(f"{describe(status)} after {text[-4000:] or 'nothing'}")


def limit(seconds: int) -> None:
    """End this process when the time is over, also inside C: no Python handler runs there."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def describe(status: int) -> str:
    """How a process ended, from waitpid(2)'s status."""
    if not os.WIFSIGNALED(status):
        return f"exit {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    return "too long" if number == signal.SIGALRM else f"killed by {signal.Signals(number).name}"


def _say(file: int, text: str) -> None:
    os.write(file, f"{text}\n".encode(errors="replace"))
