"""A look into a region's `.mm` object from outside, while its server is stopped or dead."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from msharefs.native import check, ffi, lib

if TYPE_CHECKING:
    from .server import Mount


def number_of(path: str) -> int:
    """A region's number in its mount, by its path; needs the server."""
    return os.stat(path).st_ino - 2  # FUSE's inode number, see tree.py


def inside_faults(mount: Mount, ident: int) -> set[int]:
    """Processes that are inside a page fault of region number `ident`, dead ones among them."""
    mm = ffi.new("struct mm *")
    fd = os.open(mount.state / "regions" / f"{ident}.mm", os.O_RDWR)
    check(lib.mm_open(mm, fd), f"region {ident}")
    try:
        count = lib.mm_clients(mm, ffi.NULL, 0)
        clients = ffi.new("struct mm_client[]", count)
        count = min(count, lib.mm_clients(mm, clients, count))
        return {client.pid for client in clients[0:count] if client.epoch}
    finally:
        lib.mm_close(mm)
