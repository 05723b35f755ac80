"""Private memory that becomes memory of a region: mshare_map() with MSHARE_MAP_FROM."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs

from support import cc, libc
from support.actor import MAP_FIXED, PAGE, READ_WRITE, Actor, accerr, maperr
from support.audit import assert_whole
from support.calls import refused
from support.memory import QUANTUM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

    Actors = Callable[[], Actor]
    Regions = Callable[..., msharefs.Region]

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")

READ = mmap.PROT_READ
PRIVATE = mmap.MAP_PRIVATE | MAP_FIXED
ANONYMOUS = PRIVATE | mmap.MAP_ANONYMOUS
PLACE = 1 << 45
SIZE = 2 * QUANTUM
FROM = Path(__file__).parents[1] / "programs/from.c"


class Process:
    """An actor with private memory at PLACE, full of bytes that are known."""

    def __init__(self, actor: Actor, region: msharefs.Region) -> None:
        self.actor = actor
        self.fd = actor.give(region.fd)
        actor.call("plain-map", PLACE, SIZE, READ_WRITE, ANONYMOUS, -1, 0)
        actor.call("fill", PLACE, SIZE, 5, 0)

    def move(
        self, address: int = PLACE, size: int = SIZE, offset: int = QUANTUM,
        prot: int = READ_WRITE, flags: int = 0, object_fd: int = -1, fd: int = -1,
    ) -> None:  # fmt: skip
        """Make it memory of the region."""
        own = self.fd if fd < 0 else fd
        call = "map-from", own, offset, size, prot, address, flags, object_fd + 1
        assert self.actor.call(*call) == []

    def has_it(self, at: int = PLACE, size: int = SIZE, page: int = 0) -> bool:
        return self.actor.call("check", at, size, 5, page) == [0]


def child_of(process: Process) -> Actor:
    """A child of fork(2), which has loaded a byte of it."""
    child = process.actor.fork(PLACE)
    child.finish()
    return child


@pytest.fixture
def region(make_region: Regions) -> msharefs.Region:
    return make_region(4 * QUANTUM, mapped=False)


SHADOW = pytest.param(
    "shadow", marks=pytest.mark.unsanitized("a shadow knows nothing of a sanitizer's functions")
)


@pytest.fixture(params=["thread", SHADOW])
def process(
    request: pytest.FixtureRequest,
    actors: Actors,
    region: msharefs.Region,
    monkeypatch: pytest.MonkeyPatch,
) -> Process:
    monkeypatch.setenv("MSHAREFS_CLIENT", request.param)
    return Process(actors(), region)


@pytest.fixture
def own(actors: Actors, region: msharefs.Region) -> Process:
    return Process(actors(), region)


def test_the_bytes_are_in_the_region_and_where_they_were(
    process: Process, region: msharefs.Region, actors: Actors
) -> None:
    process.move()
    assert process.has_it()
    (vma,) = region.maps()
    assert (vma["start"], vma["end"], vma["prot"]) == (QUANTUM, QUANTUM + SIZE, "rw-s")
    (client,) = region.clients()
    assert (client["base"], client["offset"], client["size"]) == (PLACE, QUANTUM, SIZE)
    assert region.stat()["rss_bytes"] == SIZE
    assert region.describe("audit")["leaves"] == SIZE // PAGE, "entries came with the pages"
    other = actors()
    there = other.attach(other.give(region.fd), 0, READ_WRITE)
    assert other.call("check", there + QUANTUM, SIZE, 5, 0) == [0]
    other.call("store", there + QUANTUM + 4097, 77)
    assert process.actor.call("load", PLACE + 4097) == [77]
    process.actor.call("store", PLACE + SIZE - 1, 88)
    assert other.call("load", there + QUANTUM + SIZE - 1) == [88]
    assert_whole(region)


def test_relocated_then_read_only_sealed_and_shared(
    process: Process, region: msharefs.Region
) -> None:
    process.move()
    process.actor.call("store", PLACE, 1)
    region.protect(QUANTUM, SIZE, READ)
    region.seal(QUANTUM, SIZE)
    first, second = (child_of(process) for _ in range(2))
    for each in (process.actor, first, second):
        assert each.call("load", PLACE) == [1]
        assert each.call("store", PLACE, 2) == accerr(PLACE)
    with refused(errno.EPERM):
        region.protect(QUANTUM, SIZE, READ_WRITE)
    with refused(errno.EPERM):
        region.unmap(QUANTUM, PAGE)
    assert {client["pid"] for client in region.clients()} == {
        process.actor.pid, first.pid, second.pid,
    }  # fmt: skip
    assert region.stat()["rss_bytes"] == SIZE
    assert_whole(region)


def test_a_child_of_fork_has_the_region_and_no_copy(process: Process) -> None:
    process.move()
    child_of(process).call("store", PLACE + 9, 99)
    assert process.actor.call("load", PLACE + 9) == [99]


def test_read_only_from_the_start(process: Process, region: msharefs.Region) -> None:
    process.move(prot=READ)
    assert process.has_it()
    assert process.actor.call("store", PLACE, 1) == accerr(PLACE)
    assert region.maps()[0]["prot"] == "r--s"


def test_it_ends_as_any_attachment(process: Process) -> None:
    process.move()
    process.actor.call("detach", PLACE)
    assert process.actor.call("load", PLACE) == maperr(PLACE)


def test_a_private_file_with_pages_of_its_own(own: Process, region: msharefs.Region) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(range(256)) * (SIZE // 256))
        file.flush()
        at = PLACE + 4 * SIZE
        given = own.actor.give(file.fileno())
        own.actor.call("plain-map", at, SIZE, READ_WRITE, PRIVATE, given, 0)
        own.actor.call("store", at + 4096, 200)
        own.move(at)
        with msharefs.open(region.path) as other, other.attach().toreadonly() as view:
            assert view[QUANTUM + 4096] == 200
            assert (
                bytes(view[QUANTUM + 4097 : QUANTUM + SIZE])
                == (bytes(range(256)) * (SIZE // 256))[4097:]
            )
        assert own.actor.call("load", at + 4097) == [1]
        os.lseek(file.fileno(), 4096, os.SEEK_SET)
        assert file.read(1) == b"\0", "the file has nothing of it"


def test_zeros_take_no_memory(own: Process, region: msharefs.Region) -> None:
    at = PLACE + 4 * SIZE
    own.actor.call("plain-map", at, SIZE, READ_WRITE, ANONYMOUS, -1, 0)
    own.actor.call("store", at + QUANTUM, 3)
    own.move(at)
    assert region.stat()["rss_bytes"] == 1 << 16
    assert own.actor.call("load", at) == [0]
    assert own.actor.call("load", at + QUANTUM) == [3]


def test_no_store_of_another_thread_is_lost(shared_mount: Mount, tmp_path: Path) -> None:
    program = cc.build(FROM, tmp_path / "from")
    for number in range(3):
        path = shared_mount.path / f"raced{number}"
        done = subprocess.run(
            [program, path], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        path.unlink()


# What is refused


@pytest.fixture
def unharmed(own: Process, region: msharefs.Region) -> Iterator[Process]:
    """Nothing of it may have changed after the test."""
    before = region.maps()
    yield own
    assert own.has_it()
    assert region.maps() == before
    assert region.clients() == []
    own.actor.call("store", PLACE, 250)
    child_of(own).call("store", PLACE, 251)
    assert own.actor.call("load", PLACE) == [250], "it is private"
    assert_whole(region)


@pytest.mark.parametrize(
    ("change", "number"),
    [
        ({"address": PLACE + PAGE, "size": QUANTUM}, errno.EINVAL),
        ({"size": QUANTUM + PAGE}, errno.EINVAL),
        ({"size": 0}, errno.EINVAL),
        ({"offset": PAGE}, errno.EINVAL),
        ({"offset": 4 * QUANTUM}, errno.EINVAL),
        ({"offset": 3 * QUANTUM}, errno.EINVAL),
        ({"flags": mmap.MAP_ANONYMOUS}, errno.EINVAL),
        ({"flags": 0x40000}, errno.EINVAL),  # MAP_HUGETLB
        ({"object_fd": 0}, errno.EINVAL),
        ({"prot": 0x100}, errno.EINVAL),
        ({"address": PLACE + QUANTUM}, errno.ENOMEM),
        ({"address": PLACE + 8 * SIZE}, errno.ENOMEM),
        ({"address": 1 << 47}, errno.ENOMEM),
        ({"fd": 1000}, errno.EBADF),
    ],
)
def test_bad_arguments(unharmed: Process, change: dict[str, int], number: int) -> None:
    with refused(number):
        unharmed.move(**change)


def test_no_region(unharmed: Process, region: msharefs.Region) -> None:
    other = unharmed.actor.give(os.open(os.devnull, os.O_RDWR))
    with refused(errno.ENOTTY):
        unharmed.move(fd=other)
    reads = unharmed.actor.give(os.open(region.path, os.O_RDONLY))
    with refused(errno.EACCES):
        unharmed.move(fd=reads)


def test_no_size(unharmed: Process, shared_mount: Mount) -> None:
    path = shared_mount.path / "unsized"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as unsized, refused(errno.EINVAL):
        unharmed.move(fd=unharmed.actor.give(unsized.fd))
    path.unlink()


@pytest.mark.parametrize("offset", [QUANTUM, 3 * QUANTUM - PAGE])
def test_something_is_there(own: Process, region: msharefs.Region, offset: int) -> None:
    region.map(offset, PAGE)
    with refused(errno.EEXIST):
        own.move()
    assert own.has_it()
    assert [(vma["start"], vma["end"]) for vma in region.maps()] == [(offset, offset + PAGE)]


def test_a_part_is_not_private(unharmed: Process) -> None:
    at = PLACE + 4 * SIZE
    unharmed.actor.call("plain-map", at, SIZE, READ_WRITE, ANONYMOUS, -1, 0)
    shared = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_FIXED
    unharmed.actor.call("plain-map", at + SIZE - PAGE, PAGE, READ_WRITE, shared, -1, 0)
    with refused(errno.EINVAL):
        unharmed.move(at)


def test_a_part_cannot_be_read(unharmed: Process) -> None:
    at = PLACE + 4 * SIZE
    unharmed.actor.call("plain-map", at, SIZE, READ_WRITE, ANONYMOUS, -1, 0)
    unharmed.actor.call("plain-protect", at + PAGE, PAGE, 0)
    with refused(errno.EACCES):
        unharmed.move(at)


def test_a_part_is_beyond_the_end_of_a_file(unharmed: Process) -> None:
    at = PLACE + 4 * SIZE
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE - PAGE)
        given = unharmed.actor.give(file.fileno())
        unharmed.actor.call("plain-map", at, SIZE, READ_WRITE, PRIVATE, given, 0)
    with refused(errno.EFAULT):
        unharmed.move(at)


def test_a_region_that_is_attached(
    own: Process, make_region: Regions, region: msharefs.Region
) -> None:
    """Also one whose window is private memory: a reader's."""
    other = make_region(SIZE)
    for mode, prot in ((os.O_RDWR, READ_WRITE), (os.O_RDONLY, READ)):
        fd = own.actor.give(os.open(other.path, mode))
        there = own.actor.attach(fd, 0, prot)
        with refused(errno.EINVAL):
            own.move(there)
        assert own.actor.call("load", there) == [0]
        own.actor.call("detach", there)
    assert region.maps() == []


