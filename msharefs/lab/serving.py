"""The processor time of those who take the faults of programs, for us: native/client/mode.h."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

import psutil

from msharefs import proc, processes

if TYPE_CHECKING:
    from collections.abc import Collection

_THREAD = "mshare-service"


def seconds(pids: Collection[int]) -> dict[int, float]:
    """CPU seconds that each process's service thread and shadows have run, of those that are there.

    A shadow is known by its name. Of processes in different pid namespaces that have the same
    number there, one is given the shadows of both.
    """
    found = Counter[int]()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            found[pid] += sum(
                _nanoseconds(tid) for tid in proc.threads(pid) if proc.comm(tid) == _THREAD
            )
    found.update(_of_shadows(pids))
    return {pid: nanoseconds / 1e9 for pid, nanoseconds in found.items()}


def shadow_seconds(pids: Collection[int]) -> float:
    """CPU seconds that the shadows of all these processes have run: no thread of theirs has."""
    return sum(_of_shadows(pids).values()) / 1e9


def _of_shadows(pids: Collection[int]) -> Counter[int]:
    names = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            names[processes.shadow_name(pid)] = pid
    found = Counter[int]()
    for shadow in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            program = names.get(proc.comm(shadow))
            if program is not None:
                found[program] += _nanoseconds(shadow)
    return found


def _nanoseconds(tid: int) -> int:
    return proc.running(tid).nanoseconds
