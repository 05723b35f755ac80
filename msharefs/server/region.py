"""One region of a mount: its owner, its host mm once it is sized, and what may be done to it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from msharefs import verbs
from msharefs.native import ffi, lib

from . import checking, describe, descriptors, fetching, limits, room, smaps, sources, tracing
from .charging import TOUCHER

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from . import owners
    from .charging import Account
    from .hostmm import HostMM
    from .options import MountOptions
    from .owners import Owner

log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_NS = 24 * 3600 * 10**9
# Processes that may ask why they were refused.
_REFUSALS = 64


class Region:
    """One region file: its owner and, once sized, its host mm."""

    def __init__(self, ident: int, owner: Owner, options: MountOptions) -> None:
        self.ident = ident
        self.owner = owner
        self.quantum = options.quantum
        self.quirks = options.quirks == "v3"
        """With quirks=v3: the series to the letter."""
        self.window = options.window
        self.host: HostMM | None = None
        self.frozen = False
        """Sized 0 for ever: a quirk of v3."""
        self.damaged = False
        """An earlier server's files of it are set aside, until it is sized anew or repaired."""
        self.adopted = False
        """Its memory is mapped by processes without us; it has no other attachments."""
        self.evicted = False
        """No name and no descriptor is left; only attachments keep it."""
        self.watch: owners.Watch | None = None
        """The watch over its owner, if the region ends with it."""
        self.account: Account | None = None
        """Of what its owner pays for; None: whoever touches a page first pays."""
        self.nameless = False
        """It never had a name."""
        self.held = False
        """Its owner has had a descriptor of it, whose close may be the region's end."""
        self.closed = False
        """That owner has closed the last one."""
        self.users = 0
        """Requests that wait for a file system and then go on with the host mm."""
        self.check_room: Callable[[HostMM, int, int, int], None] = lambda *_: None
        """Raises OSError if the mount has no room for a mapping there; Regions knows.

        The last argument are the bytes that are to be promised.
        """
        self.promise: Callable[[HostMM, int], None] = lambda *_: None
        """They are mapped now."""
        self.locked_by_owner: Callable[[], int] = lambda: 0
        """Bytes that are locked in all regions of its owner; Regions knows."""
        self._ending = trio.Lock()
        self._refusals: dict[int, str] = {}

    @property
    def name(self) -> str:
        """For messages: a region may have several names or none."""
        return f"region {self.ident}"

    def sized(self) -> HostMM:
        """The host mm. EINVAL: not sized. EUCLEAN: it is damaged."""
        if self.damaged:
            raise OSError(
                errno.EUCLEAN,
                f"{self.name} was damaged when this server started, and is set aside: `msharefs "
                "check` says what is wrong and what can be done; or remove it and make it anew",
            )
        if self.host is None:
            raise OSError(errno.EINVAL, f"{self.name} has no size yet: ftruncate it first")
        self.host.check_whole()
        return self.host

    @property
    def ended(self) -> bool:
        """Its owner is gone, and its mappings too; it cannot be attached any more."""
        return self.owner.kind == "gone"

    async def settle(self) -> None:
        """Ends the region if its owner has ended, as any request on it must see.

        EBUSY: an attached process does not leave its page fault.
        """
        if self.watch is not None and (self.closed or self.watch.gone()):
            await self.end()

    async def end(self) -> None:
        """The owner is gone: takes everything out of the region, for all attached processes."""
        async with self._ending:
            if self.ended:
                return
            if self.host is not None:
                await self.host.unmap(0, self.host.size, sealed=True)
                self.host.end()
            if self.account is not None:
                self.account.forget()
            # Nobody else has run since the unmap: a request that waited finds the region ended.
            self.owner = dataclasses.replace(self.owner, kind="gone")
            self.watch = None

    async def create_mapping(
        self,
        create: verbs.Create,
        flags: int,
        caller: int,
        user: int,
        given: int | None = None,
    ) -> None:
        """MSHAREFS_CREATE_MAPPING, by a descriptor open with `flags`, for process `caller`.

        `user` is the caller's: to whom the server owes no more than a share of its threads.
        `given` is the object's descriptor if the caller has sent it; it is closed.
        """
        async with contextlib.AsyncExitStack() as stack:
            mount = 0

            def closes(fd: int) -> None:
                nonlocal mount
                mount = descriptors.mount_of(fd)
                stack.push_async_callback(descriptors.close, fd, user=user, mount=mount)

            if given is not None:
                closes(given)
            host = self.sized()
            self.users += 1
            stack.callback(self._leave)
            self.check_writable(flags)
            self.check_owner(quirks=self.quirks)
            verbs.check_create(create, host.size)
            if create.flags & verbs.MAP_ANONYMOUS:
                source = sources.anonymous(create, user, executes=host.anonymous_executes)
                if source is not None:
                    closes(source.fd)
            else:
                if given is None:
                    descriptors.check_unclosed(user)
                    given = await fetching.fetch(caller, create.fd, user)
                    closes(given)
                source = await sources.look(given, caller, create.flags, user, mount)
            if source is not None:
                create = source.rounded(create)
            verbs.check_create_range(create, host.size, source.page if source else verbs.PAGE)
            await self._map(host, create, caller, source)

    async def _map(
        self, host: HostMM, create: verbs.Create, caller: int, source: sources.Source | None
    ) -> None:
        """The part of a CREATE that mmap(2) does, in the same order.

        EINTR: the caller has been killed while we waited for its file. Others may have changed the
        region since, who could not do so on Linux before the caller's call has ended.
        """
        waited = source is not None

        def check_room() -> None:
            limits.check_count(host.count())
            if create.flags & verbs.MAP_FIXED_NOREPLACE:
                host.check_free(create.region_offset, create.end)

        def admit() -> None:
            """Checks again what others may have changed while this request waited for them."""
            self.check_owner(quirks=self.quirks)
            if waited and fetching.is_ending(caller):
                raise OSError(errno.EINTR, f"process {caller} has been killed")
            check_room()
            limits.check_space(create, caller, host.ranges)
            self.check_room(host, create.region_offset, create.end, promised)

        check_room()  # before a file is looked at, as mmap(2) does
        limits.check_locked(create, caller)
        kept = await source.map(create) if source is not None else None
        if kept is not None and source is not None and source.zero:
            kept.close()
            kept, source = None, None  # mapping it gives ordinary anonymous memory
        try:
            if source is None or (source.anonymous and not source.huge):
                limits.check_commit(create)
        except BaseException:
            if kept is not None:
                kept.close()
            raise
        promised = room.asks(create) if source is None else 0
        await host.map(
            create.region_offset,
            create.end,
            create.prot,
            admit=admit,
            source=source,
            kept=kept,
            offset=create.file_offset if kept else 0,
        )
        self.promise(host, promised)
        tracing.change(host, lib.TRACE_map, caller, create.region_offset, create.end)

    async def unmap(self, offset: int, size: int, flags: int, caller: int) -> None:
        """MSHAREFS_UNMAP, by a descriptor open with `flags`, for thread `caller`."""
        host = self.to_change(flags)
        end = verbs.check_unmap(offset, size, host.size)
        await host.unmap(offset, end)
        tracing.change(host, lib.TRACE_unmap, caller, offset, end)

    async def protect(
        self, offset: int, size: int, prot: int, flags: int, mode: int, caller: int
    ) -> None:
        """MSHAREFS_PROTECT, by a descriptor open with `mode`, for thread `caller`."""
        host = self.to_change(mode)
        end = verbs.check_protect(offset, size, prot, flags, host.size)
        if offset < end:
            await host.protect(offset, end, prot)
            tracing.change(host, lib.TRACE_protect, caller, offset, end)

    def to_change(self, mode: int) -> HostMM:
        """The host mm, for a verb by a descriptor open with `mode`."""
        host = self.sized()
        self.check_writable(mode)
        return host

    def refused(self, pid: int, error: OSError) -> None:
        """Process `pid` may ask why: an ioctl(2) can tell it no more than EBUSY or ENOSPC."""
        if error.errno in verbs.EXPLAINED:
            self._refusals.pop(pid, None)
            self._refusals[pid] = str(error.strerror).removeprefix(f"{self.name}: ")
        while len(self._refusals) > _REFUSALS:
            del self._refusals[next(iter(self._refusals))]

    def refusal(self, pid: int) -> str:
        """Why the last request of process `pid` was refused (verbs.EXPLAINED); empty: none was."""
        return self._refusals.get(pid, "")

    async def describe(self, what: str, native: Sequence[dict[str, Any]] = ()) -> bytes:
        """One of the look verbs' documents, as JSON; `clients` ends with those that are `native`.

        It can be large: a thread makes it.
        """
        if what == "stat":
            raw = await self.raw_stat()
            found = describe.stat(raw, self.owner)
            found["charge"] = self.account.figures() if self.account is not None else TOUCHER
            if self.host is not None:
                found["vmstat"]["nr_mlock"] = self.host.locks.size // verbs.PAGE
                found["shootdowns"] = await self.host.shootdowns.figures()
            return await self._look(lambda: describe.as_json(found))
        looks = {
            "maps": describe.maps,
            "pagetable": describe.pagetable,
            "entries": describe.entries,
            "leaves": describe.leaves,
            "clients": lambda view: describe.clients(view, native),
            "audit": describe.audit,
            "check": checking.findings,
            "smaps": smaps.smaps,
        }
        if what not in looks:
            raise OSError(
                errno.EINVAL,
                f"there is no {what!r} of a region; there are stat, {', '.join(looks)}",
            )
        host = self.sized()
        await host.clients.reap_dead()
        await self._look_at_pages()
        # The whole region may be walked, which takes a while: nothing is taken out meanwhile.
        async with contextlib.AsyncExitStack() as stack:
            if what != "clients":
                await stack.enter_async_context(host.unchanged())
            return await self._look(lambda: describe.as_json(looks[what](host)))

    async def repair(self, flags: int) -> None:
        """Mends what can be mended: frees what dead processes and servers have left."""
        self.check_writable(flags)
        host = self.sized()
        await host.clients.reap_dead(connected=True)
        await host.mend()

    async def reap(self, flags: int) -> int:
        """Ends the attachments of dead processes; how many there were."""
        self.check_writable(flags)
        host = self.sized()
        before = set(host.clients.claims())
        await host.clients.reap_dead(connected=True)
        return len(before - set(host.clients.claims()))

    async def watch_stores(self, flags: int) -> None:
        """Makes each process's next store to a page a fault, so that `idle` sees it."""
        self.check_writable(flags)
        await self.sized().watch_stores()

    def watch_touches(self, ns: int, flags: int) -> None:
        """For `ns` nanoseconds no first touch is left to Linux, and touches make the entries.

        Whoever asks drops the entries then: what has one afterwards has been touched. It ends by
        itself. EINVAL: more than a day.
        """
        host = self.to_change(flags)
        if ns > WATCH_NS:
            raise OSError(
                errno.EINVAL, f"{self.name}: touches are watched for a day at most, not for {ns} ns"
            )
        lib.entries_watch(host.mm, ns)

    def trace(self, number: int, flags: int) -> dict[str, Any]:
        """The events from `number` on (tracing.py), for a descriptor open with `flags`.

        To be told costs those who write events a little: so it takes the right to write.
        """
        return tracing.read(self.to_change(flags), number)

    async def raw_stat(self) -> Any:
        """The figures, as struct mshare_stat."""
        if self.host is not None:
            host = self.host
            host.check_whole()
            await host.clients.reap_dead()
            await self._look_at_pages()
            return await self._look(host.stat)
        raw = ffi.new("struct mshare_stat *", {"quantum": self.quantum})
        raw.owner_pid, raw.owner_start_time = self.owner.pid, self.owner.start_time
        return raw

    async def _look_at_pages(self) -> None:
        """Brings the entries up to date, if that can be done.

        Who keeps the region's files locked does not keep others from what is known of it, nor do
        damaged tables: those are to be found.
        """
        try:
            await self.sized().look_at_pages()
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EUCLEAN):
                raise
            log.info("%s: its entries are those of an earlier look: %s", self.name, error.strerror)

    async def _look(self, work: Callable[[], T]) -> T:
        """The result of `work`, in a thread if there is a host mm: that may be large."""
        return await self.host.clients.look(work) if self.host is not None else work()

    def _leave(self) -> None:
        self.users -= 1

    def check_owner(self, *, quirks: bool = False) -> None:
        """EINVAL: it has ended with its owner; with quirks=v3 that does not matter."""
        if self.ended and not quirks:
            raise OSError(errno.EINVAL, f"{self.name} has ended with its owner; make a new one")

    def check_writable(self, flags: int) -> None:
        """EACCES: a descriptor open with `flags` may change nothing. EPERM: nor may any."""
        if flags & os.O_ACCMODE == os.O_RDONLY and not self.quirks:
            raise OSError(errno.EACCES, f"{self.name}: the descriptor is read-only; open it O_RDWR")
        self.check_unadopted()

    def check_unadopted(self) -> None:
        """EPERM: its memory is a program's own."""
        if self.adopted:
            raise OSError(
                errno.EPERM,
                f"{self.name} is memory that a program has made for itself and its children: it "
                "can be neither changed nor attached by others",
            )
