"""One host mm with no server and no memory behind it: the core alone, as tests drive it.

`.mm` and `.mem` are memfds. A test may run the steps of a change one by one, where a server makes
them in one go, with faults, deaths and restarts in between.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from msharefs.native import ffi, lib

from .rawmm import GIB1, GIB512, MIB2, PAGE, RawMM

if TYPE_CHECKING:
    from collections.abc import Iterator

READ, WRITE, EXEC = lib.VMA_READ, lib.VMA_WRITE, lib.VMA_EXEC
GUARD, LOCKED, SEALED = lib.VMA_GUARD, lib.VMA_LOCKED, lib.VMA_SEALED
MAP, WAIT, MAPERR, ACCERR, BROKEN = (
    lib.FAULT_MAP, lib.FAULT_WAIT, lib.FAULT_MAPERR, lib.FAULT_ACCERR, lib.FAULT_BROKEN,
)  # fmt: skip

VERDICTS = {MAP: "MAP", WAIT: "WAIT", MAPERR: "MAPERR", ACCERR: "ACCERR", BROKEN: "BROKEN"}

__all__ = ["GIB1", "GIB512", "MIB2", "PAGE"]


class Vma(NamedTuple):
    """One VMA of the current snapshot; bytes."""

    start: int
    end: int
    flags: int
    serial: int


Look = Callable[[int], tuple[int, int]]
"""Maps the offset of a fault to the pages to look at, all in one 2 MiB span."""


def page_only(offset: int) -> tuple[int, int]:
    """The page alone."""
    return offset, offset + PAGE


def run(offset: int) -> tuple[int, int]:
    """The rest of the span, as for sequential access."""
    return offset, (offset & -MIB2) + MIB2


def block(offset: int) -> tuple[int, int]:
    """64 KiB around it."""
    return offset & -(16 * PAGE), (offset & -(16 * PAGE)) + 16 * PAGE


def span(offset: int) -> tuple[int, int]:
    """The whole span."""
    return offset & -MIB2, (offset & -MIB2) + MIB2


LOOKS = (page_only, run, block, span)
PAGE_ONLY = page_only


class Fault(NamedTuple):
    """The result of mm_fault()."""

    verdict: str
    present: frozenset[int] = frozenset()
    """Offsets of those pages in the range that have an entry."""
    filled: int = 0
    protect: bool = False
    beside: int = 0
    """Other entries of an object that were filled."""
    object: int = 0
    """The number of the object; `present` is empty then."""


@dataclass(frozen=True)
class Audit:
    """The findings of mm_audit()."""

    tables: tuple[int, int, int, int]
    leaves: int
    frame_bytes: int
    held: int
    lost: int
    stray: int
    bad: int
    vmas: int

    def problems(self) -> dict[str, int]:
        """Everything that is wrong for a quiescent region."""
        found = {
            name: getattr(self, name)
            for name in ("held", "lost", "stray", "bad", "vmas")
            if getattr(self, name)
        }
        if self.frame_bytes != PAGE * sum(self.tables):
            found["bytes not of tables"] = self.frame_bytes - PAGE * sum(self.tables)
        return found


def memfd(name: str, size: int = 0) -> int:
    """A new memfd of `size` bytes."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """The pieces of a sparse file that have memory: start and end of each, in bytes."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


