"""The head of a document: when, where and with what something was measured."""

from __future__ import annotations

import datetime as dt
import os
from typing import Any

from msharefs import __version__


def head() -> dict[str, str]:
    """For JSON."""
    return {
        "made_by": __version__,
        "date": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        "host": os.uname().nodename,
        "kernel": os.uname().release,
    }


def line(found: dict[str, Any]) -> str:
    """For people."""
    return (
        f"{found['date']}, {found['host']}, Linux {found['kernel']}, msharefs {found['made_by']}, "
        f"{found['seconds']:.1f} s"
    )
