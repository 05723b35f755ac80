"""Who is there, and who may be looked at."""

from __future__ import annotations

import pwd
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msharefs import proc

from . import sample
from .look import Process, meet, vmpte

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .objects import Objects

    Notify = Callable[[int], None]


@dataclass
class Census:
    """Who was there, and who could be looked at."""

    seen: list[Process] = field(default_factory=list)
    """Those that are looked at."""
    passed: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Bytes of page tables of processes that are not in the sample, by program."""
    unseen: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Bytes of page tables of processes that we may not look at, by user."""
    hidden: int = 0
    """Processes of which /proc does not even show how large they are (hidepid)."""
    ended: int = 0
    """Since they were listed."""

    @property
    def vmpte_bytes(self) -> int:
        """The page tables of all."""
        others = [*self.unseen.values(), *self.passed.values()]
        return sum(map(sum, others)) + sum(process.vmpte_bytes for process in self.seen)

    @property
    def processes(self) -> int:
        """How many they are."""
        others = [*self.unseen.values(), *self.passed.values()]
        return sum(map(len, others)) + len(self.seen)

    def scale(self, program: str) -> float:
        """How many processes of a program there are for each that is looked at, by page tables."""
        if program not in self.passed:
            return 1.0
        looked = sum(one.vmpte_bytes for one in self.seen if one.program == program)
        return 1.0 + sum(self.passed[program]) / looked if looked else 1.0


def census(
    pids: Iterable[int],
    objects: Objects,
    notify: Notify,
    measure: Callable[[list[int]], float] | None,
) -> Census:
    """Meet all these processes; threads of the kernel have no page tables and do not count.

    A sample of them is looked at if they are many, and if somebody can `measure` how long looking
    at some takes, in seconds of a processor.
    """
    found = Census()
    sizes: dict[int, tuple[int, str]] = {}
    for pid in pids:
        try:
            sizes[pid] = vmpte(pid), proc.comm(pid)
        except ProcessLookupError:
            found.ended += 1
        except PermissionError:
            found.hidden += 1
    # Threads of the kernel have none, nor zombies.
    there = [(pid, program, size) for pid, (size, program) in sizes.items() if size]
    chosen = sample.processes(there, measure) if measure else {pid for pid, _, _ in there}
    for pid, program, size in there:
        notify(1)
        try:
            process = meet(pid, objects)
        except PermissionError:
            found.unseen[_user(pid)].append(size)
        except ProcessLookupError:
            found.ended += 1
        else:
            if process is None:
                found.ended += 1
            elif pid in chosen:
                found.seen.append(process)
            else:
                found.passed[program].append(size)
    return found


def _user(pid: int) -> str:
    try:
        uid = int(proc.status(pid, "Uid").split()[1])
        return pwd.getpwuid(uid).pw_name
    except (ProcessLookupError, KeyError, IndexError):
        return "somebody"
