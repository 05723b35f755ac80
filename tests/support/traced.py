"""One thread of another process, stopped between two of its system calls (ptrace(2))."""

from __future__ import annotations

import os
from typing import Self

from . import libc

_WALL = 0x40000000  # threads too
_BEFORE, _AFTER = 1, 2


class TracedThread:
    """A thread that goes on as far as `stop_at` says, and for good at the end of the context."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._inside: int | None = None
        libc.ptrace(libc.PTRACE_SEIZE, tid, libc.PTRACE_O_TRACESYSGOOD)
        libc.ptrace(libc.PTRACE_INTERRUPT, tid)
        self._wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        libc.ptrace(libc.PTRACE_DETACH, self.tid)

    def stop_at(self, *, before: int | None = None, after: int | None = None) -> None:
        """Let it run until it is about to make one system call, or comes out of another."""
        while True:
            libc.ptrace(libc.PTRACE_SYSCALL, self.tid)
            self._wait()
            where, number = libc.traced_call(self.tid)
            if where == _AFTER and self._inside == after is not None:
                return
            self._inside = number if where == _BEFORE else None
            if self._inside == before is not None:
                return

    def _wait(self) -> None:
        _, status = os.waitpid(self.tid, _WALL)
        assert os.WIFSTOPPED(status), f"the thread ended with status {status:#x}"
