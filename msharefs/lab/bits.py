"""Is one accessed bit for all processes enough? What reclaim would see, and do, with one and many.

The references come from a file, or from looks at a region as `idle` makes them: which pages each
process has used in each interval. In what order it used them a look cannot tell, so each interval
is shuffled, and always in the same way. Then reclaim is simulated (clock.py).
"""

from __future__ import annotations

import csv
import errno
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from msharefs.native import lib

from . import clock, head, idle, ptmap
from .pagemap import PRESENT, Pagemap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    Pages = NDArray[np.int64]

PERCENT = (50, 75, 90)
"""Of the pages that are used at all: the memory there is."""
COLUMNS = ("seconds", "process", "page")
_SEED = 1


@dataclass
class Trace:
    """References in order: process and page; and when each interval of them ended."""

    references: list[tuple[int, int]] = field(default_factory=list)
    ends: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the beginning, and how many references there were by then."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ends[-1][0] if self.ends else 0.0

    def intervals(self) -> Iterator[tuple[float, list[tuple[int, int]]]]:
        """When each ended, and its references."""
        start = 0
        for seconds, end in self.ends:
            yield seconds, self.references[start:end]
            start = end

    def add(self, seconds: float, references: Iterable[tuple[int, int]]) -> None:
        """An interval that ended at `seconds`."""
        self.references.extend(references)
        self.ends.append((seconds, len(self.references)))


class Watched(idle.Watched):
    """A region that is looked at, page by page of each process."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.looks: list[list[tuple[int, Pages]]] = []
        """By round: processes, and the pages that each has used."""

    def look(self, number: int) -> None:
        """Also who has which of the pages that were used."""
        super().look(number)
        used = np.zeros(max((start + len(last) * idle.PAGE for start, last in self.last()),
                            default=0) // idle.PAGE, bool)  # fmt: skip
        for start, last in self.last():
            first = start // idle.PAGE
            used[first : first + len(last)] = last == number
        found = []
        for who, client in self._attached():
            pages = _held(client, used)
            if len(pages):
                found.append((who.pid, pages))
        self.looks.append(found)


def _held(client: dict[str, Any], used: NDArray[np.bool_]) -> Pages:
    """The pages of those that were used that a client has in its own page tables."""
    held = np.zeros(len(used), bool)
    try:
        with Pagemap(client["pid"]) as table:
            for base, size, offset in ptmap.windows(client):
                for runs in table.runs(base, min(base + size, lib.HOST_END)):
                    for start, stop, what in runs.tolist():
                        if what & PRESENT:
                            first = (start - base + offset) // idle.PAGE
                            held[first : first + (stop - start) // idle.PAGE] = True
    except (PermissionError, ProcessLookupError):
        pass  # what others have of it counts
    return np.flatnonzero(held & used)


def watch(
    path: str, rounds: int, interval: float | None, pause: Callable[[float], None]
) -> tuple[Trace, dict[str, Any]]:
    """The references of a live region, and what is to be said about them. As `idle.run`."""
    with Watched(path) as watched:
        watched.begin()
        done = idle.look_on([watched], rounds, interval, pause)
    chance = random.Random(_SEED)  # noqa: S311  # no secret
    trace = Trace()
    for each, found in zip(done, watched.looks, strict=True):
        references = [(pid, page) for pid, pages in found for page in pages.tolist()]
        chance.shuffle(references)
        trace.add(each.end - done[0].start, references)
    return trace, {
        "intervals": [{"seconds": each.seconds, "cost": each.cost} for each in done],
        "between_seconds": done[-1].end - done[0].start - sum(each.seconds for each in done),
        "fault_around": watched.fault_around,
        "native_attachments": watched.native,
        "left_out_bytes": watched.left_out_bytes,
    }


def write(trace: Trace, file: TextIO) -> None:
    """As a workload file: a line for each reference."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for seconds, references in trace.intervals():
        for process, page in references:
            writer.writerow((f"{seconds:.6f}", process, page))


def read(file: TextIO, name: str) -> Trace:
    """A workload file: seconds,process,page; times never fall. OSError: with a sentence."""
    lines = csv.reader(file)
    if tuple(next(lines, ())) != COLUMNS:
        raise OSError(errno.EINVAL, f"{name}: its first line is not {','.join(COLUMNS)}")
    trace = Trace()
    processes: dict[str, int] = {}
    waiting: list[tuple[int, int]] = []
    now = 0.0
    for line in lines:
        try:
            seconds, process, page = line
            then, reference = float(seconds), (processes.setdefault(process, len(processes)),
                                               int(page))  # fmt: skip
        except ValueError:
            then = -1.0
        if not now <= then < float("inf"):
            raise OSError(
                errno.EINVAL,
                f"{name}, line {lines.line_num}: must be seconds, not before those of the line "
                "above, a process, and the number of a page",
            )
        if then > now and waiting:
            trace.add(now, waiting)
            waiting = []
        now = then
        waiting.append(reference)
    if waiting:
        trace.add(now, waiting)
    if not trace.seconds:
        raise OSError(errno.EINVAL, f"{name}: no time passes in it")
    return trace


def judge(trace: Trace, percents: Sequence[int] = PERCENT) -> dict[str, Any]:
    """All simulations of a trace."""
    pages = len({page for _, page in trace.references})
    rows = []
    for policy in clock.POLICIES:
        for percent in percents:
            memory = max(1, pages * percent // 100)
            row: dict[str, Any] = {
                "policy": policy, "memory_percent": percent, "memory_pages": memory,
            }  # fmt: skip
            for view in (clock.SHARED, clock.EACH):
                found = clock.play(policy, memory, view, trace.references)
                row[view] = {
                    "faults": found.faults,
                    "refaults": found.refaults,
                    "refaults_per_second": found.refaults / trace.seconds,
                    "thrown_out": found.thrown_out,
                    "wrongly_thrown_out": found.wrongly,
                }
            rows.append(row)
    return {
        "references": len(trace.references),
        "processes": len({process for process, _ in trace.references}),
        "pages": pages,
        "seconds": trace.seconds,
        "seen": _seen(trace),
        "rows": rows,
    }


def _seen(trace: Trace) -> dict[str, int]:
    """What the bits say in the intervals: pages with a bit, with several, and all the bits."""
    marked, several, bits = 0, 0, 0
    for _, references in trace.intervals():
        pairs = np.unique(np.array(references, np.int64).reshape(-1, 2), axis=0)
        counts = np.unique(pairs[:, 1], return_counts=True)[1]
        marked += len(counts)
        several += int((counts >= clock.SEVERAL).sum())
        bits += len(pairs)
    return {"pages": marked, "of_several": several, "bits": bits}


def of_region(
    path: str,
    rounds: int,
    interval: float | None,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[Trace, dict[str, Any]]:
    """The trace of a live region, and its document. OSError: with a sentence."""
    started = head.head()
    trace, looked = watch(path, rounds, interval, pause)
    if not trace.references:
        raise OSError(
            errno.ENODATA, f"{path}: no page of it was used by an attached process meanwhile"
        )
    return trace, {**started, "of": path, "looks": looked, **judge(trace)}


def of_trace(file: TextIO, name: str) -> dict[str, Any]:
    """The document of a workload file. OSError: with a sentence."""
    return {**head.head(), "of": name, "looks": None, **judge(read(file, name))}
