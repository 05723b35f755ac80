"""What it costs to take pages away from many processes, and whom Linux interrupts for it.

Beside each measurement is what the model of the server predicts for the same moment
(tlb_model.py), as `stat` shows it: so the model is checked against the machine.
"""

from __future__ import annotations

import errno
import os
import statistics
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from msharefs import client, proc, tlb_model
from msharefs.lab import head
from msharefs.lab.pagemap import PRESENT, Pagemap
from msharefs.lab.workers import PAGE_BYTES, Workers

from . import revoke
from .backends import Backends
from .run import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .backends import Memory
    from .figures import Sample
    from .run import Observer

KIND = "msharefs shootdown"
PAGES = (1, 16, 512, 16384)
PROCESSES = (1, 8, 64, 512)
ROUNDS = 3
SIZE = PAGES[-1] * PAGE_BYTES
INTERRUPTS = {"tlb": "TLB", "reschedule": "RES", "call": "CAL"}
"""Lines of /proc/interrupts, of x86."""
PUNCH, MADVISE, OUTSIDE, MUNMAP, PROTECT, UNMAP = HOWS = (
    "punch a hole", "madvise in each", "process_madvise of each", "munmap in each",
    "UFFDIO_WRITEPROTECT of each", "UNMAP of a region",
)  # fmt: skip
_CALLER = 0
"""The worker that makes the calls, and has nothing mapped."""


def interrupts() -> dict[str, int]:
    """How many there were, on all processors; without those that this machine does not count."""
    counts = proc.interrupts()
    return {name: counts[line] for name, line in INTERRUPTS.items() if line in counts}


@dataclass
class Crowd:
    """Processes that have memory in common. The first of them run, each on a processor of its own.

    One processor is left to the calls: what runs there is not interrupted but waits.
    """

    workers: Workers
    bases: list[int]
    running: int
    ran: dict[int, int] = field(default_factory=dict)

    @property
    def victims(self) -> list[int]:
        """Their numbers."""
        return list(range(1, len(self.workers)))

    @property
    def pids(self) -> list[int]:
        """Their process ids."""
        return self.workers.pids[1:]

    def each(self, command: Callable[[int], str]) -> float:
        """Nanoseconds of a call that each of them makes for itself, one after the other."""
        return float(
            sum(self.workers.ask(command, [number])[0].nanoseconds for number in self.victims)
        )

    def one(self, command: str) -> float:
        """Nanoseconds of a call that is one for all."""
        return float(self.workers.ask(command, [_CALLER])[0].nanoseconds)

    def lost(self) -> float:
        """Nanoseconds that each of those that run was interrupted for, so far."""
        runners = self.victims[: self.running]
        answers = self.workers.ask("lost", runners) if runners else []
        return sum(answer.value or 0 for answer in answers) / max(len(runners), 1)

    def fill(self, pages: int) -> None:
        """All have so many pages in their page tables."""
        _, self.ran = tlb_model.ran_on(self.pids, {})
        self.workers.ask(f"order 0 0 {pages} {pages} sequential", self.victims)
        self.workers.ask("touch 1 write", self.victims[:1])
        self.workers.ask("touch 1 read", self.victims)

    def predicted(self) -> dict[str, int]:
        """Whom kernels would have to tell now, as the server would say."""
        return tlb_model.messages(tlb_model.ran_on(self.pids, self.ran)[0])

    def left(self, pages: int) -> int:
        """How many of its pages the last one still has in its page tables."""
        base = self.bases[-1]
        with Pagemap(self.pids[-1]) as table:
            return sum(
                (end - start) // PAGE_BYTES
                for runs in table.runs(base, base + pages * PAGE_BYTES)
                for start, end, what in runs.tolist()
                if what & PRESENT
            )


@contextmanager
def crowd_of(memory: Memory, count: int, *, running: bool) -> Iterator[Crowd]:
    """`count` processes with the memory, pinned over the processors."""
    ours = os.sched_getaffinity(0)
    cpus = sorted(ours)
    runners = min(count, len(cpus) - 1) if running else 0
    with Workers(count + 1, memory.pass_fds) as workers:
        os.sched_setaffinity(0, cpus[:1])
        try:
            for number, pid in enumerate(workers.pids):
                # Who runs does so by a thread; what it is asked waits for no processor of a victim.
                own = 0 if number <= runners else number % len(cpus)
                os.sched_setaffinity(pid, {cpus[own]})
            victims = list(range(1, count + 1))
            (found,) = [workers.ask(command, victims) for command in memory.take]
            workers.ask(f"open {memory.path}", [_CALLER])
            for number, answer in enumerate(workers.ask("spin", victims[:runners])):
                os.sched_setaffinity(answer.value or 0, {cpus[1 + number]})
            yield Crowd(workers, [answer.value or 0 for answer in found], runners)
        finally:
            os.sched_setaffinity(0, ours)


def measure(crowd: Crowd, pages: int, call: Callable[[], float]) -> Sample:
    """One round: the call and its interrupts, and those of as long a time without a call."""
    crowd.fill(pages)
    lost, counts = crowd.lost(), interrupts()
    ns = call()
    after = interrupts()
    lost_after = crowd.lost()
    found = {name: float(after[name] - counts[name]) for name in counts}
    time.sleep(ns / 1e9)
    quiet = interrupts()
    return {
        "ns": ns,
        "victim_lost_ns": lost_after - lost,
        "quiet_lost_ns": crowd.lost() - lost_after,
        **found,
        **{f"quiet_{name}": float(quiet[name] - after[name]) for name in counts},
    }


