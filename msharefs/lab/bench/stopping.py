"""Processes that stand still while they are looked at, so that all figures are of one moment."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Self

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

# A process stops as soon as it has left its system call.
STOP_SECONDS = 5.0
_POLL_SECONDS = 0.001


class Stopped:
    """Stops processes (SIGSTOP) while this context lives; those that have ended are missing."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        self._processes: list[psutil.Process] = []

    def __enter__(self) -> Self:
        try:
            for pid in self._pids:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(pid)
                    self._processes.append(process)
                    process.suspend()
            deadline = time.monotonic() + STOP_SECONDS
            while any(map(_runs, self._processes)) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def all_stand(self) -> bool:
        """Whether all are there and have not run a step since they were stopped."""
        return len(self._processes) == len(self._pids) and all(
            _status(process) == psutil.STATUS_STOPPED for process in self._processes
        )


def _runs(process: psutil.Process) -> bool:
    return _status(process) not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE, None)


def _status(process: psutil.Process) -> str | None:
    """None: it has ended."""
    try:
        return process.status()
    except psutil.NoSuchProcess:
        return None
