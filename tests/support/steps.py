"""Operations of the core in a child process, one instruction at a time (ptrace(2)) or in a loop.

After the death of a process memory is as it was at its last instruction. So stepping through an
operation once, and looking at each new state of shared memory on the way, is as good as killing a
process at every instruction.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from . import libc
from .rawmm import PAGE, VMA

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .core import Core

# Pointers are those of msharefs.native, which has the types.
_FUNCTIONS = """
void stop_fault(void *mm, unsigned slot, void *fault);
void stop_map(void *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot);
void stop_unmap(void *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot);
void stop_protect(void *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot);
void stop_guard(void *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot);
void stop_remove(void *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot);
void stop_seal(void *mm, int mem_fd, uint64_t start, uint64_t end, unsigned prot);
void stop_abort(void *mm, uint64_t start, uint64_t end);
void stop_reap(void *mm, unsigned slot);
void stop_sweep(void *mm);
void stop_recover(void *mm, int mem_fd);
unsigned hammer(void *mm, unsigned slot, const uint64_t *pages, uint64_t count, uint64_t turns,
                uint64_t seed);
void meet_as_client(void *mm, unsigned slot, void *meeting);
uint64_t meet_as_server(void *mm, void *meeting, uint64_t first, uint64_t end);
"""
Steps = Any
"""The functions of steps.c."""


def build(directory: Path, *flags: str) -> Steps:
    """Compiles steps.c with the core, as the core is compiled; loads it."""
    here = Path(__file__).parent
    native = here.parents[1] / "native"
    library = directory / "steps.so"
    subprocess.run(
        ["cc", "-O2", "-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC",
         *flags, f"-I{native}", f"-I{native / 'include'}", "-o", library, here / "steps.c",
         *sorted((native / "core").glob("*.c")), native / "server" / "hostmm.c", "-pthread"],
        check=True,
    )  # fmt: skip
    return libc.load(library, _FUNCTIONS)


class Stepped:
    """A child at the first instruction of one of the stop_...() functions."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        # A step takes two switches between us, which are several times cheaper on one processor.
        self._processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(self._processors)})
        self.pid = os.fork()
        if self.pid == 0:
            try:
                libc.ptrace(libc.PTRACE_TRACEME)
                function(*arguments)
            finally:
                os._exit(0)
        self._wait()
        assert self._signal == signal.SIGSTOP

    def step(self) -> bool:
        """One instruction; False: the operation is over."""
        return self._go(libc.PTRACE_SINGLESTEP) == signal.SIGTRAP

    def blocks(self, number: int) -> bool:
        """Whether a signal would have to wait."""
        return bool(libc.signal_mask(self.pid) >> number - 1 & 1)

    def interrupt(self, number: int) -> None:
        """A signal comes now; then the rest of the operation, at full speed."""
        while number != signal.SIGSTOP:  # blocked signals come later
            number = self._go(libc.PTRACE_CONT, number)

    def finish(self) -> None:
        """The rest of the operation, at full speed."""
        assert self._go(libc.PTRACE_CONT) == signal.SIGSTOP

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended, and was waited for
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.sched_setaffinity(0, self._processors)

    def _go(self, request: int, number: int = 0) -> int:
        libc.ptrace(request, self.pid, data=number)
        self._wait()
        return self._signal

    def _wait(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSTOPPED(status), f"the child ended with status {status:#x}"
        self._signal = os.WSTOPSIG(status)


def states(core: Core, function: Any, *arguments: Any) -> Iterator[int]:
    """Steps through an operation and yields at each new state of shared memory.

    Yields the number of the instruction: the first state is the one before the operation, the last
    the one after it.
    """
    last = b""
    with Stepped(function, *arguments) as child:
        count = 0
        going = True
        while going:
            now = fingerprint(core)
            if now != last:
                yield count
                last = now
            going = child.step()
            count += 1


def fingerprint(core: Core) -> bytes:
    """Everything that an operation on a small region can have changed."""
    raw = core.raw
    pieces = [
        (0, PAGE),
        (raw.slot_at(0), raw.slot_at(4)),
        (raw.vma_at(0, 0), raw.vma_at(0, 0) + 8 * VMA.size),
        (raw.vma_at(0, 1), raw.vma_at(0, 1) + 8 * VMA.size),
        (raw.word_at(0), raw.word_at(24)),
        (raw.frame_at(0), raw.frame_at(min(raw.header("frames_high"), 24))),
    ]
    # Not through the mapping: that would give memory to frames that have none.
    parts = [os.pread(core.fd, end - start, start) for start, end in pieces]
    return b"".join(parts) + os.fstat(core.mem_fd).st_blocks.to_bytes(8, "little")
