"""Linux's limits on mappings in a region: the caller's and the system's."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs import proc

from . import reasons
from .rows_vma import status
from .stage import ANON, LOCKED, NORESERVE, PAGE, RW, SHARED_FIXED, File, Q
from .table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .stage import Stage

RLIMIT_MEMLOCK, RLIMIT_AS = 8, 9
DEFAULT = SHARED_FIXED | ANON
MAPPINGS = 1000


@contextlib.contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    """A setting of the whole machine, for a moment."""
    path = Path("/proc/sys/vm") / name
    before = path.read_text()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


def by_user(stage: Stage, resource: int, limit: int) -> File:
    """A region, open in a process of a user with that limit."""
    stage.region(mode=0o666)
    agent = stage.user()
    agent.call("setrlimit", resource, struct.pack("=QQ", limit, limit))
    return stage.open(agent=agent)


def overcommit(policy: str, size: int, flags: int = DEFAULT) -> Callable[[Stage], str]:
    """CREATE of anonymous memory with that vm.overcommit_memory."""

    def check(stage: Stage) -> str:
        file = stage.region()
        with sysctl("overcommit_memory", policy):
            return file.create(0, size, flags=flags)

    return check


T = Table("CREATE_MAPPING: limits", "C")
T("limit-as", "RLIMIT_AS of the caller below what would be mapped in the region", "ENOMEM",
  lambda s: by_user(s, RLIMIT_AS, 1 << 30).create(0, 2 << 30))
T("limit-as-below", "the same, not so much in the region", "0",
  lambda s: by_user(s, RLIMIT_AS, 1 << 30).create(0, 1 << 29))


def total(stage: Stage) -> str:
    """Two mappings that exceed RLIMIT_AS together, and one over the first."""
    file = by_user(stage, RLIMIT_AS, 1 << 30)
    half = 3 << 28
    return ", ".join([file.create(0, half), file.create(1 << 32, half), file.create(0, half)])


T("limit-as-total", "two mappings of 3/4 of it, the first again: the total of the region counts",
  "0, ENOMEM, 0", total)


def many(stage: Stage) -> str:
    """One mapping after the other, with that limit."""
    file = stage.region()
    with sysctl("max_map_count", str(MAPPINGS)):
        for number in range(2 * MAPPINGS):
            answer = file.create(2 * number * PAGE)
            if answer != "0":
                near = abs(number - MAPPINGS) <= 2
                return f"{answer} after {'the limit' if near else number}"
    return "0"


T("limit-count", "mappings of a page until vm.max_map_count is reached", "ENOMEM after the limit",
  many)
T("limit-locked", "MAP_LOCKED, RLIMIT_MEMLOCK is 0", "EPERM",
  lambda s: by_user(s, RLIMIT_MEMLOCK, 0).create(flags=DEFAULT | LOCKED))
T("limit-locked-size", "MAP_LOCKED of more than RLIMIT_MEMLOCK", "EAGAIN",
  lambda s: by_user(s, RLIMIT_MEMLOCK, 1 << 16).create(0, 1 << 17, RW, DEFAULT | LOCKED))
T("limit-locked-within", "MAP_LOCKED within it", "0",
  lambda s: by_user(s, RLIMIT_MEMLOCK, 1 << 16).create(0, PAGE, RW, DEFAULT | LOCKED))
T("limit-locked-root", "MAP_LOCKED by root", "0",
  lambda s: s.region().create(flags=DEFAULT | LOCKED))
def mlocked(stage: Stage) -> str:
    """Whether Mlocked of /proc/meminfo grows with 32 MiB that are touched; and VmLck."""
    memory = stage.memory()
    assert memory.file.create(0, 32 << 20, RW, DEFAULT | LOCKED) == "0"
    before = proc.meminfo()["Mlocked"]
    memory.agent.call("memset", memory.base, 1, 32 << 20)
    grown = proc.meminfo()["Mlocked"] - before
    return f"{'grows' if grown > 16 << 20 else 'unchanged'}, {status(memory, 'VmLck')}"


T("locked-object", "an object made with MAP_LOCKED is touched: Mlocked of the machine, VmLck",
  "grows, 0 kB", mlocked, ours="unchanged, 0 kB",
  why=reasons.LOCKED)
T("commit-Q", "512 GiB of anonymous memory, vm.overcommit_memory 0", "ENOMEM", overcommit("0", Q))
T("commit-Q-noreserve", "with MAP_NORESERVE", "0", overcommit("0", Q, DEFAULT | NORESERVE))
T("commit-page", "a page", "0", overcommit("0", PAGE))
T("commit-Q-1", "512 GiB, vm.overcommit_memory 1", "0", overcommit("1", Q))
T("commit-Q-2", "512 GiB, vm.overcommit_memory 2", "ENOMEM", overcommit("2", Q))
T("commit-Q-2-noreserve", "with MAP_NORESERVE", "ENOMEM", overcommit("2", Q, DEFAULT | NORESERVE))
