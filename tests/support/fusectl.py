"""The kernel's list of FUSE connections. Imports none of our code: the watchdog uses it alone."""

from __future__ import annotations

from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")


def abort(minor: int) -> None:
    """Cut a FUSE connection: processes that wait for its server get ECONNABORTED.

    No error if it is gone already.
    """
    try:
        (CONNECTIONS / str(minor) / "abort").write_text("1")
    except FileNotFoundError:
        return
