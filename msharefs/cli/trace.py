"""``msharefs trace``: what happens to a region, event by event."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from msharefs import units
from msharefs.native import ffi, lib

from . import _complete, _json, _region, _show
from .clients import of_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from msharefs.client import Region

_POLL_SECONDS = 0.1
EVENTS = [ffi.string(lib.trace_name(kind)).decode() for kind in range(lib.TRACE_KINDS)]
"""By number (native/core/trace.h says what each is)."""


class Event(NamedTuple):
    """One event; the time is CLOCK_MONOTONIC's, `pid` 0 where no process has asked for it."""

    seconds: float
    name: str
    pid: int
    offset: int
    size: int


class Traced:
    """A region whose events are read one after the other."""

    def __init__(self, path: str, region: Region) -> None:
        self.path = path
        self._region = region
        self._next = int(lib.TRACE_FROM_NOW)

    def read(self) -> tuple[list[Event], int]:
        """The events since the last call, and how many others there were but are lost."""
        events: list[Event] = []
        lost, more = 0, True
        while more:
            found = self._region.describe("trace", self._next)
            self._next, more = found["next"], found["more"]
            lost += found["lost"]
            raw = ffi.from_buffer("struct trace_event[]", base64.b64decode(found["events"]))
            events += [
                Event(each.time_ns / 1e9, EVENTS[each.kind], each.pid, each.offset, each.bytes)
                for each in raw
            ]
        return events, lost


def regions_of(target: str) -> tuple[list[str], int | None]:
    """The regions that are meant, and of a process its number."""
    if not target.isdecimal() or os.path.exists(target):
        _region.check_region(target)
        return [target], None
    pid = int(target)
    paths = {
        client["region"]
        for client in of_target(None)
        if client["pid"] == pid and client["kind"] != "unseen"
    }
    found = sorted(path for path in paths if os.path.exists(path))
    if not found:
        raise OSError(
            errno.ESRCH,
            f"process {pid} has no region attached that has a name; "
            "`msharefs clients MOUNT` lists who has",
        )
    return found, pid


def opened(path: str) -> Region:
    """A region to be traced, which takes the right to write."""
    import msharefs

    if _region.check_region(path).st_size == 0:
        raise OSError(errno.EINVAL, f"{path} has no size yet: nothing can happen to it")
    try:
        return msharefs.open(path, os.O_RDWR)
    except PermissionError as error:
        raise PermissionError(
            error.errno,
            f"{path}: may not be written by you, and to trace it costs those a little who use it: "
            "let its user give you the right (chmod), or trace as root",
        ) from None


def line(event: Event, start: float, path: str | None) -> str:
    """An event for people."""
    who = f"pid {event.pid}" if event.pid else "-"
    where = f"  {_show.printable(path)}" if path else ""
    return (
        f"{event.seconds - start:12.6f}  {who:<12} {event.name:<8} "
        f"{event.offset:#014x}  {units.size(event.size):>9}{where}"
    )


def document(path: str, events: Sequence[Event], lost: int) -> dict[str, Any]:
    """The events of one look at a region."""
    return _json.document(
        "trace",
        {
            "region": path,
            "lost_events": lost,
            "events": [
                {
                    "monotonic_seconds": event.seconds,
                    "event": event.name,
                    "pid": event.pid or None,
                    "offset_bytes": event.offset,
                    "size_bytes": event.size,
                }
                for event in events
            ],
        },
    )


def looks(
    traced: Sequence[Traced], seconds: float | None
) -> Iterator[tuple[Traced, list[Event], int]]:
    """What each region has to tell, again and again; a last time when `seconds` are over."""
    end = None if seconds is None else time.monotonic() + seconds
    done = False
    while not done:
        done = end is not None and time.monotonic() >= end
        for each in traced:
            yield each, *each.read()
        left = _POLL_SECONDS if end is None else min(_POLL_SECONDS, end - time.monotonic())
        time.sleep(max(0.0, left))


@click.command()
@click.argument("target", metavar="REGION|PID", shell_complete=_complete.regions)
@click.option(
    "--event", "wanted", type=click.Choice(EVENTS), multiple=True,
    help="Only these events; may be given again.",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True),
    help="End after so long.  [default: when interrupted]",
)  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@_show.json_option
def command(
    target: str, wanted: tuple[str, ...], seconds: float | None, count: int | None, as_json: bool
) -> None:
    """Show what happens to a region, event by event.

    With PID: to all regions that this process has attached, as far as it is its doing.

    Events are written by whoever causes them while somebody reads them, and to memory that has room
    for 16,384: if more happen in a tenth of a second, some are lost, and their number is shown.
    Touches that Linux handles by itself (of memory that is full, and unless the mount has
    -o faults=watched, first ones) are no events.

    With --json, a line for each look at a region that had something to tell.
    """
    paths, pid = regions_of(target)
    shown = lost_in_all = 0
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        traced = [Traced(path, stack.enter_context(opened(path))) for path in paths]
        for each in traced:
            each.read()  # from here on events are written
        click.echo(f"tracing {', '.join(map(_show.printable, paths))}", err=True)
        for each, found, lost in looks(traced, seconds):
            events = [
                event
                for event in found
                if pid in (None, event.pid) and (not wanted or event.name in wanted)
            ]
            if count is not None:
                events = events[: count - shown]
            shown += len(events)
            lost_in_all += lost
            if as_json and (events or lost):
                _show.print_look(document(each.path, events, lost), watched=True)
            elif not as_json:
                for event in events:
                    click.echo(line(event, start, each.path if len(traced) > 1 else None))
                if lost:
                    click.echo(f"{'':12}  {lost} events were lost here")
            if count is not None and shown >= count:
                break
    click.echo(f"{shown} events, {lost_in_all} lost", err=True)
