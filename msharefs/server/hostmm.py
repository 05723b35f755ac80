"""A region's host mm in the server: the only writer of its VMAs.

Here are the changes that there are, each whole: what they check, what attached processes have to do
for them. How a change is made is in changing.py.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from functools import partial
from typing import TYPE_CHECKING, Protocol

from msharefs.native import check, ffi, lib

from . import revocation
from .changing import Changing
from .files import object_paths, open_memory, open_shared, reset_objects
from .objects import Part, ranges
from .owners import KINDS
from .pinned import Locks, Policies, reset
from .shootdowns import Shootdowns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from .mapping import Mapping
    from .objects import Record
    from .owners import Owner
    from .parking import Parking
    from .sources import Source

log = logging.getLogger(__name__)

# Lines of the log for the lost objects of a region.
_LOST_SHOWN = 8


class Payer(Protocol):
    """Has pages of a region made that its owner pays for: charging.Account."""

    async def cover(self, host: HostMM, start: int, end: int) -> bool:
        """The absent pages of [start, end); False: it cannot."""


class HostMM(Changing):
    """The host mm of one region, to be changed."""

    def __init__(
        self, name: str, directory: Path, ident: int, parking: Parking | None = None
    ) -> None:
        super().__init__(name, directory, ident)
        self._parking = parking
        self.promised = 0
        """Bytes that are mapped, and were asked for without MAP_NORESERVE; kept by room.py."""
        self.anonymous_executes = not os.fstatvfs(self.mem_fd).f_flag & os.ST_NOEXEC
        """Code can run in the region's own memory, as far as its file system lets it."""
        self.account: Payer | None = None
        """Of what the region's owner pays for; None: whoever makes a page pays."""
        self.locks = Locks()
        self.policies = Policies(name)
        self.shootdowns = Shootdowns(self.clients)
        if parking is not None:
            parking.opened(self)

    @classmethod
    def make(
        cls,
        name: str,
        directory: Path,
        ident: int,
        size: int,
        quantum: int,
        owner: Owner,
        parking: Parking | None = None,
    ) -> HostMM:
        """A new host mm of `size` bytes. EINVAL: `size` is not a positive multiple of `quantum`."""
        paths = object_paths(directory, ident)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            mm_fd = os.open(paths[0], flags, 0o600)
            try:
                check(
                    lib.mm_format(mm_fd, ident, size, quantum),
                    f"{name}: size {size} with quantum {quantum}",
                )
            finally:
                os.close(mm_fd)
            mem_fd = open_memory(directory, ident)
            try:
                os.ftruncate(mem_fd, size)
            finally:
                os.close(mem_fd)
            made = cls(name, directory, ident, parking)
        except BaseException:
            reset_objects(directory, ident)
            raise
        made.set_owner(owner)
        return made

    def set_owner(self, owner: Owner) -> None:
        """Records who owns the region."""
        cgroup = os.fsencode(owner.cgroup)
        lib.mm_set_owner(self.mm, owner.pid, owner.start_time, cgroup, KINDS[owner.kind])

    def park(self) -> bool:
        """Closes its files, unless it is in use. Whether they are closed now."""
        if self._mem_fd < 0:
            return True  # they are; perhaps the region has gone
        if self.attached() or self.changing() or self._unfinished or self.clients.in_use:
            return False
        self.close_files()
        return True

    def _open(self, *paths: Path) -> list[int]:
        return open_shared(*paths)

    def _reopen(self) -> None:
        super()._reopen()
        if self._parking is not None:
            self._parking.opened(self)

    def check_free(self, start: int, end: int) -> None:
        """EEXIST: something is mapped in [start, end)."""
        if lib.hostmm_mapped(self._mm, start, end):
            raise OSError(errno.EEXIST, f"{self.name}: [{start:#x}, {end:#x}) is not free")

    def mapped_bytes(self, start: int = 0, end: int | None = None) -> int:
        """Bytes that are mapped in [start, end)."""
        if end is None:
            end = self.size
        if (start, end) != (0, self.size):
            return int(lib.hostmm_mapped_bytes(self._mm, start, end))
        if self._mapped < 0:
            self._mapped = int(lib.hostmm_mapped_bytes(self._mm, 0, self.size))
        return self._mapped

    def used_bytes(self) -> int:
        """Bytes of memory that its pages and its host mm take."""
        return sum(os.stat(path).st_blocks * 512 for path in self._paths)  # of 512: stat(2)

    async def map(
        self,
        start: int,
        end: int,
        prot: int,
        *,
        admit: Callable[[], None] = lambda: None,
        source: Source | None = None,
        kept: Mapping | None = None,
        offset: int = 0,
    ) -> None:
        """Maps memory at [start, end), or `source` from its byte `offset` on.

        It replaces older mappings there. `admit` is called once nobody else can change the region
        any more, and raises OSError if the mapping is not to be. `kept` is a mapping of the source,
        and ours. EBUSY: an attached process does not let go of the old mappings; nothing changed.
        """
        with contextlib.ExitStack() as ours:
            if kept is not None:
                ours.callback(kept.close)
            async with self._lock:
                admit()
                self._check_sealed(start, end)
                vma = ffi.new("struct mm_vma *", {"start": start, "end": end, "offset": offset})
                vma.flags = prot & lib.VMA_PROT
                if source is not None and kept is not None:
                    ours.pop_all()  # it is the object's now
                    added = self.objects.add(self._next_object(), source, kept)
                    vma.object = added.number
                    vma.flags |= lib.VMA_HUGE if added.huge else 0
                try:
                    await self._exchange(start, end, lambda: lib.hostmm_map(self._mm, vma[0]))
                finally:
                    await self._sweep()

    async def unmap(self, start: int, end: int, *, sealed: bool = False) -> None:
        """Takes [start, end) out and frees its pages; in force everywhere on return.

        EBUSY: an attached process does not let go of an object; nothing changed. EPERM: a mapping
        there is sealed; `sealed`: those go, too.
        """
        async with self._lock:
            if not sealed:
                self._check_sealed(start, end)
            if lib.hostmm_mapped(self._mm, start, end):  # nothing to do in a hole
                try:
                    await self._exchange(start, end, lambda: lib.hostmm_unmap(self._mm, start, end))
                finally:
                    await self._sweep()
                self.shootdowns.note("unmap", start, end)
            lib.mm_count_unmap(self._mm)

    async def _exchange(self, start: int, end: int, publish: Callable[[], int]) -> None:
        """A change that takes the mappings of [start, end) out."""
        executes = lib.hostmm_has_exec(self._mm, start, end)
        parts = self._parts(start, end)
        take = await self._taking(start, end, parts)
        kept = lib.hostmm_flags(self._mm, start, end)
        await self._change(publish, take)
        await self._give_back(parts)
        if kept & lib.VMA_LOCKED:
            self.locks.release(start, end)
        if kept & lib.VMA_POLICY:
            reset(self.mem_fd, start, end)
        if executes or lib.hostmm_has_exec(self._mm, start, end):
            await revocation.arrange(self.clients, start, end)
        await revocation.rearm(self.clients, start, end)

    def _check_sealed(self, start: int, end: int, *, holes: bool = True) -> None:
        """EPERM: a mapping in [start, end) is sealed; without `holes`, before any hole."""
        found = lib.hostmm_check(self._mm, start, end, lib.VMA_SEALED, 0, holes)
        if found == -errno.EPERM:
            raise OSError(
                errno.EPERM,
                f"{self.name}: a mapping in [{start:#x}, {end:#x}) is sealed, for ever",
            )

    # For contents.py, which has entered `unchanged`.

    async def flag(self, start: int, end: int, clear: int, flags: int) -> None:
        """Changes flags of [start, end) that nobody's page tables depend on."""
        await self._begin(lambda: lib.hostmm_flag(self._mm, start, end, clear, flags))

    async def drop(self, start: int, end: int, flags: int = 0) -> None:
        """Takes the pages of [start, end) out of all page tables, and adds flags; they stay."""
        if self._left_to_linux():
            await self._watch_touches(start, end)
        parts = self._parts(start, end)
        take_first = await self._taking(start, end, parts, whole=True)

        async def take() -> None:
            await take_first()
            await revocation.take_all(self.clients, start, end)

        await revocation.wait_connected(self.clients, start, end)
        await self._change(lambda: lib.hostmm_drop(self._mm, start, end, 0, flags), take)

    def _left_to_linux(self) -> bool:
        """Whether pages tell of touches.

        After the end of a server in the middle of `_watch_touches` those do that there are.
        """
        left = self._mm.header.linux_fills or lib.mm_unwatched(self._mm)
        return bool(left) and not lib.entries_watched(self._mm)

    async def _watch_touches(self, start: int, end: int) -> None:
        """From now on all first touches come to us, since pages do not tell of touches any more.

        [start, end) is mapped. EBUSY: a client that has to take part does not; nothing changed.
        """
        before = bool(self._mm.header.linux_fills)
        await revocation.wait_connected(self.clients, 0, self.size, handed=True)
        lib.mm_set_linux_fills(self._mm, False)
        try:
            # A fault that goes on began before that.
            await self.flag(start, end, 0, 0)
            await self._grace()
            await revocation.watch(self.clients, 0, self.size)
            await self._catch_up_entries(0, self.size, lib.ENTRIES_NOW)
        except BaseException:
            lib.mm_set_linux_fills(self._mm, before)
            raise
        lib.mm_set_watched(self._mm)

    async def remove(self, start: int, end: int) -> None:
        """Takes the pages of [start, end) away; the mappings stay."""
        take = await self._taking(start, end, [])
        await self._change(lambda: lib.hostmm_remove(self._mm, start, end), take)

    async def rearm(self, start: int, end: int) -> None:
        """An access in [start, end) that was refused may be permitted now."""
        await revocation.rearm(self.clients, start, end)

    async def _give_back(self, parts: list[Part]) -> None:
        """Frees the unmapped parts of anonymous objects, whose files clients can lock, too."""
        lane = self.clients.lane
        for fd, offset, size in self.objects.unused(parts):
            ours = os.dup(fd)  # the call may be late, and the object be closed by then
            try:
                check(
                    await lane.do(
                        self.clients.holders, lib.HAND_PUNCH, fd=ours, start=offset, end=size
                    ),
                    f"punching {size} bytes at {offset:#x}",
                )
            except OSError as error:
                log.warning("%s: memory goes back with its object only: %s", self.name, error)
            finally:
                lane.afterwards(partial(os.close, ours))

    def _parts(self, start: int, end: int) -> list[Part]:
        """The parts of objects in [start, end)."""
        if not lib.hostmm_has_objects(self._mm, start, end):
            return []
        return [
            Part(low, high, vma.object, vma.offset + low - vma.start)
            for vma in self.vmas()
            if vma.object and (low := max(start, vma.start)) < (high := min(end, vma.end))
        ]

    async def _taking(
        self, start: int, end: int, parts: list[Part], *, whole: bool = False
    ) -> Callable[[], Awaitable[None]]:
        """A function that makes the clients let go of [start, end), with these parts of objects.

        `whole`: `take_all` of all of it comes next. Whoever is stopped is asked before the others.
        It is to be called in the middle of a change. EBUSY: a client that has to take part is not
        connected. Most failures happen here, before any fault has to wait.
        """
        await revocation.wait_connected(self.clients, start, end, handed=True)
        for low, high in ranges(parts):
            await revocation.wait_connected(self.clients, low, high)

        async def take() -> None:
            at = start
            for low, high in [*ranges(parts), (end, end)]:
                await revocation.watch(self.clients, at, low)
                at = high
            if len(ranges(parts)) > 1 or (parts and whole):
                for low, high in ranges(parts):
                    await revocation.take_from_stopped(self.clients, low, high, objects=True)
                if whole:
                    await revocation.take_from_stopped(self.clients, start, end)
            for low, high in ranges(parts):
                await revocation.take_all(self.clients, low, high, objects=True)

        return take

    async def _spans_in_use(self, start: int, end: int) -> AsyncIterator[tuple[int, int]]:
        """The parts of [start, end) that a client may have mapped.

        It says so itself, span by span, but of memory that Linux fills not well enough.
        """
        if not self.unwatched:
            yield start, end
            return
        while (found := await self._span_in_use(start, end)) is not None:
            yield found
            _, start = found

    async def _span_in_use(self, start: int, end: int) -> tuple[int, int] | None:
        """The first one. EBUSY: the pages are locked."""
        span = ffi.new("uint64_t[2]")
        found = await self.clients.lane.do(
            self.clients.holders, lib.HAND_SPAN, fd=self.mem_fd, start=start, end=end, span=span
        )
        return (span[0], span[1]) if found else None

    async def look_at_pages(self) -> None:
        """Brings the entries up to date with the pages. ESTALE: the memory is gone."""
        if self.unwatched:
            how = lib.ENTRIES_EXACT if self.adopted else lib.ENTRIES_NOW
            async with self.unchanged():
                try:
                    await self._catch_up_entries(0, self.size, how)
                finally:
                    self.let_go()

    def let_go(self) -> None:
        """Closes memory that is Linux's own, which would live as long as we have it open."""
        if self.memory is not None and not self.memory.held and not self.clients.in_use:
            self.close_files()

    def _next_object(self) -> int:
        """A number that no object of the region has had: that of the next mapping."""
        return int(self._mm.header.serial + 1) & 0xFFFFFFFF

    def end(self) -> None:
        """Records that the owner is gone."""
        lib.mm_end(self._mm)

    async def protect(self, start: int, end: int, prot: int) -> None:
        """Changes the rights of [start, end) to `prot`; in force everywhere on return.

        ENOMEM: a part of it is not mapped. EBUSY: a client does not do its part; nothing changed.
        """
        async with self._lock:
            await self._protect(start, end, prot)

    async def watch_stores(self) -> None:
        """Each process's next store to a page of memory faults, once; nobody's rights change.

        Of memory that is sealed, or of huge pages, none does.
        """
        left_out = lib.VMA_SEALED | lib.VMA_HUGE
        async with self._lock:
            chosen = [
                (vma.start, vma.end, vma.flags & lib.VMA_PROT)
                for vma in self.vmas()
                if not vma.object and vma.flags & lib.VMA_WRITE and not vma.flags & left_out
            ]
            for start, end, prot in chosen:
                await self._protect(start, end, prot, watch_stores=True)

    async def _protect(
        self, start: int, end: int, prot: int, *, watch_stores: bool = False
    ) -> None:
        self._check_sealed(start, end, holes=False)
        parts = self._parts(start, end)
        if parts or (prot & lib.VMA_EXEC and not self.anonymous_executes):
            self._check_protect(start, end, prot)
        executes = prot & lib.VMA_EXEC or lib.hostmm_has_exec(self._mm, start, end)
        take_first = await self._taking(start, end, parts)

        async def take() -> None:
            await take_first()
            if not prot:
                await revocation.take_all(self.clients, start, end)
            elif watch_stores or not prot & lib.VMA_WRITE:
                async for low, high in self._spans_in_use(start, end):
                    await revocation.take_write(self.clients, low, high)
            if executes and not prot & lib.VMA_EXEC:
                await revocation.arrange(self.clients, start, end, must=True)

        await revocation.wait_connected(self.clients, start, end)
        try:
            await self._change(lambda: lib.hostmm_protect(self._mm, start, end, prot), take)
        finally:
            if executes:  # also for rights that an abort has given back
                await revocation.arrange(self.clients, start, end)
        if prot & lib.VMA_WRITE and not watch_stores:
            async for low, high in self._spans_in_use(start, end):
                await revocation.give_write(self.clients, low, high)
        await revocation.rearm(self.clients, start, end)
        self.shootdowns.note("protect", start, end)

    def _check_protect(self, start: int, end: int, prot: int) -> None:
        """EACCES: something in [start, end) may never have these rights."""
        for vma in self.vmas():
            if vma.start >= end or vma.end <= start:
                continue
            if vma.object:
                self.objects.check_protect(vma.object, prot)
            elif prot & lib.VMA_EXEC and not self.anonymous_executes:
                raise OSError(
                    errno.EACCES,
                    f"{self.name}: [{vma.start:#x}, {vma.end:#x}): the state directory is mounted "
                    "noexec: map it with PROT_EXEC at once, or remount it",
                )

    async def object(self, number: int, *, write: bool) -> int:
        """A descriptor of an object, to pass on but not to close; see Objects.descriptor.

        Does not take the lock: a client asks inside a fault, and a change waits for that.
        """
        writes = any(
            each == number and flags & lib.VMA_WRITE for each, flags in self.mapped_objects()
        )
        return await self.objects.descriptor(
            number, self.clients.processes(), write=write and writes, may_write=write
        )

    async def find_objects(self) -> None:
        """Opens the objects that an earlier server had open. Their file systems may not answer."""
        lost = await self.objects.find(self.clients.processes())
        if len(lost) > _LOST_SHOWN:
            log.warning("%s: %d objects are lost, such as these:", self.name, len(lost))
        for path in lost[:_LOST_SHOWN]:
            log.warning(
                "%s: object %s is lost, no attached process has it mapped: to touch it is "
                "SIGBUS; UNMAP it and map it again",
                self.name,
                path,
            )

    def close(self) -> None:
        """Lets go of its objects; the files stay."""
        self.shootdowns.end()
        if not self.clients.in_use:  # otherwise a thread is still at it, and our end is near
            super().close()
        self.objects.close()
        self.locks.close()

    def is_lost(self, number: int, record: Record) -> bool:
        """Whether the file of an object could not be opened again."""
        del record
        return self.objects.is_lost(number)

    def knows_object(self, number: int) -> bool:
        """Whether an object could be recorded anew."""
        return self.objects.knows(number)

    def object_path(self, number: int) -> str:
        """The path of the file of object `number`; "lost" if nobody knows it any more."""
        return self.objects.describe(number)
