"""The verbs of contents.py as requests: their arguments, and what a descriptor permits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msharefs import proc, processes, verbs
from msharefs.native import ffi, lib

from . import contents, fetching, limits, tracing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .hostmm import HostMM
    from .region import Region


async def _advise(region: Region, data: bytes, mode: int, tid: int) -> bytes:
    ask = ffi.from_buffer("struct mshare_advise *", data)
    host = region.to_change(mode)
    end = verbs.check_advise(ask.region_offset, ask.size, ask.advice, ask.flags, host.size)
    if ask.region_offset < end:
        await contents.advise(host, ask.region_offset, end, ask.advice)
        tracing.change(host, lib.TRACE_advise, tid, ask.region_offset, end)
    return b""


async def _lock(region: Region, data: bytes, mode: int, tid: int) -> bytes:
    ask = ffi.from_buffer("struct mshare_range *", data)
    host = region.to_change(mode)
    verbs.check_flags(ask.pad, 0)
    end = verbs.check_lock(ask.region_offset, ask.size, ask.flags, host.size)
    caller = processes.process_of(tid)
    owner = region.owner
    lives = owner.pid and fetching.is_same(owner.pid, owner.start_time)
    payer = owner.pid if lives else caller

    def admit(size: int) -> None:
        limits.check_lock(payer, size + region.locked_by_owner())

    if ask.region_offset < end:
        await contents.lock(host, ask.region_offset, end, admit)
    return b""


def _on_range(
    change: Callable[[HostMM, int, int], Awaitable[None]],
) -> Callable[[Region, bytes, int, int], Awaitable[bytes]]:
    """A verb that has a range, and no flags."""

    async def work(region: Region, data: bytes, mode: int, tid: int) -> bytes:
        del tid
        ask = ffi.from_buffer("struct mshare_range *", data)
        host = region.to_change(mode)
        verbs.check_flags(ask.flags | ask.pad, 0)
        end = verbs.check_range(ask.region_offset, ask.size, host.size)
        if ask.region_offset < end:
            await change(host, ask.region_offset, end)
        return b""

    return work


async def _sync(region: Region, data: bytes, mode: int, tid: int) -> bytes:
    del mode, tid
    ask = ffi.from_buffer("struct mshare_range *", data)
    host = region.sized()
    verbs.check_flags(ask.pad, 0)
    end = verbs.check_sync(ask.region_offset, ask.size, ask.flags, host.size)
    if ask.region_offset < end:
        await contents.sync(host, ask.region_offset, end, ask.flags)
    return b""


async def _query(region: Region, data: bytes, mode: int, tid: int) -> bytes:
    del mode, tid
    ask = ffi.new("struct mshare_query *")
    ffi.buffer(ask)[:] = data
    host = region.sized()
    end = verbs.check_query(ask.region_offset, ask.size, host.size)
    if ask.region_offset < end:
        found = await contents.query(host, ask.region_offset, end)
        ffi.buffer(ask.vec)[0 : len(found)] = found
    return bytes(ffi.buffer(ask))


async def _mbind(region: Region, data: bytes, mode: int, tid: int) -> bytes:
    ask = ffi.from_buffer("struct mshare_mbind *", data)
    host = region.to_change(mode)
    end = verbs.check_mbind(
        ask.region_offset, ask.size, ask.mode, ask.flags, host.size, ask.maxnode
    )
    if ask.region_offset < end:
        move_all = proc.has_capability(processes.process_of(tid), proc.CAP_SYS_NICE)
        await contents.mbind(host, ask.region_offset, end, ask, move_all=move_all)
    return b""


HANDLERS: dict[int, Callable[[Region, bytes, int, int], Awaitable[bytes]]] = {
    lib.MSHAREFS_ADVISE: _advise,
    lib.MSHAREFS_LOCK: _lock,
    lib.MSHAREFS_UNLOCK: _on_range(contents.unlock),
    lib.MSHAREFS_SEAL: _on_range(contents.seal),
    lib.MSHAREFS_SYNC: _sync,
    lib.MSHAREFS_QUERY: _query,
    lib.MSHAREFS_MBIND: _mbind,
}
"""By ioctl: its answer for a region, with the argument, the mode of the descriptor, the thread."""
