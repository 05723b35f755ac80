"""What page tables cost: the question that all of this is about."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs.workers import Workers

from .scenario import Scenario, Setting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .figures import Sample


def meminfo(name: str) -> int:
    """A line of /proc/meminfo, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    assert found is not None, f"/proc/meminfo has no {name}"
    return int(found[1]) * 1024


class PageTables(Scenario):
    """Processes that all read all of the same memory, and what their page tables take then.

    `tables_bytes` is what this kind of memory costs in page tables: the growth of every process's
    VmPTE; for a region what its host mm holds, as on a kernel that shares. What the processes'
    own tables of a region really take today is `vmpte_bytes`.
    """

    name = "pagetables"
    title = "page-table memory of many processes"
    rows = ("memfd", "thp", "hugetlb", "sysv", "msharefs", "msharefs-native")
    processes = (1, 10, 100, 1000, 2000)
    size = 64 << 20
    headline = "tables_bytes"
    rounds = 1

    @contextmanager
    def stage(self, setting: Setting) -> Iterator[Callable[[], Sample]]:
        """Nothing stands ready: thousands of processes of one row at a time are enough."""
        yield lambda: self._trial(setting)

    def _trial(self, setting: Setting) -> Sample:
        with (
            setting.backends[setting.row].memory(setting.size) as memory,
            Workers(setting.processes, memory.pass_fds) as workers,
        ):
            workers.ask(f"order 0 0 {setting.pages} {setting.pages} sequential")
            before = workers.ask("report")
            machine = meminfo("PageTables")
            for command in memory.take:
                workers.ask(command)
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
                "meminfo_bytes": meminfo("PageTables") - machine,
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
