"""The regions of a mount, and how they come and go.

The file system (fs.py) says when a region file is made, sized, opened or gone; ioctl(2) (ioctls.py)
and the control socket (control.py) say what to map. A region has a host mm from the moment it is
sized.
"""

from __future__ import annotations

import dataclasses
import errno
import heapq
import logging
import os
from collections import Counter, OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from msharefs import proc, processes
from msharefs.native import ffi, lib

from . import contents, descriptors, hands, owners
from .adopted import Adopted
from .charging import Account, Charges
from .clients import LOOK_SECONDS, give_way
from .files import (
    check_size,
    object_paths,
    open_memory,
    remove_objects,
    remove_set_aside,
    reset_objects,
    restore,
    set_aside,
)
from .hostmm import HostMM
from .mappings import NativeMappings
from .parking import Parking
from .quotas import Quotas, exceeded, is_privileged
from .region import Region
from .room import Room
from .seen import Seen
from .tree import inode_of

if TYPE_CHECKING:
    from pathlib import Path

    from .memory import Memory
    from .options import MountOptions

log = logging.getLogger(__name__)

# It takes some tens of microseconds to look whether anybody has files open.
LEFTOVER_AT_ONCE = 32
RECOVER_SECONDS = 4.0
"""How long a new server waits, for all regions together, for processes that keep locks."""
# One region whose files are locked must not keep the dead of all others for long.
_REAP_LATE_SECONDS = 0.1
_PROMISED = "2"  # vm.overcommit_memory: all that is mapped must fit


