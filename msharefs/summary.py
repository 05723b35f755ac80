"""All regions of a mount at once, those without a name included: an ioctl on its root directory.

Of each there are the figures of ``stat``. Root and the server's user see all regions, other users
their own. The server writes these records, `regions` reads them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# How many records there are, and the inode number after which to go on: 0, there are no more. In:
# that number alone.
HEAD = struct.Struct("=QQ")
NUMBERS = (
    "inode", "size_bytes", "quantum_bytes", "rss_bytes", "page_table_bytes", "vmas", "clients",
    "user", "owner_pid", "flags", "memory_device", "memory_inode", "budget_bytes",
)  # fmt: skip
COUNTERS = (
    "faults", "links", "materialised_pages", "unmaps", "segv", "prefaulted", "evicted_spans",
    "refaulted_spans",
)  # fmt: skip
RECORD = struct.Struct(f"={len(NUMBERS) + len(COUNTERS)}Q")
MOST = 64
"""Records of one answer."""
SIZE = HEAD.size + MOST * RECORD.size
COMMAND = 3 << 30 | SIZE << 16 | ord("x") << 8 | 0x1A
ADOPTED, DAMAGED, UNNAMED, NAMELESS = 1, 2, 4, 8


def regions(directory: Path) -> list[dict[str, Any]]:
    """What the live mount on `directory` says of its regions, by inode number."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    found: list[dict[str, Any]] = []
    try:
        after, more = 0, True
        while more:
            answer = bytearray(SIZE)
            HEAD.pack_into(answer, 0, 0, after)
            fcntl.ioctl(fd, COMMAND, answer)
            count, after = HEAD.unpack_from(answer)
            found += (_read(answer, HEAD.size + at * RECORD.size) for at in range(count))
            more = after > 0
        return found
    finally:
        os.close(fd)


def _read(answer: bytearray, at: int) -> dict[str, Any]:
    numbers = RECORD.unpack_from(answer, at)
    each = dict(zip(NUMBERS, numbers[: len(NUMBERS)], strict=True))
    flags = each.pop("flags")
    memory = each.pop("memory_device"), each.pop("memory_inode")
    return {
        **each,
        "adopted": bool(flags & ADOPTED),
        "damaged": bool(flags & DAMAGED),
        "unnamed": bool(flags & UNNAMED),
        "nameless": bool(flags & NAMELESS),
        "memory": memory,
        "counters": dict(zip(COUNTERS, numbers[len(NUMBERS) :], strict=True)),
    }


def title(each: dict[str, Any]) -> str:
    """How a region is called that has no name: by its number."""
    what = "adopted memory" if each["adopted"] else "nameless" if each["nameless"] else "unlinked"
    return f"({what} {each['inode']})"


def named(directory: Path) -> list[dict[str, Any]]:
    """`regions`, each with its "name" below `directory`.

    None: it has none, or it is in a directory that this user may not read.
    """
    names = dict(_names(directory, ""))
    return [{"name": names.get(each["inode"]), **each} for each in regions(directory)]


def _names(directory: Path, above: str) -> Iterator[tuple[int, str]]:
    with contextlib.suppress(OSError), os.scandir(directory / above) as entries:
        for entry in sorted(entries, key=lambda found: found.name):
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                name = os.path.join(above, entry.name)
                if stat.S_ISDIR(status.st_mode):
                    yield from _names(directory, name)
                else:
                    yield status.st_ino, name
