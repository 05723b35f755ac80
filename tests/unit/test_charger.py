"""A charger that Linux does not put where it belongs."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import trio

from msharefs.server import charger

from support.wait import until

LIMIT = 30


def test_a_move_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it for long; what comes of it later is closed, and the process has ended."""
    go_on = threading.Event()
    moved: list[int] = []
    events = os.open("/dev/null", os.O_RDONLY)

    def place(pid: int, _directory: Path | None) -> int:
        moved.append(pid)
        go_on.wait(LIMIT)
        return events

    monkeypatch.setattr(charger, "_place", place)
    monkeypatch.setattr(charger, "ANSWER_SECONDS", 0.3)

    async def main() -> None:
        with trio.fail_after(LIMIT / 2), pytest.raises(OSError, match="moving process") as caught:
            await charger.Charger.start(Path("/sys/fs/cgroup/g"))
        assert caught.value.errno == errno.ETIMEDOUT

    trio.run(main)
    go_on.set()
    (pid,) = moved
    until(lambda: not is_open(events), "it is closed")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
