"""Verbs on a range of a region, which hold for all processes at once: what becomes of each."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import verbs
from msharefs.native import ffi, lib

from .conftest import PAGE, SIZE, Process, entries
from support import libc, proc
from support.actor import Actor, maperr
from support.calls import refused
from support.stopping import go_on, stop
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M", "fault_around=1")

PAGES = SIZE // PAGE
R, RW = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE
FILE = mmap.MAP_SHARED | verbs.MAP_FIXED


def assert_sound(region: msharefs.Region) -> None:
    found = region.describe("audit")
    assert not any(found[name] for name in ("held", "lost", "stray", "bad", "vmas")), found


DROPPED = [verbs.MADV_DONTNEED, verbs.MADV_COLD, verbs.MADV_PAGEOUT]


@pytest.mark.parametrize("advice", DROPPED)
def test_entries_go_for_all_and_data_stay(
    region: msharefs.Region, two: list[Process], advice: int
) -> None:
    assert min(process.mapped() for process in two) >= SIZE
    region.advise(0, SIZE, advice)
    assert max(process.mapped() for process in two) < SIZE // 2
    assert entries(region) == 0
    for process in two:
        assert process.is_right()
    assert entries(region) == PAGES
    assert_sound(region)


@pytest.mark.parametrize("advice", [verbs.MADV_DONTNEED, verbs.MADV_GUARD_INSTALL])
def test_nothing_changes_while_a_process_is_stopped(
    region: msharefs.Region, two: list[Process], advice: int
) -> None:
    before = region.maps()
    stop(two[1].actor)
    with pytest.raises(OSError, match=rf"{two[1].actor.pid}.*let it go on") as caught:
        region.advise(0, SIZE, advice)
    assert caught.value.errno == errno.EBUSY
    assert (region.maps(), entries(region)) == (before, PAGES)
    assert two[0].is_right()
    go_on(two[1].actor)
    assert two[1].is_right()
    region.advise(0, SIZE, advice)
    assert entries(region) == 0


def test_contents_go_for_all_also_for_the_stopped(
    region: msharefs.Region, two: list[Process]
) -> None:
    stop(two[1].actor)
    region.advise(0, SIZE, verbs.MADV_REMOVE)
    assert region.stat()["rss_bytes"] == 0
    assert two[0].actor.call("load", two[0].base + PAGE) == [0]
    go_on(two[1].actor)
    assert two[1].actor.call("look", two[1].base, 3) == [0, 0, 0]
    assert entries(region) == 3
    assert len(region.maps()) == 1
    assert_sound(region)


def test_guards_are_for_all(region: msharefs.Region, two: list[Process]) -> None:
    region.advise(PAGE, PAGE, verbs.MADV_GUARD_INSTALL)
    for process in two:
        assert process.actor.call("load", process.base + PAGE) == maperr(process.base + PAGE)
        assert process.actor.call("load", process.base) != maperr(process.base)
    region.advise(0, SIZE, verbs.MADV_GUARD_REMOVE)
    for process in two:
        assert process.is_right()
    assert len(region.maps()) == 1


def populates(region: msharefs.Region) -> Iterator[tuple[int, Callable[[], None]]]:
    read, write = verbs.MADV_POPULATE_READ, verbs.MADV_POPULATE_WRITE
    yield 8, lambda: region.advise(0, 8 * PAGE, read)
    yield 24, lambda: region.advise(8 * PAGE, 16 * PAGE, write)
    yield PAGES, lambda: region.advise(0, SIZE, read)


def test_what_is_populated_is_there(region: msharefs.Region, actor_program: Path) -> None:
    for pages, populate in populates(region):
        populate()
        assert entries(region) == pages
        assert region.stat()["rss_bytes"] == pages * PAGE
        assert sum(region.query(0, SIZE)) == pages
    region.protect(0, PAGE, R)
    with refused(errno.EINVAL):
        region.advise(0, SIZE, verbs.MADV_POPULATE_WRITE)
    assert_sound(region)
    with Actor.launch(actor_program) as actor:
        base = actor.attach(actor.give(region.fd))
        faults = region.stat()["counters"]["faults"]
        assert actor.call("look", base, 8) == [0] * 8
        assert region.stat()["counters"]["faults"] == faults, "nothing is left to fault"


def test_populating_what_does_not_fit(public_tmp: Path) -> None:
    directory = public_tmp / "mnt"
    directory.mkdir()
    command = [sys.executable, "-m", "msharefs"]
    subprocess.run([*command, "mount", "-o", "quantum=2M,size=4M", directory], check=True)
    try:
        with msharefs.open(directory / "r", os.O_RDWR | os.O_CREAT) as region:
            region.truncate(4 * SIZE)
            region.map(0, 4 * SIZE, flags=FILE | mmap.MAP_ANONYMOUS | verbs.MAP_NORESERVE)
            with refused(errno.EFAULT):
                region.advise(0, 4 * SIZE, verbs.MADV_POPULATE_WRITE)
            assert (entries(region), region.stat()["rss_bytes"]) == (0, 0)
    finally:
        subprocess.run([*command, "umount", directory], check=True)


def flags_of(region: msharefs.Region) -> list[tuple[int, int, list[str]]]:
    return [(vma["start"] // PAGE, vma["end"] // PAGE, vma["flags"]) for vma in region.maps()]


def test_advice_is_kept_with_the_mapping(region: msharefs.Region) -> None:
    region.advise(PAGE, PAGE, verbs.MADV_RANDOM)
    region.advise(2 * PAGE, PAGE, verbs.MADV_SEQUENTIAL)
    region.advise(3 * PAGE, PAGE, verbs.MADV_HUGEPAGE)
    assert flags_of(region) == [
        (0, 1, []), (1, 2, ["random"]), (2, 3, ["sequential"]), (3, 4, ["hugepage"]),
        (4, PAGES, []),
    ]  # fmt: skip
    region.advise(0, SIZE, verbs.MADV_NORMAL)
    region.advise(0, SIZE, verbs.MADV_NOHUGEPAGE)
    assert flags_of(region) == [(0, PAGES, ["nohugepage"])]


def test_huge_pages_where_they_are_asked_for(region: msharefs.Region) -> None:
    """A plain mapping shows what the memory is: Linux maps a huge page of it as one."""
    region.advise(0, SIZE, verbs.MADV_COLLAPSE)
    assert entries(region) == PAGES
    assert sum(region.query(0, SIZE)) == PAGES
    with open(region.path, "r+b") as file, mmap.mmap(file.fileno(), 2 * SIZE) as plain:
        assert plain[0] == 0
        smaps = Path("/proc/self/smaps").read_text()
        [text] = re.findall(rf"{re.escape(region.path)}\n(.*?)VmFlags", smaps, re.DOTALL)
        huge = sum(map(int, re.findall(r"(?:ShmemPmdMapped|ShmemHugePages): +(\d+) kB", text)))
        rss = re.search(r"Rss: +(\d+) kB", text)
        assert huge or (rss and int(rss[1]) > 64), text


# Files


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A file of 64 pages, half of what is mapped of it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(range(1, 65)) * PAGE)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def resident(fd: int) -> int:
    """How many of its pages are in memory, as Linux says."""
    vec = ffi.new("uint8_t[64]")
    assert lib.pages_resident(fd, 0, 64 * PAGE, vec) == 0
    return sum(byte & 1 for byte in vec)


def evicted(fd: int) -> int:
    """How many of its pages stay in memory whatever is done: none, but on tmpfs."""
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    left = resident(fd)
    os.pread(fd, 64 * PAGE, 0)
    return left


def test_a_file_is_paged_out_and_comes_back(
    region: msharefs.Region, file: int, actor_program: Path
) -> None:
    least = evicted(file)
    region.map(SIZE, 128 * PAGE, RW, FILE, file)
    with Actor.launch(actor_program) as one, Actor.launch(actor_program) as other:
        bases = [(actor, actor.attach(actor.give(region.fd)) + SIZE) for actor in (one, other)]
        for actor, base in bases:
            assert actor.call("store", base + 5, 99) == []
        assert sum(region.query(SIZE, 64 * PAGE)) == 64 == resident(file)
        region.advise(SIZE, 128 * PAGE, verbs.MADV_PAGEOUT)
        assert sum(region.query(SIZE, 64 * PAGE)) == least == resident(file)
        for actor, base in bases:
            assert actor.call("load", base + 5) == [99]
    assert os.pread(file, 1, 5) == b"\x63"


def test_a_file_is_populated_as_far_as_it_goes(region: msharefs.Region, file: int) -> None:
    region.map(SIZE, 128 * PAGE, RW, FILE, file)
    region.advise(SIZE, 64 * PAGE, verbs.MADV_POPULATE_READ)
    assert entries(region) == 64
    assert sum(region.query(SIZE, 128 * PAGE)) == 64
    with refused(errno.EFAULT):
        region.advise(SIZE, 128 * PAGE, verbs.MADV_POPULATE_READ)
    region.advise(SIZE, 64 * PAGE, verbs.MADV_WILLNEED)
    assert_sound(region)


def test_a_file_is_removed_in_part(region: msharefs.Region, two: list[Process]) -> None:
    memory = os.memfd_create("object")
    os.write(memory, b"x" * 8 * PAGE)
    region.map(SIZE, 8 * PAGE, RW, FILE, memory)
    for process in two:
        assert process.actor.call("load", process.base + SIZE) == [ord("x")]
    stop(two[1].actor)
    region.advise(SIZE, 4 * PAGE, verbs.MADV_REMOVE)
    go_on(two[1].actor)
    for process in two:
        assert process.actor.call("look", process.base + SIZE, 5) == [0, 0, 0, 0, ord("x")]
    reader = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    region.map(SIZE, PAGE, R, FILE, reader)
    with refused(errno.EACCES):
        region.advise(SIZE, 2 * PAGE, verbs.MADV_REMOVE)
    os.close(reader)
    os.close(memory)


def test_what_was_stored_is_on_the_disk(
    region: msharefs.Region, file: int, actor_program: Path
) -> None:
    region.map(SIZE, 64 * PAGE, RW, FILE, file)
    with Actor.launch(actor_program) as actor:
        base = actor.attach(actor.give(region.fd)) + SIZE
        assert actor.call("store", base, 77) == []
        region.sync(0, 2 * SIZE // 2, verbs.MS_ASYNC)
        region.sync(SIZE, 64 * PAGE)
    with open(f"/proc/self/fd/{file}", "rb", buffering=0) as other:
        assert other.read(1) == b"M"


# Locks


def locked(mount: Mount) -> int:
    return proc.status_bytes(mount.pid, "VmLck")


def test_locked_memory_stays_until_it_is_unlocked(
    region: msharefs.Region, shared_mount: Mount, two: list[Process]
) -> None:
    assert locked(shared_mount) == 0
    region.lock(PAGE, 6 * PAGE)
    assert locked(shared_mount) == 6 * PAGE
    assert flags_of(region)[1] == (1, 7, ["locked"])
    with refused(errno.EINVAL):
        region.advise(0, SIZE, verbs.MADV_PAGEOUT)
    assert entries(region) == PAGES
    region.unlock(2 * PAGE, PAGE)
    assert locked(shared_mount) == 5 * PAGE
    region.lock(0, SIZE)
    assert locked(shared_mount) == SIZE
    region.unmap(0, 4 * PAGE)
    region.map(8 * PAGE, PAGE)
    assert locked(shared_mount) == SIZE - 5 * PAGE
    region.unlock(9 * PAGE, SIZE - 9 * PAGE)
    region.unlock(4 * PAGE, 4 * PAGE)
    assert locked(shared_mount) == 0
    assert two[0].actor.call("check", two[0].base + 9 * PAGE, SIZE - 9 * PAGE, 7, 9) == [0]


def test_a_region_that_goes_unlocks_all(shared_mount: Mount) -> None:
    path = shared_mount.path / "gone"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        region.lock(0, SIZE)
        assert locked(shared_mount) == SIZE
        path.unlink()
    until(lambda: locked(shared_mount) == 0, "the region is gone")


# The owner may lock 16 pages in all; who asks for it may lock what he likes.
OWNER = """
import resource, sys, msharefs, os
made = [msharefs.open(path, os.O_RDWR | os.O_CREAT) for path in sys.argv[1:]]
for region in made:
    region.truncate(2 << 20)
    region.map(0, 2 << 20)
