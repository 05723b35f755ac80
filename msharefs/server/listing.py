"""The answer to ``summary.COMMAND``: the figures of all regions, some at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msharefs import summary

from .tree import inode_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from .region import Region
    from .regions import Regions
    from .tree import Tree


async def answer(
    regions: Regions,
    tree: Tree,
    data: bytes,
    user: int,
    turn: Callable[[], AbstractAsyncContextManager[None]],
) -> bytes:
    """The regions after the one in `data`, by inode number: as many as there is room for.

    To look at each is a request of its own, which takes a `turn`.
    """
    _, after = summary.HEAD.unpack_from(data)
    chosen = regions.after(after - inode_of(0), user, summary.MOST + 1)
    now, later = chosen[: summary.MOST], chosen[summary.MOST :]
    records = []
    for ident, maker in now:
        async with turn():
            region = regions.get(ident)
            if region is not None:  # it may be gone meanwhile
                unnamed = region.evicted or tree.is_unlinked(ident)
                flags = summary.UNNAMED if unnamed else 0
                flags |= summary.NAMELESS if region.nameless else 0
                records.append(await _record(region, maker, flags))
    head = summary.HEAD.pack(len(records), inode_of(now[-1][0]) if later else 0)
    return b"".join((head, *records)).ljust(summary.SIZE, b"\0")


async def _record(region: Region, maker: int, flags: int) -> bytes:
    """One region. Where it is damaged, little is known."""
    device = inode = 0
    if region.adopted and region.host is not None:
        flags |= summary.ADOPTED
        device, inode = region.host.memory_identity
    try:
        raw: Any = await region.raw_stat()
    except OSError:
        return _packed(region, maker, flags | summary.DAMAGED, {}, ())
    numbers = {
        "size_bytes": raw.size,
        "rss_bytes": raw.rss,
        "page_table_bytes": raw.page_table_bytes,
        "vmas": raw.vmas,
        "clients": raw.clients,
        "owner_pid": raw.owner_pid,
        "memory_device": device,
        "memory_inode": inode,
        "budget_bytes": raw.budget,
    }
    return _packed(
        region, maker, flags, numbers, tuple(getattr(raw, name) for name in summary.COUNTERS)
    )


def _packed(
    region: Region, maker: int, flags: int, numbers: dict[str, int], counters: tuple[int, ...]
) -> bytes:
    known = {
        "inode": inode_of(region.ident),
        "quantum_bytes": region.quantum,
        "user": maker,
        "flags": flags,
        **numbers,
    }
    return summary.RECORD.pack(
        *(known.get(name, 0) for name in summary.NUMBERS),
        *(counters or (0,) * len(summary.COUNTERS)),
    )
