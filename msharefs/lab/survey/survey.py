"""The survey: looks at the page tables of processes, one after the other."""

from __future__ import annotations

import errno
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from msharefs.lab import pagemap
from msharefs.lab.pagemap import Pagemap

from . import sample
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
    sizes: list[int] = field(default_factory=list)
    """VmPTE of those that were looked at, in bytes."""
    gone: list[float] = field(default_factory=list)
    """Theirs that only have shared memory in them, in tables."""

    def pass_over(self, sizes: list[int]) -> None:
        """Processes that are not looked at, with these page tables."""
        self.processes += len(sizes)
        self.vmpte_bytes += sum(sizes)

    def add(self, size: int, gone: float) -> None:
        """A process that was looked at."""
        self.pass_over([size])
        self.sizes.append(size)
        self.gone.append(gone)

    def estimate(self) -> tuple[float, float]:
        """The tables of all that have only shared memory in them, and the variance of that."""
        if len(self.sizes) == self.processes or not self.sizes:
            return sum(self.gone), 0.0
        sizes, gone = np.array(self.sizes, float), np.array(self.gone)
        ratio = gone.sum() / sizes.sum()
        looked = len(sizes)
        spread = float(((gone - ratio * sizes) ** 2).sum()) / max(1, looked - 1)
        variance = self.processes**2 * (1 - looked / self.processes) / looked * spread
        return ratio * self.vmpte_bytes, variance


def _measure(pids: list[int]) -> float:
    """Seconds of a processor that looking at these processes takes."""
    started = time.process_time()
    Survey(pids, lambda _: None).look(lambda _: None)
    return time.process_time() - started


class Survey:
    """All counts, once every process was looked at; `exact`: no sample is taken."""

    def __init__(self, pids: Iterable[int], notify: Notify, *, exact: bool = False) -> None:
        self.objects = Objects()
        self.scans = pagemap.can_scan()
        self.frames = pagemap.sees_frames()
        self.census = census(pids, self.objects, notify, None if exact else _measure)
        births = Counter(process.birth for process in self.census.seen)
        forked = {birth for birth, count in births.items() if count > 1 and any(birth)}
        self.moved = Moved(self.objects)
        self.inplace = InPlace(self.objects, forked, frames=self.frames)
        self.programs: dict[str, Program] = defaultdict(Program)
        for program, sizes in self.census.passed.items():
            self.programs[program].pass_over(sizes)
        self.scales = {
            program: self.census.scale(program)
            for program in {one.program for one in self.census.seen}
        }
        # Without PAGEMAP_SCAN a span that is drawn costs as much as its neighbours.
        draws = self.scans and not exact
        self.drawn = sample.Drawn(self.objects, self.census.seen) if draws else None
        self.uncertain: set[int] = set()
        """Objects whose tables in some process are not known from VmPTE, but from the sample."""
        self.looked = 0

    def look(self, notify: Notify) -> None:
        """Look at the page tables of everybody."""
        still = []
        for process in self.census.seen:
            notify(1)
            if self._look_at(process):
                still.append(process)
            else:
                numbers = np.unique(process.vmas.number)
                self.objects.forget(numbers[numbers >= 0].tolist(), process.program)
        self.census.ended += len(self.census.seen) - len(still)
        self.census.seen = still

    def _look_at(self, process: Process) -> bool:
        """Count a process; False: it has ended, and nothing was counted."""
        try:
            with Pagemap(process.pid) as table:
                if self.drawn is None:
                    rows = join(list(everything(process, table, scans=self.scans)))
                    looks = rows, rows
                else:
                    looks = sample.look(process, table, self.drawn)
                process.vmpte_bytes = vmpte(process.pid)
                if not process.vmpte_bytes:
                    return False
                self._count(process, table, looks)
        except OSError as error:
            if error.errno in _ENDED:
                return False
            raise
        return True

    def _count(self, process: Process, table: Pagemap, looks: tuple[Rows, Rows]) -> None:
        base, upper = looks
        factor, scale = sample.calibrated(process, base, upper), self.scales[process.program]
        if factor is None:
            sampled = process.vmas.number[base.vma[base.weight > 1]]
            self.uncertain.update(np.unique(sampled).tolist())
            factor = 1.0
        gone = self.moved.add(process, base, upper, factor, scale)
        self.inplace.add(process, table, looks, self.moved.movable(process), scale)
        self.programs[process.program].add(process.vmpte_bytes, gone / scale)
        self.looked += 1
