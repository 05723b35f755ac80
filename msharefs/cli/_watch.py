"""``--watch SECONDS``: look again and again, and say what has been added since the last look."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Found = TypeVar("Found")

option = click.option(
    "--watch",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Look again and again, with so much time between, until interrupted; of counters, what "
    "was added since the last look. With --json, a line for each look.",
)
count_option = click.option(
    "--count", metavar="N", type=click.IntRange(min=1), help="Of --watch: end after N looks."
)


def looks(
    look: Callable[[], Found], seconds: float | None, count: int | None
) -> Iterator[tuple[Found, Found | None]]:
    """One look, or with `seconds` many (`count` of them): each with the one before."""
    if count is not None and seconds is None:
        raise click.UsageError("--count is for --watch")
    before = None
    started = time.monotonic()
    for number in itertools.count() if seconds is not None else range(1):
        if number:
            time.sleep(max(0.0, started + number * (seconds or 0) - time.monotonic()))
        found = look()
        yield found, before
        before = found
        if number + 1 == count:
            return


def added(now: int | None, before: int | None) -> str:
    """What a counter has grown by, for people; empty where there was no look before."""
    if now is None or before is None:
        return ""
    return f"{now - before:+}"


def growth(now: dict[str, Any], before: dict[str, Any] | None) -> dict[str, int]:
    """What each number of `now` has grown by since `before`."""
    if before is None:
        return {}
    return {
        key: value - before[key]
        for key, value in now.items()
        if isinstance(value, int) and isinstance(before.get(key), int)
    }
