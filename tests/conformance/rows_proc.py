"""An attachment in /proc."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msharefs.conformance import reasons
from msharefs.conformance.rows_vma import status
from msharefs.conformance.stage import ANON, PAGE, RW, SHARED, Memory, Q, on_page
from msharefs.conformance.table import Table

from support import proc
from support.proc import meminfo

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ours import OwnStage as Stage
    from support.agent import Agent

SOME = 64 << 20
TRIES = 5




def inside(memory: Memory, mappings: list[proc.Mapping]) -> list[proc.Mapping]:
    """Those in the attachment."""
    return [each for each in mappings if each.start < memory.base + Q and each.end > memory.base]


def filled(stage: Stage) -> Memory:
    """An attachment of which 64 MiB are touched."""
    memory = stage.memory((0, SOME, RW))
    memory.agent.call("memset", memory.base, 1, SOME)
    return memory


def grown(field: str) -> Callable[[Stage], str]:
    """Whether a figure of /proc/PID/status grows with 64 MiB that the process touches."""

    def check(stage: Stage) -> str:
        memory = stage.memory((0, SOME, RW))
        memory.store()
        before = int(status(memory, field).split()[0])
        memory.agent.call("memset", memory.base, 1, SOME)
        grew = int(status(memory, field).split()[0]) - before
        return "unchanged" if grew < 64 else "grows"

    return check


def grows_by_quantum(stage: Stage) -> str:
    file = stage.region()
    memory = Memory(stage, file, 0)
    before = int(status(memory, "VmSize").split()[0]) << 10
    file.attach()
    grew = (int(status(memory, "VmSize").split()[0]) << 10) - before
    # The library's own mappings are small beside it.
    return "yes" if Q <= grew < Q + (8 << 30) else hex(grew)


T = Table("/proc of an attacher", "1.9, 1.11, A, C")
T("maps-lines", "lines of /proc/PID/maps", "1", lambda s: str(len(s.page().lines())))
T("maps-lines-touched", "the same after accesses to an object and a hole", "1",
  on_page(lambda m: m.store() and m.load(PAGE) and str(len(m.lines()))), ours="2",
  why=reasons.LEFT_TO_LINUX)
T("maps-prot", "its permissions", "rw-s", lambda s: s.page().lines()[0].prot)
T("maps-name", "its path ends in the region's name", "r",
  lambda s: os.path.basename(s.page().lines()[0].path.split(".")[-1]),
  ours="mem", why=reasons.OBJECT_NAME)
T("maps-deleted", "its path once the region is unlinked ends in", "(deleted)",
  on_page(lambda m: m.file.unlink() and m.lines()[0].path.split(".")[-1]),
  ours="mem", why=reasons.OBJECT_NAME)
T("vmsize", "VmSize after attaching grows by Q", "yes", grows_by_quantum)
T("vmrss", "VmRSS after 64 MiB were touched", "unchanged", grown("VmRSS"), ours="grows",
  why=reasons.COUNTED)
T("rssshmem", "RssShmem then", "unchanged", grown("RssShmem"), ours="grows", why=reasons.COUNTED)
T("vmpte", "VmPTE then", "unchanged", grown("VmPTE"), ours="grows", why=reasons.COUNTED)
T("vmlck", "VmLck then", "unchanged", grown("VmLck"))


def smaps(memory: Memory, field: str) -> int:
    """A figure of the attachment in /proc/PID/smaps, in kB."""
    found = inside(memory, proc.smaps(memory.agent.pid))
    return sum(each.figure(field) for each in found) >> 10


def flags_at(agent: Agent, address: int) -> set[str]:
    """VmFlags in /proc/PID/smaps of the mapping that begins there."""
    (found,) = (each for each in proc.smaps(agent.pid) if each.start == address)
    return found.flags


def vmflags(stage: Stage) -> set[str]:
    """VmFlags of an attachment."""
    memory = stage.page()
    return flags_at(memory.agent, memory.base)


def soft_dirty(stage: Stage) -> str:
    """Whether the attachment has `sd` as any other new mapping has, on a kernel with that."""
    address = stage.agent.call("mmap", 0, PAGE, RW, SHARED | ANON, -1, 0)
    other = "sd" in flags_at(stage.agent, address)
    return "as any" if ("sd" in vmflags(stage)) == other else "unlike others"


def most(stage: Stage) -> str:
    """smaps Rss of a process that touched 64 MiB, in kB: the most of three looks.

    If Linux pages out memory that seems idle (DAMON), it takes a page out of page tables now and
    then, even without swap.
    """
    memory = stage.memory((0, SOME, RW))
    looks = []
    for _ in range(3):
        memory.agent.call("memset", memory.base, 1, SOME)
        looks.append(smaps(memory, "Rss"))
    return str(max(looks))


T("smaps-rss", "smaps Rss of a process that touched 64 MiB, in kB", str(SOME >> 10), most)
T("smaps-unlinked", "smaps Rss of another process that has touched nothing", "0",
  lambda s: str(smaps(filled(s).again(s.process()), "Rss")))


def linked_only(stage: Stage) -> str:
    """smaps Rss of a process that touched one byte of 64 MiB that are present."""
    other = filled(stage).again(stage.process())
    other.load()
    found = smaps(other, "Rss")
    return "all" if found == SOME >> 10 else "less"


T("smaps-linked", "smaps Rss of one that touched a byte: of how much that is present", "all",
  linked_only, ours="less", why=reasons.COUNTED)
def shared_with(stage: Stage, field: str) -> str:
    """A figure of smaps, in kB, of one of two processes that touched 64 MiB."""
    memory = filled(stage)
    other = memory.again(stage.process())
    other.agent.call("memset", other.base, 1, SOME)
    return str(smaps(memory, field))


T("smaps-pss", "smaps Pss of one of two processes that touched 64 MiB, in kB", str(SOME >> 10),
  lambda s: shared_with(s, "Pss"), ours=str(SOME >> 11), why=reasons.COUNTED)
T("smaps-private", "its Private_Dirty", str(SOME >> 10),
  lambda s: shared_with(s, "Private_Dirty"), ours="0", why=reasons.COUNTED)
T("vmflags-softdirty", "VmFlags has `sd`", "as any", soft_dirty, source="C")
T("vmflags-dontexpand", "VmFlags has `de` (VM_DONTEXPAND)", "yes",
  lambda s: "yes" if "de" in vmflags(s) else "no", source="1.6, C", ours="no",
  why=reasons.NOT_EXPANDED)
T("vmflags-unknown", "VmFlags has `??` (VM_MSHARE, bit 43)", "yes",
  lambda s: "yes" if "??" in vmflags(s) else "no", source="1.2, 1.11, C", ours="no",
  why=reasons.NO_SUCH_FLAG)


def pagemap(stage: Stage, offset: int) -> str:
    """Whether /proc/PID/pagemap has the page."""
    memory = stage.memory((0, 2 * PAGE, RW))
    memory.store()
    with open(f"/proc/{memory.agent.pid}/pagemap", "rb", buffering=0) as file:
        file.seek((memory.base + offset) // PAGE * 8)
        return str(int.from_bytes(file.read(8), "little") >> 63)


T("pagemap-present", "pagemap: present bit of a touched page", "1", lambda s: pagemap(s, 0),
  plain=True)
T("pagemap-absent", "pagemap: present bit of an absent page", "0", lambda s: pagemap(s, PAGE),
  plain=True)


def grown_by_second(stage: Stage, field: str, memory: Memory) -> int:
    """How a figure of the whole machine grows while a second process touches 64 MiB."""
    other = memory.again(stage.process())
    before = meminfo(field)
    other.agent.call("memset", other.base, 1, SOME)
    return meminfo(field) - before


def counted_in_shmem(stage: Stage) -> str:
    """By the first toucher; others on this machine use memory too, so it may take some tries."""
    for number in range(TRIES):
        memory = stage.memory((0, SOME, RW), name=f"r{number}")
        if grown_by_second(stage, "Shmem", memory) > SOME // 2:
            return "yes"
    return "no"


def mapped_once(stage: Stage) -> str:
    """Whether Mapped grows when a second process touches the pages of a first."""
    memory = filled(stage)
    grown = min(grown_by_second(stage, "Mapped", memory) for _ in range(TRIES))
    return "once" if grown < SOME // 2 else "again"


T("meminfo-mapped", "Mapped of /proc/meminfo counts 64 MiB of two attachers", "once", mapped_once,
  plain=True)
T("meminfo-shmem", "Shmem of /proc/meminfo counts 64 MiB of anonymous objects", "yes",
  counted_in_shmem,
  plain=True)
T("numa-maps", "/proc/PID/numa_maps can be read", "yes",
  lambda s: "yes" if f"{s.page().base:x}" in _numa(s) else "no", plain=True)


def _numa(stage: Stage) -> str:
    with open(f"/proc/{stage.agent.pid}/numa_maps") as text:
        return text.read()
