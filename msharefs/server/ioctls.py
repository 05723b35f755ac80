"""ioctl(2) on a region file: the verbs of the series, and our own that makes a connection."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

import trio

from msharefs import mountpoint, proc, processes, verbs
from msharefs.native import ffi, lib

from .operations import HANDLERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .control import Control
    from .region import Region
    from .regions import Regions

# All regions are looked at to count what is in use.
COUNT_SECONDS = 0.1


class Ioctls:
    """The ioctls of a mount."""

    def __init__(self, regions: Regions, control: Control) -> None:
        self._regions = regions
        self._control = control
        self._counted = -float("inf")
        self._limits: list[int] = []

    def limits(self) -> list[int]:
        """The limits of the mount and what is in use, as in mountpoint.LIMITS."""
        if trio.current_time() > self._counted + COUNT_SECONDS:
            self._counted = trio.current_time()
            self._limits = self._count()
        return self._limits

    def _count(self) -> list[int]:
        most, connections = self._regions.limits, self._control.connections
        found = {
            "regions": (most.regions, len(self._regions)),
            "user_regions": (most.user_regions, self._regions.most_regions()),
            "vmas": (most.vmas, self._regions.most_vmas()),
            "clients": (most.clients, connections.attached),
            "connections": (most.connections, connections.most()),
            "memory": (most.memory, self._regions.mapped_bytes()),
            "descriptors": (most.descriptors, proc.open_count()),
        }
        return [number for name in mountpoint.LIMITS for number in found[name]]

    @contextlib.asynccontextmanager
    async def turn(self, user: int, tid: int) -> AsyncIterator[None]:
        """A turn of thread `tid` of `user`, for what is not asked by `answer`."""
        turn = await self._control.turns.take(user, tid)
        try:
            yield
        finally:
            self._control.turns.charge(user, turn)

    async def answer(
        self, ident: int, command: int, data: bytes, flags: int, tid: int, user: int
    ) -> tuple[int, bytes]:
        """The result and the output for thread `tid`, on a descriptor open with `flags`."""
        turn = await self._control.turns.take(user, tid)
        try:
            return await self._answer(ident, command, data, flags, tid, user)
        finally:
            self._control.turns.charge(user, turn)

    async def _answer(
        self, ident: int, command: int, data: bytes, flags: int, tid: int, user: int
    ) -> tuple[int, bytes]:
        region = self._regions.find(ident)
        await region.settle()
        if command == lib.MSHAREFS_CONNECT:  # our own, also before the region is sized
            return await self._control.connect(region, flags, data, processes.process_of(tid), user)
        if command == lib.MSHAREFS_SET_OWNER:  # ours, too
            await self._regions.set_owner(ident, data, flags, tid, user)
            return 0, b""
        if not region.frozen:
            region.sized()
        try:
            if command in HANDLERS:
                return 0, await HANDLERS[command](region, data, flags, tid)
            await self._change(region, command, data, flags, tid, user)
        except OSError as error:
            region.refused(processes.process_of(tid), error)
            raise
        return 0, b""

    @staticmethod
    async def _change(
        region: Region, command: int, data: bytes, flags: int, tid: int, user: int
    ) -> None:
        if command == lib.MSHAREFS_CREATE_MAPPING:
            create = verbs.Create.from_bytes(data)
            # If no descriptor is mapped, we need only the caller's limits: a thread will do.
            caller = tid if create.flags & verbs.MAP_ANONYMOUS else processes.process_of(tid)
            await region.create_mapping(create, flags, caller, user)
        elif command == lib.MSHAREFS_UNMAP:
            raw = ffi.from_buffer("struct mshare_unmap *", data)
            await region.unmap(raw.region_offset, raw.size, flags, tid)
        elif command == lib.MSHAREFS_PROTECT:
            raw = ffi.from_buffer("struct mshare_protect *", data)
            await region.protect(raw.region_offset, raw.size, raw.prot, raw.flags, flags, tid)
        else:
            raise OSError(errno.ENOTTY, f"{region.name}: there is no ioctl {command:#x}")
