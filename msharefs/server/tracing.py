"""The ring of events of a region (native/core/trace.h), for ``msharefs trace``."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from msharefs import processes
from msharefs.native import ffi, lib

if TYPE_CHECKING:
    from .view import View

# Clients write events for so long after each look. Nobody has to say that he has seen enough.
_NS = 10 * 10**9
# Of one answer.
_EVENTS = 4096


def note(view: View, kind: int, pid: int, start: int, end: int) -> None:
    """An event that we have to tell of process `pid`."""
    lib.trace_note(view.mm, kind, pid, start, max(0, end - start))


def change(view: View, kind: int, tid: int, start: int, end: int) -> None:
    """A change that thread `tid` has asked for."""
    # To find its process takes two system calls, so a probe is given the thread.
    pid = processes.process_of(tid) or tid if lib.trace_wanted(view.mm) else tid
    note(view, kind, pid, start, end)


def read(view: View, number: int) -> dict[str, Any]:
    """The events from `number` on, as struct trace_event in base64; the number of the next one.

    With TRACE_FROM_NOW none, only that number. `lost` are those that are gone since. `more`: there
    are others already.
    """
    lib.trace_for(view.mm, _NS)
    next_number = ffi.new("uint64_t *", number)
    lost = ffi.new("uint64_t *", 0)
    events = ffi.new("struct trace_event[]", _EVENTS)
    count = lib.trace_read(view.mm, next_number, events, _EVENTS, lost)
    raw = ffi.buffer(events, count * ffi.sizeof("struct trace_event"))
    return {
        "next": next_number[0],
        "lost": lost[0],
        "more": count == _EVENTS,
        "events": base64.b64encode(raw).decode(),
    }
