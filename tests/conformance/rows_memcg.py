"""Memory cgroups: who is charged for a region's pages and tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msharefs.conformance import reasons
from msharefs.conformance.figures import look
from msharefs.conformance.stage import RW, Memory
from msharefs.conformance.table import Table

from support.memcg import cgroups

if TYPE_CHECKING:
    from .ours import OwnStage as Stage
    from support.memcg import Cgroup

SOME = 32 << 20


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
    with cgroups("owner", "toucher") as (owner, toucher):
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
    with cgroups("owner", "toucher") as (owner, toucher):
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
