"""The demonstration: what page tables cost many processes, with a region and with a plain mapping.

The same processes do the same work twice in one run: one fills the memory, then all the others
verify every page at the same time; first over a region, then over a memfd, which is what programs
use today. All figures are read from the kernel, the processes and the host mm of that run.
"""

from __future__ import annotations

import os
import secrets
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from msharefs import client, proc
from msharefs.launch.private_mount import PrivateMount

from . import serving
from .workers import PAGE_BYTES, Answer, Notify, Workers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from msharefs.documents import Client, Stat

CREATOR = 0  # the worker that fills


class Observer(Protocol):
    """Somebody who wants to see the progress of a run."""

    def step(self, title: str, total: int) -> Notify:
        """A step begins; call the result with amounts that add up to `total`."""


@dataclass(frozen=True)
class Side:
    """The workers' figures over one kind of memory: one for each worker, the creator first."""

    vmpte_bytes: list[int]
    faults: list[int]
    cpu_seconds: float
    attach_seconds: float
    fill_seconds: float
    verify_seconds: float
    detach_seconds: float
    verified: list[Answer]

    @property
    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "vmpte_growth_bytes": sum(self.vmpte_bytes),
            "vmpte_growth_bytes_verifiers": sum(self.vmpte_bytes[1:]),
            "vmpte_growth_bytes_verifier_median": statistics.median(self.vmpte_bytes[1:]),
            "faults": sum(self.faults),
            "faults_verifiers": sum(self.faults[1:]),
            "faults_verifier_median": statistics.median(self.faults[1:]),
            "cpu_seconds": self.cpu_seconds,
            "attach_seconds": self.attach_seconds,
            "fill_seconds": self.fill_seconds,
            "verify_seconds": self.verify_seconds,
            "detach_seconds": self.detach_seconds,
            "verified_pages": sum(answer.pages for answer in self.verified),
            "wrong_pages": sum(answer.wrong for answer in self.verified),
        }


class _Half:
    """One half of the run, over one kind of memory; call the steps in the order they have here."""

    def __init__(self, title: str, workers: Workers, size: int, observer: Observer) -> None:
        self._title = title
        self._workers = workers
        self._size = size
        self._observer = observer
        self._seed = secrets.randbits(63)  # pages of the other half would be found wrong
        self._verifiers = range(CREATOR + 1, len(workers))
        self._seconds: dict[str, float] = {}
        self._serving = 0.0

    def attach(self, command: str) -> None:
        """All attach, or map the memory to compare with, by this command."""
        self._first = self._step("attach", command, range(len(self._workers)))

    def fill(self) -> None:
        """The creator writes every page."""
        command = f"fill {self._seed} {self._size}"
        self._filled = self._step("fill", command, [CREATOR], size=self._size)

    def verify(self) -> None:
        """All the others read every page."""
        command = f"verify {self._seed} {self._size}"
        self._verified = self._step("verify", command, self._verifiers, size=self._size)

    def detach(self) -> None:
        """All detach."""
        self._serving = serving.shadow_seconds(self._workers.pids)
        self._step("detach", "detach", range(len(self._workers)))

    def result(self) -> Side:
        """The differences of each worker's figures before it attached and before it detached."""
        pairs = list(zip(self._first, self._filled + self._verified, strict=True))
        micros = 1e-6
        return Side(
            vmpte_bytes=[last.vmpte_bytes.after - at.vmpte_bytes.before for at, last in pairs],
            faults=[
                last.minor_faults.after - at.minor_faults.before
                + last.major_faults.after - at.major_faults.before
                for at, last in pairs
            ],
            cpu_seconds=self._serving + micros * sum(
                last.user_microseconds.after - at.user_microseconds.before
                + last.system_microseconds.after - at.system_microseconds.before
                for at, last in pairs
            ),
            attach_seconds=self._seconds["attach"],
            fill_seconds=self._seconds["fill"],
            verify_seconds=self._seconds["verify"],
            detach_seconds=self._seconds["detach"],
            verified=self._verified,
        )  # fmt: skip

    def _step(self, name: str, command: str, who: Sequence[int], *, size: int = 0) -> list[Answer]:
        """Do and time a command; progress counts bytes if each visits `size`, or workers."""
        notify = self._observer.step(f"{self._title}: {name}", len(who) * (size or 1))
        started = time.monotonic()
        if size:
            answers = self._workers.ask(command, who, visited=notify)
        else:
            answers = self._workers.ask(command, who, answered=notify)
        self._seconds[name] = time.monotonic() - started
        return answers


