"""What a kernel that knew about the host mm would print of a region in /proc/PID/smaps and status.

A proposal: today's kernels do not look into a region, so its memory is in no process's figures, or,
with v3, in all of them. Here the host mm's is told once, mapping by mapping, and Pss shares each
page among the processes that are *attached* to the part, whether they have touched it or not: a
mapping in which somebody's part begins or ends is told in two. (Two others would be possible: it is
all the owner's, or nobody's.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from typing import TYPE_CHECKING, Any

from msharefs.native import check, ffi, lib

from . import describe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .hostmm import HostMM

# In the order and with the letters of fs/proc/task_mmu.c. All may be shared, read, written, run.
_LETTERS = {
    lib.VMA_READ: "rd",
    lib.VMA_WRITE: "wr",
    lib.VMA_EXEC: "ex",
    0: "sh mr mw me ms",
    lib.VMA_LOCKED: "lo",
    lib.VMA_SEQUENTIAL: "sr",
    lib.VMA_RANDOM: "rr",
    lib.VMA_HUGE: "ht",
    lib.VMA_GUARD: "gu",
    lib.VMA_HUGEPAGE: "hg",
    lib.VMA_NOHUGEPAGE: "nh",
    lib.VMA_SEALED: "sl",
}


def smaps(host: HostMM) -> dict[str, Any]:
    """The figures, in bytes; offsets are the region's."""
    attached = _Attached(host)
    rows = [
        {**shown, **place, **_figures(host, vma, place, processes)}
        for shown, vma in zip(describe.maps(host), host.vmas(), strict=True)
        for place, processes in attached.split(vma)
    ]
    return {
        "size_bytes": host.size,
        "processes": attached.processes,
        "page_table_bytes": check(lib.mm_frame_bytes(host.mm), f"{host.name}: its page tables"),
        "locked_bytes": host.locks.size,
        "mappings": rows,
    }


class _Attached:
    """How many processes are attached to which part of the region."""

    def __init__(self, host: HostMM) -> None:
        bounds: list[tuple[int, int, tuple[int, int]]] = []
        for client in host.attachments():
            who = client.pid, client.start_time
            bounds += (client.offset, 1, who), (client.offset + client.size, -1, who)
        parts: Counter[tuple[int, int]] = Counter()
        self._from = [0]
        self._count = [0]
        for at, step, who in sorted(bounds):
            before = parts[who]
            parts[who] += step
            self._from.append(at)
            self._count.append(self._count[-1] + bool(parts[who]) - bool(before))
        self.processes = len(parts)

    def split(self, vma: Any) -> Iterator[tuple[dict[str, int], int]]:
        """A mapping in parts that the same processes have attached, each with their number."""
        start = vma.start
        while start < vma.end:
            at = bisect_right(self._from, start)
            end = min(vma.end, self._from[at]) if at < len(self._from) else vma.end
            place = {"start": start, "end": end, "offset": vma.offset + start - vma.start}
            yield place, self._count[at - 1]
            start = end


def _figures(host: HostMM, vma: Any, place: dict[str, int], processes: int) -> dict[str, Any]:
    usage = ffi.new("struct mm_usage *")
    found = lib.mm_usage(host.mm, place["start"], place["end"], usage)
    check(found, f"{host.name}: walking its page tables")
    rss, dirty = usage.present * describe.PAGE, usage.dirty * describe.PAGE
    share = rss // max(1, processes)
    huge = bool(vma.flags & lib.VMA_HUGE)
    # As in Linux, hugetlbfs pages are in fields of their own.
    told = 0 if huge else rss
    whose = "shared" if processes > 1 else "private"
    figures = {
        "size": place["end"] - place["start"],
        "page_size": 2 << 20 if huge else describe.PAGE,
        "rss": told,
        "pss": 0 if huge else share,
        "shared_clean": 0,
        "shared_dirty": 0,
        "private_clean": 0,
        "private_dirty": 0,
        "referenced": 0 if huge else usage.accessed * describe.PAGE,
        "anonymous": 0,
        "shared_hugetlb": 0,
        "private_hugetlb": 0,
        "locked": 0 if huge or not vma.flags & lib.VMA_LOCKED else share,
        "vm_flags": " ".join(
            word for flag, word in _LETTERS.items() if not flag or vma.flags & flag
        ),
    }
    if huge:
        figures[f"{whose}_hugetlb"] = rss
    else:
        figures[f"{whose}_dirty"] = min(dirty, told)
        figures[f"{whose}_clean"] = told - min(dirty, told)
    return figures
