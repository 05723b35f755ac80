"""Calls that a client can hold up, made by other threads; see native/server/hands.h.

Nearly all have ended when they have begun. One that has not is looked at again and again, for a
limited time: whoever asked for it is refused then, but the call stays where it is.
"""

from __future__ import annotations

import errno
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import trio

from msharefs.native import check, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable

HELD_SECONDS = 2.0
"""Whoever asked may be in an ioctl(2), and cannot be killed while it waits for us."""
# After a call that was late no other of that user's is waited for at once.
_REST_SECONDS = 0.02
# Of a processor: a thread that has had no more meanwhile is not at work.
_WORK_NS = 1_000_000
_POLL_SECONDS, _POLL_MOST_SECONDS = 0.0002, 0.02
# Calls that are late, of one user and in all.
_USER_MAX, _MAX = 128, 1024

_late: Counter[int] = Counter()
_impatient: dict[int, float] = {}
_lanes: set[Lane] = set()
"""Those with a call that is late."""


class Turn:
    """A call that is late."""

    result = 0
    over = False


class Lane:
    """Calls of which each begins when the one before has ended, however late that is.

    So what a call does late is done before anything that others want: it need not be taken back.
    """

    def __init__(self, user: int = -1) -> None:
        self.user = user
        """Who pays for its calls."""
        self._call = ffi.new("struct hand_call *")
        self._keeps: dict[str, Any] = {}
        """What the call points to."""
        self._turn: Turn | None = None
        self._why: Callable[[], str] = str
        self._since, self._spent = 0.0, 0
        """When the call was last seen to be at work, and what it had spent by then."""
        self._afterwards: list[Callable[[], object]] = []

    @property
    def busy(self) -> bool:
        """Whether a call is late."""
        if self._turn is not None and lib.hands_ended(self._call):
            self._end()
        return self._turn is not None

    async def do(self, why: Callable[[], str], op: int, **fields: Any) -> int:
        """The result of a call. EBUSY: it, or the one before, waits for a lock too long; `why`."""
        await self.free()
        return await self.result(self.begin(why, op, **fields))

    async def free(self) -> None:
        """Waits until no call is late. EBUSY: it is held up."""
        if self.busy:
            await self._wait_for(None)

    def begin(self, why: Callable[[], str], op: int, **fields: Any) -> Turn | None:
        """Begins a call with these fields; None: it has ended. Precondition: none is late.

        `why` says whom it waits for if it is late. EBUSY: too many of this user's are held up.
        EAGAIN: the server can have no more threads.
        """
        moment = True
        if _impatient or _late:
            moment = time.monotonic() > _impatient.get(self.user, 0)
            if _late[self.user] >= _USER_MAX or _late.total() >= _MAX:
                raise OSError(
                    errno.EBUSY,
                    f"{_late[self.user]} calls that user {self.user} has asked for are held up by "
                    "processes: end those first",
                )
        self._keeps = fields
        self._call.op = op
        for name, value in fields.items():
            setattr(self._call, name, value)
        if check(lib.hands_begin(self._call, moment), "a thread for a call"):
            return None
        self._turn, self._why = Turn(), why
        self._since, self._spent = time.monotonic(), int(lib.hands_spent(self._call))
        _late[self.user] += 1
        _lanes.add(self)
        if moment:
            _impatient[self.user] = self._since + _REST_SECONDS
        return self._turn

    async def result(self, turn: Turn | None) -> int:
        """What comes of a call that `begin` has begun. EBUSY: it is held up."""
        if turn is None:
            return self.outcome
        await self._wait_for(turn)
        return turn.result

    @property
    def outcome(self) -> int:
        """What has come of the last call. Precondition: it is not late."""
        return int(self._call.result)

    async def _wait_for(self, turn: Turn | None) -> None:
        """Waits until it is over, or any that there is."""
        pause = _POLL_SECONDS
        while self.busy and (turn is None or not turn.over):
            self._check()
            await trio.sleep(pause)
            pause = min(2 * pause, _POLL_MOST_SECONDS)

    def drop(self) -> None:
        """Nobody wants what is left of the call that is late."""
        self._call.dropped = True

    def at(self) -> int:
        """The client that the call is at, or was."""
        return int(self._call.at)

    def take_back(self) -> bool:
        """Of a HAND_FINISH that is late: whether it has changed nothing, and never will."""
        return bool(lib.hands_take_back(self._call))

    def afterwards(self, work: Callable[[], object]) -> None:
        """Calls `work` when no call is late; now, if that is so."""
        if self.busy:
            self._afterwards.append(work)
        else:
            work()

    def _check(self) -> None:
        """EBUSY: the call is held up. One that works may take its time."""
        now = time.monotonic()
        # However many a user holds up, they cost no more than one.
        if now < self._since + HELD_SECONDS / max(1, _late[self.user]):
            return
        spent = int(lib.hands_spent(self._call))
        if spent < self._spent + _WORK_NS:
            raise OSError(errno.EBUSY, self._why())
        self._since, self._spent = now, spent

    def _end(self) -> None:
        assert self._turn is not None
        self._turn.result, self._turn.over = int(self._call.result), True
        self._turn = None
        self._keeps = {}
        _lanes.discard(self)
        _late[self.user] -= 1
        if not _late[self.user]:
            del _late[self.user]
            _impatient.pop(self.user, None)
        works, self._afterwards = self._afterwards, []
        for work in works:
            work()


def tend() -> None:
    """To be called now and then: for calls that have ended since, and which nobody waits for."""
    for lane in list(_lanes):
        lane.busy  # noqa: B018  # it looks