def test_sealed_memory(shared_mount: Mount) -> None:
    """mseal(2) is for ever, so in a process of its own."""
    script = f"""
import ctypes, errno, mmap, msharefs, os
C = ctypes.CDLL(None, use_errno=True)
C.mmap.restype = ctypes.c_void_p
C.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
assert C.mmap({PLACE}, {SIZE}, 3, {ANONYMOUS}, -1, 0) == {PLACE}
ctypes.memset({PLACE}, 7, {SIZE})
assert C.syscall(462, ctypes.c_void_p({PLACE + PAGE}), {PAGE}, 0) == 0
with msharefs.open({str(shared_mount.path / "sealed")!r}, os.O_RDWR | os.O_CREAT) as region:
    region.truncate({SIZE})
    try:
        region.map_from({PLACE}, {SIZE})
    except PermissionError:
        assert region.maps() == []
        assert ctypes.string_at({PLACE}, {SIZE}) == bytes([7]) * {SIZE}
        print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("refused\n", "")
    (shared_mount.path / "sealed").unlink()


def test_what_fails_late_is_put_back(
    actors: Actors, region: msharefs.Region, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window is there already when the budget turns out to be nonsense."""
    monkeypatch.setenv("MSHAREFS_PT_BUDGET", "1")
    own = Process(actors(), region)
    own.actor.call("plain-protect", PLACE + QUANTUM, PAGE, READ)
    with refused(errno.EINVAL):
        own.move()
    assert own.has_it()
    assert region.maps() == []
    assert own.actor.call("store", PLACE + QUANTUM, 1) == accerr(PLACE + QUANTUM)
    own.actor.call("store", PLACE, 250)
    child_of(own).call("store", PLACE, 251)
    assert own.actor.call("load", PLACE) == [250]
    own.actor.call("plain-unmap", PLACE, SIZE)
    assert_whole(region)