class Core:
    """A formatted and open host mm."""

    def __init__(self, size: int = GIB512, quantum: int = GIB512) -> None:
        self.size, self.quantum = size, quantum
        self.fd = memfd("mm")
        self.mem_fd = memfd("mem", size)
        self.mm: Any = ffi.new("struct mm *")
        check(lib.mm_format(self.fd, 1, size, quantum))
        check(self.open())
        self.raw = RawMM(self.fd)

    def open(self) -> int:
        """Maps and checks the `.mm` object, as every process does; 0 or -errno."""
        fd = os.dup(self.fd)
        result = lib.mm_open(self.mm, fd)
        if result:
            os.close(fd)
        return result

    def reopen(self) -> None:
        """A new view of the object, as a restarted server has."""
        lib.mm_close(self.mm)
        check(self.open())

    def close(self) -> None:
        """Gives everything back."""
        lib.mm_close(self.mm)
        self.raw.close()
        os.close(self.fd)
        os.close(self.mem_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def clone(self) -> Core:
        """A copy of both objects as they are now."""
        copy = Core(self.size, self.quantum)
        for source, target in ((self.fd, copy.fd), (self.mem_fd, copy.mem_fd)):
            for start, end in extents(source):
                os.pwrite(target, os.pread(source, end - start, start), start)
        return copy

    # The writer

    def begin_map(self, start: int, end: int, prot: int, *, file: int = 0, offset: int = 0) -> int:
        """Publishes a mapping that faults still wait for; 0 or -errno.

        `prot` may have VMA_HUGE; `file` is the number of its object, 0 is anonymous.
        """
        vma = {"start": start, "end": end, "flags": prot, "object": file, "offset": offset}
        return lib.hostmm_map(self.mm, ffi.new("struct mm_vma *", vma)[0])

    def begin_unmap(self, start: int, end: int) -> int:
        """Publishes a hole that still has entries; 0 or -errno."""
        return lib.hostmm_unmap(self.mm, start, end)

    def begin_protect(self, start: int, end: int, prot: int) -> int:
        """Publishes new rights that faults still wait for; 0 or -errno."""
        return lib.hostmm_protect(self.mm, start, end, prot)

    def begin_drop(self, start: int, end: int, flags: int = 0) -> int:
        """Publishes that the entries of a range go, and that its VMAs get flags; 0 or -errno."""
        return lib.hostmm_drop(self.mm, start, end, 0, flags)

    def begin_remove(self, start: int, end: int) -> int:
        """Publishes that the pages of a range go; 0 or -errno."""
        return lib.hostmm_remove(self.mm, start, end)

    def flag(self, start: int, end: int, clear: int, flags: int) -> int:
        """Other flags for the VMAs of a range; 0 or -errno."""
        return lib.hostmm_flag(self.mm, start, end, clear, flags)

    def straggler(self) -> int | None:
        """The slot of a fault that is not over yet; None: the grace period is over."""
        slot = ffi.new("unsigned *")
        return slot[0] if lib.slot_grace(self.mm, slot) else None

    def finish(self) -> int:
        """Takes entries, tables and pages away; 0 or -errno."""
        return lib.hostmm_finish(self.mm, self.mem_fd)

    def abort(self) -> None:
        """Goes back to the previous snapshot."""
        lib.hostmm_abort(self.mm)

    def map(
        self, start: int, end: int, prot: int = READ | WRITE, *, file: int = 0, offset: int = 0
    ) -> None:
        """A whole change, with nobody inside a fault."""
        check(self.begin_map(start, end, prot, file=file, offset=offset))
        assert self.straggler() is None
        check(self.finish())

    def unmap(self, start: int, end: int) -> None:
        """A whole change, with nobody inside a fault."""
        check(self.begin_unmap(start, end))
        assert self.straggler() is None
        check(self.finish())

    def protect(self, start: int, end: int, prot: int) -> None:
        """A whole change, with nobody inside a fault and no client's page tables to change."""
        check(self.begin_protect(start, end, prot))
        assert self.straggler() is None
        check(self.finish())

    def guard(self, start: int, end: int, prot: int = 0) -> None:
        """A whole change, with nobody inside a fault and no client's page tables to change."""
        del prot
        check(self.begin_drop(start, end, GUARD))
        assert self.straggler() is None
        check(self.finish())

    def remove(self, start: int, end: int, prot: int = 0) -> None:
        """A whole change, with nobody inside a fault."""
        del prot
        check(self.begin_remove(start, end))
        assert self.straggler() is None
        check(self.finish())

    def seal(self, start: int, end: int, prot: int = 0) -> None:
        """Seals what is mapped there."""
        del prot
        check(self.flag(start, end, 0, lib.VMA_SEALED))

    def recover(self, dead: tuple[int, ...] = ()) -> None:
        """Recovers like a restarted server; `dead` are the slots whose process is gone."""
        for slot in dead:
            check(lib.slot_reap(self.mm, slot))
        check(lib.mm_sweep(self.mm))
        assert self.straggler() is None
        check(lib.hostmm_recover(self.mm, self.mem_fd))

    # Clients

    def claim(self, pid: int = 1, started: int = 1) -> int:
        """The number of a new slot."""
        return check(lib.slot_claim(self.mm, pid, started))

    def fault(
        self,
        slot: int,
        offset: int,
        *,
        write: bool = False,
        look: Look = PAGE_ONLY,
        fill: int = 1,
        limit: int = 1 << 63,
    ) -> Fault:
        """A fault by a client that is inside an epoch. An object's file ends at `limit`."""
        fault = ffi.new("struct fault *")
        fault.offset = offset
        fault.access = lib.ACCESS_WRITE if write else lib.ACCESS_READ
        start, end = look(offset)
        fault.start, fault.end = start % (1 << 64), end % (1 << 64)
        fault.fill, fault.limit = fill, limit
        verdict = lib.mm_fault(self.mm, slot, fault)
        if verdict != MAP:
            return Fault(VERDICTS[verdict])
        bits = sum(word << 64 * at for at, word in enumerate(fault.present))
        pages = (fault.end - fault.start) // PAGE
        assert bits >> pages == 0, "a page outside what was looked at"
        present = frozenset(fault.start + at * PAGE for at in range(pages) if bits >> at & 1)
        return Fault("MAP", present, fault.filled, fault.protect, fault.beside, fault.vma.object)

    def touch(
        self,
        slot: int,
        offset: int,
        *,
        write: bool = False,
        look: Look = PAGE_ONLY,
        fill: int = 1,
        limit: int = 1 << 63,
    ) -> Fault:
        """A whole fault: enter, fault, leave."""
        lib.slot_enter(self.mm, slot)
        fault = self.fault(slot, offset, write=write, look=look, fill=fill, limit=limit)
        lib.slot_leave(self.mm, slot)
        return fault

    # Looking

    def audit(self) -> Audit:
        """The core's own audit of everything."""
        found = ffi.new("struct mm_audit *")
        check(lib.mm_audit(self.mm, found))
        return Audit(
            tuple(found.tables), found.leaves, found.frame_bytes,
            found.held, found.lost, found.stray, found.bad, found.vmas,
        )  # fmt: skip

    def vmas(self) -> list[Vma]:
        """The current snapshot."""
        count = check(lib.mm_vmas(self.mm, ffi.NULL, 0))
        found = ffi.new("struct mm_vma[]", count)
        check(lib.mm_vmas(self.mm, found, count))
        return [Vma(vma.start, vma.end, vma.flags, vma.serial) for vma in found]

    def tables(self) -> set[tuple[int, int, int]]:
        """The core's list: level, region offset and present entries of each table but the PGD."""
        count = check(lib.mm_tables(self.mm, ffi.NULL, 0))
        found = ffi.new("struct mm_table[]", count)
        check(lib.mm_tables(self.mm, found, count))
        return {(t.level, t.start - lib.HOST_BASE, t.present) for t in found if t.level < 3}

    def stat(self) -> Any:
        """Struct mshare_stat."""
        stat = ffi.new("struct mshare_stat *")
        check(lib.mm_stat(self.mm, self.mem_fd, stat))
        return stat


def check(result: int) -> int:
    """`result` of the core, which must not be an error."""
    if result < 0:
        raise OSError(-result, f"the core said {errno.errorcode.get(-result, result)}")
    return result
