"""Descriptors of files that others gave us: only threads touch them, for a bounded time.

The file system behind such a file may be slow or dead, or be this very mount: close(2) and fstat(2)
of a region file send a request to ourselves, and the one thread that would answer it must not be
the one that waits. A thread whose file system hangs stays with it, so each file system, and each
user, has a share of the threads and no more.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import trio

from msharefs.native import lib

from .limiters import Limiters

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

T = TypeVar("T")

# The caller cannot be killed while it waits in its ioctl.
ANSWER_SECONDS = 5.0
# Threads for one file system of one user, for all of one user, and in all.
_MOUNT_THREADS = 16
_USER_THREADS = 128
_THREADS = 1024
# Threads that close descriptors, for one file system of one user.
_CLOSERS = 4
_IDLE_SECONDS = 2.0
# So many of a user's descriptors may wait to be closed before no more are taken.
_UNCLOSED_MAX = 512


def mount_of(fd: int) -> int:
    """The number of the mount that a descriptor leads to; 0: it cannot be told. It never waits."""
    return max(0, int(lib.identity_mount(fd)))


_all = trio.CapacityLimiter(_THREADS)
_limiters: weakref.WeakValueDictionary[tuple[int, ...], trio.CapacityLimiter] = (
    weakref.WeakValueDictionary()
)


def share(user: int, mount: int, most: int = _MOUNT_THREADS) -> Limiters:
    """A place among the threads, for one file system of one user; it takes none from others.

    `most` is always the same for a file system, or whatever has that number.
    """
    return Limiters(_limiter((user, mount), most), _limiter((user,), _USER_THREADS), _all)


def _limiter(key: tuple[int, ...], tokens: int) -> trio.CapacityLimiter:
    found = _limiters.get(key)
    if found is None:
        found = _limiters[key] = trio.CapacityLimiter(tokens)
    return found


async def elsewhere(
    work: Callable[[], T],
    what: str,
    drop: Callable[[T], object] = lambda _: None,
    *,
    user: int,
    mount: int = 0,
    seconds: float = ANSWER_SECONDS,
) -> T:
    """The result of `work`, done in a thread. ETIMEDOUT: its file system does not answer.

    A result that comes when nobody waits any more is given to `drop`, in a thread. It is the work
    of user `user`, on file system `mount`: any number that tells a user's file systems apart.
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

    try:
        with trio.move_on_after(seconds):
            await trio.to_thread.run_sync(
                run,
                abandon_on_cancel=True,
                limiter=share(user, mount),  # type: ignore[arg-type]  # it has what trio calls
            )
    except trio.Cancelled:  # whoever asked has gone
        with lock:
            late = True
        for result in results:
            threading.Thread(target=drop, args=(result,), daemon=True).start()
        raise
    with lock:
        late = True
    if not results:
        raise OSError(errno.ETIMEDOUT, f"{what}: its file system does not answer; mend that first")
    return results[0]


class _Closer:
    """Closes the descriptors of one file system of one user."""

    def __init__(self, user: int) -> None:
        self._user = user
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, Callable[[], object] | None]] = deque()
        self._threads = self._idle = 0

    def add(self, fd: int, done: Callable[[], object] | None = None) -> None:
        """Closes `fd` and then calls `done`, in the thread that did it."""
        with _counting:
            _unclosed[self._user] = _unclosed.get(self._user, 0) + 1
        with self._changed:
            self._queue.append((fd, done))
            if self._idle >= len(self._queue):
                self._changed.notify()
                return
            if self._threads >= _CLOSERS:
                return
            self._threads += 1
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                some = self._changed.wait_for(lambda: self._queue, _IDLE_SECONDS)
                self._idle -= 1
                if not some:
                    self._threads -= 1
                    return
                fd, done = self._queue.popleft()
            close_all(fd)
            with _counting:
                _unclosed[self._user] -= 1
                if not _unclosed[self._user]:
                    del _unclosed[self._user]
            if done is not None:
                done()


_counting = threading.Lock()
_unclosed: dict[int, int] = {}
"""By user, how many descriptors wait to be closed, or for their close(2) to return."""
_closers: weakref.WeakValueDictionary[tuple[int, int], _Closer] = weakref.WeakValueDictionary()


def check_unclosed(user: int) -> None:
    """EMFILE: too many descriptors that we got from user `user` cannot be closed."""
    if _unclosed.get(user, 0) >= _UNCLOSED_MAX:
        raise OSError(
            errno.EMFILE,
            f"{_UNCLOSED_MAX} files that user {user} gave us cannot be closed, since their file "
            "system does not answer: mend that first",
        )


async def close(*fds: int, user: int, mount: int = 0) -> None:
    """Closes descriptors; their file systems can then be unmounted, unless they hang."""
    token = trio.lowlevel.current_trio_token()
    left = set(fds)
    closed = trio.Event()

    def note(fd: int) -> None:
        left.discard(fd)
        if not left:
            closed.set()

    def done(fd: int) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(note, fd)

    closer = _closer(user, mount)
    for fd in left.copy():
        closer.add(fd, functools.partial(done, fd))
    if left:
        with trio.move_on_after(ANSWER_SECONDS) as patience:
            await closed.wait()
        if patience.cancelled_caught:
            log.warning("closing a file of user %d: its file system does not answer", user)


def close_later(*fds: int, user: int, mount: int = 0) -> None:
    """Closes descriptors in a thread that nobody waits for."""
    closer = _closer(user, mount)
    for fd in fds:
        closer.add(fd)


def _closer(user: int, mount: int) -> _Closer:
    with _counting:
        found = _closers.get((user, mount))
        if found is None:
            found = _closers[user, mount] = _Closer(user)
        return found


def close_all(*fds: int) -> None:
    """Closes descriptors, wherever they lead. Not for the thread that serves."""
    for fd in fds:
        with contextlib.suppress(OSError):  # the error of an earlier write
            os.close(fd)
