"""How long the pages of regions have not been used, by anybody and by each process.

There are other ways to look (idle_ways.py); this one sees single pages. A look gives the entries of
a region's memory back (MADV_DONTNEED of a region: the data stay), and sees an interval later which
ones have come back. An entry is the whole region's, so that is exact by the page for all processes
together, whoever they are and even if they have ended since. A process by itself is looked at in
its own page tables: there pages come together, so it is told by 2 MiB spans.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

import msharefs
from msharefs import verbs

from . import head, idle_methods, ptmap, serving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from msharefs.client import Region

    Pages = NDArray[np.int64]
    """Numbers of pages in the region."""
    Rounds = NDArray[np.int32]

PAGE = verbs.PAGE
INTERVAL_SECONDS = 10.0
COST_SHARE = 0.03
"""Of a process's time, that is: of a processor. A look that costs more makes the next one later."""
_KEPT = {"locked", "guard", "hugetlb"}
"""Flags of mappings that DONTNEED refuses, or whose entries are of another size."""

_TRIES = 10
_LATE_SECONDS = 30.0
"""A look may be so much later than it was to be."""


def resident(region: Region) -> Pages:
    """The pages that are in memory, in order."""
    for tries in range(_TRIES):
        found = [np.empty(0, np.int64)]
        try:
            for each in region.maps():
                vec = np.frombuffer(
                    region.query(each["start"], each["end"] - each["start"]), np.uint8
                )
                found.append(np.flatnonzero(vec & 1) + each["start"] // PAGE)
        except OSError as error:
            # A mapping has gone since it was listed.
            if error.errno != errno.ENOMEM or tries + 1 == _TRIES:
                raise
        else:
            break
    return np.concatenate(found)


class Who(NamedTuple):
    """An attachment in several looks."""

    pid: int
    start_time: int
    base: int


@dataclass
class Interval:
    """From a drop of the entries to the look at them; seconds by the monotonic clock."""

    start: float
    end: float
    service: dict[int, float] = field(default_factory=dict)
    """CPU seconds of those who take the faults of each process."""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.start

    @property
    def cost(self) -> float:
        """The share of the interval that was run for the costliest process."""
        return max(self.service.values(), default=0.0) / max(self.seconds, 1e-9)


class Watched:
    """One region that is looked at."""

    method = "entries"
    """In idle_methods."""
    exact_to: ClassVar = {"all": "4 KiB page", "each": "2 MiB span"}

    def __init__(self, path: str) -> None:
        self.path = path
        self.region = msharefs.open(path, os.O_RDWR)
        self._last: dict[tuple[int, int], Rounds] = {}
        """By range: the number of the round in which each page was last used; 0: known, in none of
        them; -1: nobody has touched it."""
        self._cells: dict[Who, dict[int, int]] = {}
        self._comm: dict[int, str] = {}
        self.left_out_bytes = 0
        self.native = 0
        """Attachments by a plain mmap(2), whose accesses make no entries."""
        self.fault_around = 1
        self.held: dict[int, float] = {}
        """Seconds of this interval for which our looks have had the memory of a process locked."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.region.close()

    def begin(self) -> None:
        """Takes note of the pages that are in memory by now. OSError: it cannot be told."""
        for start, end, told in self._mappings():
            if told:
                self._last[start, end] = np.full((end - start) // PAGE, -1, np.int32)
            else:
                self.left_out_bytes += end - start
        self._note(0)
        self._know(0)

    def _know(self, number: int) -> None:
        """What is in memory, and was not before, was used in round `number`.

        An earlier look may have taken its entry.
        """
        here = resident(self.region)
        for (start, end), last in self._last.items():
            pages = here[(here >= start // PAGE) & (here < end // PAGE)] - start // PAGE
            last[pages[last[pages] < 0]] = number

    def _mappings(self) -> Iterator[tuple[int, int, bool]]:
        """The mappings, and whether their entries may be given back."""
        for each in self.region.maps():
            kept = _KEPT & set(each["flags"]) or each["prot"].startswith("---")
            yield each["start"], each["end"], not kept

    def drop(self, seconds: float) -> None:
        """Gives the entries back, `seconds` before the next look. EBUSY: a process does not answer.

        Until then first touches are not Linux's, whatever the mount says.
        """
        self.region.describe("watch-touches", int((seconds + _LATE_SECONDS) * 1e9))
        for tries in range(_TRIES):
            try:
                for start, end, told in self._mappings():
                    if told:
                        self.region.advise(start, end - start, verbs.MADV_DONTNEED)
            except OSError as error:
                # A mapping has gone, or has got a lock, since it was listed.
                if error.errno not in (errno.ENOMEM, errno.EINVAL) or tries + 1 == _TRIES:
                    raise
            else:
                return

    def look(self, number: int) -> None:
        """Round `number` is over: what has come back by now was used in it."""
        self._note(number)
        for who, client in self._attached():
            self._comm[who.pid] = client["comm"]
            self._see(who, client, number)

    def pids(self) -> set[int]:
        """The processes that can be looked at now."""
        return {who.pid for who, _ in self._attached()}

    def _attached(self) -> Iterable[tuple[Who, dict[str, Any]]]:
        """The attachments that can be looked at: those that our library has made."""
        clients = self.region.describe("clients")
        self.native = sum(client["kind"] == "native" for client in clients)
        for client in clients:
            if client["kind"] not in ("native", "unseen"):
                yield Who(client["pid"], client["start_time"], client["base"]), client

    def _see(self, who: Who, client: dict[str, Any], number: int) -> None:
        cells = self._cells.setdefault(who, {})
        with contextlib.suppress(PermissionError, ProcessLookupError):
            for part in ptmap.windows(client):
                cells.update(dict.fromkeys(ptmap.held_cells(who.pid, *part), number))

    def _note(self, number: int) -> None:
        """Pages that have an entry were used in round `number`."""
        found = self.region.describe("entries")
        if number and found["linux_fills"]:
            raise OSError(
                errno.ETIMEDOUT,
                f"{self.path}: the look came {_LATE_SECONDS:.0f} s too late, and Linux has filled "
                "memory meanwhile; try again when there is less to do",
            )
        for last, present in self._entries(found):
            last[present] = number

    def _entries(self, found: dict[str, Any]) -> Iterator[tuple[Rounds, NDArray[np.bool_]]]:
        """Part by part when its pages were last used, and whether they have an entry now."""
        self.fault_around = found["fault_around"]
        for each in found["ranges"]:
            data = zlib.decompress(base64.b64decode(each["present"]))
            present = np.frombuffer(data, np.uint8).astype(bool)
            for (start, end), last in self._last.items():
                low, high = max(start, each["start"]), min(end, each["end"])
                if low < high:
                    yield (
                        last[(low - start) // PAGE : (high - start) // PAGE],
                        present[(low - each["start"]) // PAGE : (high - each["start"]) // PAGE],
                    )

    def last(self) -> Iterator[tuple[int, Rounds]]:
        """Range by range its offset, and in which round each page was last used."""
        for (start, _), last in self._last.items():
            yield start, last

    def ages(self, rounds: int) -> list[int]:
        """How many pages were last used in the last round, in the one before ...; in none."""
        counts = np.zeros(rounds + 1, np.int64)
        for last in self._last.values():
            counts += np.bincount(last[last >= 0], minlength=rounds + 1)
        return [int(count) for count in counts[::-1]]

    def last_used(self, offset: int) -> int:
        """In which round the page at this offset was last used; 0: in none, -1: never touched."""
        for (start, end), last in self._last.items():
            if start <= offset < end:
                return int(last[(offset - start) // PAGE])
        return -1

    def bounds(self, rounds: int) -> list[dict[str, int]]:
        """What was used in the last round, in the one before ..., where that is not exact."""
        del rounds
        return []

    def clients(self, rounds: int) -> list[dict[str, Any]]:
        """Spans of 2 MiB in which each process has pages, by the last round in which it had."""
        return [
            {
                "pid": who.pid,
                "comm": self._comm[who.pid],
                "spans": [
                    sum(last == number for last in cells.values())
                    for number in range(rounds, 0, -1)
                ],
            }
            for who, cells in sorted(self._cells.items())
        ]


def look_on(
    regions: Sequence[Watched],
    rounds: int,
    interval: float | None,
    pause: Callable[[float], None],
) -> list[Interval]:
    """Looks at regions that have begun. As `run`."""
    done = []
    wanted = INTERVAL_SECONDS if interval is None else interval
    for number in range(1, rounds + 1):
        before = serving.seconds(set().union(*(region.pids() for region in regions)))
        start = time.monotonic()
        for region in regions:
            region.drop(wanted)
        pause(wanted)
        for region in regions:
            region.look(number)
        after = serving.seconds(before)
        spent = {pid: after[pid] - before[pid] for pid in after}
        for region in regions:
            for pid, seconds in region.held.items():
                spent[pid] = spent.get(pid, 0) + seconds
            region.held = {}
        done.append(Interval(start, time.monotonic(), spent))
        if interval is None and done[-1].cost > COST_SHARE:
            wanted *= 2
    return done


def _ages(counts: Sequence[int], done: Sequence[Interval]) -> list[dict[str, Any]]:
    """`counts` as bounds of how long pages have not been used."""
    end = done[-1].end
    found: list[dict[str, Any]] = [
        {"at_least_seconds": end - each.end, "at_most_seconds": end - each.start, "pages": count}
        for each, count in zip(reversed(done), counts, strict=False)
    ]
    never = {"at_least_seconds": end - done[0].start, "at_most_seconds": None}
    return [*found, {**never, "pages": counts[-1]}]


def _region(watched: Watched, done: Sequence[Interval]) -> dict[str, Any]:
    counts = watched.ages(len(done))
    used = np.cumsum(counts[:-1])
    ages = _ages(counts, done)
    return {
        "region": watched.path,
        "pages": sum(counts),
        "left_out_bytes": watched.left_out_bytes,
        "native_attachments": watched.native,
        "error_pages": watched.fault_around - 1,
        "ages": ages,
        "bounds": watched.bounds(len(done)),
        "working_set": [
            {"seconds": age["at_most_seconds"], "bytes": int(pages) * PAGE}
            for age, pages in zip(ages, used, strict=False)
        ],
        "clients": watched.clients(len(done)),
    }


def run(
    paths: Sequence[str],
    rounds: int,
    interval: float | None,
    pause: Callable[[float], None] = time.sleep,
    kind: type[Watched] = Watched,
) -> dict[str, Any]:
    """Looks at regions for `rounds` intervals, in the way of `kind`; a document.

    `interval` is in seconds; None: 10, and twice as long whenever a look has cost a process more
    than 3 % of its time. OSError: with a sentence.
    """
    started = head.head()
    with contextlib.ExitStack() as stack:
        regions = [stack.enter_context(kind(path)) for path in paths]
        for region in regions:
            region.begin()
        done = look_on(regions, rounds, interval, pause)
        return {
            **started,
            "method": kind.method,
            "methods": [each._asdict() for each in idle_methods.methods(kind.method)],
            "exact_to": kind.exact_to,
            "intervals": [{"seconds": each.seconds, "cost": each.cost} for each in done],
            "between_seconds": done[-1].end - done[0].start - sum(each.seconds for each in done),
            "regions": [_region(region, done) for region in regions],
        }
