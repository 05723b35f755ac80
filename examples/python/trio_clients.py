"""Clients under trio: what asks the server runs in threads, and each has a deadline.

python trio_clients.py /mnt/log

Loads and stores need nothing of that: they are ordinary ones. But open, map, attach and stat wait
for the server, which may be busy, so they would hold up the loop.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

import msharefs

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 2 << 20
LINE = 64
LIMIT_SECONDS = 10.0


async def ask(work: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """The result of a call that waits for the server; TooSlowError after a while."""
    with trio.fail_after(LIMIT_SECONDS):
        return await trio.to_thread.run_sync(
            partial(work, *arguments, **keywords), abandon_on_cancel=True
        )


async def write(memory: memoryview, number: int) -> None:
    """One client's line of the log."""
    text = f"client {number}".ljust(LINE - 1).encode() + b"\n"
    memory[number * LINE : (number + 1) * LINE] = text
    await trio.lowlevel.checkpoint()


async def main(path: Path) -> None:
    """Make a region; let a hundred tasks write into it, and look at its figures meanwhile."""
    region = await ask(msharefs.open, path, os.O_RDWR | os.O_CREAT)
    try:
        await ask(region.truncate, SIZE)
        await ask(region.map, 0, SIZE)
        memory = await ask(region.attach)
        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(write, memory, number)
            found = await ask(region.stat)
        lines = bytes(memory[: 100 * LINE]).decode().splitlines()
        print(f"{len(lines)} lines; the last one: {lines[-1].strip()}; clients: {found['clients']}")
    finally:
        await ask(region.close)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
