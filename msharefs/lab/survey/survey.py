"""The survey: looks at the page tables of processes, one after the other."""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msharefs.lab import pagemap
from msharefs.lab.pagemap import Pagemap

from .census import census
from .inplace import InPlace
from .look import Process, Rows, everything, join, vmpte
from .moved import Moved
from .objects import Objects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Notify = Callable[[int], None]

_ENDED = (errno.ESRCH, errno.EINVAL, errno.EIO)
"""What reading the page tables of a process says that has ended since they were opened."""


@dataclass
class Program:
    """What the processes of one program have in page tables."""

    processes: int = 0
    vmpte_bytes: int = 0
    gone: float = 0
    """Tables of 4 KiB that only have shared memory in them."""


class Survey:
    """All counts, once every process was looked at."""

    def __init__(self, pids: Iterable[int], notify: Notify) -> None:
        self.objects = Objects()
        self.scans = pagemap.can_scan()
        self.frames = pagemap.sees_frames()
        self.census = census(pids, self.objects, notify)
        births = Counter(process.birth for process in self.census.seen)
        forked = {birth for birth, count in births.items() if count > 1 and any(birth)}
        self.moved = Moved(self.objects)
        self.inplace = InPlace(self.objects, forked, frames=self.frames)
        self.programs: dict[str, Program] = defaultdict(Program)
        self.looked = 0

    def look(self, notify: Notify) -> None:
        """Look at the page tables of everybody."""
        still = []
        for process in self.census.seen:
            notify(1)
            if self._look_at(process):
                still.append(process)
        self.census.ended += len(self.census.seen) - len(still)
        self.census.seen = still

    def _look_at(self, process: Process) -> bool:
        """Count a process; False: it has ended, and nothing was counted."""
        try:
            with Pagemap(process.pid) as table:
                rows = join(list(everything(process, table, scans=self.scans)))
                process.vmpte_bytes = vmpte(process.pid)
                if not process.vmpte_bytes:
                    return False
                self._count(process, table, rows, rows)
        except OSError as error:
            if error.errno in _ENDED:
                return False
            raise
        return True

    def _count(self, process: Process, table: Pagemap, base: Rows, upper: Rows) -> None:
        gone = self.moved.add(process, base, upper)
        self.inplace.add(process, table, base, upper, self.moved.movable(process))
        program = self.programs[process.program]
        program.processes += 1
        program.vmpte_bytes += process.vmpte_bytes
        program.gone += gone
        self.looked += 1
