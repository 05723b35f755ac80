"""Verbs on a range of a region that leave its mappings as they are: advice, locks, policies.

What Linux does in one process's page tables is done here for all: where entries have to go, the
clients let go of them, as for a change of protection. What Linux does to pages it does here, too,
on advice of the server's own, which has the memory, or the object, mapped for that (pages.c).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Any

from msharefs import verbs
from msharefs.native import check, ffi, lib

from . import pinned
from .descriptors import ANSWER_SECONDS, close_later, elsewhere
from .mapping import file_system, may_wait, punch
from .sources import HUGE_PAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .hostmm import HostMM
    from .objects import Object

log = logging.getLogger(__name__)

_TMPFS_MAGIC = 0x01021994
# A disk has to write all that was stored in a file.
WRITE_BACK_SECONDS = 60.0

# What each advice keeps with the mapping: flags that go, and flags that come.
_KEPT = {
    verbs.MADV_NORMAL: (lib.VMA_RANDOM | lib.VMA_SEQUENTIAL, 0),
    verbs.MADV_RANDOM: (lib.VMA_SEQUENTIAL, lib.VMA_RANDOM),
    verbs.MADV_SEQUENTIAL: (lib.VMA_RANDOM, lib.VMA_SEQUENTIAL),
    verbs.MADV_HUGEPAGE: (lib.VMA_NOHUGEPAGE, lib.VMA_HUGEPAGE),
    verbs.MADV_NOHUGEPAGE: (lib.VMA_HUGEPAGE, lib.VMA_NOHUGEPAGE),
    verbs.MADV_GUARD_REMOVE: (lib.VMA_GUARD, 0),
}
# The flags that advice refuses, as madvise(2) does, with EINVAL or, if sealed, EPERM;
_LRU = lib.VMA_LOCKED | lib.VMA_HUGE
_NOT = {
    verbs.MADV_COLD: _LRU,
    verbs.MADV_PAGEOUT: _LRU,
    verbs.MADV_DONTNEED: lib.VMA_LOCKED,
    verbs.MADV_REMOVE: lib.VMA_SEALED | lib.VMA_LOCKED,
    verbs.MADV_HUGEPAGE: lib.VMA_HUGE,
    verbs.MADV_NOHUGEPAGE: lib.VMA_HUGE,
    verbs.MADV_COLLAPSE: lib.VMA_HUGE,
    verbs.MADV_GUARD_INSTALL: lib.VMA_SEALED | _LRU,
    verbs.MADV_GUARD_REMOVE: lib.VMA_HUGE,
}
# and the rights it needs: EINVAL.
_NEEDS = {
    verbs.MADV_FREE: ~0 & 0xFFFFFFFF,  # no mapping has all flags
    verbs.MADV_WIPEONFORK: ~0 & 0xFFFFFFFF,
    verbs.MADV_POPULATE_READ: lib.VMA_READ,
    verbs.MADV_POPULATE_WRITE: lib.VMA_WRITE,
}
_DROPS = {
    verbs.MADV_DONTNEED, verbs.MADV_DONTNEED_LOCKED, verbs.MADV_COLD, verbs.MADV_PAGEOUT,
    verbs.MADV_GUARD_INSTALL,
}  # fmt: skip
_POPULATES = {verbs.MADV_POPULATE_READ, verbs.MADV_POPULATE_WRITE}


class Piece:
    """A mapping, as far as a verb's range goes: region offsets [start, end)."""

    def __init__(self, host: HostMM, vma: Any, start: int, end: int) -> None:
        self.start: int = max(start, vma.start)
        self.end: int = min(end, vma.end)
        self.flags: int = vma.flags
        self.vma = ffi.new("struct mm_vma *")
        self.vma[0] = vma  # a copy: what a list of VMAs holds goes with the list
        self.offset: int = vma.offset + self.start - vma.start if vma.object else self.start
        """In the file that has its pages."""
        self.object: Object | None = host.objects.get(vma.object) if vma.object else None
        self.fd: int = host.mem_fd if self.object is None else self.object.fd

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start

    def how(self, *, write: bool) -> int:
        """How its file is to be mapped, for pages.h."""
        how: int = 0 if write else lib.PAGES_READ
        how |= lib.PAGES_SPARSE if self.object is None else 0
        how |= lib.PAGES_HUGE if self.flags & lib.VMA_HUGEPAGE else 0
        return int(how)


