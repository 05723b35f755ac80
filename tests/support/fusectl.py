"""The kernel's list of FUSE connections. Needs nothing of ours: the watchdog uses it alone."""

from __future__ import annotations

from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")


def abort(minor: int) -> None:
    """Cut a FUSE connection: whoever waits for its server gets ECONNABORTED.

    No error if it is gone already.
    """
    try:
        (CONNECTIONS / str(minor) / "abort").write_text("1")
    except FileNotFoundError:
        return
