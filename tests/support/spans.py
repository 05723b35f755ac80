"""A process with a budget of page tables, and a region with more spans than it covers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from .actor import PAGE, Actor
from .proc import status_bytes

if TYPE_CHECKING:
    import msharefs

SPAN = 2 << 20
SPANS = 256
STEP = 64  # pages: 8 of them in a span are touched
TOUCHED = SPANS * SPAN // PAGE // STEP
BUDGET = 64 * PAGE
SLACK = 48 << 10  # page tables beside those of the spans: upper levels, the library's own memory


class Client:
    """An actor that has attached a region."""

    def __init__(self, actor: Actor, region: msharefs.Region, fd: int, base: int) -> None:
        self.actor = actor
        self.region = region
        self.fd = fd
        """The region's descriptor in the actor."""
        self.base = base
        self.before = status_bytes(actor.pid, "VmPTE")

    @classmethod
    def attached(cls, actor: Actor, region: msharefs.Region) -> Self:
        """Attach `region` in the process."""
        fd = actor.give(region.fd)
        return cls(actor, region, fd, actor.attach(fd))

    def fork(self) -> Client:
        """A child, which has the region attached."""
        return Client(self.actor.fork(), self.region, self.fd, self.base)

    @property
    def tables(self) -> int:
        """The growth of its page tables since before it attached, in bytes."""
        return status_bytes(self.actor.pid, "VmPTE") - self.before

    @property
    def locked(self) -> int:
        """Bytes that mlock(2) keeps, VmLck."""
        return status_bytes(self.actor.pid, "VmLck")

    @property
    def seen(self) -> dict[str, Any]:
        """Its entry of `msharefs clients`."""
        entries = {entry["pid"]: entry for entry in self.region.describe("clients")}
        return entries[self.actor.pid]

    def budget(self, size: int) -> None:
        """mshare_budget()."""
        assert self.actor.call("budget", self.base, size) == []

    def stamp(self, first: int = 0, count: int = TOUCHED, step: int = STEP) -> None:
        """Write their number into pages."""
        assert self.actor.call("stamp", self.base, first, count, step) == []

    def wrong(
        self,
        first: int = 0,
        count: int = TOUCHED,
        step: int = STEP,
        passes: int = 1,
        stamp: int = 0,
    ) -> Any:
        """Look at pages; returns how many are not as stamped (or do not hold stamp - 1)."""
        answer = self.actor.call("visit", self.base, first, count, step, passes, stamp)
        return answer[0] if isinstance(answer, list) else answer