def _pieces(host: HostMM, start: int, end: int) -> Iterator[Piece]:
    for vma in host.vmas():
        if vma.start < end and vma.end > start:
            yield Piece(host, vma, start, end)


async def _at_file(
    host: HostMM,
    piece: Piece,
    work: Callable[[int], Any],
    what: str,
    seconds: float = ANSWER_SECONDS,
) -> Any:
    """The result of `work` on the file of a piece, by a descriptor, in a thread.

    ESTALE: it is lost. ETIMEDOUT: its file system does not answer.
    """
    if piece.object is None:
        return await host.clients.look_and_wait(partial(work, piece.fd))
    record = piece.object.record
    what = f"{host.name}: {what} {record.path}"
    if piece.object.fd < 0:
        raise OSError(errno.ESTALE, f"{what}: the file is lost; UNMAP it and map it again")
    # Who has waited too long goes on; the thread may be late, and the object be closed by then.
    ours = os.dup(piece.object.fd)

    def run() -> Any:
        nonlocal ours
        fd, ours = ours, -1
        try:
            return work(fd)
        finally:
            os.close(fd)

    try:
        return await elsewhere(run, what, user=record.user, mount=record.device, seconds=seconds)
    finally:
        if ours >= 0:  # no thread has begun
            close_later(ours, user=record.user, mount=record.device)


async def _check_mapped(host: HostMM, piece: Piece) -> None:
    """EOPNOTSUPP: the server does not map such a file, for it would wait for whoever serves it."""
    known = piece.object
    if known is None:
        return
    if await _at_file(host, piece, may_wait, "looking at"):
        raise OSError(
            errno.EOPNOTSUPP,
            f"{host.name}: {known.record.path} is on a file system that a process or another "
            "machine serves; the server does not wait for it",
        )


def check_holes(host: HostMM, start: int, end: int) -> None:
    """ENOMEM: a part of [start, end) is not mapped."""
    check(
        lib.hostmm_check(host.mm, start, end, 0, 0, False),
        f"{host.name}: [{start:#x}, {end:#x}) is not mapped as a whole",
    )


def _check_advice(host: HostMM, start: int, end: int, advice: int) -> None:
    """OSError if a mapping does not take this advice; then ENOMEM if there is a hole."""
    found = lib.hostmm_check(
        host.mm, start, end, _NOT.get(advice, 0), _NEEDS.get(advice, 0),
        advice not in _POPULATES,  # there Linux stops at the first page that cannot be filled
    )  # fmt: skip
    if found == -errno.ENOMEM:
        check_holes(host, start, end)
    if found == -errno.EPERM:
        raise OSError(errno.EPERM, f"{host.name}: a mapping there is sealed, for ever")
    if found:
        raise OSError(
            errno.EINVAL,
            f"{host.name}: advice {advice} is not for all that is mapped there: some is locked, of "
            "huge pages, or without that right",
        )
    if advice == verbs.MADV_COLLAPSE and any(
        -(-piece.start // HUGE_PAGE) >= piece.end // HUGE_PAGE
        for piece in _pieces(host, start, end)
    ):
        raise OSError(errno.EINVAL, f"{host.name}: a mapping there has no 2 MiB to collapse")
    check_holes(host, start, end)


async def advise(host: HostMM, start: int, end: int, advice: int) -> None:
    """madvise(2) of [start, end), for all attached processes; in force on return."""
    async with host.unchanged():
        _check_advice(host, start, end, advice)
        if advice in _POPULATES:
            await _populate(host, start, end, write=advice == verbs.MADV_POPULATE_WRITE)
        elif advice == verbs.MADV_COLLAPSE:
            await _collapse(host, start, end)
        elif advice == verbs.MADV_REMOVE:
            await _remove(host, start, end)
            host.shootdowns.note("remove", start, end)
        elif advice in _DROPS:
            guard = lib.VMA_GUARD if advice == verbs.MADV_GUARD_INSTALL else 0
            await host.drop(start, end, guard)
            verb = "pageout" if advice == verbs.MADV_PAGEOUT else "dontneed"
            host.shootdowns.note(verb, start, end)
        elif advice in _KEPT:
            await host.flag(start, end, *_KEPT[advice])
            if advice == verbs.MADV_GUARD_REMOVE:
                await host.rearm(start, end)
        if advice in (verbs.MADV_COLD, verbs.MADV_PAGEOUT, verbs.MADV_WILLNEED):
            for piece in _pieces(host, start, end):
                await _advise_pages(host, piece, advice)


async def _advise_pages(host: HostMM, piece: Piece, advice: int) -> None:
    """COLD, PAGEOUT or WILLNEED of the pages themselves: best effort, as in Linux."""
    offset, size = piece.offset, piece.size

    def of_pages(fd: int) -> None:
        lib.pages_advise(fd, offset, size, advice, piece.how(write=False))

    def of_file(fd: int) -> None:
        if piece.flags & lib.VMA_HUGE:
            return
        if file_system(fd)[0] == _TMPFS_MAGIC:
            of_pages(fd)
        elif advice == verbs.MADV_WILLNEED:
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_WILLNEED)
        elif advice == verbs.MADV_PAGEOUT:
            os.fdatasync(fd)
            os.posix_fadvise(fd, offset, size, os.POSIX_FADV_DONTNEED)

    work = of_pages if piece.object is None else of_file
    with contextlib.suppress(TimeoutError):  # the disk goes on with what it has begun
        await _at_file(host, piece, work, "advice for")


