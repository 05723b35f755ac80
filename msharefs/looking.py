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
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

T = TypeVar("T")

# For the first process that keeps us waiting, for any later one, and for all of them.
PROCESS_SECONDS, _LEAST_SECONDS = 1.0, 0.02
ALL_SECONDS = 4.0
_WAITING_MAX = 64

_waiting: dict[int, threading.Thread] = {}
"""Threads that were left behind, by the processes that they wait for; most lately, if several."""


class Found(NamedTuple, Generic[T]):
    """What came of looks at processes."""

    seen: dict[int, T]
    """By pid."""
    unseen: set[int]
    """Those that kept us waiting, and those that we did not come to."""


def look(pids: Iterable[int], at: Callable[[int], T], seconds: float = PROCESS_SECONDS) -> Found[T]:
    """Calls `at`, which raises nothing, with each of these processes, from other threads.

    The first one that keeps us waiting has that many seconds, the next half of them, and so on. One
    that an earlier call still waits for is not asked again.
    """
    seen: dict[int, T] = {}
    busy = _still_waiting()
    chosen = set(pids)
    unseen = busy & chosen
    left = deque(sorted(chosen - unseen))
    patience = seconds
    end = time.monotonic() + ALL_SECONDS
    while left and len(busy) < _WAITING_MAX and (now := time.monotonic()) < end:
        results: queue.SimpleQueue[T] = queue.SimpleQueue()
        over = threading.Event()
        thread = threading.Thread(target=_walk, args=(tuple(left), at, over, results), daemon=True)
        thread.start()
        with contextlib.suppress(queue.Empty):
            while left:
                seen[left[0]] = results.get(timeout=min(patience, max(0.0, end - now)))
                left.popleft()
                now = time.monotonic()
        over.set()
        if left:
            _waiting[left[0]] = thread
            busy.add(left[0])
            unseen.add(left.popleft())
            patience = max(_LEAST_SECONDS, patience / 2)
    return Found(seen, unseen | set(left))


def _still_waiting() -> set[int]:
    for pid, thread in list(_waiting.items()):
        if not thread.is_alive():
            _waiting.pop(pid, None)
    return set(_waiting)


def _walk(
    pids: tuple[int, ...],
    at: Callable[[int], T],
    over: threading.Event,
    results: queue.SimpleQueue[T],
) -> None:
    for pid in pids:
        results.put(at(pid))
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
    return Users(pids, found.unseen)


def _is_below(name: str, directory: Path) -> bool:
    return name == str(directory) or name.startswith(f"{directory}/")


def _uses(pid: int) -> Iterator[str]:
    """What a process has open, mapped or entered, by name."""
    with contextlib.suppress(OSError):  # it may be gone, or another user's
        yield from proc.directories(pid)
        yield from proc.open_files(pid).values()
        yield from (mapping.path for mapping in proc.maps(pid))
