"""A model of what a change costs the TLBs of real processors: whom a kernel would have to tell.

Here no TLB is flushed by us: Linux does that, process by process. In a kernel with shared page
tables one change concerns all processes that have attached that part of the region, and the kernel
has to know on which processors their translations may be. Four answers are counted for each change:

    flush_all   every processor there is (v3 of the series)
    list        the attached processes one by one, each on the processors where it ran (2026)
    cpumask     each processor once on which any of them ran
    broadcast   one message that all processors hear, without an interrupt (arm64, INVLPGB)

A processor counts for a thread if the thread ran on it last, and has run since the last look at
it: what runs again meanwhile on others is not seen. `bench shootdown` checks it against the
machine.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from . import proc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def messages(ran: list[set[int]]) -> dict[str, int]:
    """Whom a kernel would have to tell of one change, if the processes have run there."""
    return {
        "flush_all": os.cpu_count() or 1,
        "list": sum(map(len, ran)),
        "cpumask": len(set().union(*ran)),
        "broadcast": 1,
    }


def ran_on(pids: Iterable[int], before: Mapping[int, int]) -> tuple[list[set[int]], dict[int, int]]:
    """For each process, the processors on which it ran since the last look. For a thread.

    And how long each thread has run; `before` is that of the last look.
    """
    ran: dict[int, int] = {}
    found = []
    for pid in pids:
        cpus = set()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            for tid in proc.threads(pid):
                run = proc.running(tid)
                ran[tid] = run.nanoseconds
                if run.nanoseconds != before.get(tid):
                    cpus.add(run.cpu)
        found.append(cpus)
    return found, ran
