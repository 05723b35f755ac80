"""Whether a client that does not answer may only be late, since processors are short."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msharefs import proc

if TYPE_CHECKING:
    from collections.abc import Iterable

# A client that has that excuse is waited for so much longer.
EXCUSED_SECONDS = 10.0
# How often to look whether it still has.
LOOK_SECONDS = 0.5


def excused(pids: Iterable[int]) -> bool:
    """Whether one of these processes may just be waiting for a processor.

    None is if there are as many processors as threads that want to run, nor is one that is stopped.
    """
    busy = proc.runnable() > len(os.sched_getaffinity(0))
    return busy and any(goes_on(pid) for pid in pids)


def goes_on(pid: int) -> bool:
    """Whether a process is there, and is not stopped."""
    try:
        return proc.state(pid) not in "TtZX"
    except ProcessLookupError:
        return False
