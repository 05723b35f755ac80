"""Memory cgroups: who is charged for a region's pages and tables."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from msharefs.conformance import reasons
from msharefs.conformance.figures import look
from msharefs.conformance.stage import RW, Memory
from msharefs.conformance.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .ours import OwnStage as Stage

SOME = 32 << 20


class Cgroup:
    """A memory cgroup of our own, version 2 or 1."""

    def __init__(self, path: Path, *, unified: bool) -> None:
        self.path = path
        self._usage = "memory.current" if unified else "memory.usage_in_bytes"
        self._max = "memory.max" if unified else "memory.limit_in_bytes"

    def usage(self) -> int:
        """Bytes charged."""
        return int((self.path / self._usage).read_text())

    def limit(self, size: int) -> None:
        """Bytes that may be charged."""
        (self.path / self._max).write_text(str(size))

    def add(self, pid: int) -> None:
        """Moves a process here."""
        (self.path / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def cgroups() -> Iterator[tuple[Cgroup, Cgroup]]:
    """Two memory cgroups; the test is skipped where none can be made."""
    root = Path("/sys/fs/cgroup")
    controllers = root / "cgroup.controllers"
    unified = controllers.exists() and "memory" in controllers.read_text().split()
    top = root if unified else root / "memory"
    made: list[Cgroup] = []
    try:
        for name in ("owner", "toucher"):
            path = top / f"msharefs-conformance-{name}"
            path.mkdir()
            made.append(Cgroup(path, unified=unified))
        if not (made[0].path / made[0]._usage).exists():
            raise PermissionError("the memory controller is off")
        yield made[0], made[1]
    except OSError as error:
        if made:
            raise
        pytest.skip(f"no memory cgroup can be made here: {error}")
    finally:
        procs = top / "cgroup.procs"
        for each in made:
            for pid in (each.path / "cgroup.procs").read_text().split():
                procs.write_text(pid)
            each.path.rmdir()


def pair(stage: Stage, owner: Cgroup, toucher: Cgroup) -> Memory:
    """A region whose maker is in one cgroup, attached by a process in the other."""
    maker = stage.process()
    owner.add(maker.pid)
    file = stage.region(agent=maker)
    assert file.create(0, SOME, RW) == "0"
    toucher.add(stage.agent.pid)
    again = file.by(stage.agent)
    return Memory(stage, again, again.attach())


def charged(stage: Stage) -> str:
    """The cgroup whose usage grows with 32 MiB that the toucher touches first."""
    with cgroups() as (owner, toucher):
        memory = pair(stage, owner, toucher)
        before = owner.usage(), toucher.usage()
        stage.agent.call("memset", memory.base, 1, SOME)
        grown = owner.usage() - before[0], toucher.usage() - before[1]
    names = ("the owner", "the toucher")
    return " and ".join(n for n, size in zip(names, grown, strict=True) if size > SOME // 2)


def shown(stage: Stage) -> str:
    """The owner's charge, according to `msharefs stat`."""
    memory = stage.memory((0, SOME, RW))
    stage.agent.call("memset", memory.base, 1, SOME)
    owner = look(stage, "stat")["owner"]
    return f"{owner['charged_data_bytes']}, {owner['charged_table_bytes']}"


def over_limit(stage: Stage) -> str:
    """The owner's cgroup may have 16 MiB; another touches 32."""
    with cgroups() as (owner, toucher):
        memory = pair(stage, owner, toucher)
        owner.limit(16 << 20)
        stage.agent.call("memset", memory.base, 1, SOME)
        return memory.load(SOME - 1)


T = Table("Memory cgroups", "1.10, A, C")
T("memcg-data", "who is charged for 32 MiB that another process touches", "the owner", charged,
  ours="the toucher", why=reasons.TOUCHER)
T("memcg-shown", "bytes the owner is charged for 32 MiB: data, page tables (16 PTE pages, one "
  "each of PMD, PUD, PGD)", f"{SOME}, {19 * 4096}", shown)
T("memcg-limit", "the owner's cgroup is over its limit: an access by another process",
  "SIGSEGV MAPERR", over_limit, ours="1", why=reasons.TOUCHER)
