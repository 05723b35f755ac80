"""`msharefs trace`: the ring of events in `.mm`, and the probes for tracers of Linux's."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from click.testing import CliRunner

import msharefs
from msharefs import _native, installed, verbs
from msharefs.cli import cli
from msharefs.cli.trace import EVENTS
from msharefs.native import ffi, lib

from support import rawmm, schema, wait

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "faults=watched")

PAGE = 4096
QUANTUM = 2 << 20
NOW = int(lib.TRACE_FROM_NOW)
EVENT = "<QQQII"

# Attaches, for reading only where it may not write, and does what it is told.
CLIENT = """
import os, sys, msharefs
writes = sys.argv[2] == 'rw'
with msharefs.open(sys.argv[1], os.O_RDWR if writes else os.O_RDONLY) as region:
    view = region.attach(prot=3 if writes else 1)
    for line in sys.stdin:
        word, *numbers = line.split()
        if word == 'read':
            view[int(numbers[0])]
        elif word == 'write':
            view[int(numbers[0])] = 1
        elif word == 'fork':
            pid = os.fork()
            if not pid:
                view[0]
                os._exit(0)
            os.waitpid(pid, 0)
            print(pid, flush=True)
            continue
        print(os.getpid(), flush=True)
"""


class Client:
    """An attached process."""

    def __init__(self, path: str, how: str = "rw") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, path, how],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.pid = self._process.pid
        self.do("hello")

    def do(self, *words: object) -> int:
        assert self._process.stdin
        assert self._process.stdout
        print(*words, file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def end(self) -> None:
        """It ends by itself, or has ended."""
        if self._process.stdout and not self._process.stdout.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.communicate(timeout=20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self.end()


@pytest.fixture
def path(shared_mount: Mount, request: pytest.FixtureRequest) -> Iterator[str]:
    """A region of two quanta, the first half of the first mapped."""
    made = shared_mount.path / request.node.name.replace("[", "-").rstrip("]")
    with msharefs.open(made, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(2 * QUANTUM)
        region.map(0, QUANTUM // 2)
    yield os.fspath(made)
    made.unlink()


class Reader:
    """Reads a region's events as a program would, by `describe`."""

    def __init__(self, region: msharefs.Region) -> None:
        self._region = region
        self._next = NOW
        self()

    def __call__(self) -> list[tuple[str, int, int, int]]:
        """Name, pid, offset and size of each since the last call. None may be lost."""
        events, lost = self.look()
        assert lost == 0
        return events

    def look(self) -> tuple[list[tuple[str, int, int, int]], int]:
        events, lost, more = [], 0, True
        while more:
            found = self._region.describe("trace", self._next)
            self._next, more = found["next"], found["more"]
            lost += found["lost"]
            for _, offset, size, pid, kind in struct.iter_unpack(
                EVENT, base64.b64decode(found["events"])
            ):
                events.append((EVENTS[kind], pid, offset, size))
        return events, lost


@pytest.fixture
def region(path: str) -> Iterator[msharefs.Region]:
    with msharefs.open(path) as opened:
        yield opened


@pytest.fixture
def events(region: msharefs.Region) -> Reader:
    return Reader(region)