def run(processes: int, size: int, observer: Observer) -> dict[str, Any]:
    """Measure with `processes` processes over `size` bytes; the document of ``--json``.

    `size` is a multiple of 4096. ``problems`` has a sentence for everything that was wrong. OSError
    with a sentence: it could not be run here.
    """
    with ExitStack() as stack:
        # Strict: an entry only for a page that was touched, so that faults are counted one by one.
        mount = stack.enter_context(PrivateMount("fault_around=1"))
        plain = os.memfd_create("msharefs-demo", os.MFD_CLOEXEC)
        stack.callback(os.close, plain)
        os.ftruncate(plain, size)
        notify = observer.step("starting processes", processes)
        workers = stack.enter_context(Workers(processes, [plain], notify))
        region, problems = _over_a_region(mount, workers, size, observer)
        half = _Half("plain memfd", workers, size, observer)
        half.attach(f"map {size} {proc.fd_path(plain)}")
        half.fill()
        half.verify()
        half.detach()
        baseline = half.result()
        problems += _wrong("plain memfd", baseline, workers)
    plain_document = baseline.document
    return {
        "processes": processes,
        "size_bytes": size,
        "page_bytes": PAGE_BYTES,
        "machine": {"kernel": os.uname().release, "cpus": len(os.sched_getaffinity(0))},
        "plain": plain_document,
        "mshare": region,
        "ratio": {
            "page_tables": plain_document["vmpte_growth_bytes"] / region["page_table_bytes"],
            "faults": plain_document["faults"] / region["faults"],
        },
        "problems": problems,
    }


def _over_a_region(
    mount: PrivateMount, workers: Workers, size: int, observer: Observer
) -> tuple[dict[str, Any], list[str]]:
    """The half with a region: its contents, the cost of the emulator itself, and the problems."""
    path = mount.directory / "demo"
    half = _Half("msharefs", workers, size, observer)
    with client.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as region:
        quantum = region.stat()["quantum_bytes"]
        region.truncate((size + quantum - 1) // quantum * quantum)
        region.map(0, size)
        half.attach(f"attach {path}")
        half.fill()
        first = region.stat()
        half.verify()
        last, clients, audit = region.stat(), region.clients(), region.describe("audit")
        host_mm_bytes = mount.host_mm_bytes()
        half.detach()
        region.unmap(0, size)  # so that the other half finds as much memory free
    emulator = half.result()
    problems = _wrong("msharefs", emulator, workers)
    problems += _unshared(last, clients, audit, workers)
    return {
        "page_table_bytes": last["page_table_bytes"],
        "page_table_bytes_verifiers": last["page_table_bytes"] - first["page_table_bytes"],
        "faults": _taken(last),
        "faults_verifiers": _taken(last) - _taken(first),
        "links": last["counters"]["links"],
        "table_frames": last["table_frames"],
        "counters": last["counters"],
        "rss_bytes": last["rss_bytes"],
        "host_mm_bytes": host_mm_bytes,
        "emulator": emulator.document,
    }, problems


def _taken(stat: Stat) -> int:
    """Faults that a kernel with msharefs would have taken: first touches and links."""
    counters = stat["counters"]
    return counters["faults"] + counters["links"]


def _wrong(title: str, side: Side, workers: Workers) -> list[str]:
    """Sentences on pages that did not hold what was written."""
    return [
        f"{title}: process {pid} found {answer.wrong} of {answer.pages} pages wrong, "
        f"the first is page {answer.first_wrong}"
        for pid, answer in zip(workers.pids[1:], side.verified, strict=True)
        if answer.wrong
    ]


def _unshared(
    stat: Stat,
    clients: Sequence[Client],
    audit: dict[str, Any],
    workers: Workers,
) -> list[str]:
    """Sentences on whatever was not shared, though it must be."""
    quanta = stat["size_bytes"] // stat["quantum_bytes"]
    problems = []
    if stat["counters"]["links"] != len(workers) * quanta:
        problems.append(
            f"{stat['counters']['links']} links in all, for {len(workers)} processes and "
            f"{quanta} shared tables: one a process and table is right"
        )
    if sorted(found["pid"] for found in clients) != sorted(workers.pids):
        problems.append(
            f"the region knows {len(clients)} clients, not the {len(workers)} there are"
        )
    creator = workers.pids[CREATOR]
    problems += [
        f"process {found['pid']} filled {found['faults']} entries of its own: "
        "it did not find those of the creator"
        for found in clients
        if found["faults"] and found["pid"] != creator
    ]
    problems += [
        f"the audit of the region found {what}: {audit[what]}"
        for what in ("lost", "stray", "bad")
        if audit[what]
    ]
    return problems
