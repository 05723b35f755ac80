"""Waiting for a server that does not answer: not without a word, and not for ever.

A request to a stopped server waits in the kernel. A thread beside the verb asks whether the server
answers at all, so that an answer that takes long for good reasons is waited for.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

import click

from msharefs import mountpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from msharefs import proc

# A server answers within 0.2 s. We look that often, and each look may take that long.
LOOK_SECONDS = 0.5
GIVE_UP_SECONDS = 15.0
_KEY = "msharefs.patience"


def watch(path: Path) -> None:
    """`watching`, for the rest of the present verb."""
    context = click.get_current_context(silent=True)
    if context is not None and _KEY not in context.meta:
        context.meta[_KEY] = True
        context.with_resource(watching(path))


@contextlib.contextmanager
def watching(path: Path) -> Iterator[None]:
    """Watch over requests for `path`.

    If its server does not answer, standard error says whom we wait for; and after a while the
    command ends, with a sentence and status 1.
    """
    mount = mountpoint.above(path)
    if mount is None or mount.fstype != mountpoint.FSTYPE:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(mount, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(mount: proc.Mount, done: threading.Event) -> None:
    answered = time.monotonic()
    told = False
    while not done.wait(LOOK_SECONDS):
        answer = _ask(mount)
        while not answer.wait(LOOK_SECONDS) and not done.is_set():
            if time.monotonic() - answered >= GIVE_UP_SECONDS:
                _say(
                    mount,
                    f"{mountpoint.server_of(mount)}, has not answered for {GIVE_UP_SECONDS:g} "
                    "seconds: let it go on (kill -CONT), or end it and mount again",
                )
                os._exit(1)  # nothing wakes the thread that waits
            if not told:
                told = True
                _say(mount, f"waiting for {mountpoint.server_of(mount)}")
        answered = time.monotonic()


def _ask(mount: proc.Mount) -> threading.Event:
    """Ask the server something; the event is its answer, whatever that is."""
    answer = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError):
            mount.directory.stat()
        answer.set()

    # Not a process: to start one may itself wait for the server, which is told of each close.
    threading.Thread(target=ask, daemon=True).start()
    return answer


def _say(mount: proc.Mount, sentence: str) -> None:
    click.echo(f"msharefs: {mount.directory}: {sentence}", err=True)
