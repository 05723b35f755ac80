"""The server's end of the control protocol, on a real mount: fuzz_server.py --seconds N.

A case is a region of its own and some connections to it, whose messages have any operation,
arguments, text and descriptors, or are cut; and the client that sends them writes anything into the
host mm, as every client can. Afterwards the server must answer everybody else, have no more
descriptors than before, and have logged no traceback.

A case is made from its number alone: `--case N` runs one again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, os.fspath(Path(__file__).parents[1]))

import msharefs
from msharefs.native import lib

from support import namespace, rawmm
from support.hostile import ANSWER_SECONDS, MIB2, SIZE, Case, ServerError
from support.server import TROUBLE, Mount

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLE_SECONDS = 1.0
"""Descriptors that the server has closed by then were open only for its answer."""
BATCH = 20
"""Cases between two looks at the server's descriptors."""


def descriptors(pid: int) -> dict[str, str]:
    """The open files of a process."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def slots(mm: Path) -> dict[int, str]:
    """The slots of a host mm that are not free: process and start time, which keep it open."""
    with mm.open("r+b") as file:
        raw = rawmm.RawMM(file.fileno())
    found = {}
    for slot in range(min(raw.header("slots_high"), lib.MM_SLOTS)):
        at = raw.slot_at(slot)
        if raw.read(at):
            found[slot] = f"{raw.read(at):#x} {raw.read(at + 8)}"
    raw.close()
    return found


class Server:
    """A mount, and its state before it was treated badly."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.check_answers()
        time.sleep(SETTLE_SECONDS)
        self._before = descriptors(mount.pid)

    def check_answers(self) -> None:
        """It must serve a client that does nothing wrong."""
        path = self.mount.path / "good"
        with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
            region.truncate(SIZE)
            region.map(0, SIZE)
            with region.attach() as memory:
                memory[0] = 1
                memory[SIZE - 1] = 2
            region.unmap(0, MIB2)
            region.describe("clients")
        path.unlink()

    def check(self) -> None:
        """Now."""
        self.check_log()
        self.check_answers()
        end = time.monotonic() + ANSWER_SECONDS
        while len(now := descriptors(self.mount.pid)) > len(self._before):
            if time.monotonic() > end:
                more = set(now.items()) - set(self._before.items())
                held = [f"{path}: {slots(Path(path))}" for _, path in more if path.endswith(".mm")]
                raise ServerError(
                    f"the server has descriptors more than before: {sorted(more)}; slots that are "
                    f"not free there: {held}"
                )
            time.sleep(0.05)

    def check_log(self) -> None:
        """It has logged no traceback: errors of clients do not surprise it."""
        if TROUBLE.search(self.mount.text()):
            raise ServerError("the server's log has a traceback")
        if self.mount.process is None or self.mount.process.poll() is not None:
            raise ServerError("the server is gone")


def run(server: Server, numbers: Iterator[int], end: float) -> int:
    """Cases until the time is over; returns how many."""
    done = 0
    number = -1
    try:
        for number in numbers:
            if time.monotonic() >= end:
                break
            Case(server.mount.path, number).run()
            done += 1
            server.check_log()
            if done % BATCH == 0:
                server.check()
        server.check()
    except Exception:
        print(server.mount.text()[-8000:])
        print(
            f"case {number} failed, or one of the {BATCH} before it; to run it again:\n"
            f"    .venv/bin/python tests/fuzz/fuzz_server.py --case {number}"
        )
        raise
    return done


def main() -> None:
    """Mounts, runs, unmounts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--case", type=int, help="this one alone")
    given = parser.parse_args()
    namespace.enter()
    base = Path(tempfile.mkdtemp(dir=namespace.SHM, prefix="fuzz-"))
    mount = Mount(base, ("quantum=2M",), given.seconds + 120)
    try:
        mount.start()
        if given.case is not None:
            numbers = iter([given.case])
        else:
            first = random.SystemRandom().getrandbits(40)
            numbers = iter(range(first, first + (1 << 40)))
        done = run(Server(mount), numbers, time.monotonic() + given.seconds)
        # Regions may stay: a slot that names a living process keeps its region.
        mount.stop()
        print(f"cases: {done}")
    finally:
        mount.clean_up()
        shutil.rmtree(base, ignore_errors=True)


if __name__ == "__main__":
    main()
