"""Descriptors of other processes, fetched by another thread.

pidfd_getfd(2) waits for a process that is in the middle of execve(2), and that one may be waiting
for an address space which another process shares, and keeps locked.
"""

from __future__ import annotations

import errno
import os

from msharefs import processes
from msharefs.native import lib

from . import descriptors
from .hands import Lane, Turn


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


async def _fetch(thread: int, number: int, user: int) -> int:
    pidfd = os.pidfd_open(thread, processes.PIDFD_THREAD)
    lane = Lane(user)
    turn: Turn | None = None
    waited: bool = False

    def why() -> str:
        return (
            f"{processes.named(thread)} keeps its address space locked; let it go on and try again"
        )

    def clean_up() -> None:
        os.close(pidfd)
        if turn is not None and turn.result >= 0 and not waited:  # nobody is there to have it
            descriptors.close_later(turn.result, user=user)

    try:
        turn = lane.begin(why, lib.HAND_FETCH, fd=pidfd, slot=number & 0xFFFFFFFF)
        found = await lane.result(turn)
        waited = True
    finally:
        lane.afterwards(clean_up)
    if found < 0:
        raise OSError(-found, f"descriptor {number} of thread {thread}: {os.strerror(-found)}")
    return found
