"""Processes that take faults on one host mm as fast as they can."""

from __future__ import annotations

import mmap
import os
import random
import signal
from typing import TYPE_CHECKING, Self

from msharefs.native import ffi, lib

from . import libc
from .core import BROKEN, Core, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .steps import Steps

CHUNK = 2000
"""Faults between two looks at whether to stop."""


class Hammer:
    """A process with a slot and a mapping of the host mm of its own."""

    def __init__(self, core: Core, steps: Steps, pages: Sequence[int], seed: int) -> None:
        self._core = core
        self._steps = steps
        self._pages = ffi.new("uint64_t[]", pages)
        # One byte to say "stop", then the verdicts seen.
        self._shared = mmap.mmap(-1, mmap.PAGESIZE)
        self.slot = core.claim(pid=os.getpid())
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(random.Random(seed))
            finally:
                os._exit(0)

    def _run(self, chance: random.Random) -> None:
        libc.die_with_parent()
        self._core.reopen()
        while not self._shared[0]:
            seen = self._steps.hammer(
                self._core.mm, self.slot, self._pages, len(self._pages),
                CHUNK, chance.getrandbits(64),
            )  # fmt: skip
            self._shared[1] |= seen

    @property
    def seen(self) -> set[int]:
        """The verdicts seen so far."""
        return {verdict for verdict in range(BROKEN + 1) if self._shared[1] >> verdict & 1}

    def stop(self) -> None:
        """Lets it come to an end, and frees its slot."""
        self._shared[0] = 1
        _, status = os.waitpid(self.pid, 0)
        assert status == 0, f"a client ended with {status:#x}"
        self._reap()

    def kill(self) -> None:
        """Kills it wherever it is; its slot stays."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def kill_and_reap(self) -> None:
        """Reaps it like the server: the process is gone, and the frame that it had comes back."""
        self.kill()
        self._reap()

    def _reap(self) -> None:
        check(lib.slot_reap(self._core.mm, self.slot))
        self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._shared.closed:
            self.kill_and_reap()
