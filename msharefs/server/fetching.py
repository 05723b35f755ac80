"""What Linux tells of another process only when that is not in the middle of execve(2).

It may be there for long: waiting for an address space which another process shares, and keeps
locked. So another thread asks; also for /proc/PID/stat, since Linux 6.18 at the latest, and the
links in /proc/PID. What waits for nobody is in processes.py: whether a process runs, its name, its
cgroup, and /proc/PID/status.
"""

from __future__ import annotations

import errno
import functools
import os
import time
from typing import TYPE_CHECKING

from msharefs import processes
from msharefs.native import ffi, lib

from . import descriptors
from .hands import Lane, Turn

if TYPE_CHECKING:
    from collections.abc import Callable

_PF_EXITING = 4  # sched.h
_POLL_SECONDS = 0.0002


async def fetch(pid: int, number: int, user: int) -> int:
    """A duplicate of descriptor `number` of process `pid`, which is user `user`'s.

    As processes.fetch_descriptor; and EBUSY: the process does not let us have it.
    """
    for thread in processes.holders_of_descriptors(pid):
        try:
            return await _fetch(thread, number, user)
        except ProcessLookupError:
            continue
    raise ProcessLookupError(errno.ESRCH, f"descriptor {number} of process {pid}: it has ended")


async def same_memory(one: int, other: int, user: int) -> bool:
    """Whether two processes share their address space: kcmp(2). False also if we may not ask.

    EBUSY: one of them does not let us see that. User `user` pays for it.
    """
    why = functools.partial(_why, one)
    return await Lane(user).do(why, lib.HAND_SAME, fd=one, slot=other) == 0


async def start_time(pid: int, user: int) -> int:
    """When a process started, as processes.start_time. EBUSY: it does not let us see that."""
    found = ffi.new("uint64_t[2]")
    why = functools.partial(_why, pid)
    result = await Lane(user).do(why, lib.HAND_STAT, slot=pid, span=found)
    return int(found[1]) if result == 0 else 0


def is_same(pid: int, started: int) -> bool:
    """Whether process `pid` is the one that started at `started`; also if that cannot be seen."""
    found = _stat_at_once(pid)
    return found is None or found[1] == started


def is_ending(pid: int) -> bool:
    """Whether all threads of process `pid` have ended, or are about to. 0: it is not known."""
    return bool(pid) and all(map(_is_exiting, processes.holders_of_descriptors(pid)))


def _is_exiting(thread: int) -> bool:
    found = _stat_at_once(thread)
    return found is not None and (not found[1] or bool(found[0] & _PF_EXITING))


def _stat_at_once(pid: int) -> tuple[int, int] | None:
    """Flags and start time; zeros: there is no such process. None: it cannot be seen at once."""
    found = ffi.new("uint64_t[2]")
    lane = Lane()
    try:
        turn = lane.begin(functools.partial(_why, pid), lib.HAND_STAT, slot=pid, span=found)
    except OSError:
        return None
    if turn is not None:
        return None
    return (int(found[0]), int(found[1])) if lane.outcome == 0 else (0, 0)


def watch(thread: int, take: Callable[[int], None], *, seconds: float) -> None:
    """Calls `take` with a perf event of a thread, which hangs up when that ends.

    Now, if that takes no longer than so many seconds; or later. Never if there is none.
    """
    lane = Lane()
    try:
        turn = lane.begin(functools.partial(_why, thread), lib.HAND_WATCH, slot=thread)
    except OSError:
        return

    def done() -> None:
        found = lane.outcome if turn is None else turn.result
        if found >= 0:
            take(found)

    end = time.monotonic() + seconds
    while lane.busy and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
    lane.afterwards(done)


def _why(pid: int) -> str:
    return f"{processes.named(pid)} keeps its address space locked; let it go on and try again"


async def _fetch(thread: int, number: int, user: int) -> int:
    pidfd = os.pidfd_open(thread, processes.PIDFD_THREAD)
    lane = Lane(user)
    turn: Turn | None = None
    waited: bool = False

    def clean_up() -> None:
        os.close(pidfd)
        if turn is not None and turn.result >= 0 and not waited:  # nobody is there to have it
            descriptors.close_later(turn.result, user=user)

    try:
        why = functools.partial(_why, thread)
        turn = lane.begin(why, lib.HAND_FETCH, fd=pidfd, slot=number & 0xFFFFFFFF)
        found = await lane.result(turn)
        waited = True
    finally:
        lane.afterwards(clean_up)
    if found < 0:
        raise OSError(-found, f"descriptor {number} of thread {thread}: {os.strerror(-found)}")
    return found
