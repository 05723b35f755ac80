"""A look into a region's `.mm` object from outside, while its server is stopped or dead."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from msharefs.native import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .server import Mount


def number_of(path: str) -> int:
    """A region's number in its mount, by its path; needs the server."""
    return os.stat(path).st_ino - 2  # FUSE's inode number, see tree.py


@contextlib.contextmanager
def host_mm(mount: Mount, ident: int) -> Iterator[Any]:
    """The `struct mm *` of region number `ident`."""
    mm = ffi.new("struct mm *")
    fd = os.open(mount.state / "regions" / f"{ident}.mm", os.O_RDWR)
    check(lib.mm_open(mm, fd), f"region {ident}")
    try:
        yield mm
    finally:
        lib.mm_close(mm)


class Attachment(NamedTuple):
    """One of the clients of a region, perhaps a dead process."""

    pid: int
    epoch: int
    """Not 0: inside a fault."""
    links: int
    faults: int


def attachments(mount: Mount, ident: int) -> list[Attachment]:
    """The attachments of a region."""
    with host_mm(mount, ident) as mm:
        count = lib.mm_clients(mm, ffi.NULL, 0)
        clients = ffi.new("struct mm_client[]", count)
        count = min(count, lib.mm_clients(mm, clients, count))
        return [
            Attachment(client.pid, client.epoch, client.links, client.faults)
            for client in clients[0:count]
        ]


def inside_faults(mount: Mount, ident: int) -> set[int]:
    """Processes that are inside a page fault of a region, dead ones among them."""
    return {client.pid for client in attachments(mount, ident) if client.epoch}


def is_changing(mount: Mount, ident: int) -> bool:
    """Whether a change of the region has begun and is not finished."""
    with host_mm(mount, ident) as mm:
        count = lib.mm_vmas(mm, ffi.NULL, 0)
        vmas = ffi.new("struct mm_vma[]", count)
        count = min(count, lib.mm_vmas(mm, vmas, count))
        return any(vma.flags & lib.VMA_BUSY for vma in vmas[0:count])
