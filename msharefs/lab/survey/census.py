"""Who is there, and who may be looked at."""

from __future__ import annotations

import pwd
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msharefs import proc

from .look import Process, meet, vmpte

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .objects import Objects

    Notify = Callable[[int], None]


@dataclass
class Census:
    """Who was there, and who could be looked at."""

    seen: list[Process] = field(default_factory=list)
    unseen: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Bytes of page tables of processes that we may not look at, by user."""
    ended: int = 0
    """Since they were listed."""

    @property
    def vmpte_bytes(self) -> int:
        """The page tables of all."""
        hidden = sum(sum(sizes) for sizes in self.unseen.values())
        return hidden + sum(process.vmpte_bytes for process in self.seen)


def census(pids: Iterable[int], objects: Objects, notify: Notify) -> Census:
    """Meet all these processes; threads of the kernel have no page tables and do not count."""
    found = Census()
    for pid in pids:
        notify(1)
        try:
            size = vmpte(pid)
        except ProcessLookupError:
            found.ended += 1
            continue
        if not size:  # a thread of the kernel, or a zombie
            continue
        try:
            process = meet(pid, objects)
        except PermissionError:
            found.unseen[_user(pid)].append(size)
        except ProcessLookupError:
            found.ended += 1
        else:
            if process is None:
                found.ended += 1
            else:
                found.seen.append(process)
    return found


def _user(pid: int) -> str:
    try:
        uid = int(proc.status(pid, "Uid").split()[1])
        return pwd.getpwuid(uid).pw_name
    except (ProcessLookupError, KeyError, IndexError):
        return "somebody"
