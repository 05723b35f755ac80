"""The regions of a mount: which there are, and what may be done to them.

The file system (fs.py) says when a region file is made, sized, opened or gone; ioctl(2) and the
control socket (control.py) say what to map. A region has a host mm from the moment it is sized.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from msharefs import processes, verbs
from msharefs.native import ffi, lib

from . import describe, descriptors, limits, owners, sources
from .files import object_paths, open_memory, records_path, remove_objects, reset_objects
from .hostmm import HostMM
from .mappings import NativeMappings
from .tree import inode_of

if TYPE_CHECKING:
    from pathlib import Path

    from .options import MountOptions
    from .owners import Owner

log = logging.getLogger(__name__)

Connect = Callable[["Region", int, bytes, int], tuple[int, bytes]]


class Region:
    """One region file: its owner and, once sized, its host mm."""

    def __init__(self, ident: int, owner: Owner, options: MountOptions) -> None:
        self.ident = ident
        self.owner = owner
        self.quantum = options.quantum
        self.quirks = options.quirks == "v3"
        """The series to the letter."""
        self.host: HostMM | None = None
        self.frozen = False
        """Sized 0 for ever: a quirk of v3."""
        self.evicted = False
        """No name and no descriptor is left; attachments keep it."""
        self.watch: owners.Watch | None = None
        """On the owner, if the region ends with it."""
        self.users = 0
        """Requests that wait for a file system and then go on with the host mm."""
        self._ending = trio.Lock()

    @property
    def name(self) -> str:
        """For messages: a region may have several names or none."""
        return f"region {self.ident}"

    def sized(self) -> HostMM:
        """The host mm. EINVAL: not sized."""
        if self.host is None:
            raise OSError(errno.EINVAL, f"{self.name} has no size yet: ftruncate it first")
        return self.host

    @property
    def ended(self) -> bool:
        """Its owner is gone, and with it what was mapped; it cannot be attached any more."""
        return self.owner.kind == "gone"

    async def settle(self) -> None:
        """Ends the region if its owner has ended: what any request on it must see.

        EBUSY: an attached process does not leave its page fault.
        """
        if self.watch is not None and self.watch.gone():
            await self.end()

    async def end(self) -> None:
        """The owner is gone: takes everything out of the region, for all who are attached."""
        async with self._ending:
            if self.ended:
                return
            if self.host is not None:
                await self.host.unmap(0, self.host.size)
                self.host.end()
            self.owner = dataclasses.replace(self.owner, kind="gone")
            self.watch = None

    async def create_mapping(
        self, create: verbs.Create, flags: int, caller: int, given: int | None = None
    ) -> None:
        """MSHAREFS_CREATE_MAPPING, by a descriptor open with `flags`, for process `caller`.

        `given` is the object's descriptor if the caller has sent it; it is closed.
        """
        async with contextlib.AsyncExitStack() as stack:
            if given is not None:
                stack.push_async_callback(descriptors.close, given)
            host = self.sized()
            self.users += 1
            stack.callback(self._leave)
            self._check_writable(flags)
            self._check_owner()
            verbs.check_create(create, host.size)
            if create.flags & verbs.MAP_ANONYMOUS:
                source = sources.anonymous(create, executes=host.anonymous_executes)
                if source is not None:
                    stack.push_async_callback(descriptors.close, source.fd)
            else:
                if given is None:
                    given = processes.fetch_descriptor(caller, create.fd)
                    stack.push_async_callback(descriptors.close, given)
                source = await sources.look(given, caller, create.flags)
            if source is not None:
                create = source.rounded(create)
            verbs.check_create_range(create, host.size, source.page if source else verbs.PAGE)
            await self._map(host, create, caller, source)

    async def _map(
        self, host: HostMM, create: verbs.Create, caller: int, source: sources.Source | None
    ) -> None:
        """The part of a CREATE that is mmap(2)'s own, in its order."""
        replace = not create.flags & verbs.MAP_FIXED_NOREPLACE
        limits.check_count(host.count())
        if not replace:  # once more when it counts
            host.check_free(create.region_offset, create.end)
        limits.check_locked(create, caller)
        kept = await source.map(create) if source is not None else None
        if kept is not None and source is not None and source.zero:
            kept.close()
            kept, source = None, None  # what comes of it is ordinary anonymous memory
        try:
            self._check_owner()  # meanwhile it may have ended
            limits.check_space(create, caller, host.ranges)
            if source is None or (source.anonymous and not source.huge):
                limits.check_commit(create)
        except BaseException:
            if kept is not None:
                kept.close()
            raise
        await host.map(
            create.region_offset,
            create.end,
            create.prot,
            replace=replace,
            source=source,
            kept=kept,
            offset=create.file_offset if kept else 0,
        )

    async def unmap(self, offset: int, size: int, flags: int) -> None:
        """MSHAREFS_UNMAP, by a descriptor open with `flags`."""
        host = self.sized()
        self._check_writable(flags)
        await host.unmap(offset, verbs.check_unmap(offset, size, host.size))

    async def protect(self, offset: int, size: int, prot: int, flags: int, mode: int) -> None:
        """MSHAREFS_PROTECT, by a descriptor open with `mode`."""
        host = self.sized()
        self._check_writable(mode)
        end = verbs.check_protect(offset, size, prot, flags, host.size)
        if offset < end:
            await host.protect(offset, end, prot)

    def describe(self, what: str) -> Any:
        """One of the look verbs' dicts."""
        if what == "stat":
            return describe.stat(self.raw_stat(), self.owner)
        looks = {
            "maps": describe.maps,
            "pagetable": describe.pagetable,
            "clients": describe.clients,
            "audit": describe.audit,
        }
        if what not in looks:
            raise OSError(
                errno.EINVAL,
                f"there is no {what!r} of a region; there are stat, {', '.join(looks)}",
            )
        host = self.sized()
        host.reap_dead()
        return looks[what](host)

    def raw_stat(self) -> Any:
        """The figures, as struct mshare_stat."""
        if self.host is not None:
            self.host.reap_dead()
            return describe.raw_stat(self.host)
        raw = ffi.new("struct mshare_stat *", {"quantum": self.quantum})
        raw.owner_pid, raw.owner_start_time = self.owner.pid, self.owner.start_time
        return raw

    def _leave(self) -> None:
        self.users -= 1

    def _check_owner(self) -> None:
        if self.ended and not self.quirks:
            raise OSError(errno.EINVAL, f"{self.name} has ended with its owner; make a new one")

    def _check_writable(self, flags: int) -> None:
        if flags & os.O_ACCMODE == os.O_RDONLY and not self.quirks:
            raise OSError(errno.EACCES, f"{self.name}: the descriptor is read-only; open it O_RDWR")