def test_events(path: str, region: msharefs.Region, events: Reader) -> None:
    with Client(path) as client:
        assert events() == [("attach", client.pid, 0, 2 * QUANTUM)]
        client.do("write", 0)
        first, second = events()
        assert first[:3] == ("fault", client.pid, 0)
        assert second == ("link", client.pid, 0, QUANTUM)
        client.do("write", QUANTUM // 2 - 1)
        assert [event[:2] for event in events()] == [("fault", client.pid)]
        child = client.do("fork")
        born = ("fork", child, 0, 2 * QUANTUM)
        wait.until(lambda: born in events(), "the server hears of the child")
        region.map(QUANTUM, PAGE)
        region.protect(0, PAGE, lib.VMA_READ)
        region.advise(PAGE, PAGE, verbs.MADV_DONTNEED)
        region.unmap(QUANTUM, PAGE)
        me = os.getpid()
        assert [event for event in events() if event[1] == me] == [
            ("map", me, QUANTUM, PAGE),
            ("protect", me, 0, PAGE),
            ("advise", me, PAGE, PAGE),
            ("unmap", me, QUANTUM, PAGE),
        ]
        client.end()
        gone = ("detach", client.pid, 0, 2 * QUANTUM)
        wait.until(lambda: gone in events(), "the end of the client is told")


def test_pages_taken_back(path: str, region: msharefs.Region, events: Reader) -> None:
    """PROT_NONE has the client take its pages back, which is an event of the client's."""
    with Client(path) as client:
        client.do("write", 0)
        region.protect(0, PAGE, 0)
        assert ("revoke", client.pid, 0, PAGE) in events()


def test_refused_access(path: str, events: Reader) -> None:
    with Client(path) as client:
        with pytest.raises(ValueError, match="invalid literal"):  # SIGSEGV is its answer
            client.do("read", QUANTUM)
        assert ("refused", client.pid, QUANTUM, PAGE) in events()


def test_reader(path: str, events: Reader) -> None:
    """The server writes the events of those who may only read."""
    with Client(path, "ro") as client:
        assert events() == [("attach", client.pid, 0, 2 * QUANTUM)]
        client.do("read", 0)
        first, second = events()
        assert first[:3] == ("fault", client.pid, 0)
        assert second == ("link", client.pid, 0, QUANTUM)


def test_budget(shared_mount: Mount) -> None:
    """Spans given back are events, as many as `clients` counts."""
    made = shared_mount.path / "trace-budget"
    spans = 64
    with msharefs.open(made, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(spans * QUANTUM)
        region.map(0, spans * QUANTUM)
        events = Reader(region)
        view = region.attach(budget=lib.BUDGET_MIN_BYTES)
        for span in range(spans):
            view[span * QUANTUM] = 1
        evicted = []

        def all_told() -> bool:  # the last may be given back after its fault was answered
            evicted.extend(event for event in events() if event[0] == "evict")
            (mine,) = region.clients()
            return len(evicted) == mine["evicted_spans"] > 0

        wait.until(all_told, "each span given back is told once")
        assert all(event[1] == os.getpid() and event[3] == QUANTUM for event in evicted)
        view.release()
    made.unlink()


def test_nothing_is_written_unless_somebody_reads(path: str) -> None:
    with msharefs.open(path) as region:
        view = region.attach()
        for page in range(64):
            view[page * PAGE] = 1
        assert region.describe("trace", 0)["next"] == 0
        view.release()


def test_what_is_lost_is_counted(core_mm: Any) -> None:
    """The ring has room for so many; who comes late is told how many are gone."""
    lib.trace_for(core_mm, 10**12)
    extra = 1000
    for number in range(lib.TRACE_RECORDS + extra):
        lib.trace_note(core_mm, lib.TRACE_map, 7, number, 1)
    found, lost = records(core_mm)
    assert lost == extra
    assert found == list(range(extra, lib.TRACE_RECORDS + extra))


def test_damaged_record_is_lost(core_mm: Any) -> None:
    """A record whose writer died in the middle, or that somebody has scribbled on."""
    lib.trace_for(core_mm, 10**12)
    for number in range(10):
        lib.trace_note(core_mm, lib.TRACE_map, 7, number, 1)
    header = ffi.cast("uint64_t *", core_mm.header)
    records_at = header[rawmm.HEADER["records_at"] // 8] // 8
    fifth = header + records_at + 4 * rawmm.RECORD_WORDS
    for word in range(rawmm.RECORD_WORDS):
        fifth[word] ^= 1 << 5
        assert records(core_mm) == ([0, 1, 2, 3, 5, 6, 7, 8, 9], 1)
        fifth[word] ^= 1 << 5
    assert records(core_mm) == (list(range(10)), 0)


def test_scribbled_count(core_mm: Any) -> None:
    """Whatever a client makes of the count of events, a look ends, and the next goes on."""
    lib.trace_for(core_mm, 10**12)
    header = ffi.cast("uint64_t *", core_mm.header)
    for count in ((1 << 64) - 1, 1 << 63, 1 << 40):
        header[rawmm.HEADER["traced"] // 8] = count
        assert records(core_mm) == ([], count)
    header[rawmm.HEADER["traced"] // 8] = 3
    assert records(core_mm, after=5) == ([], 0)


def test_end_of_the_time(core_mm: Any) -> None:
    lib.trace_for(core_mm, 1)
    lib.trace_note(core_mm, lib.TRACE_map, 7, 0, 1)
    assert records(core_mm) == ([], 0)
    lib.trace_for(core_mm, 0)
    assert not lib.trace_wanted(core_mm)


@pytest.fixture
def core_mm() -> Iterator[Any]:
    from support.core import Core

    with Core() as core:
        yield core.mm


def records(mm: Any, after: int = 0) -> tuple[list[int], int]:
    """The offsets of the events after that number, and how many are lost."""
    events = ffi.new("struct trace_event[]", 2 * lib.TRACE_RECORDS)
    number, lost = ffi.new("uint64_t *", after), ffi.new("uint64_t *")
    count = lib.trace_read(mm, number, events, len(events), lost)
    return [events[at].offset for at in range(count)], lost[0]


# The command


@contextlib.contextmanager
def tracing(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`msharefs trace`, once it traces."""
    process = subprocess.Popen(
        [sys.executable, "-m", "msharefs", "trace", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr
    assert process.stderr.readline().startswith("tracing ")
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def test_command(path: str) -> None:
    """By a region, and by a process; a line for each event, or JSON."""
    with (
        Client(path) as client,
        tracing("--event", "fault", "--count", "1", path) as by_region,
        tracing("--json", "--count", "2", str(client.pid)) as by_process,
    ):
        client.do("write", 0)
        lines, said = by_region.communicate(timeout=20)
        assert by_region.returncode == 0
        assert re.fullmatch(rf" *\d+\.\d{{6}}  pid {client.pid} +fault +0x0+  +\S+ \S+\n", lines)
        assert said == "1 events, 0 lost\n"
        documents, _ = by_process.communicate(timeout=20)
        events: list[dict[str, Any]] = []
        for each in map(json.loads, documents.splitlines()):
            schema.check(each)
            assert each["region"] == path
            assert each["lost_events"] == 0
            events += each["events"]
        assert [event["event"] for event in events] == ["fault", "link"]
        assert {event["pid"] for event in events} == {client.pid}


def test_refusals(path: str, shared_mount: Mount) -> None:
    def said(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["trace", *arguments])
        assert isinstance(result.exception, OSError), result.output
        return str(result.exception)

    assert "no region attached that has a name" in said("1")
    unsized = shared_mount.path / "trace-unsized"
    unsized.touch()
    assert "has no size yet" in said(os.fspath(unsized))
    unsized.unlink()
    assert "is a directory" in said(os.fspath(shared_mount.path))
    with msharefs.open(path, os.O_RDONLY) as region, pytest.raises(PermissionError):
        region.describe("trace", NOW)


# Probes


def probes(file: Path) -> set[str]:
    """The probes of provider msharefs that an ELF file has, as readelf(1) shows them."""
    notes = subprocess.run(["readelf", "-n", file], capture_output=True, text=True, check=True)
    return set(re.findall(r"Provider: msharefs\s+Name: (\w+)", notes.stdout))


def test_probes() -> None:
    """Each event has its probe: in the library for clients, in the server's extension for ours."""
    clients = {"fault", "link", "refused", "evict", "revoke"}
    libraries = Path(installed.libdir())
    assert clients <= probes(libraries / "libmsharefs.so.1")
    assert clients <= probes(libraries / "libmsharefs-preload.so.1")
    assert probes(Path(_native.__file__)) == set(EVENTS)


def test_scripts_use_probes_that_there_are() -> None:
    scripts = Path(__file__).parents[2] / "scripts/trace"
    used = [
        set(re.findall(r"^usdt:\$1:msharefs:(\w+)$", file.read_text(), re.MULTILINE))
        for file in scripts.glob("*.bt")
    ]
    assert len(used) == 3
    assert all(each and each <= set(EVENTS) for each in used)
