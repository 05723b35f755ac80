"""Which processes are looked at."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import psutil

from msharefs import proc, processes

if TYPE_CHECKING:
    from pathlib import Path

_FILE_SYSTEMS = ("cgroup2", "cgroup")


def chosen(pids: list[int], *, strict: bool = True) -> list[int]:
    """Those of these processes that are there. `strict`: ProcessLookupError if one is not."""
    there = {pid for pid in pids if psutil.pid_exists(pid)}
    for pid in pids:
        if strict and pid not in there:
            sentence = f"there is no process {pid}: name one that runs (ps -e)"
            if proc.hides():
                sentence = (
                    f"/proc shows no process {pid}: name one that runs (ps -e), and as root those "
                    "of other users, which are hidden (hidepid)"
                )
            raise ProcessLookupError(errno.ESRCH, sentence)
    return sorted(there)


def tree(pid: int, *, strict: bool = True) -> list[int]:
    """A process and all its descendants, without this one."""
    found = chosen([pid], strict=strict)
    children = processes.by_parent(system())
    for parent in found:  # grows meanwhile
        found += children.get(parent, ())
    return found


def cgroup(directory: Path) -> list[int]:
    """The processes of a cgroup, by its directory or its path from the top, and those below it."""
    tops = sorted(
        (mount for mount in proc.mounts() if mount.fstype in _FILE_SYSTEMS),
        key=lambda mount: _FILE_SYSTEMS.index(mount.fstype),
    )
    places = [directory, *(top.directory / str(directory).lstrip("/") for top in tops)]
    place = next((place for place in places if (place / "cgroup.procs").exists()), None)
    if place is None:
        raise FileNotFoundError(
            errno.ENOENT,
            "is no cgroup: name a directory below /sys/fs/cgroup (systemd-cgls shows them)",
            str(directory),
        )
    found: set[int] = set()
    for path in place.rglob("cgroup.procs"):
        try:
            found |= {int(line) for line in path.read_text().split()}
        except OSError:
            continue  # it was removed, or has threads of its own (cgroup.type: threaded)
    found.discard(0)  # of another pid namespace
    return sorted(found)


def system() -> list[int]:
    """All processes that /proc has, without this one."""
    return [pid for pid in psutil.pids() if pid != os.getpid()]
