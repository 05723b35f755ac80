"""Other ways to see which pages of a region are used than giving its entries back (idle.py).

Accessed bits of Linux's own page tables can be cleared, and counted mapping by mapping; that takes
nothing away from anybody, and sees native attachments. And stores can
be seen by the page, and process by process, where memory is write-protected.
"""

from __future__ import annotations

import errno
import re
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, ClassVar

from msharefs import proc
from msharefs.native import lib

from . import pagemap, ptmap
from .idle import PAGE, Watched, Who
from .pagemap import PRESENT, WRITTEN, Pagemap

if TYPE_CHECKING:
    from collections.abc import Iterator

_HEAD = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) ")
_REFERENCED = re.compile(rb"Referenced: +(\d+) kB")


class _ByProcess(Watched):
    """Each process is looked at by itself, and is told by bytes, not by spans."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._used: defaultdict[Who, Counter[int]] = defaultdict(Counter)
        """Bytes that each has used, by the number of the round."""

    def _mark(self, start: int, end: int, number: int) -> None:
        """What is known of [start, end) was used in round `number`."""
        for (low, high), last in self._last.items():
            part = last[max(start - low, 0) // PAGE : max(min(end, high) - low, 0) // PAGE]
            part[part >= 0] = number

    def _see(self, who: Who, client: dict[str, Any], number: int) -> None:
        """It is there, whatever it uses."""
        self._comm[who.pid] = client["comm"]
        self._used[who][number] += 0

    def clients(self, rounds: int) -> list[dict[str, Any]]:
        """Bytes that each process has used, the last round first."""
        return [
            {
                "pid": who.pid,
                "comm": self._comm[who.pid],
                "spans": [],
                "bytes": [used[number] for number in range(rounds, 0, -1)],
            }
            for who, used in sorted(self._used.items())
        ]


class Referenced(_ByProcess):
    """By accessed bits: clear_refs and smaps."""

    method = "clear_refs"
    exact_to: ClassVar = {"all": "mapping", "each": "mapping (and how much of it)"}

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._flush = not pagemap.has_soft_dirty()
        self._most: dict[int, int] = {}
        """Bytes of the mappings that were used in a round, by its number."""

    def _mappings(self) -> Iterator[tuple[int, int, bool]]:
        for each in self.region.maps():
            yield each["start"], each["end"], "hugetlb" not in each["flags"]

    def _note(self, number: int) -> None:
        """By what is in memory: memory that Linux fills has no entries before somebody looks."""
        self._know(number)

    def _attached(self) -> Iterator[tuple[Who, dict[str, Any]]]:
        """All that have it mapped."""
        for client in self.region.describe("clients"):
            if client["kind"] == "unseen":
                raise OSError(
                    errno.EPERM,
                    f"{self.path}: process {client['pid']} may have it mapped, and does not let "
                    "you look: be root, or look by --method entries",
                )
            yield Who(client["pid"], client["start_time"], client["base"]), client

    def drop(self, seconds: float) -> None:
        """Clears the accessed bits. PermissionError: of a process that is another user's."""
        del seconds
        for pid in self.pids():
            began = time.monotonic()
            try:
                proc.clear_accessed(pid, flush=self._flush)
            except ProcessLookupError:
                continue
            except PermissionError as error:
                raise PermissionError(
                    error.errno,
                    f"{self.path}: accessed bits of process {pid} ({proc.comm(pid)}) may not be "
                    "cleared by you: be root, or look by --method entries",
                ) from None
            self.held[pid] = self.held.get(pid, 0) + time.monotonic() - began

    def look(self, number: int) -> None:
        """Mappings of which anything was used in round `number`."""
        self._note(number)
        for who, client in self._attached():
            self._see(who, client, number)
            began = time.monotonic()
            try:
                found = list(_referenced(who.pid))
            except (ProcessLookupError, PermissionError):
                continue  # it has ended
            self.held[who.pid] = self.held.get(who.pid, 0) + time.monotonic() - began
            for base, size, offset in ptmap.windows(client):
                for start, end, used in found:
                    low, high = max(start, base), min(end, base + size)
                    if low < high and used:
                        self._used[who][number] += used
                        self._mark(low - base + offset, high - base + offset, number)
        self._most[number] = sum(int((last == number).sum()) for _, last in self.last()) * PAGE

    def bounds(self, rounds: int) -> list[dict[str, int]]:
        """At least what one process has used; at most what all have, or all of their mappings."""
        found = []
        for number in range(rounds, 0, -1):
            by_pid = Counter[int]()
            for who, used in self._used.items():
                by_pid[who.pid] += used[number]
            most = min(self._most[number], sum(by_pid.values()))
            least = min(max(by_pid.values(), default=0), most)
            found.append({"at_least_bytes": least, "at_most_bytes": most})
        return found


def _referenced(pid: int) -> Iterator[tuple[int, int, int]]:
    """The mappings of a process, and how many bytes of each were used."""
    start = end = 0
    for line in proc.smaps(pid):
        if head := _HEAD.match(line):
            start, end = (int(number, 16) for number in head.groups())
        elif used := _REFERENCED.match(line):
            yield start, end, int(used[1]) << 10


class Stores(_ByProcess):
    """By write protection: the server takes the right to store out of all page tables."""

    method = "stores"
    exact_to: ClassVar = {"all": "4 KiB page (of stores)", "each": "4 KiB page (of stores)"}

    def _mappings(self) -> Iterator[tuple[int, int, bool]]:
        for each in self.region.maps():
            left_out = {"sealed", "hugetlb"} & set(each["flags"]) or each["object"] != "anon"
            yield each["start"], each["end"], not left_out and "w" in each["prot"]

    def _note(self, number: int) -> None:
        """What has got an entry is known from now on. What was stored to, it does not say."""
        del number
        found = self.region.describe("entries")
        if found["linux_fills"]:
            raise OSError(
                errno.EOPNOTSUPP,
                f"{self.path}: on a mount with -o faults=linux most memory is not watched, so "
                "stores cannot be told: mount with -o faults=watched, or look by --method "
                "clear_refs or entries",
            )
        for last, present in self._entries(found):
            last[present & (last < 0)] = 0

    def drop(self, seconds: float) -> None:
        """The next store to each page faults."""
        del seconds
        self.region.describe("watch-stores")

    def look(self, number: int) -> None:
        """Pages that a process has written in round `number`."""
        self._note(number)
        for who, client in self._attached():
            self._see(who, client, number)
            try:
                for start, end in self._written(client):
                    self._mark(start, end, number)
                    self._used[who][number] += end - start
            except ProcessLookupError:
                continue
            except PermissionError as error:
                raise PermissionError(
                    error.errno,
                    f"{self.path}: the page tables of process {who.pid} ({client['comm']}) may not "
                    "be seen by you: be root, or look by --method entries",
                ) from None

    def _written(self, client: dict[str, Any]) -> Iterator[tuple[int, int]]:
        """What a process has in its page tables and may write without a fault: region offsets."""
        with Pagemap(client["pid"]) as table:
            for base, size, offset in ptmap.windows(client):
                for runs in table.runs(base, min(base + size, lib.HOST_END), more=WRITTEN):
                    for start, end, what in runs.tolist():
                        if what & PRESENT and what & WRITTEN:
                            yield start - base + offset, end - base + offset


WAYS: dict[str, type[Watched]] = {each.method: each for each in (Watched, Referenced, Stores)}
