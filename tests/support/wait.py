"""Waiting for a state, with a limit: tests do not sleep for luck."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 60.0  # seconds; only a failure waits that long
_POLL = 0.0005


def until(state: Callable[[], object], what: str, *, limit: float = LIMIT) -> None:
    """Wait until `state()` is true; `what` says what was waited for."""
    deadline = time.monotonic() + limit
    while not state():
        assert time.monotonic() < deadline, f"after {limit:g} s still not: {what}"
        time.sleep(_POLL)