resource.setrlimit(resource.RLIMIT_MEMLOCK, (16 * 4096, 16 * 4096))
os.setresuid(65534, 65534, 65534)
print(flush=True)
sys.stdin.read()
"""


def test_locks_are_the_owners(shared_mount: Mount) -> None:
    paths = [shared_mount.path / name for name in ("owned", "too")]
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout
        owner.stdout.readline()
        with msharefs.open(paths[0]) as one, msharefs.open(paths[1]) as other:
            one.lock(0, 10 * PAGE)
            with pytest.raises(OSError, match=rf"process {owner.pid}") as caught:
                other.lock(0, 7 * PAGE)
            assert caught.value.errno == errno.ENOMEM
            assert flags_of(other) == [(0, PAGES, [])]
            other.lock(0, 6 * PAGE)
            owner.communicate()
            other.lock(0, 7 * PAGE)  # the owner has ended: ours are the limits
    for path in paths:
        path.unlink()


# Seals


def test_sealed_mappings_stay_for_all(region: msharefs.Region, two: list[Process]) -> None:
    region.seal(4 * PAGE, 4 * PAGE)
    before = region.maps()
    assert flags_of(region)[1] == (4, 8, ["sealed"])
    other = two[0].actor
    fd = other.give(region.fd)
    for start, size in ((4 * PAGE, PAGE), (0, SIZE), (7 * PAGE, 2 * PAGE)):
        for change in (
            lambda at=start, bytes_=size: region.unmap(at, bytes_),
            lambda at=start, bytes_=size: region.map(at, bytes_),
            lambda at=start, bytes_=size: region.protect(at, bytes_, R),
            lambda at=start, bytes_=size: region.advise(at, bytes_, verbs.MADV_REMOVE),
            lambda at=start, bytes_=size: region.advise(at, bytes_, verbs.MADV_GUARD_INSTALL),
            lambda at=start, bytes_=size: other.call("unmap", fd, at, bytes_),
        ):
            with refused(errno.EPERM):
                change()
    assert region.maps() == before
    region.advise(0, SIZE, verbs.MADV_DONTNEED)
    for process in two:
        assert process.is_right()


def test_a_sealed_region_ends_with_its_owner(
    mounts: Callable[..., Mount], actor_program: Path
) -> None:
    mount = mounts("quantum=2M", "owner=process")
    with Actor.launch(actor_program) as user:
        script = (
            "import msharefs, os, sys\n"
            "with msharefs.open(sys.argv[1], os.O_RDWR | os.O_CREAT) as region:\n"
            "    region.truncate(2 << 20)\n"
            "    region.map(0, 2 << 20)\n"
            "    region.seal(0, 2 << 20)\n"
            "    print(flush=True)\n"
            "    sys.stdin.read()\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, mount.path / "r"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as owner:  # fmt: skip
            assert owner.stdout
            owner.stdout.readline()
            fd = os.open(mount.path / "r", os.O_RDWR)
            base = user.attach(user.give(fd))
            assert user.call("store", base, 1) == []
            owner.communicate()
        with msharefs.open(mount.path / "r") as region:
            assert region.maps() == []
        assert user.call("load", base) == maperr(base)
        os.close(fd)


# Memory policies


def test_pages_are_made_where_the_policy_says(region: msharefs.Region) -> None:
    """On one node nothing shows where a page is; Linux tells the policy of each mapping."""
    bind, interleave = 2, 3
    region.mbind(0, 4 * PAGE, bind, [0])
    region.mbind(4 * PAGE, 4 * PAGE, interleave, [0])
    assert [flags for *_, flags in flags_of(region)] == [["bind:0"], ["interleave:0"], []]
    view = region.attach()
    assert policy_at(region.addresses[0]) == "bind:0"
    view[0] = 1
    start = region.addresses[0]
    assert libc.get_mempolicy(start, libc.MPOL_F_ADDR) == bind
    assert libc.get_mempolicy(start + 4 * PAGE, libc.MPOL_F_ADDR) == interleave
    assert libc.get_mempolicy(start, libc.MPOL_F_ADDR | libc.MPOL_F_NODE) == 0
    region.mbind(0, SIZE, 0)
    assert policy_at(region.addresses[0]) == "default"
    region.mbind(0, 4 * PAGE, bind, [0], verbs.MPOL_MF_STRICT | verbs.MPOL_MF_MOVE)
    region.map(0, SIZE)  # it is new memory
    assert policy_at(region.addresses[0]) == "default"
    assert flags_of(region) == [(0, PAGES, [])]
    region.detach(view)


def policy_at(address: int) -> str:
    text = Path("/proc/self/numa_maps").read_text()
    found = re.search(rf"^{address:x} (\S+)", text, re.MULTILINE)
    assert found, text
    return found[1]


# Over a restart


def test_the_next_server_goes_on_with_it(mounts: Callable[..., Mount]) -> None:
    mount = mounts("quantum=2M")
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
        region.lock(0, 4 * PAGE)
        region.seal(8 * PAGE, PAGE)
        region.mbind(16 * PAGE, PAGE, 2, [0])
        before = region.maps()
    mount.kill()
    mount.start()
    with msharefs.open(mount.path / "r") as region:
        assert region.maps() == before
        with refused(errno.EPERM):
            region.unmap(0, SIZE)
        until(lambda: locked(mount) == 4 * PAGE, "it is locked again")
        region.unlock(0, 4 * PAGE)
    assert locked(mount) == 0


# Bad input

ADVISE, LOCK, UNLOCK, SYNC, SEAL, QUERY, MBIND = (
    lib.MSHAREFS_ADVISE, lib.MSHAREFS_LOCK, lib.MSHAREFS_UNLOCK, lib.MSHAREFS_SYNC,
    lib.MSHAREFS_SEAL, lib.MSHAREFS_QUERY, lib.MSHAREFS_MBIND,
)  # fmt: skip


def argument(command: int, offset: int, size: int) -> bytes:
    """What does the verb on a range, if nothing is wrong with that."""
    start = struct.pack("QQ", offset, size)
    if command == QUERY:
        return start + bytes(4096)
    if command == MBIND:
        return start + struct.pack("IIQ", 0, 0, 0) + bytes(128)
    return start + struct.pack("II", 4 if command == SYNC else 0, 0)


CALLS: dict[str, Callable[[int], int]] = {
    "map": lambda fd: lib.mshare_map(fd, 0, PAGE, RW, FILE | mmap.MAP_ANONYMOUS, -1, 0),
    "unmap": lambda fd: lib.mshare_unmap(fd, 0, PAGE),
    "protect": lambda fd: lib.mshare_protect(fd, 0, PAGE, R),
    "advise": lambda fd: lib.mshare_advise(fd, 0, PAGE, verbs.MADV_DONTNEED),
    "lock": lambda fd: lib.mshare_lock(fd, 0, PAGE, 0),
    "unlock": lambda fd: lib.mshare_unlock(fd, 0, PAGE),
    "mbind": lambda fd: lib.mshare_mbind(fd, 0, PAGE, 0, ffi.NULL, 0, 0),
    "seal": lambda fd: lib.mshare_seal(fd, 0, PAGE),
    "sync": lambda fd: lib.mshare_sync(fd, 0, PAGE, verbs.MS_SYNC),
    "query": lambda fd: lib.mshare_query(fd, 0, PAGE, ffi.new("unsigned char[1]")),
}
LOOKS = ("sync", "query")


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_descriptor_for_it(region: msharefs.Region, tmp_path: Path, name: str) -> None:
    """The calls of the library; all else is right, and nothing changes."""
    before = (region.maps(), region.describe("audit"))
    reader, writer = os.pipe()
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    closed = os.dup(file)
    os.close(closed)
    opened = [os.open(region.path, mode) for mode in (os.O_PATH, os.O_RDONLY)]
    path, read_only = opened
    found = {}
    for what, fd in (
        ("closed", closed), ("-1", -1), ("O_PATH", path), ("pipe", reader), ("file", file),
        ("read-only", read_only),
    ):  # fmt: skip
        done = CALLS[name](fd)
        found[what] = errno.errorcode[ffi.errno] if done else "0"
    assert found == {
        "closed": "EBADF", "-1": "EBADF", "O_PATH": "EBADF", "pipe": "ENOTTY", "file": "ENOTTY",
        "read-only": "0" if name in LOOKS else "EACCES",
    }  # fmt: skip
    assert (region.maps(), region.describe("audit")) == before
    for fd in (reader, writer, file, *opened):
        os.close(fd)


VERBS = [ADVISE, LOCK, UNLOCK, SYNC, SEAL, QUERY, MBIND]


@pytest.mark.parametrize("command", VERBS)
def test_what_every_verb_refuses(
    region: msharefs.Region, shared_mount: Mount, command: int
) -> None:
    region.unmap(8 * PAGE, PAGE)
    before = (region.maps(), region.describe("audit"))
    unsized = os.open(f"{region.path}-unsized", os.O_RDWR | os.O_CREAT)
    info = os.open(shared_mount.path / "mshare_info", os.O_RDONLY)
    reader = os.open(region.path, os.O_RDONLY)
    path = os.open(region.path, os.O_PATH)
    for fd, offset, size, number in (
        (path, 0, PAGE, errno.EBADF),
        (info, 0, PAGE, errno.ENOTTY),
        (unsized, 0, PAGE, errno.EINVAL),
        (region.fd, 1, PAGE, errno.EINVAL),
        (region.fd, 2 * SIZE, PAGE, errno.EINVAL),
        (region.fd, SIZE, 2 * SIZE, errno.EINVAL),
        (region.fd, (1 << 64) - PAGE, 2 * PAGE, errno.EINVAL),
        (region.fd, 0, (1 << 64) - 1, errno.EINVAL),
        (region.fd, 8 * PAGE, PAGE, errno.ENOMEM),
        (region.fd, 0, 16 * PAGE, errno.ENOMEM),
        (region.fd, SIZE - PAGE, 2 * PAGE, errno.ENOMEM),
        *([] if command in (SYNC, QUERY) else [(reader, 0, PAGE, errno.EACCES)]),
        *([] if command in (SYNC, QUERY) else [(reader, 1, PAGE, errno.EACCES)]),
    ):
        with refused(number):
            fcntl.ioctl(fd, command, bytearray(argument(command, offset, size)))
    with refused(errno.EFAULT):
        fcntl.ioctl(region.fd, command, 1)
    if command not in (QUERY, MBIND):
        wrong = struct.pack("QQII", 0, PAGE, 1 << 16, 0), struct.pack("QQII", 0, PAGE, 0, 1)
        for bits in wrong:
            with refused(errno.EINVAL):
                fcntl.ioctl(region.fd, command, bits)
    assert (region.maps(), region.describe("audit")) == before
    fcntl.ioctl(region.fd, command, bytearray(argument(command, 0, 0)))
    assert (region.maps(), region.describe("audit")) == before
    fcntl.ioctl(region.fd, command, bytearray(argument(command, 0, 8 * PAGE)))
    for fd in (unsized, info, reader, path):
        os.close(fd)


def test_readers_may_look(region: msharefs.Region) -> None:
    with msharefs.open(region.path, os.O_RDONLY) as reader:
        assert sum(reader.query(0, SIZE)) == 0
        reader.sync(0, SIZE)


def test_a_refusal_of_locked_memory_says_so(region: msharefs.Region) -> None:
    region.lock(0, PAGE)
    with pytest.raises(OSError, match="some is locked") as refusal:
        region.advise(0, 2 * PAGE, mmap.MADV_DONTNEED)
    assert refusal.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="is not a multiple"):
        region.advise(1, PAGE, mmap.MADV_DONTNEED)
    region.unlock(0, PAGE)


@pytest.mark.parametrize(("start", "answer"), [(1, errno.ENOMEM), (2, errno.EINVAL)])
def test_populate_fails_by_what_comes_first(
    region: msharefs.Region, start: int, answer: int
) -> None:
    """A hole, or a page that may not be written; the random programs compare it with Linux."""
    region.unmap(PAGE, PAGE)
    region.protect(2 * PAGE, PAGE, R)
    region.unmap(3 * PAGE, PAGE)
    with refused(answer):
        region.advise(start * PAGE, (4 - start) * PAGE, verbs.MADV_POPULATE_WRITE)
