"""What changes of a region cost the TLBs of real processors, by the model (msharefs/tlb_model.py).

A look takes time, so it comes after the change and not before each: changes between two looks
count as if they had found the same processes, with the same parts. A process counts for a change if
it has attached some of the range.
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import trio

from msharefs import tlb_model
from msharefs.mountpoint import SHOOTDOWN_FIGURES, SHOOTDOWN_VERBS, SHOOTDOWNS_STRUCT

if TYPE_CHECKING:
    from .clients import Clients

log = logging.getLogger(__name__)

# A look at thousands of threads takes a while, in which others have to wait.
_LOOK_SECONDS = 0.1
_REST = 20  # times as long as the last look took
_PATIENCE_SECONDS = 1.0


Change = tuple[str, int, int]
"""A verb of SHOOTDOWN_VERBS, and the range [start, end) of the region."""

_total: dict[str, Counter[str]] = {verb: Counter() for verb in SHOOTDOWN_VERBS}


def total() -> bytes:
    """The figures of all regions since the server has started, as far as it has looked."""
    return SHOOTDOWNS_STRUCT.pack(
        *(_total[verb][name] for verb in SHOOTDOWN_VERBS for name in SHOOTDOWN_FIGURES)
    )


class Shootdowns:
    """The model's figures for one region."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._pending: Counter[Change] = Counter()
        self._counted: dict[str, Counter[str]] = {verb: Counter() for verb in SHOOTDOWN_VERBS}
        self._ran: dict[int, int] = {}
        """By thread, how long it had run at the last look; nanoseconds."""
        self._looking = trio.Lock()
        self._waiting = False
        self._ended = False
        self._rest = _LOOK_SECONDS

    def note(self, verb: str, start: int, end: int) -> None:
        """There was such a change of [start, end): it counts if anybody has attached that."""
        if self._ended or not self._clients.connected:
            return
        self._pending[verb, start, end] += 1
        if not self._waiting:
            self._waiting = True
            trio.lowlevel.spawn_system_task(self._look_later)

    def end(self) -> None:
        """The region closes: from now on nobody is attached whom a look could find."""
        self._ended = True
        self._pending.clear()

    async def figures(self) -> dict[str, dict[str, int]]:
        """Each figure for each verb, summed up over all such changes."""
        with trio.move_on_after(_PATIENCE_SECONDS):
            await self._look()
        return {
            verb: {name: counted[name] for name in SHOOTDOWN_FIGURES}
            for verb, counted in self._counted.items()
        }

    async def _look_later(self) -> None:
        await trio.sleep(self._rest)
        self._waiting = False
        try:
            await self._look()
        except Exception:
            log.exception("%s: counting TLB shootdowns failed", self._clients.name)

    async def _look(self) -> None:
        async with self._looking:
            if not self._pending:
                return
            changes, parts = self._pending.copy(), self._clients.parts()
            start = trio.current_time()
            found = None
            # A process can keep us from looking; its region's maker pays for the thread.
            with trio.move_on_after(_PATIENCE_SECONDS):
                found = await trio.to_thread.run_sync(
                    partial(_figures, changes, parts, self._ran),
                    abandon_on_cancel=True,
                    limiter=self._clients.looking(),  # type: ignore[arg-type]  # as trio's
                )
            if found is None:
                return
            counted, self._ran = found
            self._pending -= changes  # others may have come meanwhile
            self._rest = max(_LOOK_SECONDS, _REST * (trio.current_time() - start))
            for verb, figures in counted.items():
                self._counted[verb].update(figures)
                _total[verb].update(figures)


def _figures(
    changes: Counter[Change], parts: list[tuple[int, int, int]], before: dict[int, int]
) -> tuple[dict[str, Counter[str]], dict[int, int]]:
    """The figures of these changes, by verb; and how long each thread has run. For a thread.

    `before` is how long they had run at the last look.
    """
    pids = list({pid for _, _, pid in parts})
    found, times_run = tlb_model.ran_on(pids, before)
    ran = dict(zip(pids, found, strict=True))
    counted: dict[str, Counter[str]] = {verb: Counter() for verb in SHOOTDOWN_VERBS}
    for (verb, start, end), times in changes.items():
        told = {pid for low, high, pid in parts if low < end and high > start}
        if told:
            messages = tlb_model.messages([ran[pid] for pid in told])
            each = {"times": 1, "processes": len(told), **messages}
            counted[verb].update({name: times * count for name, count in each.items()})
    return counted, times_run
