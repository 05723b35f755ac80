"""The cost of page tables: the question that all of this is about."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msharefs import client, proc
from msharefs.lab import ptmap
from msharefs.lab.workers import PAGE_BYTES, Workers

from .scenario import Scenario, Setting, ask_all, filled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from .backends import Backends, Memory
    from .figures import Sample


MAP_BYTES = 1 << 30
# The accesses to a region of which a map is drawn, one after the other: the worker, the first page,
# how many pages there are from it on, how many of them it touches, and in which order. One part is
# touched by all workers, one by two, and three by one only: full, half full, sparse; and there are
# holes.
_MAP_WORKERS = 4
_MAP_VISITS = (
    (0, 0, 98304, 98304, "sequential"),
    (1, 0, 8192, 8192, "sequential"),
    (2, 0, 8192, 8192, "sequential"),
    (3, 0, 8192, 8192, "sequential"),
    (1, 32768, 49152, 16000, "zipf"),
    (2, 98304, 49152, 24576, "random"),
    (3, 163840, 40960, 40960, "sequential"),
    (2, 180224, 24576, 6000, "random"),
    (1, 212992, 32768, 1200, "random"),
)


def sample_map(backends: Backends) -> dict[str, Any] | None:
    """The map of a region that some processes fill and use in different ways; None without one."""
    kind = backends.region()
    if kind is None:
        return None
    with kind.memory(MAP_BYTES) as memory, Workers(_MAP_WORKERS) as workers:
        ask_all(workers, memory.take)
        for number, first, pages, count, order in _MAP_VISITS:
            workers.ask(f"order 1 {first} {pages} {count} {order}", [number])
            workers.ask("touch 1 write", [number])
        with client.open(memory.path) as region:
            return ptmap.look(region)


class PageTables(Scenario):
    """Processes that all read all of the same memory, and the size of their page tables then.

    `tables_bytes` is what this kind of memory costs in page tables: the growth of every process's
    VmPTE, or for a region the tables of its host mm, as on a kernel that shares them. The tables
    that the processes really have for a region today are `vmpte_bytes`.
    """

    name = "pagetables"
    title = "page-table memory of many processes"
    rows = ("memfd", "thp", "hugetlb", "sysv", "msharefs", "msharefs-native")
    processes = (1, 10, 100, 1000, 2000)
    size = 64 << 20
    headline = "tables_bytes"
    rounds = 1
    together = False

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Nothing is ready in advance: thousands of processes of one row at a time are enough."""
        yield lambda: self._trial(setting)

    def _trial(self, setting: Setting) -> Sample:
        with (
            setting.backends[setting.row].memory(setting.size) as memory,
            Workers(setting.processes, memory.pass_fds) as workers,
        ):
            workers.ask(f"order 0 0 {setting.pages} {setting.pages} sequential")
            before = workers.ask("report")
            machine = proc.meminfo()["PageTables"]
            ask_all(workers, memory.take)
            workers.ask("touch 1 write", [0])
            touched = workers.ask("touch 1 read")
            vmpte = sum(
                last.vmpte_bytes.after - first.vmpte_bytes.before
                for first, last in zip(before, touched, strict=True)
            )
            held = memory.figures()
            sample = {
                "tables_bytes": held.get("page_table_bytes", vmpte),
                "vmpte_bytes": vmpte,
                "meminfo_bytes": proc.meminfo()["PageTables"] - machine,
                "faults": sum(
                    last.minor_faults.after - first.minor_faults.before
                    for first, last in zip(before, touched, strict=True)
                ),
                "ns_per_page": sum(answer.nanoseconds for answer in touched)
                / len(touched)
                / setting.pages,
            }
            if "page_table_bytes" in held:
                kind = setting.backends.region()
                assert kind is not None
                sample["host_mm_bytes"] = kind.mount().host_mm_bytes()
                sample["links"] = held["links"]
            return sample


class Clients(Scenario):
    """Further clients of a region that a process has filled; each reads some pages of it.

    `bookkeeping_bytes` is the growth of the host mm for each: its slot, and the bitmap of the spans
    that it has touched.
    """

    name = "clients"
    title = "what further clients cost the host mm"
    rows = ("msharefs",)
    processes = (1, 2000)
    size = 1 << 30
    headline = "page_table_bytes"
    rounds = 1
    VISITS = 64

    def ground(self, backends: Backends, row: str, size: int) -> AbstractContextManager[Memory]:
        """The region, filled by a process that stays."""
        return filled(backends[row], size)

    def need(self, rows: int, processes: int, size: int) -> int:
        """They touch little, and have few page tables."""
        few = self.VISITS * 2 * PAGE_BYTES
        return size + super().need(rows, processes, few)

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Nothing more: all of them start and end with the round."""
        yield lambda: self._trial(setting, setting.ground)

    def _trial(self, setting: Setting, memory: Memory) -> Sample:
        kind = setting.backends.region()
        assert kind is not None
        before, bytes_before = memory.figures(), kind.mount().host_mm_bytes()
        visits = min(self.VISITS, setting.pages)
        with Workers(setting.processes, memory.pass_fds) as workers:
            ask_all(workers, memory.take)
            workers.ask(lambda n: f"order {setting.seed + n} 0 {setting.pages} {visits} random")
            workers.ask("touch 1 read")
            held = memory.figures()
            grown = kind.mount().host_mm_bytes() - bytes_before
        return {
            "page_table_bytes": held["page_table_bytes"],
            "added_table_frames": held["table_frames"] - before["table_frames"],
            "bookkeeping_bytes": grown / setting.processes,
            "links": held["links"] - before["links"],
        }
