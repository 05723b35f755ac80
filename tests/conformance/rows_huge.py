"""Objects of huge pages: hugetlbfs, MAP_HUGETLB, and pages that Linux makes huge by itself."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from msharefs.conformance import reasons
from msharefs.conformance.stage import (
    ANON,
    HUGE,
    HUGETLB,
    NORESERVE,
    PAGE,
    RW,
    SHARED_FIXED,
    Memory,
    Q,
)
from msharefs.conformance.table import Table

from support import hugepages, proc
from support.proc import meminfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .ours import OwnStage as Stage

THP = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
MFD_HUGETLB = 4
ANONYMOUS = SHARED_FIXED | ANON | HUGETLB


def create(
    pages: int, *, offset: int = 0, size: int = HUGE, flags: int = ANONYMOUS
) -> Callable[[Stage], str]:
    """CREATE of anonymous huge pages, with so many in the pool."""

    def check(stage: Stage) -> str:
        file = stage.region()
        with hugepages.exactly(pages):
            answer = file.create(offset, size, RW, flags)
            file.unmap(0, Q)
        return answer

    return check


T = Table("Anonymous huge pages", "1.7, A, C")
T("huge", "MAP_HUGETLB, two huge pages in the pool", "0", create(2))
T("huge-empty", "none in the pool", "ENOMEM", create(0))
T("huge-few", "4 MiB, one in the pool", "ENOMEM", create(1, size=2 * HUGE))
T("huge-code", "an unknown size code", "EINVAL", create(2, flags=ANONYMOUS | 5 << 26))
T("huge-2mb", "MAP_HUGE_2MB", "0", create(2, flags=ANONYMOUS | 21 << 26))
T("huge-odd", "region_offset 4K", "EINVAL", create(2, offset=PAGE))
T("huge-round-beyond", "4 KiB at the last 4 KiB of the region", "EINVAL",
  create(2, offset=Q - PAGE, size=PAGE))
T("huge-last", "2 MiB at the end of the region", "0", create(2, offset=Q - HUGE))
T("huge-noreserve", "4 MiB with MAP_NORESERVE, one in the pool", "0",
  create(1, size=2 * HUGE, flags=ANONYMOUS | NORESERVE))


def rounded(stage: Stage) -> str:
    """A size of 4 KiB is one huge page."""
    memory = stage.memory()
    with hugepages.exactly(2):
        assert memory.file.create(0, PAGE, RW, ANONYMOUS) == "0"
        answer = f"{memory.store(HUGE - 1)}, {memory.load(HUGE)}"
        memory.file.unmap(0, Q)
    return answer


T("huge-round", "size 4096: the last byte of 2 MiB, the next", "ok, SIGSEGV MAPERR", rounded)


def reserved(stage: Stage) -> str:
    """How HugePages_Rsvd grows with a CREATE."""
    file = stage.region()
    with hugepages.exactly(3):
        before = meminfo("HugePages_Rsvd")
        assert file.create(0, 2 * HUGE, RW, ANONYMOUS) == "0"
        grown = meminfo("HugePages_Rsvd") - before
        file.unmap(0, Q)
    return str(grown)


T("huge-reserved", "huge pages reserved by a CREATE of 4 MiB", "2", reserved, source="C")


def exhausted(stage: Stage) -> str:
    """One page in the pool, two mapped with MAP_NORESERVE."""
    memory = stage.memory()
    with hugepages.exactly(1):
        assert memory.file.create(0, 2 * HUGE, RW, ANONYMOUS | NORESERVE) == "0"
        answer = f"{memory.store()}, {memory.store(HUGE)}"
        memory.file.unmap(0, Q)
    return answer


T("huge-exhausted", "two mapped with MAP_NORESERVE, one in the pool: a store to each",
  "ok, SIGBUS ADRERR", exhausted, source="A, C")


def unmap(offset: int, size: int) -> Callable[[Stage], str]:
    """UNMAP of a part of two huge pages; loads from both."""

    def check(stage: Stage) -> str:
        memory = stage.memory()
        with hugepages.exactly(2):
            assert memory.file.create(0, 2 * HUGE, RW, ANONYMOUS) == "0"
            memory.store()
            memory.store(HUGE)
            answer = f"{memory.file.unmap(offset, size)}, {memory.load()}, {memory.load(HUGE)}"
            memory.file.unmap(0, Q)
        return answer

    return check


T("huge-unmap", "UNMAP of the first of two; loads from both", "0, SIGSEGV MAPERR, 7",
  unmap(0, HUGE))
T("huge-unmap-odd", "UNMAP at 4K", "EINVAL, 7, 7", unmap(PAGE, HUGE))
T("huge-unmap-part", "UNMAP of 4K at 0", "EINVAL, 7, 7", unmap(0, PAGE))
T("huge-unmap-end", "UNMAP of 2M+4K at 0", "EINVAL, 7, 7", unmap(0, HUGE + PAGE))


def shared(stage: Stage) -> str:
    """A store by one process, a load by another."""
    memory = stage.memory()
    with hugepages.exactly(2):
        assert memory.file.create(0, HUGE, RW, ANONYMOUS) == "0"
        memory.store(PAGE, 9)
        answer = memory.again(stage.process()).load(PAGE)
        memory.file.unmap(0, Q)
    return answer


T("huge-shared", "a store by one process, a load by another", "9", shared)


def leaf(stage: Stage) -> str:
    """Tables of a region with a huge page that is there: no PTE page is needed."""
    from msharefs.conformance.figures import look

    memory = stage.memory()
    with hugepages.exactly(2):
        assert memory.file.create(0, HUGE, RW, ANONYMOUS) == "0"
        memory.store()
        frames = look(stage, "stat")["table_frames"]
        memory.file.unmap(0, Q)
    return f"{frames['pmd']}, {frames['pte']}"


T("huge-leaf", "PMD pages and PTE pages of a region with one huge page", "1, 0", leaf, source="1.9")

T = Table("Files of huge pages", "1.7, A, C")


def file_object(stage: Stage, *, flags: int = SHARED_FIXED, fd_offset: int = 0) -> str:
    """CREATE of a hugetlb memfd of 4 MiB; a store, and another process's load."""
    file = stage.region()
    agent = file.agent
    with hugepages.exactly(3):
        fd = agent.call("memfd_create", "huge", MFD_HUGETLB)
        agent.call("ftruncate", fd, 2 * HUGE)
        answer = file.create(0, HUGE, RW, flags, fd, fd_offset)
        if answer == "0":
            memory = Memory(stage, file, file.attach())
            again = memory.again(stage.process())
            answer = f"{memory.store()}, {again.load()}"
            agent.call("munmap", memory.base, Q)
            again.agent.call("munmap", again.base, Q)
        file.unmap(0, Q)
        agent.call("close", fd)
    return answer


