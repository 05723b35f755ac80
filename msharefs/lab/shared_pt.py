"""Mappings of MAP_SHARED_PT by Android's rules: which tables its kernel would share.

Linux shares none of them. Each process has a ledger of them in its memory, that of
native/preload/ledger.c, and a child of fork(2) has its parent's, as it would have the links. What
counts is what is mapped and populated.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from msharefs import proc

from .pagemap import END, FILE, START, WHAT, Pagemap
from .plan import TABLE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

LEDGER = "/memfd:msharefs-shared-pt (deleted)"
_MAGIC = b"SHAREDPT"
_HEAD = struct.Struct("=8sIIQ")  # magic, turn, count, inexact
_RANGE = struct.Struct("=QQQQ")  # mapping, start, end, cause
_TABLE_SPAN = 2 << 20
_TRIES = 100

WRITTEN = "write"
CAUSES = ("", "mprotect", "mremap", "munmap", "madvise")
"""As enum ledger_cause; the first: nothing, it is shared."""
WHY = {
    "mprotect": "mprotect(2)",
    "mremap": "mremap(2)",
    "munmap": "munmap(2) of a part, or something else mapped there",
    "madvise": "madvise(2): DONTNEED, REMOVE",
    WRITTEN: "written past its protection: ptrace(2), /proc/PID/mem",
}


class Range(NamedTuple):
    """Tables of one mapping, [start, end) in bytes."""

    mapping: int
    start: int
    end: int
    cause: str
    """Why the process has them for itself; empty: it shares them."""


class Ledger(NamedTuple):
    """What a process knows of its mappings."""

    ranges: list[Range]
    inexact: bool
    """Its room did not suffice: more counts as unshared than is."""


def ledger(pid: int) -> Ledger | None:
    """That of a process; None: it has none. ProcessLookupError, PermissionError."""
    place = proc.mapped(pid, LEDGER)
    if place is None:
        return None
    try:
        with proc.open_memory(pid) as memory:
            for _ in range(_TRIES):
                head = os.pread(memory.fileno(), _HEAD.size, place)
                magic, turn, count, inexact = _HEAD.unpack(head)
                data = os.pread(memory.fileno(), count * _RANGE.size, place + _HEAD.size)
                same = os.pread(memory.fileno(), _HEAD.size, place) == head
                if same and magic == _MAGIC and turn % 2 == 0:
                    found = [
                        Range(mapping, start, end, CAUSES[cause])
                        for mapping, start, end, cause in _RANGE.iter_unpack(data)
                    ]
                    return Ledger(found, bool(inexact))
    except (PermissionError, ProcessLookupError):
        raise
    except (OSError, struct.error, IndexError):
        pass
    return None


@dataclass
class Counted:
    """All processes in one moment; tables."""

    processes: int = 0
    """With such a mapping."""
    mappings: set[int] = field(default_factory=set)
    own: int = 0
    """Tables that the processes have for them."""
    shared: set[tuple[int, int]] = field(default_factory=set)
    """Mapping and address of each that would be there once."""
    shares: int = 0
    """Of their own tables, those that would be these."""
    unshared: Counter[str] = field(default_factory=Counter)
    """Of their own tables, those that would not, by cause."""
    inexact: bool = False

    def add(self, pid: int) -> None:
        """Look at a process. ProcessLookupError, PermissionError."""
        found = ledger(pid)
        if found is None or not found.ranges:
            return
        self.processes += 1
        self.inexact |= found.inexact
        with Pagemap(pid) as table:
            for one in found.ranges:
                self.mappings.add(one.mapping)
                for span, written in _populated(table, one):
                    self._count(one, span, written=written)

    def _count(self, one: Range, span: int, *, written: bool) -> None:
        self.own += 1
        cause = one.cause or (WRITTEN if written else "")
        if cause:
            self.unshared[cause] += 1
        else:
            self.shares += 1
            self.shared.add((one.mapping, span))

    def document(self) -> dict[str, Any]:
        """For JSON."""
        shared = len(self.shared)
        return {
            "processes": self.processes,
            "mappings": len(self.mappings),
            "own_tables_bytes": self.own * TABLE_BYTES,
            "page_table_bytes": shared * TABLE_BYTES,
            "saved_bytes": (self.shares - shared) * TABLE_BYTES,
            "unshared": [
                {"cause": cause, "what": WHY[cause], "bytes": self.unshared[cause] * TABLE_BYTES}
                for cause in WHY
                if self.unshared[cause]
            ],
            "inexact": self.inexact,
        }


def _populated(table: Pagemap, one: Range) -> Iterable[tuple[int, bool]]:
    """The tables of a range that have an entry, and whether one is a private page.

    What Linux has unmapped there has none.
    """
    found: dict[int, bool] = {}
    for runs in table.runs(one.start, one.end):
        for run in runs.tolist():
            first, last = run[START] // _TABLE_SPAN, (run[END] - 1) // _TABLE_SPAN
            for span in range(first, last + 1):
                found[span] = found.get(span, False) or not run[WHAT] & FILE
    return found.items()


def count(pids: Iterable[int]) -> Counted:
    """Look at all these processes, those that may be."""
    made = Counted()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            made.add(pid)
    return made
