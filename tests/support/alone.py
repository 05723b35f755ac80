"""Tests that run two at a time, and what must not run beside anything.

`make test` has two processes that take tests. A test with the mark `alone` measures time, or
changes what all processes of the machine share: while it runs, no other test of the clone does.
"""

from __future__ import annotations

import contextlib
import fcntl
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__)


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[None]:
    """A flock(2) on a file, which may be any: nobody reads or writes it. Waits for it."""
    with path.open("rb") as file:
        fcntl.flock(file, how)
        try:
            yield
        finally:
            # Not only closed: a process that was forked meanwhile may still have it open.
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """The time of one test. One that is to be alone has all others wait before the door."""
    with contextlib.ExitStack() as stack:
        with contextlib.ExitStack() as door:
            door.enter_context(locked(HERE.with_name("__init__.py"), fcntl.LOCK_EX))
            stack.enter_context(locked(HERE, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield
