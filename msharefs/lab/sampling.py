"""Watching the page tables of running programs: their own, and those of the regions they attach.

A region's figures are read from its objects in the state directory. So unlinked regions are seen
too, and nobody is disturbed. The server is asked only to bring the entries of adopted memory up to
date, which nobody else does.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from msharefs import home, proc
from msharefs.native import ffi, lib
from msharefs.processes import start_time
from msharefs.server import describe
from msharefs.server.view import View

from . import ptmap
from .plan import PGD_SPAN, TABLE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

INTERVAL_SECONDS = 0.05
# Looking takes time from the program's processors: at most this share of one.
COST_SHARE = 0.1
# Samples kept; when there are more, every other one is dropped and the rest stand for longer.
SAMPLES_MAX = 2000
# A new map is drawn when the page tables have grown by this since the last one.
MAP_GROWTH = 1.1
MAPS_MAX = 4
# A server answers in so many milliseconds, or is not asked.
_ANSWER_MS = 1000


def vmpte(pid: int) -> int:
    """Bytes of a process's own page tables; 0 if it is gone or a kernel thread."""
    try:
        size = proc.status(pid, "VmPTE")
    except (ProcessLookupError, PermissionError):
        return 0
    return int(size.removesuffix(" kB")) << 10 if size else 0


class Own(NamedTuple):
    """Bytes of a process's own page tables for a window, the PGD left out."""

    shareable: int
    """Tables that span a quantum or less: with sharing, the host mm has these."""
    upper: int
    """The tables above, which each process keeps: none with a quantum of 512 GiB."""


def own_tables(pid: int, base: int, size: int, quantum: int) -> Own | None:
    """A process's own tables for the window [base, base+size) of a region with this quantum.

    None if they cannot be seen: another user's process, or a kernel before 6.7.
    """
    return _own_tables(pid, [(base, size, 0)], quantum)


def _own_tables(pid: int, parts: Iterable[tuple[int, int, int]], quantum: int) -> Own | None:
    """The same for parts of a region: address, size, offset."""
    cells: set[int] = set()
    try:
        for base, size, _ in parts:
            first, inside = divmod(base, ptmap.CELL_BYTES)
            cells.update(first + cell for cell in ptmap.held_cells(pid, base, size, inside))
    except ProcessLookupError:  # it has ended
        return Own(0, 0)
    except OSError:
        return None
    found = {True: 0, False: 0}
    for span in (ptmap.CELL_BYTES, 1 << 30, PGD_SPAN):
        tables = {cell * ptmap.CELL_BYTES // span for cell in cells}
        found[span <= quantum] += len(tables) * TABLE_BYTES
    return Own(found[True], found[False])


def _linked_quanta(pid: int, parts: Iterable[tuple[int, int, int]], quantum: int) -> set[int]:
    """The quanta of a region of which a process has pages in its own tables."""
    try:
        return {
            cell * ptmap.CELL_BYTES // quantum
            for part in parts
            for cell in ptmap.held_cells(pid, *part)
        }
    except OSError:
        return set()


@dataclass
class Sample:
    """One look; in bytes."""

    seconds: float
    """Seconds since the start."""
    processes: int
    vmpte_bytes: int
    """All their page tables."""
    own_tables_bytes: int
    """Of these, the ones for the regions: sharing would take them away."""
    upper_tables_bytes: int
    """Of these, the ones for the regions above the shared ones: the quantum is below 512 GiB."""
    page_table_bytes: int
    """Bytes of the host mms' tables."""
    clients: int
    """Processes that have a region attached."""
    attachments: int
    mapped_bytes: int
    """Memory mapped in regions, each byte counted once."""
    unseen: int = 0
    """Clients whose own tables for the regions cannot be seen, and are not counted."""


_COUNTERS = ("faults", "prefaulted", "links", "segv")
"""Of a region: what struct mshare_stat and `Region` have by these names."""


@dataclass
class Region:
    """The last figures seen of a region, and the highest."""

    ident: int
    size_bytes: int = 0
    mapped_bytes: int = 0
    clients: int = 0
    page_table_bytes: int = 0
    host_mm_bytes: int = 0
    rss_bytes: int = 0
    faults: int = 0
    prefaulted: int = 0
    links: int = 0
    segv: int = 0
    map: dict[str, Any] | None = field(default=None, repr=False)


class Sampler:
    """Looks again and again while this context lives.

    `processes` gives the processes to look at, `state` is the state directory of the mount. With
    `others` the mount is not these processes' alone: a region counts while one of them has it
    attached, with their attachments, and with its faults since the start.
    """

    def __init__(
        self,
        processes: Callable[[], Iterable[int]],
        state: Path,
        interval: float = INTERVAL_SECONDS,
        *,
        others: bool = False,
    ) -> None:
        self._processes = processes
        self._objects = home.store(state) / "regions"
        self._control = state / "control"
        self._pids: list[int] = []
        self._linked: dict[int, set[tuple[int, int, int]]] = {}
        """Of adopted memory: process, start time and quantum of each link that was seen."""
        self._interval = interval
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="msharefs-sampler", daemon=True)
        self._others = others
        self._seen: set[tuple[int, int]] = set()
        """The processes so far, with their start times; kept where there are others."""
        self._before: dict[int, dict[str, int]] = {}
        """The counters of the regions at the start; kept where there are others."""
        self.samples: list[Sample] = []
        self.regions: dict[int, Region] = {}
        self.error: Exception | None = None
        """The error that ended the watching too early."""

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        if self._others:
            self._bring_up_to_date()
            self._before = dict(self._counters())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def _watch(self) -> None:
        interval = self._interval
        try:
            while True:
                before = time.thread_time()
                self.look()
                cost = time.thread_time() - before
                if len(self.samples) > SAMPLES_MAX:
                    self.samples = self.samples[::2]
                    interval *= 2
                if self._stop.wait(max(interval, cost / COST_SHARE)):
                    break
            self.look()  # at those that are left
        except Exception as error:  # noqa: BLE001  # the report names it; the program goes on
            self.error = error

    def look(self) -> None:
        """Take a sample."""
        pids = self._pids = list(self._processes())
        if self._others:
            self._seen |= {(pid, start_time(pid)) for pid in pids}
        sample = Sample(self.seconds, len(pids), sum(map(vmpte, pids)), *[0] * 6)
        attached: set[int] = set()
        self._bring_up_to_date()
        for path in sorted(self._objects.glob("*.mm")):
            attached |= self._look_at(int(path.stem), sample)
        sample.clients = len(attached)
        self.samples.append(sample)

    def _look_at(self, ident: int, sample: Sample) -> set[int]:
        """Add a region to the sample; the processes that have it attached."""
        try:
            view = View(f"region {ident}", self._objects, ident)
        except OSError:  # it went since we saw its name, or is not ready yet
            return set()
        try:
            raw, clients = view.stat(), self._clients(view)
            if self._others and not clients:
                return set()
            before = self._before.get(ident, {})
            mapped = sum(end - start for start, end in view.ranges())
            whole = (self._objects / f"{ident}.mm").stat().st_blocks * 512
        except OSError:
            return set()
        else:
            self._add(self.regions.setdefault(ident, Region(ident)), sample, {
                "size_bytes": raw.size,
                "mapped_bytes": mapped,
                "clients": len(clients),
                "page_table_bytes": raw.page_table_bytes,
                "host_mm_bytes": whole,
                "rss_bytes": raw.rss,
                **{key: getattr(raw, key) - before.get(key, 0) for key in _COUNTERS},
            })  # fmt: skip
            if view.adopted:
                self.regions[ident].links = self._links(ident, view, clients)
            own_before = sample.own_tables_bytes
            for client in clients:
                parts = client.get("parts", [(client["base"], view.size, 0)])
                own = _own_tables(client["pid"], parts, view.quantum)
                sample.own_tables_bytes += own.shareable if own else 0
                sample.upper_tables_bytes += own.upper if own else 0
                sample.unseen += own is None
            weight = raw.page_table_bytes + sample.own_tables_bytes - own_before
            self._draw(ident, view, clients, weight)
            return {client["pid"] for client in clients}
        finally:
            view.close()

    def _bring_up_to_date(self) -> None:
        """The entries of memory that Linux fills; without a server that answers, they stay."""
        deadline = lib.control_deadline(_ANSWER_MS)
        sock = lib.control_connect_path(os.fsencode(self._control), deadline)
        if sock >= 0:
            message = ffi.new("struct msg *", {"op": lib.MSG_LOOK})
            lib.control_call(sock, message, ffi.NULL, 0, ffi.NULL)
            os.close(sock)

    def _clients(self, view: View) -> list[dict[str, Any]]:
        if view.adopted:
            return describe.adopted(view, self._pids)
        return self._ours(describe.clients(view))

    def _links(self, ident: int, view: View, clients: list[dict[str, Any]]) -> int:
        """Links of adopted memory so far: quanta of which a process has had pages."""
        seen = self._linked.setdefault(ident, set())
        for client in clients:
            who = client["pid"], client["start_time"]
            linked = _linked_quanta(client["pid"], client["parts"], view.quantum)
            seen |= {(*who, quantum) for quantum in linked}
        return len(seen)

    def _ours(self, clients: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those clients that are processes of ours."""
        if not self._others:
            return clients
        return [one for one in clients if (one["pid"], one["start_time"]) in self._seen]

    def _counters(self) -> Iterator[tuple[int, dict[str, int]]]:
        """What each region has counted so far."""
        for path in self._objects.glob("*.mm"):
            with (
                contextlib.suppress(OSError),
                View(path.stem, self._objects, int(path.stem)) as view,
            ):
                raw = view.stat()
                yield int(path.stem), {key: getattr(raw, key) for key in _COUNTERS}

    def _add(self, region: Region, sample: Sample, seen: dict[str, int]) -> None:
        for key, value in seen.items():
            setattr(region, key, max(getattr(region, key), value))
        sample.page_table_bytes += seen["page_table_bytes"]
        sample.attachments += seen["clients"]
        sample.mapped_bytes += seen["mapped_bytes"]

    def _draw(self, ident: int, view: View, clients: list[dict[str, Any]], weight: int) -> None:
        """Keep the map with the most to see: bytes of tables, the region's and its clients'."""
        region = self.regions[ident]
        drawn = [one for one in self.regions.values() if one.map is not None]
        if region.map is None and len(drawn) >= MAPS_MAX:
            return
        if region.map is None or weight > region.map["weight"] * MAP_GROWTH:
            region.map = {**ptmap.of_view(view, clients), "weight": weight}

    def document(self) -> dict[str, Any]:
        """All that was seen, for JSON: peaks, each over all samples; the samples; the regions."""

        def peak(key: str) -> int:
            return max((getattr(sample, key) for sample in self.samples), default=0)

        def total(key: str) -> int:
            return sum(getattr(region, key) for region in self.regions.values())

        own, held = peak("own_tables_bytes"), peak("page_table_bytes")
        regions = [asdict(region) for region in self.regions.values()]
        return {
            "processes": peak("processes"),
            "clients": peak("clients"),
            "attachments": peak("attachments"),
            "mapped_bytes": peak("mapped_bytes"),
            "vmpte_bytes": peak("vmpte_bytes"),
            "own_tables_bytes": own,
            "upper_tables_bytes": peak("upper_tables_bytes"),
            "page_table_bytes": held,
            "host_mm_bytes": total("host_mm_bytes"),
            "unseen_clients": peak("unseen"),
            "ratio": own / held if held else None,
            "region_faults": total("faults"),
            "prefaulted": total("prefaulted"),
            "links": total("links"),
            "samples": [asdict(sample) for sample in self.samples],
            "regions": regions,
            "incomplete": str(self.error) if self.error else None,
        }
