"""A region's host mm in the server: the only writer of its VMAs.

A change is published, then waits until no client is inside a fault on the old snapshot (the grace
period), then takes entries and pages away. The wait is bounded: a client that does not leave its
fault, because a debugger holds it there, makes the change fail with EBUSY and nothing changed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from typing import TYPE_CHECKING, Any

import trio

from . import revocation
from .native import check, ffi, lib
from .owners import KINDS, Owner
from .processes import has_mapped, is_alive_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from .revocation import Client

log = logging.getLogger(__name__)

# A fault takes microseconds; only a stopped process needs longer. The caller cannot be killed while
# it waits in its ioctl, so it must not be long.
GRACE_SECONDS = 2.0
GRACE_POLL_SECONDS = 0.0002


class HostMM:
    """The `.mm` and `.mem` of one region, mapped and open. `name` is for messages."""

    def __init__(self, name: str, directory: Path, ident: int) -> None:
        self.name = name
        self._paths = object_paths(directory, ident)
        self._mm = ffi.new("struct mm *")
        self._lock = trio.Lock()
        self._straggler = ffi.new("unsigned *")
        mm_fd = os.open(self._paths[0], os.O_RDWR | os.O_CLOEXEC)
        try:
            self.mem_fd = os.open(self._paths[1], os.O_RDWR | os.O_CLOEXEC)
            check(lib.mm_open(self._mm, mm_fd), f"{name}: its host mm {self._paths[0]}")
        except BaseException:
            os.close(mm_fd)
            raise
        self._unfinished = False
        self.clients: dict[int, Client] = {}
        """Connected attachments, by slot."""

    @classmethod
    def make(
        cls, name: str, directory: Path, ident: int, size: int, quantum: int, owner: Owner
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
            made = cls(name, directory, ident)
        except BaseException:
            reset_objects(directory, ident)
            raise
        cgroup = os.fsencode(owner.cgroup)
        lib.mm_set_owner(made.mm, owner.pid, owner.start_time, cgroup, KINDS[owner.kind])
        return made

    @property
    def mm(self) -> Any:
        """The core's `struct mm *`."""
        return self._mm

    @property
    def size(self) -> int:
        """Bytes of the region."""
        return self._mm.size

    @property
    def quantum(self) -> int:
        """Bytes that attach addresses are multiples of."""
        return self._mm.quantum

    @property
    def fd(self) -> int:
        """Descriptor of the `.mm` object."""
        return self._mm.fd

    def attached(self) -> int:
        """How many attachments there are, connected or not."""
        return lib.mm_clients(self._mm, ffi.NULL, 0)

    def count(self) -> int:
        """How many VMAs there are."""
        return check(lib.mm_vmas(self._mm, ffi.NULL, 0), f"{self.name}: reading its VMAs")

    def ranges(self) -> list[tuple[int, int]]:
        """What is mapped: start and end of each VMA."""
        count = self.count()
        vmas = ffi.new("struct mm_vma[]", count)
        lib.mm_vmas(self._mm, vmas, count)
        return [(vma.start, vma.end) for vma in vmas]

    def changing(self) -> bool:
        """A change of its VMAs is under way."""
        return self._lock.locked()

    async def map(self, start: int, end: int, prot: int, *, replace: bool = True) -> None:
        """Maps anonymous memory at [start, end); what was there goes, if `replace`, else EEXIST."""
        vma = ffi.new("struct mm_vma *", {"start": start, "end": end, "offset": 0})
        vma.flags = prot & lib.VMA_PROT
        async with self._lock:
            if not replace and lib.hostmm_mapped(self._mm, start, end):
                raise OSError(errno.EEXIST, f"{self.name}: [{start:#x}, {end:#x}) is not free")
            await self._change(lambda: lib.hostmm_map(self._mm, vma[0]))
            await revocation.rearm(self, start, end)

    async def unmap(self, start: int, end: int) -> None:
        """Takes [start, end) out and frees its pages; in force everywhere on return."""
        async with self._lock:
            await self._change(lambda: lib.hostmm_unmap(self._mm, start, end))
            lib.mm_count_unmap(self._mm)
            await revocation.rearm(self, start, end)

    def owner(self) -> Owner:
        """Who made the region, as recorded."""
        raw = ffi.new("struct mshare_stat *")
        check(lib.mm_stat(self._mm, self.mem_fd, raw), f"{self.name}: reading its owner")
        kinds = {number: kind for kind, number in KINDS.items()}
        return Owner(
            raw.owner_pid,
            raw.owner_start_time,
            os.fsdecode(ffi.string(lib.mm_owner_cgroup(self._mm))),
            kinds[lib.mm_owner_kind(self._mm)],
        )

    def end(self) -> None:
        """Records that the owner is gone."""
        lib.mm_end(self._mm)

    async def protect(self, start: int, end: int, prot: int) -> None:
        """Changes the rights of [start, end) to `prot`; in force everywhere on return.

        ENOMEM: a part of it is not mapped. EBUSY: a client does not do its part; nothing changed.
        """
        async with self._lock:

            async def take() -> None:
                if not prot:
                    await revocation.take_all(self, start, end)
                elif not prot & lib.VMA_WRITE:
                    await revocation.take_write(self, start, end)

            # Most of what can fail does so here, before anybody's faults have to wait.
            await revocation.wait_connected(self, start, end)
            await self._change(lambda: lib.hostmm_protect(self._mm, start, end, prot), take)
            if prot & lib.VMA_WRITE:
                await revocation.give_write(self, start, end)
            await revocation.rearm(self, start, end)

    async def recover(self) -> None:
        """Finishes what a dead server had begun, and lets go of clients that died meanwhile.

        With a process stopped inside a fault it cannot be finished yet: see `catch_up`.
        """
        async with self._lock:
            self.reap_dead()
            check(lib.mm_sweep(self._mm), f"{self.name}: its page tables")
            self._unfinished = True
            try:
                await self._grace()
                self._recover()
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                log.warning("%s: what the server before was changing is finished then", error)

    async def catch_up(self) -> None:
        """Finishes now what `recover` could not, if that is so, and it can be done."""
        if self._unfinished:
            async with self._lock:
                try:
                    await self._grace()
                    self._recover()
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        # The next change tries again, and tells its caller.
                        self._unfinished = False
                        log.exception("%s: a change cannot be finished", self.name)

    def reap(self, slot: int) -> None:
        """Frees the slot of a client that detached or died."""
        self.clients.pop(slot, None)
        check(lib.slot_reap(self._mm, slot), f"{self.name}: slot {slot}")

    def process_of(self, slot: int) -> int:
        """Process id of the client of `slot`; 0: nobody's."""
        return lib.mm_client_pid(self._mm, slot)

    def reap_dead(self, *, connected: bool = False) -> None:
        """Frees the slots of processes that are gone without a word.

        Those with a connection free theirs when it ends; `connected` takes them too.
        """
        count = self.attached()
        clients = ffi.new("struct mm_client[]", count)
        for client in clients[0 : min(count, lib.mm_clients(self._mm, clients, count))]:
            unwatched = connected or client.slot not in self.clients
            if unwatched and not self._is_attached(client):
                self.reap(client.slot)

    def _is_attached(self, client: Any) -> bool:
        """Whether the process lives, and is still the program that attached (execve(2))."""
        if not is_alive_in(client.pid_namespace, client.pid, client.start_time):
            return False
        return bool(client.pid_namespace) or has_mapped(client.pid, os.fstat(self.fd))

    def close(self) -> None:
        """Lets go of both objects; the files stay."""
        lib.mm_close(self._mm)
        os.close(self.mem_fd)

    def _recover(self) -> None:
        """Ends a change that another server began, after a grace period; if there is one."""
        check(lib.hostmm_recover(self._mm, self.mem_fd), f"{self.name}: finishing a change")
        self._unfinished = False

    async def _change(
        self, publish: Callable[[], int], take: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Publishes, waits for the grace period, lets `take` have its way, finishes."""
        await self._grace()
        self._recover()
        while (published := publish()) == -errno.EBUSY:
            await self._grace()  # a fault that had read the old epoch announced itself since
        check(published, f"{self.name}: changing its VMAs")
        try:
            await self._grace()
            if take is not None:
                await take()
        except BaseException:
            lib.hostmm_abort(self._mm)
            raise
        check(lib.hostmm_finish(self._mm, self.mem_fd), f"{self.name}: taking pages away")

    async def _grace(self) -> None:
        deadline = trio.current_time() + GRACE_SECONDS
        while lib.slot_grace(self._mm, self._straggler):
            if trio.current_time() > deadline:
                raise OSError(
                    errno.EBUSY,
                    f"{self.name}: process {self.process_of(self._straggler[0])} does not leave a "
                    "page fault; let it go on (is it stopped, or in a debugger?) and try again",
                )
            self.reap_dead()
            await trio.sleep(GRACE_POLL_SECONDS)


def object_paths(directory: Path, ident: int) -> tuple[Path, Path]:
    """Where region `ident` keeps its host mm and its pages."""
    return directory / f"{ident}.mm", directory / f"{ident}.mem"


def open_memory(directory: Path, ident: int) -> int:
    """Opens a region's pages, which exist from its first open(2) on: native mappings map them."""
    return os.open(object_paths(directory, ident)[1], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def reset_objects(directory: Path, ident: int) -> None:
    """The region has no size, or not yet. What maps its pages still does once it has one."""
    mm, mem = object_paths(directory, ident)
    mm.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.truncate(mem, 0)


def remove_objects(directory: Path, ident: int) -> None:
    """Removes both files; attached processes keep what they have mapped."""
    for path in object_paths(directory, ident):
        path.unlink(missing_ok=True)
