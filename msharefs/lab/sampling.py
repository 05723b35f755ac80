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
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from msharefs import home, proc
from msharefs.mountpoint import FSTYPE
from msharefs.native import ffi, lib
from msharefs.processes import start_time
from msharefs.server import describe
from msharefs.server.view import View

from . import ptmap, shared_pt
from .missed import Missed, Ours
from .moments import COUNTERS, Region, Sample, by_class
from .plan import PGD_SPAN, TABLE_BYTES
from .survey.objects import SYSV

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

INTERVAL_SECONDS = 0.05
# Looking takes time from the program's processors: at most this share of one.
COST_SHARE = 0.1
# Samples kept; when there are more, every other one is dropped and the rest stand for longer.
SAMPLES_MAX = 2000
# A new map is drawn when the page tables have grown by this since the last one.
MAP_GROWTH = 1.1
MAPS_MAX = 4
# What is not adopted is looked for at most so often.
MISSED_SECONDS = 0.2
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


class Sampler:
    """Looks again and again while this context lives.

    `processes` gives the processes to look at, `state` is the state directory of the mount. With
    `others` the mount is not these processes' alone: a region counts while one of them has it
    attached, with their attachments, and with its faults since the start. `adopt` are the classes
    of memory that the programs were to adopt, each from a size on. `ptshare`: MAP_SHARED_PT has
    Android's rules for them.
    """

    def __init__(
        self,
        processes: Callable[[], Iterable[int]],
        state: Path,
        interval: float = INTERVAL_SECONDS,
        *,
        others: bool = False,
        adopt: Mapping[str, int] | None = None,
        ptshare: bool = False,
    ) -> None:
        self._processes = processes
        self._ptshare = shared_pt.Counted() if ptshare else None
        """Of the moment that is reported."""
        self._missed = Missed(adopt or {})
        self._of_regions: set[Ours] = set()
        """The objects of all regions so far."""
        self._looked = -MISSED_SECONDS
        self._objects = home.store(state) / "regions"
        self._names = home.store(state) / "tree" / "root"
        self._control = state / "control"
        self._devices = {mount.device for mount in proc.mounts() if mount.fstype == FSTYPE}
        """Of what is ours, where a process maps it."""
        with contextlib.suppress(FileNotFoundError):  # there is no mount: a plain program
            self._devices.add(os.stat(self._objects).st_dev)
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
        self._now: dict[int, dict[str, Any]] = {}
        """What is seen of each region in the present look."""
        self.moment: Sample | None = None
        """The sample with most page tables: the moment that is reported."""
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
        self._now = {}
        self._bring_up_to_date()
        for path in sorted(self._objects.glob("*.mm")):
            attached |= self._look_at(int(path.stem), sample)
        sample.clients = len(attached)
        counted = shared_pt.count(pids) if self._ptshare is not None else None
        if counted is not None:
            sample.shared_pt_bytes = counted.own * TABLE_BYTES
        self.samples.append(sample)
        if sample.seconds >= self._looked + MISSED_SECONDS:
            self._looked = sample.seconds
            self._missed.look(pids, self._of_regions, self._devices)
        if self.moment is None or sample.weight > self.moment.weight:
            self.moment, self._ptshare = sample, counted
            for region in self.regions.values():
                region.at_moment(self._now.get(region.ident, {}))

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
            if ident not in self.regions:
                self.regions[ident] = self._region(ident)
            region = self.regions[ident]
            for key in COUNTERS:
                seen = getattr(raw, key) - before.get(key, 0)
                setattr(region, key, max(getattr(region, key), seen))
            region.size_bytes = raw.size
            if view.memory is not None:  # it may have been met before that was known
                region.kind, region.given_name = view.memory.kind, view.memory.name
                self._of_regions.add(Ours(*view.memory_identity, view.memory.kind == SYSV))
                region.links = self._links(ident, view, clients)
            own_before, upper_before = sample.own_tables_bytes, sample.upper_tables_bytes
            for client in clients:
                parts = client.get("parts", [(client["base"], client["size"], client["offset"])])
                own = _own_tables(client["pid"], parts, view.quantum)
                sample.own_tables_bytes += own.shareable if own else 0
                sample.upper_tables_bytes += own.upper if own else 0
                sample.unseen += own is None
            sample.page_table_bytes += raw.page_table_bytes
            sample.attachments += len(clients)
            sample.mapped_bytes += mapped
            self._now[ident] = {
                "mapped_bytes": mapped,
                "clients": len(clients),
                "programs": dict(Counter(client["comm"] for client in clients).most_common()),
                "own_tables_bytes": sample.own_tables_bytes - own_before,
                "upper_tables_bytes": sample.upper_tables_bytes - upper_before,
                "page_table_bytes": raw.page_table_bytes,
                "host_mm_bytes": whole,
                "rss_bytes": raw.rss,
            }
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
                yield int(path.stem), {key: getattr(raw, key) for key in COUNTERS}

    def _region(self, ident: int) -> Region:
        """What a region is that is met for the first time."""
        for directory, _, files in os.walk(self._names):
            for name in files:
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):  # it is gone
                    if os.lstat(path).st_ino == ident:
                        return Region(ident, given_name=os.path.relpath(path, self._names))
        return Region(ident)

    def _draw(self, ident: int, view: View, clients: list[dict[str, Any]], weight: int) -> None:
        """Keep the map with the most to see: bytes of tables, the region's and its clients'."""
        region = self.regions[ident]
        drawn = [one for one in self.regions.values() if one.map is not None]
        if region.map is None and len(drawn) >= MAPS_MAX:
            return
        if region.map is None or weight > region.map["weight"] * MAP_GROWTH:
            region.map = {**ptmap.of_view(view, clients), "weight": weight}

    def document(self) -> dict[str, Any]:
        """All that was seen, for JSON: one moment; the samples; the regions; their classes.

        It is the moment with most page tables. Only counters are those of the end.
        """
        most = self.moment or Sample(*[0] * 9)

        def total(key: str) -> int:
            return sum(getattr(region, key) for region in self.regions.values())

        own, held = most.own_tables_bytes, most.page_table_bytes
        regions = [{"name": one.name, **asdict(one)} for one in self.regions.values()]
        for one in regions:
            if one["map"] is not None:
                one["map"]["name"] = one["name"]
        regions.sort(key=lambda one: one["page_table_bytes"] - one["own_tables_bytes"])
        return {
            "moment_seconds": most.seconds,
            "processes": most.processes,
            "clients": most.clients,
            "attachments": most.attachments,
            "mapped_bytes": most.mapped_bytes,
            "vmpte_bytes": most.vmpte_bytes,
            "own_tables_bytes": own,
            "upper_tables_bytes": most.upper_tables_bytes,
            "page_table_bytes": held,
            "host_mm_bytes": total("host_mm_bytes"),
            "unseen_clients": most.unseen,
            "ratio": own / held if held else None,
            "region_faults": total("faults"),
            "prefaulted": total("prefaulted"),
            "links": total("links"),
            "samples": [asdict(sample) for sample in self.samples],
            "regions": regions,
            "classes": by_class(regions),
            "shared_pt": self._ptshare.document() if self._ptshare is not None else None,
            "not_adopted": self._missed.found(self._of_regions),
            "incomplete": str(self.error) if self.error else None,
        }
