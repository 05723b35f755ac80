"""Descriptors of files that others gave us: only threads touch them, for a bounded time.

The file system behind such a file may be slow or dead, or be this very mount: close(2) and fstat(2)
of a region file send a request to ourselves, and the one thread that would answer it must not be
the one that waits.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

T = TypeVar("T")

# The caller cannot be killed while it waits in its ioctl.
ANSWER_SECONDS = 5.0
# A file system that hangs keeps its thread; it must not keep those of the others.
_threads = trio.CapacityLimiter(256)


async def elsewhere(
    work: Callable[[], T], what: str, drop: Callable[[T], object] = lambda _: None
) -> T:
    """The result of `work`, done in a thread. ETIMEDOUT: its file system does not answer.

    A result that comes later is given to `drop`.
    """
    lock = threading.Lock()
    results: list[T] = []
    late = False

    def run() -> None:
        result = work()
        with lock:
            if not late:
                results.append(result)
                return
        drop(result)

    with trio.move_on_after(ANSWER_SECONDS):
        await trio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=_threads)
    with lock:
        late = True
    if not results:
        raise OSError(errno.ETIMEDOUT, f"{what}: its file system does not answer; mend that first")
    return results[0]


async def close(*fds: int) -> None:
    """Closes descriptors; their file systems can then be unmounted, unless they hang."""
    if fds:
        try:
            await elsewhere(lambda: close_all(*fds), "closing a file")
        except OSError as error:
            log.warning("%s", error)


def close_later(*fds: int) -> None:
    """Closes descriptors in a thread that nobody waits for."""
    if fds:
        threading.Thread(target=close_all, args=fds, daemon=True).start()


def close_all(*fds: int) -> None:
    """Closes descriptors, wherever they lead. Not for the thread that serves."""
    for fd in fds:
        with contextlib.suppress(OSError):  # the error of an earlier write
            os.close(fd)