@dataclass(frozen=True)
class Way:
    """A way to take pages away. `after` brings back what the next round needs."""

    how: str
    call: Callable[[int], float]
    after: Callable[[int], object] = lambda _: None
    predicted: Callable[[], dict[str, int]] | None = None
    """What the server itself says of the call; by default we ask its model."""


def ways_of_memfd(crowd: Crowd, memory: Memory, stack: ExitStack) -> Iterator[Way]:
    """The ways to take pages of plain shared memory away."""

    def size(pages: int) -> int:
        return pages * PAGE_BYTES

    def again(_: int) -> None:
        answers = [crowd.workers.ask(command, crowd.victims) for command in memory.take]
        crowd.bases = [answer.value or 0 for answer in answers[0]]

    def outside(pages: int) -> float:
        targets = zip(crowd.pids, crowd.bases, strict=True)
        return sum(crowd.one(f"pageout {pid} {base} {size(pages)}") for pid, base in targets)

    yield Way(PUNCH, lambda pages: crowd.one(f"punch 0 {size(pages)}"))
    yield Way(MADVISE, lambda pages: crowd.each(lambda _: f"dontneed 0 {size(pages)}"))
    yield Way(OUTSIDE, outside)
    yield Way(MUNMAP, lambda _: crowd.each(lambda _: "detach"), again)
    # The last: it changes the mappings for good.
    uffds = revoke.uffds(crowd.workers, stack, crowd.victims)
    switch = revoke.write_protect
    yield Way(
        PROTECT,
        lambda pages: switch(uffds, crowd.bases, size(pages), on=True),
        lambda pages: switch(uffds, crowd.bases, size(pages), on=False),
    )


def ways_of_region(crowd: Crowd, memory: Memory, stack: ExitStack) -> Iterator[Way]:
    """The way for a region, which is one call for all."""
    region = stack.enter_context(client.open(memory.path, os.O_RDWR))
    before: dict[str, int] = {}

    def unmap(pages: int) -> float:
        before.update(region.stat()["shootdowns"]["unmap"])
        return crowd.one(f"unmap 0 {pages * PAGE_BYTES}")

    def predicted() -> dict[str, int]:
        after = region.stat()["shootdowns"]["unmap"]
        return {name: after[name] - before[name] for name in revoke.MESSAGES}

    def again(pages: int) -> None:
        region.map(0, pages * PAGE_BYTES)

    yield Way(UNMAP, unmap, again, predicted)


def _row(samples: Sequence[Sample], predicted: Sequence[dict[str, int]]) -> dict[str, Any]:
    """Medians of the rounds, and the interrupts beyond a quiet time by each model's prediction."""
    middle = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    models = {name: statistics.median(each[name] for each in predicted) for name in revoke.MESSAGES}
    counted = max(middle["tlb"] - middle["quiet_tlb"], 0.0) if "tlb" in middle else None
    return {
        **middle,
        "predicted": models,
        "ratios": None
        if counted is None
        else {name: counted / count if count else None for name, count in models.items()},
    }


def _play(way: Way, crowd: Crowd, pages: int, rounds: int) -> dict[str, Any]:
    samples, predicted, left = [], [], 0
    for _ in range(rounds):
        samples.append(measure(crowd, pages, lambda: way.call(pages)))
        predicted.append((way.predicted or crowd.predicted)())
        left = crowd.left(pages)
        way.after(pages)
    return {
        "processes": len(crowd.victims),
        "running": crowd.running,
        "pages": pages,
        "how": way.how,
        "left_pages": left,
        **_row(samples, predicted),
    }


def _check_rights() -> None:
    if not proc.has_capability("self", proc.CAP_SYS_NICE):
        raise PermissionError(
            errno.EPERM,
            "bench shootdown also takes pages from other processes, by process_madvise(2), and "
            "that takes CAP_SYS_NICE: run it as root",
        )


def run(processes: Sequence[int], size: int, rounds: int, observer: Observer) -> dict[str, Any]:
    """All ways, numbers of processes and of pages, up to `size` bytes; a document.

    PermissionError: with a sentence.
    """
    _check_rights()
    started = head.head()
    chosen = [pages for pages in PAGES if pages * PAGE_BYTES <= size]
    rows: list[dict[str, Any]] = []
    states = (False, True) if len(os.sched_getaffinity(0)) > 1 else (False,)
    notify = observer.step("shootdown", len(processes) * len(states) * 2)
    with Backends(("memfd", "msharefs")) as backends:
        for count in processes:
            for running in states:
                for kind, ways in (("memfd", ways_of_memfd), ("msharefs", ways_of_region)):
                    if kind in backends:
                        with ExitStack() as stack:
                            memory = stack.enter_context(backends[kind].memory(size))
                            crowd = stack.enter_context(crowd_of(memory, count, running=running))
                            for way in ways(crowd, memory, stack):
                                rows.extend(_play(way, crowd, each, rounds) for each in chosen)
                    notify(1)
        missing = dict(backends.missing)
    return {
        "kind": KIND,
        "version": 1,
        **started,
        "machine": machine(),
        "rounds": rounds,
        "rows": rows,
        "missing": missing,
        "not_counted": sorted(set(INTERRUPTS) - set(interrupts())),
    }
