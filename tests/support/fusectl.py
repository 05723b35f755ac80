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


def waiting(minor: int) -> int:
    """How many requests of a FUSE connection have no answer yet; 0 if it is gone."""
    try:
        return int((CONNECTIONS / str(minor) / "waiting").read_text())
    except FileNotFoundError:
        return 0