async def _remove(host: HostMM, start: int, end: int) -> None:
    """MADV_REMOVE. EACCES: of a file that was mapped by a read-only descriptor.

    The entries of a file's pages stay, as its blocks stay mapped in the clients: Linux empties
    those, and fills them again, without us.
    """
    pieces = list(_pieces(host, start, end))
    for piece in pieces:
        if piece.object is not None and not piece.object.record.writable:
            raise OSError(
                errno.EACCES,
                f"{host.name}: {piece.object.record.path} was mapped by a read-only descriptor",
            )
    for of_file, some in itertools.groupby(pieces, key=lambda piece: piece.object is not None):
        run = list(some)
        for piece in run if of_file else ():
            work = partial(punch, offset=piece.offset, size=piece.size)
            await _at_file(host, piece, work, "removing a part of")
        if not of_file:
            await host.remove(run[0].start, run[-1].end)


async def _collapse(host: HostMM, start: int, end: int) -> None:
    """MADV_COLLAPSE of the whole 2 MiB spans of each mapping."""
    pieces = list(_pieces(host, start, end))
    await _populate(host, start, end, write=False)
    for piece in pieces:
        low, high = -(-piece.start // HUGE_PAGE) * HUGE_PAGE, piece.end // HUGE_PAGE * HUGE_PAGE
        work = partial(
            _advise, piece.offset + low - piece.start, high - low, verbs.MADV_COLLAPSE,
            piece.how(write=False) & ~lib.PAGES_SPARSE,
        )  # fmt: skip
        check(
            await _at_file(host, piece, work, "collapsing pages of"),
            f"{host.name}: collapsing [{low:#x}, {high:#x})",
        )


async def _populate(host: HostMM, start: int, end: int, *, write: bool) -> None:
    """Brings all pages of [start, end) into memory, and gives them entries."""
    pieces = list(_pieces(host, start, end))
    for piece in pieces:
        await _check_mapped(host, piece)
    advice = verbs.MADV_POPULATE_WRITE if write else verbs.MADV_POPULATE_READ
    for piece in pieces:
        if piece.object is None:
            # Huge pages are made by whoever has them mapped.
            if host.account is not None and not piece.flags & lib.VMA_HUGEPAGE:
                await host.account.cover(host, piece.start, piece.end)
            work = partial(_fill, piece)
        else:
            how = piece.how(write=write)
            work = partial(_advise, piece.offset, piece.size, advice, how)
        found = await _at_file(host, piece, work, "populating", WRITE_BACK_SECONDS)
        check(found, f"{host.name}: populating [{piece.start:#x}, {piece.end:#x})")
    for piece in pieces:
        fill = partial(lib.populate, host.mm, piece.vma[0], piece.start, piece.end, write)
        check(await host.clients.look(fill), f"{host.name}: its page tables")


def _advise(offset: int, size: int, advice: int, how: int, fd: int) -> int:
    return int(lib.pages_advise(fd, offset, size, advice, how))


def _fill(piece: Piece, fd: int) -> int:
    """Makes the pages of the region's own memory that are not there: 0 or -errno."""
    # All of them, or none if there is no room: then the program would get a SIGBUS, which is
    # EFAULT in madvise(2).
    if not piece.flags & lib.VMA_HUGEPAGE and lib.fallocate(fd, 0, piece.offset, piece.size):
        return -errno.EFAULT if ffi.errno == errno.ENOSPC else -int(ffi.errno)
    how = piece.how(write=True) & ~lib.PAGES_SPARSE
    return int(lib.pages_advise(fd, piece.offset, piece.size, verbs.MADV_POPULATE_WRITE, how))


async def lock(host: HostMM, start: int, end: int, admit: Callable[[int], None]) -> None:
    """Brings [start, end) into memory and locks it.

    `admit` is called with the number of bytes that are locked by that, and raises OSError if they
    may not be.
    """
    async with host.unchanged():
        check_holes(host, start, end)
        admit(end - start - host.locks.covers(start, end))
        pieces = list(_pieces(host, start, end))
        for piece in pieces:
            if not piece.flags & lib.VMA_PROT or piece.flags & lib.VMA_GUARD:
                raise OSError(
                    errno.ENOMEM,
                    f"{host.name}: nobody may touch [{piece.start:#x}, {piece.end:#x})",
                )
        await _populate(host, start, end, write=False)
        made: list[tuple[int, int, int]] = []
        try:
            for piece in pieces:
                for low, high in host.locks.gaps(piece.start, piece.end):
                    made.append((low, high, await _lock(host, piece, low, high)))
            await host.flag(start, end, 0, lib.VMA_LOCKED)
        except BaseException:
            for low, high, address in made:
                host.locks.unlock(address, high - low)
            raise
        for low, high, address in made:
            host.locks.add(low, high, address)


async def _lock(host: HostMM, piece: Piece, start: int, end: int) -> int:
    """Locks a part of a piece: the address of the mapping."""
    at = piece.offset + start - piece.start
    work = partial(host.locks.lock, offset=at, size=end - start, write=False)
    return int(await _at_file(host, piece, work, "locking", WRITE_BACK_SECONDS))


async def unlock(host: HostMM, start: int, end: int) -> None:
    """Takes the lock off [start, end)."""
    async with host.unchanged():
        check_holes(host, start, end)
        await host.flag(start, end, lib.VMA_LOCKED, 0)
        host.locks.release(start, end)


async def take_up(host: HostMM) -> None:
    """Opens the objects that an earlier server had open, and locks what it had locked."""
    await host.find_objects()
    if not lib.hostmm_flags(host.mm, 0, host.size) & lib.VMA_LOCKED:
        return
    async with host.unchanged():
        for piece in list(_pieces(host, 0, host.size)):
            if not piece.flags & lib.VMA_LOCKED:
                continue
            try:
                await _check_mapped(host, piece)
                for low, high in list(host.locks.gaps(piece.start, piece.end)):
                    host.locks.add(low, high, await _lock(host, piece, low, high))
            except OSError as error:
                log.warning("%s: what was locked is not any more: %s", host.name, error.strerror)


async def seal(host: HostMM, start: int, end: int) -> None:
    """From now on the mappings of [start, end) stay as they are."""
    async with host.unchanged():
        check_holes(host, start, end)
        await host.flag(start, end, 0, lib.VMA_SEALED)


async def sync(host: HostMM, start: int, end: int, flags: int) -> None:
    """msync(2): what was stored in files is on their disks."""
    async with host.unchanged():
        if flags & verbs.MS_INVALIDATE:
            locked = lib.hostmm_check(host.mm, start, end, lib.VMA_LOCKED, 0, True)
            if locked == -errno.EINVAL:
                raise OSError(errno.EBUSY, f"{host.name}: a part of the range is locked")
        check_holes(host, start, end)
        if not flags & verbs.MS_SYNC:
            return
        pieces = list(_pieces(host, start, end))
    done = set()
    for piece in pieces:  # disks are slow: others may change the region meanwhile
        if piece.object is None or piece.object.number in done or piece.object.fd < 0:
            continue
        done.add(piece.object.number)
        await _at_file(host, piece, os.fdatasync, "writing back", WRITE_BACK_SECONDS)


async def query(host: HostMM, start: int, end: int) -> bytes:
    """mincore(2): a byte for each page, whose lowest bit says whether it is in memory."""
    async with host.unchanged():
        check_holes(host, start, end)
        found = bytearray((end - start) // verbs.PAGE)
        for piece in _pieces(host, start, end):
            at = (piece.start - start) // verbs.PAGE
            vec = ffi.new("uint8_t[]", piece.size // verbs.PAGE)
            if piece.flags & lib.VMA_HUGE or piece.fd < 0:
                lib.mm_present(host.mm, piece.start, piece.end, vec)
            elif piece.object is None:
                check(
                    lib.pages_resident(piece.fd, piece.offset, piece.size, vec),
                    f"{host.name}: looking at its pages",
                )
            else:
                await _at_file(host, piece, partial(_resident, host, piece, vec), "looking at")
            found[at : at + len(vec)] = bytes(vec)
        return bytes(found)


def _resident(host: HostMM, piece: Piece, vec: Any, fd: int) -> None:
    if may_wait(fd) or lib.pages_resident(fd, piece.offset, piece.size, vec):
        lib.mm_present(host.mm, piece.start, piece.end, vec)


async def mbind(host: HostMM, start: int, end: int, ask: Any, *, move_all: bool) -> None:
    """Decides on which nodes the pages of [start, end) are made; `ask` is a struct mshare_mbind."""
    moves = ask.flags & (verbs.MPOL_MF_MOVE | verbs.MPOL_MF_MOVE_ALL)
    if ask.flags & verbs.MPOL_MF_MOVE_ALL and not move_all:
        raise OSError(errno.EPERM, f"{host.name}: MPOL_MF_MOVE_ALL takes CAP_SYS_NICE")
    # A region's pages are all its own: those that many have mapped move, too.
    flags = ask.flags & verbs.MPOL_MF_STRICT
    flags |= (verbs.MPOL_MF_MOVE_ALL if os.geteuid() == 0 else verbs.MPOL_MF_MOVE) if moves else 0
    nodes = ffi.new(f"uint64_t[{pinned.MAX_NODES // 64}]", list(ask.nodemask))
    check(_try_policy(ask, nodes), f"{host.name}: a memory policy that no memory can have here")
    async with host.unchanged():
        check_holes(host, start, end)
        policy = pinned.Policy(
            ask.mode, tuple(n for n in range(pinned.MAX_NODES) if nodes[n // 64] >> n % 64 & 1)
        )
        number = host.policies.number(policy, (flags for _, flags in host.mapped_objects()))

        def bind(piece: Piece, offset: int, fd: int) -> int:
            how = piece.how(write=False)
            return int(
                lib.pages_bind(fd, offset, piece.size, ask.mode, nodes, ask.maxnode, flags, how)
            )

        for piece in list(_pieces(host, start, end)):
            # Of a file's range the region's own memory remembers the policy.
            done = bind(piece, piece.start, host.mem_fd)
            # As in Linux, a disk's pages are where who reads them first wants them.
            if not done and piece.object is not None and await _is_memory(host, piece):
                work = partial(bind, piece, piece.offset)
                done = await _at_file(host, piece, work, "a memory policy for")
            check(done, f"{host.name}: a memory policy for [{piece.start:#x}, {piece.end:#x})")
        await host.flag(start, end, lib.VMA_POLICY, number)


def _try_policy(ask: Any, nodes: Any) -> int:
    """0 or -errno: what Linux says to the policy alone, before it looks for holes."""
    fd = os.memfd_create("policy", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, verbs.PAGE)
        return int(lib.pages_bind(fd, 0, verbs.PAGE, ask.mode, nodes, ask.maxnode, 0, 0))
    finally:
        os.close(fd)


async def _is_memory(host: HostMM, piece: Piece) -> bool:
    magic, _ = await _at_file(host, piece, file_system, "looking at")
    return bool(magic == _TMPFS_MAGIC)
