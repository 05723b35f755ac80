"""What changes of a region cost the TLBs of real processors, by the model (msharefs/tlb_model.py).

A look takes time, so it comes after the change and not before each: changes between two looks
count as if they had found the same.
"""

from __future__ import annotations

import logging
from collections import Counter
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
        self._pending: Counter[str] = Counter()
        self._counted: dict[str, Counter[str]] = {verb: Counter() for verb in SHOOTDOWN_VERBS}
        self._ran: dict[int, int] = {}
        """By thread, how long it had run at the last look; nanoseconds."""
        self._looking = trio.Lock()
        self._waiting = False
        self._rest = _LOOK_SECONDS

    def note(self, verb: str) -> None:
        """There was such a change, if anybody is attached."""
        if not self._clients.connected:
            return
        self._pending[verb] += 1
        if not self._waiting:
            self._waiting = True
            trio.lowlevel.spawn_system_task(self._look_later)

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
            pids = {client.pid for client in self._clients.connected.values()}
            start = trio.current_time()
            found, self._ran = await trio.to_thread.run_sync(
                tlb_model.ran_on, pids, self._ran, abandon_on_cancel=True
            )
            self._rest = max(_LOOK_SECONDS, _REST * (trio.current_time() - start))
            pending, self._pending = self._pending, Counter()
            each = {"times": 1, "processes": len(pids), **tlb_model.messages(found)}
            for verb, times in pending.items():
                for name, count in each.items():
                    self._counted[verb][name] += times * count
                    _total[verb][name] += times * count