class Regions:
    """All regions of a mount, by number (the inode number of the name in the state directory)."""

    def __init__(self, options: MountOptions, state: Path) -> None:
        self._options = options
        self._directory = state / "regions"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._regions: dict[int, Region] = {}
        self.connect: Connect = _no_connections
        """Makes a control connection of a client's socket; control.py puts itself here."""
        self.owners = owners.Owners()
        self._native = NativeMappings(state)

    async def adopt(self, sizes: dict[int, int]) -> None:
        """Takes over what an earlier server left; `sizes` has the region files by number.

        A region without a name stays as long as a process is attached to it.
        """
        for ident, size in sizes.items():
            if size:
                await self._adopt_host(ident)
            else:
                self._adopt_unsized(ident)
        for path in self._directory.glob("*.mm"):
            ident = int(path.stem)
            if ident not in self._regions:
                await self._adopt_host(ident)
                await self.evict(ident)
        for path in self._directory.glob("*.unsized"):
            if int(path.stem) not in self._regions:
                path.unlink()

    def create(self, ident: int, ctx_pid: int) -> None:
        """A region file was made by thread `ctx_pid`."""
        owner = owners.Owner.of(ctx_pid, self._options.owner)
        self._add(Region(ident, owner, self._options))
        owners.save_unsized(self._directory, ident, owner, frozen=False)

    def check_open(self, ident: int, flags: int) -> None:
        """Whether the file may be opened; v3 has no reason to refuse."""

    def open_memory(self, ident: int) -> int | None:
        """A descriptor of the region's pages, sized or not, for the caller to close.

        None: the region has ended, and can no more be mapped.
        """
        if self._find(ident).ended:
            return None
        return open_memory(self._directory, ident)

    def mounted(self, device: int) -> None:
        """The files of the mount have this st_dev."""
        self._native.mounted(device)

    async def native_mappings(self, ident: int) -> list[dict[str, Any]]:
        """Who has mapped the region without our library, as `describe.clients`."""
        # In a thread: a process may hold its address space locked while it waits for our answer.
        return await trio.to_thread.run_sync(
            self._native.of, inode_of(ident), abandon_on_cancel=True
        )

    async def settle(self, ident: int) -> None:
        """Somebody asks for the region: ends it first if its owner has ended."""
        await self._find(ident).settle()

    def size(self, ident: int) -> int:
        """Bytes, 0 before it is set."""
        host = self._find(ident).host
        return host.size if host else 0

    async def set_size(self, ident: int, size: int) -> None:
        """Sizes a region, once. EINVAL: it has a size, or `size` is no multiple of the quantum."""
        region = self._find(ident)
        if region.host is not None or region.frozen:
            raise OSError(errno.EINVAL, f"{region.name} has a size; it is set once")
        if size < 0 or size % region.quantum:
            raise OSError(
                errno.EINVAL,
                f"{region.name}: size {size} is not a multiple of the quantum {region.quantum}",
            )
        if size == 0:
            region.frozen = True
            owners.save_unsized(self._directory, ident, region.owner, frozen=True)
            return
        region.host = HostMM.make(
            region.name, self._directory, ident, size, region.quantum, region.owner
        )
        owners.forget_unsized(self._directory, ident)
        lib.mm_set_fault_around(region.host.mm, self._options.fault_around)
        lib.mm_set_budget(region.host.mm, self._options.budget)

    async def ioctl(
        self, ident: int, command: int, data: bytes, flags: int, tid: int
    ) -> tuple[int, bytes]:
        """The result and the output for thread `tid`, on a descriptor open with `flags`."""
        region = self._find(ident)
        await region.settle()
        if command == lib.MSHAREFS_CONNECT:  # ours: also before the region is sized
            return self.connect(region, flags, data, processes.process_of(tid))
        if not region.frozen:
            region.sized()
        if command == lib.MSHAREFS_CREATE_MAPPING:
            create = verbs.Create.from_bytes(data)
            # Of who maps no descriptor only the limits are asked for: a thread will do.
            caller = tid if create.flags & verbs.MAP_ANONYMOUS else processes.process_of(tid)
            await region.create_mapping(create, flags, caller)
        elif command == lib.MSHAREFS_UNMAP:
            raw = ffi.from_buffer("struct mshare_unmap *", data)
            await region.unmap(raw.region_offset, raw.size, flags)
        elif command == lib.MSHAREFS_PROTECT:
            raw = ffi.from_buffer("struct mshare_protect *", data)
            await region.protect(raw.region_offset, raw.size, raw.prot, raw.flags, flags)
        else:
            raise OSError(errno.ENOTTY, f"{region.name}: there is no ioctl {command:#x}")
        return 0, b""

    async def evict(self, ident: int) -> None:
        """The last name and descriptor are gone: so is the region, unless somebody is attached."""
        self._find(ident).evicted = True
        self.drop_unused(ident)

    def drop_unused(self, ident: int) -> None:
        """Ends an evicted region with no attachment left: its memory goes back."""
        region = self._regions.get(ident)
        if region is None or not region.evicted:
            return
        if region.host is not None:
            if region.host.changing() or region.users or region.host.clients:
                return  # or changing, by its owner's end or from afar; `reap_dead` comes back to it
            region.host.reap_dead()
            if region.host.attached():
                return
            region.host.close()
            region.host = None
        remove_objects(self._directory, ident)
        owners.forget_unsized(self._directory, ident)
        if region.watch is not None:
            self.owners.forget(region.watch, ident)
        del self._regions[ident]

    def by_host(self, device: int, inode: int) -> Region | None:
        """The region whose `.mm` object is that file: a client shows it to rejoin."""
        for region in self._regions.values():
            if region.host is not None:
                found = os.fstat(region.host.fd)
                if (found.st_dev, found.st_ino) == (device, inode):
                    return region
        return None

    def attached(self) -> int:
        """Attachments of all regions, once connections have ended; dead processes do not count."""
        hosts = [region.host for region in self._regions.values() if region.host]
        for host in hosts:
            host.reap_dead(connected=True)
        return sum(host.attached() for host in hosts)

    def reap_dead(self) -> None:
        """Lets go of processes that are gone without a word."""
        for region in list(self._regions.values()):
            if region.host is not None:
                region.host.reap_dead()
            self.drop_unused(region.ident)

    async def catch_up(self) -> None:
        """Finishes changes that an earlier server had begun and that could not be finished yet."""
        for region in list(self._regions.values()):
            if region.host is not None:
                await region.host.catch_up()

    def close(self) -> None:
        """Lets go of everything; files and attachments stay."""
        for region in self._regions.values():
            if region.host is not None:
                region.host.close()
        self._regions.clear()
        self.owners.close()

    def _add(self, region: Region) -> None:
        self._regions[region.ident] = region
        region.watch = self.owners.watch(region.owner, region.ident, region.end)

    async def _adopt_host(self, ident: int) -> None:
        region = Region(ident, owners.Owner(0, 0, ""), self._options)
        try:
            host = await self._open_host(region.name, ident)
        except OSError:
            log.exception("%s cannot be taken over; it is unsized now", region.name)
            paths = *object_paths(self._directory, ident), records_path(self._directory, ident)
            for path in paths:
                with contextlib.suppress(OSError):
                    path.rename(path.with_suffix(path.suffix + ".broken"))
        else:
            region.host = host
            region.owner = host.owner()
        self._add(region)

    async def _open_host(self, name: str, ident: int) -> HostMM:
        """The host mm that an earlier server has left, with what that was changing finished."""
        host = HostMM(name, self._directory, ident)
        try:
            await host.recover()
        except BaseException:
            host.close()
            raise
        return host

    def _adopt_unsized(self, ident: int) -> None:
        # The server may have died while it was being sized: nobody has seen a host mm.
        reset_objects(self._directory, ident)
        owner, frozen = owners.load_unsized(self._directory, ident)
        region = Region(ident, owner, self._options)
        region.frozen = frozen
        self._add(region)

    def _find(self, ident: int) -> Region:
        try:
            return self._regions[ident]
        except KeyError:
            raise OSError(errno.ENOENT, f"there is no region {ident}") from None


def _no_connections(region: Region, flags: int, data: bytes, caller: int) -> tuple[int, bytes]:
    del flags, data, caller
    raise OSError(errno.ENOTCONN, f"{region.name}: the control socket is not open yet")