class Regions:
    """All regions of a mount, by number (the inode number of the name in the state directory).

    Their files are below `store`; `state` is what people call the state directory.
    """

    def __init__(self, options: MountOptions, store: Path, state: Path | None = None) -> None:
        self._options = options
        self._state = state or store
        self.room = Room(store, self._state)
        self.limits = Quotas.of(options)
        self._directory = store / "regions"
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._regions: dict[int, Region] = {}
        self._users: dict[int, int] = {}
        """Who made a region, by its number; root, who may have all, where that is not known."""
        self._of: Counter[int] = Counter()
        self.owners = owners.Owners()
        self.charges = Charges()
        self._native = NativeMappings(store)
        self._device = 0
        self._adopted = Adopted(self._directory)
        self._seen = Seen(self._adopted, self._native)
        self.hurry = trio.Event()
        """Set when `reap_dead` should not wait for its time."""
        self.left = trio.Event()
        """Files of a region could not be removed: `remove_some` is to be called soon."""
        self._parking = Parking()
        self._patience = RECOVER_SECONDS
        self._waiting_for_files: set[int] = set()
        self._leftover: OrderedDict[int, None] = OrderedDict()
        """Regions that are gone but for their files, which processes have open; see `catch_up`."""

    async def adopt(self, sizes: dict[int, int], users: dict[int, int] | None = None) -> None:
        """Takes over the regions of an earlier server; `sizes` has the region files by number.

        So has `users` those whose they are. A region without a name stays as long as a process is
        attached to it.
        """
        for ident, size in sizes.items():
            if size:
                await self._adopt_host(ident, size)
            else:
                self._adopt_unsized(ident)
        for ident, user in (users or {}).items():
            self._of[self._users[ident]] -= 1
            self._users[ident] = user
            self._of[user] += 1
            host = self._regions[ident].host
            if host is not None:
                host.clients.lane.user = user
        self._adopted.find()
        await self._adopt_nameless()

    async def _adopt_nameless(self) -> None:
        # Not glob(), which takes a directory that it may not or cannot read for an empty one.
        left = [self._directory / name for name in os.listdir(self._directory)]
        for path in left:
            ident = int(path.name.partition(".")[0])
            if path.suffix == ".mm" and ident not in self._regions:
                await self._adopt_host(ident)
                if self.find(ident).damaged:
                    self._forget(ident)  # what is set aside stays for `msharefs check`
                else:
                    await self.evict(ident)
            elif path.suffix == ".unsized" and ident not in self._regions:
                path.unlink(missing_ok=True)
        for path in left:  # a process had it open when its region went
            ident = int(path.name.partition(".")[0])
            if path.suffix == ".mem" and ident not in self._regions and path.exists():
                self._add(Region(ident, owners.Owner(0, 0, ""), self._options))
                await self.evict(ident)

    def create(self, ident: int, ctx_pid: int, user: int = 0, *, nameless: bool = False) -> None:
        """A region file was made by thread `ctx_pid` of `user`. ENOSPC: too many there are.

        One that is `nameless` is its creator's, whatever the mount's `owner=`.
        """
        if len(self) >= self.limits.regions:
            raise exceeded(errno.ENOSPC, f"{len(self)} regions", "regions", self.limits.regions)
        share = self.limits.user_regions
        if self._of[user] >= share and not is_privileged(user):
            raise exceeded(errno.ENOSPC, f"{share} regions of user {user}", "user_regions", share)
        owner = owners.Owner.of(ctx_pid, "creator" if nameless else self._options.owner)
        owners.save_unsized(self._directory, ident, owner, frozen=False)
        region = Region(ident, owner, self._options)
        region.nameless = nameless
        self._add(region, user, maker_waits=True)

    def opened(self, ident: int, tid: int) -> bool:
        """Thread `tid` has opened a region; whether each close(2) of that is to be told."""
        region = self.find(ident)
        if region.owner.kind != "creator":
            return False
        region.held = region.held or region.owner.is_thread(tid)
        return True

    async def closed(self, ident: int) -> None:
        """Somebody has closed a descriptor of a region: it ends if its owner has none any more."""
        region = self.find(ident)
        if region.owner.kind != "creator" or region.watch is None:
            return
        owner = region.owner
        if await self._has_open(ident, owner.pid):
            region.held = True
        elif region.held and region.owner == owner:
            region.closed = True
            await self.owners.closed(region.watch, ident)

    async def _has_open(self, ident: int, pid: int) -> bool:
        """Whether process `pid` has the region open; True also if that cannot be told."""
        try:
            return await descriptors.elsewhere(
                lambda: proc.has_open(pid, self._device, inode_of(ident)),
                f"process {pid}",
                user=self._users[ident],
            )
        except OSError as error:
            log.debug("%s", error)
            return True

    async def set_owner(self, ident: int, data: bytes, flags: int, tid: int, user: int) -> None:
        """MSHAREFS_SET_OWNER by thread `tid`, on a descriptor open with `flags`."""
        asked = ffi.from_buffer("struct mshare_owner *", data)
        region = self.find(ident)
        region.check_owner()
        region.check_writable(flags)
        if asked.flags:
            raise OSError(errno.EINVAL, f"flags {asked.flags:#x}: there are none")
        caller = processes.process_of(tid)
        owner = await descriptors.elsewhere(
            lambda: owners.Owner.behind(caller, asked.pidfd, region.owner.kind),
            f"descriptor {asked.pidfd} of process {caller}",
            user=user,
        )
        if not region.owner.is_thread(tid) and not is_privileged(user):
            raise OSError(
                errno.EPERM,
                f"only its owner, process {region.owner.pid}, can hand it to another, and root",
            )
        held = await self._has_open(ident, owner.pid)
        region.check_owner()  # it may have ended meanwhile
        if region.host is None:
            owners.save_unsized(self._directory, ident, owner, frozen=region.frozen)
        else:
            owners.save(self._directory, ident, owner)
            region.host.set_owner(owner)
        watch = self.owners.watch(owner, ident, region.end)
        if region.watch is not None and region.watch is not watch:
            self.owners.forget(region.watch, ident)
        region.owner, region.watch, region.held, region.closed = owner, watch, held, False
        self.charges.forget(ident)

    def __len__(self) -> int:
        return len(self._regions)

    def get(self, ident: int) -> Region | None:
        """A region; None if it is gone."""
        return self._regions.get(ident)

    def after(self, ident: int, user: int, most: int) -> list[tuple[int, int]]:
        """The first regions after number `ident` that a user may see, and who made them."""
        every = is_privileged(user)
        found = (
            (each, self._users.get(each, 0))
            for each in self._regions
            if each > ident and (every or self._users.get(each) == user)
        )
        return heapq.nsmallest(most, found)

    @property
    def options(self) -> MountOptions:
        """The options of the mount, as they are now."""
        return self._options

    def change(self, options: MountOptions) -> None:
        """The options after a remount: its limits are other ones now."""
        self._options = options
        self.limits.change(options)

    def check_open(self, ident: int, flags: int) -> None:
        """Whether the file may be opened; v3 has no reason to refuse."""

    def open_memory(self, ident: int) -> int | None:
        """A descriptor of the region's pages, sized or not, for the caller to close.

        None: the region has ended or is damaged, and can no longer be mapped.
        """
        region = self.find(ident)
        if region.ended or region.damaged:
            return None
        return open_memory(self._directory, ident)

    def mounted(self, device: int) -> None:
        """The files of the mount have this st_dev."""
        self._device = device
        self._native.mounted(device)

    async def forget_unused_devices(self, device: int) -> None:
        """As `NativeMappings.forget_unused`; what goes wrong is tried again by the next server."""
        try:
            await self._native.forget_unused(device)
        except OSError as error:
            log.warning("the devices of earlier mounts are kept: %s", error)

    async def native_mappings(self, ident: int) -> list[dict[str, Any]]:
        """The processes that have mapped the region without our library, as `describe.clients`."""
        return await self._native.of(inode_of(ident))

    def find(self, ident: int) -> Region:
        """Region `ident`. ENOENT: there is none."""
        try:
            return self._regions[ident]
        except KeyError:
            raise OSError(errno.ENOENT, f"there is no region {ident}") from None

    def seen_by(self, inode: int, user: int) -> Region:
        """The region of that inode number. ENOENT: there is none that `user` may see."""
        ident = inode - inode_of(0)
        region = self._regions.get(ident)
        if region is None or not (is_privileged(user) or self._users.get(ident) == user):
            raise OSError(errno.ENOENT, f"there is no region {inode} of user {user}")
        return region

    async def settle(self, ident: int) -> None:
        """Called before any request on the region: ends it if its owner has ended."""
        await self.find(ident).settle()

    def size(self, ident: int) -> int:
        """The region's size in bytes, 0 before it is set."""
        host = self.find(ident).host
        return host.size if host else 0

    async def set_size(self, ident: int, size: int) -> None:
        """Sizes a region, once. EINVAL: it has a size, or `size` is no multiple of the quantum."""
        region = self.find(ident)
        if region.host is not None or region.frozen:
            raise OSError(errno.EINVAL, f"{region.name} has a size; it is set once")
        if size < 0 or size % region.quantum:
            raise OSError(
                errno.EINVAL,
                f"{region.name}: size {size} is not a multiple of the quantum {region.quantum}",
            )
        if size == 0:
            owners.save_unsized(self._directory, ident, region.owner, frozen=True)
            region.frozen = True
            return
        if region.damaged:
            set_aside(self._directory, ident)  # if it could not be done before
        owners.save(self._directory, ident, region.owner)
        region.host = HostMM.make(
            region.name, self._directory, ident, size, region.quantum, region.owner, self._parking
        )
        region.host.clients.lane.user = self._users[ident]
        region.host.account = region.account
        region.damaged = False
        remove_set_aside(self._directory, ident)
        owners.forget_unsized(self._directory, ident)
        lib.mm_set_fault_around(region.host.mm, self._options.fault_around)
        lib.mm_set_linux_fills(region.host.mm, self._options.faults == "linux")
        lib.mm_set_budget(region.host.mm, self._options.budget)

    async def evict(self, ident: int) -> None:
        """The last name and descriptor are gone: so is the region, unless somebody is attached."""
        self.find(ident).evicted = True
        self.drop_unused(ident)

    def drop_unused(self, ident: int, *, hurry: bool = True) -> None:
        """Ends an evicted region with no attachment left: its memory goes back.

        If processes that have ended may be all that keeps it, `hurry` has `reap_dead` called soon.
        """
        region = self._regions.get(ident)
        if region is None or not region.evicted:
            return
        if region.host is not None:
            region.host.let_go()
        if self._adopted.in_use(ident):
            return
        if region.host is not None:
            clients = region.host.clients
            if region.host.changing() or region.users or clients.in_use or clients.connected:
                return  # or it is being changed, by its owner's end or remotely; see `reap_dead`
            if region.host.attached():
                if hurry:
                    self.hurry.set()
                return
            region.host.close()
            region.host = None
        self._adopted.forget(ident)
        if not remove_objects(self._directory, ident):
            self._leave(ident, hurry=hurry)
            return
        self._waiting_for_files.discard(ident)
        owners.forget_unsized(self._directory, ident)
        if region.watch is not None:
            self.owners.forget(region.watch, ident)
        self._forget(ident)

    def _leave(self, ident: int, *, hurry: bool) -> None:
        """Keeps files that a process has open, to be removed later; `hurry`: perhaps it ends."""
        self._waiting_for_files.add(ident)
        self._leftover[ident] = None  # somebody may have asked twice
        if hurry:
            self._leftover.move_to_end(ident, last=False)
            self.left.set()

    def by_host(self, device: int, inode: int) -> Region | None:
        """The region whose `.mm` object is that file, which a client shows to rejoin."""
        for region in self._regions.values():
            if region.host is not None and region.host.identity == (device, inode):
                return region
        return None

    async def watch_adopted(self) -> None:
        """Gives adopted memory back when the last process has let go of it."""
        await self._adopted.run(self.drop_unused)

    def adopt_memory(self, ident: int) -> int:
        """A region without attachments becomes a program's own memory: a descriptor to map it by.

        It is the caller's. EOPNOTSUPP: the mount has a budget, which takes attachments. ENOMEM:
        Linux would have promised the memory when it was mapped, and we cannot.
        """
        region = self.find(ident)
        host = region.sized()
        region.check_unadopted()
        if self._options.budget:
            self.room.check_executes(executes=host.anonymous_executes)
            self.room.check(host.mapped_bytes(), self._hosts())
            self.room.promise(host, host.mapped_bytes())
            raise OSError(errno.EOPNOTSUPP, f"{region.name}: the mount has a budget")
        if proc.sysctl("vm/overcommit_memory") == _PROMISED:
            raise OSError(
                errno.ENOMEM,
                "Linux promises memory here when it is mapped (vm.overcommit_memory=2)",
            )
        if (
            host.attached()
            or host.changing()
            or host.ranges() != [(0, end := host.ranges()[-1][1])]
        ):
            raise OSError(errno.EBUSY, f"{region.name} is in use already")
        fd = self._adopted.make(ident, end)
        try:
            host.memory_exchanged()
        except BaseException:
            os.close(fd)
            raise
        region.adopted = True
        return fd

    def adopt_existing(self, ident: int, memory: Memory) -> None:
        """An object of Linux's own becomes the memory of a region without attachments."""
        region = self.find(ident)
        host = region.sized()
        self._adopted.add(ident, memory)
        host.memory_exchanged()
        host.let_go()
        region.adopted = True

    def existing(self, memory: Memory, size: int) -> int | None:
        """The region of an object of Linux's own. One that it has outgrown is forgotten."""
        ident = self._adopted.of(memory)
        host = self.find(ident).host if ident is not None else None
        if ident is not None:
            self._adopted.mapped(ident)
        if ident is None or (host is not None and host.mapped_bytes() >= size):
            return ident
        self._adopted.forget(ident)
        self.drop_unused(ident)
        return None

    async def look_at_pages(self) -> None:
        """Brings the entries of memory that Linux fills up to date with its pages."""
        await self._look_at_files()
        for region in list(self._regions.values()):
            if region.host is not None:
                try:
                    if self._adopted.is_file(region.ident):
                        await self._seen.show(region.ident, region.host)
                    else:
                        await region.host.look_at_pages()
                except OSError as error:  # one that keeps its pages locked is nobody else's trouble
                    log.debug("%s", error)
                    if region.adopted:  # its memory may be gone
                        self.drop_unused(region.ident)

    async def _look_at_files(self) -> None:
        """Looks who maps files that are adopted; the regions of those that nobody maps go."""
        try:
            await self._seen.look()
        except OSError as error:  # somebody's address space is locked: as it was, then
            log.debug("%s", error)
            return
        for ident in self._adopted.files():
            self.drop_unused(ident)

    async def attached(self, seconds: float = LOOK_SECONDS) -> int:
        """Attachments of all regions, after connections have ended; without dead processes.

        Adopted memory counts as one. A process that is not asked in `seconds` counts as alive.
        """
        for region in list(self._regions.values()):  # others may go meanwhile
            if region.host is not None and region.host.attached():
                await region.host.clients.reap_dead(connected=True, seconds=seconds)
        return sum(host.attached() for host in self._hosts()) + len(self._adopted.used())

    async def attached_processes(self) -> list[int]:
        """The processes that are attached to any region, by pid, in order."""
        found: set[int] = set()
        for region in list(self._regions.values()):
            if region.host is not None and region.host.attached():
                found |= await region.host.clients.look(region.host.clients.processes)
        for ident in self._adopted.used():
            found |= await self._native.processes_of(*self._adopted.identity(ident))
        return sorted(found)

    async def reap_dead(self) -> None:
        """Lets go of processes that are gone without a word.

        One region may have many that take long to look at: each has a turn, and then the next.
        """
        await self._look_at_files()
        turn = trio.current_time()
        for region in list(self._regions.values()):
            if region.host is not None:
                await region.host.clients.end_dead()
                await region.host.clients.reap_dead(late=_REAP_LATE_SECONDS)
            if region.ident not in self._waiting_for_files:
                self.drop_unused(region.ident, hurry=False)
            turn = await give_way(turn)

    def _forget(self, ident: int) -> None:
        del self._regions[ident]
        self.charges.forget(ident)
        self._of[self._users.pop(ident)] -= 1

    def mapped_bytes(self) -> int:
        """Bytes that are mapped in all regions."""
        return sum(host.mapped_bytes() for host in self._hosts())

    def most_vmas(self) -> int:
        """How many mappings the region has that has the most."""
        return max((host.count() for host in self._hosts()), default=0)

    def _check_room(self, host: HostMM, start: int, end: int, promised: int) -> None:
        """ENOMEM: `host` may have no mapping more, or the mount not [start, end) in addition.

        ENOSPC: `promised` bytes would not fit where the regions are.
        """
        if host.count() >= self.limits.vmas:
            raise exceeded(
                errno.ENOMEM, f"{host.name}: {host.count()} mappings", "vmas", self.limits.vmas
            )
        if promised and self.room.limited:
            replaced = min(host.promised, host.mapped_bytes(start, end))
            self.room.check(max(0, promised - replaced), self._hosts())
        if not self.limits.memory:
            return
        mapped = self.mapped_bytes()
        more = end - start - host.mapped_bytes(start, end)
        if mapped + more > self.limits.memory:
            what = f"{mapped} bytes are mapped, and {more} more are asked for"
            raise exceeded(errno.ENOMEM, what, "memory", self.limits.memory)

    def _locked_by_owner(self, region: Region) -> int:
        """Bytes that are locked in all regions of its owner."""
        who = region.owner.pid, region.owner.start_time
        return sum(
            other.host.locks.size
            for other in self._regions.values()
            if other.host is not None and (other.owner.pid, other.owner.start_time) == who
        )

    def _hosts(self) -> list[HostMM]:
        return [region.host for region in self._regions.values() if region.host is not None]

    async def find_objects(self) -> None:
        """Takes up what is mapped and locked in regions of an earlier server; nobody waits for it.

        A client that needs one meanwhile has it opened at once.
        """
        async with trio.open_nursery() as nursery:
            for region in self._regions.values():
                if region.host is not None:
                    nursery.start_soon(contents.take_up, region.host)

    async def catch_up(self) -> None:
        """Finishes changes that an earlier server had begun and that could not be finished yet.

        And whatever else had to wait for somebody who keeps files locked, or has them open.
        """
        hands.tend()
        for region in list(self._regions.values()):
            if region.host is not None:
                await region.host.catch_up()
        self.remove_some()

    def remove_some(self) -> None:
        """Tries again to remove files that processes had open, of a few regions at a time."""
        for _ in range(min(len(self._leftover), LEFTOVER_AT_ONCE)):
            ident, _ = self._leftover.popitem(last=False)
            if ident in self._regions:
                self.drop_unused(ident, hurry=False)

    def close(self) -> None:
        """Lets go of everything; files and attachments stay."""
        for region in self._regions.values():
            if region.host is not None:
                region.host.close()
        self._regions.clear()
        self._adopted.close()
        self.owners.close()

    def most_regions(self) -> int:
        """How many regions the user has made who has made the most, root and our own left out."""
        return max((n for user, n in self._of.items() if not is_privileged(user)), default=0)

    def _add(self, region: Region, user: int = 0, *, maker_waits: bool = False) -> None:
        if region.ident not in self._regions:
            self._users[region.ident] = user
            self._of[user] += 1
        region.check_room = self._check_room
        region.promise = self.room.promise
        region.locked_by_owner = partial(self._locked_by_owner, region)
        region.watch = self.owners.watch(
            region.owner, region.ident, region.end, maker_waits=maker_waits
        )
        if self._options.charge == "owner":
            region.account = Account(self.charges, region)
        if region.host is not None:
            region.host.account = region.account
        self._regions[region.ident] = region

    async def _adopt_host(self, ident: int, size: int | None = None) -> None:
        """Takes over a region that has a size. Only damage is damage: other errors are raised."""
        region = Region(ident, owners.Owner(0, 0, ""), self._options)
        try:
            host = await self._open_host(region.name, ident, size)
        except OSError as error:
            if error.errno != errno.EUCLEAN:
                raise
            log.error(  # noqa: TRY400  # what is wrong is in the region, not here
                "%s cannot be taken over and is set aside; see `msharefs check %s`: %s",
                region.name,
                self._state,
                error.strerror,
            )
            region.damaged = True
            try:
                set_aside(self._directory, ident)
            except OSError as refused:
                log.warning("%s", refused.strerror)
        else:
            region.host = host
            region.owner = self._owner_of(host, ident)
            region.adopted = self._adopted.has(ident)
        self._add(region)

    def _owner_of(self, host: HostMM, ident: int) -> owners.Owner:
        """Who owns a region that an earlier server has left; only whether it has ended is there."""
        owner = owners.load(self._directory, ident)
        if host.owner().kind == "gone":
            owner = dataclasses.replace(owner, kind="gone")
        host.set_owner(owner)  # for those who look
        return owner

    async def repair(self, ident: int, flags: int) -> None:
        """Mends a region; one that was set aside is brought back if it is whole."""
        region = self.find(ident)
        if region.damaged:
            if flags & os.O_ACCMODE == os.O_RDONLY:
                raise OSError(errno.EACCES, f"{region.name}: open it O_RDWR")
            await self._bring_back(region)
        await region.repair(flags)

    async def _bring_back(self, region: Region) -> None:
        restore(self._directory, region.ident)
        if not object_paths(self._directory, region.ident)[0].exists():
            return
        try:
            # The pages have the size that the region file had.
            host = await self._open_host(region.name, region.ident, None)
        except OSError:
            set_aside(self._directory, region.ident)
            raise
        region.host, region.owner, region.damaged = host, self._owner_of(host, region.ident), False
        host.account = region.account
        region.watch = self.owners.watch(region.owner, region.ident, region.end)

    async def _open_host(self, name: str, ident: int, size: int | None) -> HostMM:
        """The host mm that an earlier server has left, after finishing that server's change.

        EUCLEAN: it is damaged, or of another size than its region file.
        """
        check_size(self._directory, ident, size, self._options.quantum)
        host = HostMM(name, self._directory, ident, self._parking)
        try:
            if size not in (None, host.size):
                raise OSError(errno.EUCLEAN, f"{name}: its host mm has another size")
            before = trio.current_time()
            host.patience = min(host.patience, self._patience)
            await host.recover()
            self._patience = max(0.0, self._patience - (trio.current_time() - before))
        except BaseException:
            host.close()
            raise
        self.room.promise(host, host.mapped_bytes())
        return host

    def _adopt_unsized(self, ident: int) -> None:
        # The server may have died while sizing it: then nobody has seen a host mm.
        reset_objects(self._directory, ident)
        owner, frozen = owners.load_unsized(self._directory, ident)
        region = Region(ident, owner, self._options)
        region.frozen = frozen
        self._add(region)
