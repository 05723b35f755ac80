"""A look into a region's `.mm` object from outside, while its server is stopped or dead."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

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


def inside_faults(mount: Mount, ident: int) -> set[int]:
    """Processes that are inside a page fault of a region, dead ones among them."""
    with host_mm(mount, ident) as mm:
        count = lib.mm_clients(mm, ffi.NULL, 0)
        clients = ffi.new("struct mm_client[]", count)
        count = min(count, lib.mm_clients(mm, clients, count))
        return {client.pid for client in clients[0:count] if client.epoch}


def is_changing(mount: Mount, ident: int) -> bool:
    """Whether a change of the region has begun and is not finished."""
    with host_mm(mount, ident) as mm:
        count = lib.mm_vmas(mm, ffi.NULL, 0)
        vmas = ffi.new("struct mm_vma[]", count)
        count = min(count, lib.mm_vmas(mm, vmas, count))
        return any(vma.flags & lib.VMA_BUSY for vma in vmas[0:count])
