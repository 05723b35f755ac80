"""Shared page tables: links, filled entries, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import reasons
from .figures import clients, look
from .stage import HUGE, PAGE, RW, Memory, Q
from .table import Table

if TYPE_CHECKING:
    from .stage import Stage

SOME = 64 << 20


def filled(stage: Stage) -> Memory:
    memory = stage.memory((0, SOME, RW))
    memory.agent.call("memset", memory.base, 1, SOME)
    return memory


def second(stage: Stage, memory: Memory) -> Memory:
    other = memory.again(stage.process())
    other.agent.call("memchr", other.base, 255, SOME)
    return other


def tables(stage: Stage) -> int:
    return look(stage, "stat")["page_table_bytes"]


T = Table("Shared page tables", "1.4, 1.8, 1.9")


def host_base(stage: Stage) -> str:
    """Host address of the PTE page of region offset 0."""
    stage.page().store()
    levels = {level["level"]: level["tables"] for level in look(stage, "pagetable")["levels"]}
    return str(levels["pte"][0]["start"])


def with_second(stage: Stage) -> str:
    memory = filled(stage)
    before = tables(stage)
    second(stage, memory)
    return str(tables(stage) - before)


T("host-base", "where region offset 0 lies in the host mm", str(Q), host_base, source="1.4")
T("tables-64M", "page-table bytes of a region of which 64 MiB are touched: 32 PTE pages, one each "
  "of PMD, PUD, PGD", str(35 * PAGE), lambda s: filled(s) and str(tables(s)))
T("tables-second", "how they grow with a second process that touches it all", "0",
  with_second)


def detached(stage: Stage) -> str:
    memory = filled(stage)
    before = tables(stage)
    memory.agent.call("munmap", memory.base, Q)
    return str(before - tables(stage))


T("tables-detach", "how they shrink when nobody is attached any more: the host keeps them", "0",
  detached)


def entries(stage: Stage) -> str:
    memory = filled(stage)
    other = second(stage, memory)
    found = clients(stage)
    assert found[memory.agent.pid]["faults"] > 0
    return str(found[other.agent.pid]["faults"])


T("entries-second", "entries that the second process had to fill", "0", entries)


def links_of_first(stage: Stage) -> str:
    memory = filled(stage)
    return str(clients(stage)[memory.agent.pid]["links"])


def link_count(stage: Stage, quanta: int) -> str:
    """Links of a second process that touches some pages of each quantum."""
    file = stage.region(quanta * Q)
    for number in range(quanta):
        assert file.create(number * Q, HUGE) == "0"
    memory = Memory(stage, file, file.attach(quanta * Q))
    agent = stage.process()
    again = file.by(agent)
    other = Memory(stage, again, again.attach(quanta * Q))
    for each in (memory, other):
        for number in range(quanta):
            for offset in (0, PAGE, 5 * PAGE, HUGE - PAGE):
                each.store(number * Q + offset)
    return str(clients(stage)[agent.pid]["links"])


T("links-1", "links of a second process that touches four pages of a quantum", "1",
  lambda s: link_count(s, 1))
T("links-3", "of three quanta", "3", lambda s: link_count(s, 3))
T("links-first", "links of the first toucher", "1",
  links_of_first)

T = Table("Detaching and stale translations", "B, 1.9")


def after(stage: Stage, how: str) -> str:
    """The result of a load right after an attachment went."""
    memory = stage.page()
    memory.store()
    if how == "munmap":
        memory.agent.call("munmap", memory.base, Q)
    else:
        memory.agent.call("mmap", memory.base, Q, 0, 0x4032, -1, 0)  # PRIVATE|ANON|FIXED|NORESERVE
    return memory.load()


T("stale-munmap", "a load right after munmap, before any context switch", "7 (nothing is flushed)",
  lambda s: after(s, "munmap"), source="B, D", ours="SIGSEGV MAPERR", why=reasons.BROKEN)
T("stale-fixed", "a load right after PROT_NONE memory was mapped over it with MAP_FIXED",
  "7 (nothing is flushed)", lambda s: after(s, "fixed"), source="B, D",
  ours="SIGSEGV ACCERR", why=reasons.BROKEN)


def flushed(stage: Stage) -> str:
    """After UNMAP no attacher reaches the page any more, however often it used it."""
    memory = stage.page()
    others = [memory.again(stage.process()) for _ in range(4)]
    for _ in range(3):
        for each in others:
            each.store()
    memory.file.unmap()
    return str(sum(each.load() == "SIGSEGV MAPERR" for each in others))


T("flush-unmap", "UNMAP: how many of four attachers that used the page have SIGSEGV at once", "4",
  flushed, source="1.9, 1.7")
