"""Looks at many processes that do not wait for any of them for long.

What Linux tells of a process's files and memory it tells only while that is not in the middle of
execve(2), and its address space is not locked. A process can stay so for as long as it likes. So
threads look, and one that waits is left behind with the process that it waits for.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import psutil

from . import proc
from .processes import is_shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator
    from pathlib import Path

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")

# For the first process that keeps us waiting, for any later one, and for all of them.
PROCESS_SECONDS, _LEAST_SECONDS = 1.0, 0.02
ALL_SECONDS = 4.0
_WAITING_MAX = 64
_NOBODY = -1

_waiting: dict[tuple[int, Hashable], threading.Thread] = {}
"""Threads that were left behind, by whom they are for and the processes that they wait for; the
last of those that wait for one."""


class Found(NamedTuple, Generic[K, T]):
    """What came of looks at processes."""

    seen: dict[K, T]
    """By process."""
    unseen: set[K]
    """Those that kept us waiting, or could not be looked at."""
    left: list[K]
    """Those that we did not come to, in order."""

    @property
    def unknown(self) -> set[K]:
        """All of which nothing is known."""
        return self.unseen | set(self.left)


def look(
    pids: Iterable[K],
    at: Callable[[K], T],
    seconds: float = PROCESS_SECONDS,
    *,
    begin_seconds: float = ALL_SECONDS,
    payer: int = _NOBODY,
) -> Found[K, T]:
    """Calls `at` with each of these processes, from other threads; one is unseen if it fails.

    The first one that keeps us waiting has that many seconds, the next half of them, and so on. One
    that an earlier call still waits for is not asked again. None is asked after `begin_seconds`.
    There may be so many waiting threads for each user who is named as `payer`.
    """
    seen: dict[K, T] = {}
    busy = _still_waiting(payer)
    chosen = dict.fromkeys(pids)
    unseen = {pid for pid in chosen if pid in busy}
    left = deque(pid for pid in chosen if pid not in busy)
    patience = seconds
    begun = now = time.monotonic()
    end = begun + ALL_SECONDS
    while left and len(busy) < _WAITING_MAX and now < min(end, begun + begin_seconds):
        results: queue.SimpleQueue[T | OSError] = queue.SimpleQueue()
        over = threading.Event()
        thread = threading.Thread(target=_walk, args=(tuple(left), at, over, results), daemon=True)
        thread.start()
        waits = False
        while left and not waits and (not seen or now < begun + begin_seconds):
            try:
                result = results.get(timeout=min(patience, max(0.0, end - now)))
            except queue.Empty:
                waits = True
            else:
                pid = left.popleft()
                if isinstance(result, OSError):
                    unseen.add(pid)
                else:
                    seen[pid] = result
            now = time.monotonic()
        over.set()
        if waits:
            _waiting[payer, left[0]] = thread
            busy.add(left[0])
            unseen.add(left.popleft())
            patience = max(_LEAST_SECONDS, patience / 2)
    return Found(seen, unseen, list(left))


def _still_waiting(payer: int = _NOBODY) -> set[Hashable]:
    for key, thread in list(_waiting.items()):
        if not thread.is_alive():
            _waiting.pop(key, None)
    return {pid for who, pid in list(_waiting) if who == payer}


def _walk(
    pids: tuple[K, ...],
    at: Callable[[K], T],
    over: threading.Event,
    results: queue.SimpleQueue[T | OSError],
) -> None:
    for pid in pids:
        try:
            results.put(at(pid))
        except OSError as error:
            results.put(error)
        if over.is_set():
            break


class Users(NamedTuple):
    """Processes that keep a mount busy."""

    pids: set[int]
    unseen: set[int]
    """Of these we could not see whether they do."""


def users_of(directory: Path) -> Users:
    """The processes that keep the mount on `directory` busy, as far as this user may see them.

    By the names in /proc alone: its server is not asked.
    """
    found = look(psutil.pids(), lambda pid: any(_is_below(each, directory) for each in _uses(pid)))
    pids = {pid for pid, uses in found.seen.items() if uses and not is_shadow(pid)}
    return Users(pids, found.unknown)


def _is_below(name: str, directory: Path) -> bool:
    return name == str(directory) or name.startswith(f"{directory}/")


def _uses(pid: int) -> Iterator[str]:
    """What a process has open, mapped or entered, by name."""
    with contextlib.suppress(OSError):  # it may be gone, or another user's
        yield from proc.directories(pid)
        yield from proc.open_files(pid).values()
        yield from (mapping.path for mapping in proc.maps(pid))