T("hugefile", "a hugetlb memfd: a store, a load by another process", "ok, 7", file_object)
T("hugefile-flag", "with MAP_HUGETLB", "ok, 7",
  lambda s: file_object(s, flags=SHARED_FIXED | HUGETLB))
T("hugefile-offset", "file offset 2M", "ok, 7", lambda s: file_object(s, fd_offset=HUGE))
T("hugefile-offset-4K", "file offset 4096", "EINVAL", lambda s: file_object(s, fd_offset=PAGE),
  source="C")
T("hugefile-offset-100", "file offset 100: its low bits are dropped", "ok, 7",
  lambda s: file_object(s, fd_offset=100), source="C")

T = Table("Huge pages that Linux makes by itself", "C")


@contextlib.contextmanager
def always_huge() -> Iterator[None]:
    """shmem_enabled=always, for a moment."""
    before = THP.read_text().split("[")[1].split("]")[0]
    THP.write_text("always")
    try:
        yield
    finally:
        THP.write_text(before)


def made_huge(stage: Stage) -> str:
    """How many of 8 MiB are mapped by huge pages, in kB, with shmem_enabled=always."""
    with always_huge():
        memory = stage.memory((0, 4 * HUGE, RW))
        memory.agent.call("memset", memory.base, 1, 4 * HUGE)
        found = sum(each.figure("ShmemPmdMapped") for each in proc.smaps(memory.agent.pid))
    return f"{found >> 10} kB"


T("thp", "8 MiB of anonymous memory are touched, shmem_enabled=always: ShmemPmdMapped", "8192 kB",
  made_huge, ours="0 kB", why=reasons.HUGE)


def cut(stage: Stage) -> str:
    """UNMAP of 4 KiB in the middle of memory that may be huge."""
    with always_huge():
        memory = stage.memory((0, HUGE, RW))
        memory.agent.call("memset", memory.base, 7, HUGE)
        answer = memory.file.unmap(HUGE // 2, PAGE)
    return f"{answer}, {memory.load(HUGE // 2 - 1)}, {memory.load(HUGE // 2)}, {memory.load()}"


T("thp-unmap", "UNMAP of 4 KiB in the middle of 2 MiB; loads before it, from it, from the first",
  "0, 7, SIGSEGV MAPERR, 7", cut)