# In Python


@pytest.fixture
def memory() -> Iterator[int]:
    """Two quanta of private memory of this process, "m" from end to end."""
    libc.map_at(PLACE, SIZE, READ_WRITE, ANONYMOUS, -1)
    libc.bytes_at(PLACE, SIZE)[:] = b"m" * SIZE
    yield PLACE
    libc.unmap_at(PLACE, SIZE)


def test_python(region: msharefs.Region, memory: int) -> None:
    with region.map_from(memory, SIZE, QUANTUM) as view:
        assert bytes(view) == b"m" * SIZE
        view[5] = 9
    assert region.addresses == [memory]
    with region.attach(prot=READ) as all_of_it:
        assert bytes(all_of_it[QUANTUM : QUANTUM + 8]) == b"mmmmm\tmm"
    region.detach()
    assert region.clients() == []


def test_python_says_why(region: msharefs.Region, memory: int) -> None:
    with pytest.raises(OSError, match="multiples of the quantum 0x200000"):
        region.map_from(memory + PAGE, QUANTUM)
    with pytest.raises(OSError, match="not inside"):
        region.map_from(memory, SIZE, 3 * QUANTUM)
    with pytest.raises(OSError, match="not mapped in this process"):
        region.map_from(memory + SIZE, QUANTUM)
    region.map(0, PAGE)
    with pytest.raises(OSError, match="unmap it first"):
        region.map_from(memory, SIZE)
    region.unmap(0, PAGE)
    assert bytes(libc.bytes_at(memory, SIZE)) == b"m" * SIZE
