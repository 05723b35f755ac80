"""mmap(2) of a region file under the preload library: the checks of the series, in its order."""

from __future__ import annotations

import mmap
import os
import struct
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.launch import running

from .conftest import (
    ANONYMOUS,
    EXEC,
    FIXED,
    NOREPLACE,
    PAGE,
    PLACE,
    PRIVATE,
    QUANTUM,
    READ,
    READ_WRITE,
    SHARED,
    WRITE,
    File,
    clients,
)
from support.calls import refused

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.agent import Agent, Agents
    from support.server import Mount

VALIDATE = 0x03
GROWSDOWN, LOCKED, POPULATE, HUGETLB, SYNC = 0x100, 0x2000, 0x8000, 0x40000, 0x80000
RLIMIT_AS, RLIMIT_MEMLOCK = 9, 8
TASK_END = 1 << 47


class TestAttaching:
    def test_attaches(self, region: File) -> None:
        base = region.attach()
        assert base % QUANTUM == 0
        assert region.agent.store(base + 5, 7) == "ok"
        (client,) = clients(region.path)
        assert (client["pid"], client["base"]) == (region.agent.pid, base)
        with msharefs.open(region.path) as here:
            assert here.attach()[5] == 7

    def test_length_rounds_up_to_a_page(self, region: File) -> None:
        region.attach(length=region.size - 1)
        region.attach(length=region.size - PAGE + 1)

    def test_twice_in_one_process(self, region: File) -> None:
        first, second = region.attach(), region.attach()
        assert first != second
        assert region.agent.store(first, 9) == "ok"
        assert region.agent.load(second) == "9"

    @pytest.mark.parametrize("flag", [LOCKED, POPULATE, 0x4000, 0x10000, 0x20000, 0x800])
    def test_flags_without_effect(self, region: File, flag: int) -> None:
        region.attach(flags=SHARED | flag)

    def test_a_descriptor_that_is_closed_or_of_an_unlinked_file(self, region: File) -> None:
        fd = region.reopen(os.O_RDWR)
        os.unlink(region.path)
        base = region.attach(fd=fd)
        assert region.agent.call("close", fd) == 0
        assert region.agent.store(base, 1) == "ok"
        os.close(os.open(region.path, os.O_RDWR | os.O_CREAT))  # for the fixture

    def test_by_mmap64(self, region: File) -> None:
        base = region.agent.call("mmap64", 0, region.size, READ_WRITE, SHARED, region.fd, 0)
        assert region.agent.load(base) == "0"
        assert len(clients(region.path)) == 1

    def test_protection_is_the_attachments_too(self, region: File) -> None:
        base = region.attach(prot=READ)
        assert region.agent.load(base) == "0"
        assert region.agent.store(base, 1) == "SIGSEGV ACCERR"
        nothing = region.attach(prot=0)
        assert region.agent.load(nothing) == "SIGSEGV ACCERR"

    def test_a_hole_and_a_later_object(self, make_region: Callable[..., File]) -> None:
        region = make_region(mapped=False)
        base = region.attach()
        assert region.agent.load(base + PAGE) == "SIGSEGV MAPERR"
        region.map(0, QUANTUM)
        assert region.agent.store(base + PAGE, 3) == "ok"

    def test_the_largest_quantum(
        self, mounts: Callable[..., Mount], agents: Agents, agent_program: Path
    ) -> None:
        size = 512 << 30
        mount = mounts()
        agent = agents.start([agent_program], running.environment(mount.path, None))
        fd = agent.call("open", str(mount.path / "r"), os.O_RDWR | os.O_CREAT, 0o600)
        region = File(agent, fd, size)
        assert agent.call("ftruncate", fd, size) == 0
        region.map(size // 2, PAGE)
        base = region.attach()
        assert base % size == 0
        assert agent.store(base + size // 2, 1) == "ok"
        assert region.attach(address=20 * size + 1) == 20 * size
        assert region.attach(address=21 * size + PAGE) == 22 * size
        assert region.attach(length=size - 1, address=40 * size, flags=SHARED | FIXED) == 40 * size
        assert region.refused(address=255 * size, flags=SHARED | FIXED) == "ENOMEM"
        assert region.refused(length=PAGE) == "EINVAL"
        attached = 4
        while (last := region.mmap())[0] != -1:
            attached += 1
        assert attached > 200, last


class TestRefused:
    """Each alone, then two together: which one wins."""

    @pytest.mark.parametrize("length", [1, PAGE, QUANTUM + PAGE, 3 * QUANTUM, 2 * QUANTUM + 1])
    def test_a_length_that_is_no_parts(self, region: File, length: int) -> None:
        assert region.refused(length=length) == "EINVAL"

    def test_a_region_without_a_size(self, make_region: Callable[..., File]) -> None:
        region = make_region(0)
        for length in (PAGE, QUANTUM):
            assert region.refused(length=length) == "EINVAL"

    @pytest.mark.parametrize(
        "flags", [PRIVATE, SHARED | GROWSDOWN, SHARED | HUGETLB, 0, 4, 8, PRIVATE | FIXED]
    )
    def test_flags(self, region: File, flags: int) -> None:
        assert region.refused(flags=flags) == "EINVAL"

    @pytest.mark.parametrize("address", [PLACE + PAGE, PLACE + QUANTUM // 2, PLACE + 1])
    @pytest.mark.parametrize("flag", [FIXED, NOREPLACE, FIXED | NOREPLACE])
    def test_an_unaligned_fixed_address(self, region: File, address: int, flag: int) -> None:
        assert region.refused(address=address, flags=SHARED | flag) == "EINVAL"

    def test_a_fixed_address_beyond_the_end(self, region: File) -> None:
        for address in (TASK_END - QUANTUM, TASK_END, 1 << 62):
            assert region.refused(address=address, flags=SHARED | FIXED) == "ENOMEM"

    @pytest.mark.parametrize("prot", [READ_WRITE, WRITE])
    def test_writing_by_a_read_only_descriptor(self, region: File, prot: int) -> None:
        fd = region.reopen(os.O_RDONLY)
        assert region.refused(fd=fd, prot=prot) == "EACCES"
        region.attach(fd=fd, prot=READ)

    @pytest.mark.parametrize("prot", [0, READ, WRITE, READ_WRITE])
    def test_a_write_only_descriptor(self, region: File, prot: int) -> None:
        assert region.refused(fd=region.reopen(os.O_WRONLY), prot=prot) == "EACCES"

    def test_length_wins_over_rights(self, region: File) -> None:
        fd = region.reopen(os.O_RDONLY)
        assert region.refused(fd=fd, length=PAGE) == "EINVAL"
        assert region.refused(fd=fd, address=PLACE + PAGE, flags=SHARED | FIXED) == "EINVAL"
        assert region.refused(fd=fd, flags=PRIVATE) == "EINVAL"

    def test_a_clash_wins_over_rights(self, region: File) -> None:
        base = region.attach()
        fd = region.reopen(os.O_RDONLY)
        assert region.refused(fd=fd, address=base, flags=SHARED | NOREPLACE) == "EEXIST"

    def test_no_address_space(self, region: File) -> None:
        limit = struct.pack("QQ", 64 << 20, 64 << 20)
        assert region.agent.call("setrlimit", RLIMIT_AS, limit) == 0
        while (base := region.mmap()[0]) != -1:
            assert base % QUANTUM == 0
        assert region.refused() == "ENOMEM"

    def test_what_was_refused_left_nothing(self, region: File) -> None:
        fd = region.reopen(os.O_RDONLY)
        region.agent.call("munmap", region.attach(), region.size)
        maps = f"/proc/{region.agent.pid}/maps"
        fds = os.listdir(f"/proc/{region.agent.pid}/fd")
        with open(maps, encoding="utf-8") as file:
            before = file.read()
        assert region.refused(fd=fd) == "EACCES"
        assert region.refused(length=PAGE) == "EINVAL"
        with open(maps, encoding="utf-8") as file:
            assert file.read() == before
        assert os.listdir(f"/proc/{region.agent.pid}/fd") == fds
        assert clients(region.path) == []


class TestLikeAnyFile:
    """The kernel's checks for every file: of a memfd first, then of a region."""

    def test_a_bad_descriptor(self, file: File) -> None:
        assert file.refused(fd=999) == "EBADF"
        assert file.refused(fd=-1) == "EBADF"
        path = file.reopen(os.O_PATH)
        assert file.refused(fd=path) == "EBADF"

    def test_rights(self, file: File) -> None:
        fd = file.reopen(os.O_RDONLY)
        assert file.refused(fd=fd) == "EACCES"
        assert file.refused(fd=fd, flags=SHARED | GROWSDOWN) == "EACCES"
        assert file.refused(fd=file.reopen(os.O_WRONLY)) == "EACCES"

    @pytest.mark.parametrize(
        ("offset", "errno"),
        [(1, "EINVAL"), (4095, "EINVAL"), (1 << 63, "EOVERFLOW"), ((1 << 63) - PAGE, "EOVERFLOW"),
         ((1 << 64) - PAGE, "EOVERFLOW")],
    )  # fmt: skip
    def test_offsets_that_cannot_be(self, file: File, offset: int, errno: str) -> None:
        assert file.refused(offset=offset) == errno

    @pytest.mark.parametrize("offset", [PAGE, 512 << 30, 1 << 62])
    def test_offsets_that_can(self, file: File, offset: int) -> None:
        file.attach(offset=offset)

    def test_an_offset_wins_over_rights(self, file: File) -> None:
        fd = file.reopen(os.O_RDONLY)
        assert file.refused(fd=fd, offset=1 << 63) == "EOVERFLOW"
        assert file.refused(fd=fd, offset=1) == "EINVAL"

    def test_no_length(self, file: File) -> None:
        assert file.refused(length=0) == "EINVAL"
        assert file.refused(length=(1 << 64) - 1) == "ENOMEM"
        assert file.refused(length=1 << 62) == "ENOMEM"

    def test_validate(self, file: File) -> None:
        file.attach(flags=VALIDATE)
        assert file.refused(flags=VALIDATE | SYNC) == "EOPNOTSUPP"
        assert file.refused(flags=VALIDATE | NOREPLACE, address=PLACE) == "EOPNOTSUPP"
        assert file.refused(flags=VALIDATE | 0x2000000) == "EOPNOTSUPP"
        fd = file.reopen(os.O_RDONLY)
        assert file.refused(flags=VALIDATE | SYNC, fd=fd) == "EOPNOTSUPP"

    def test_noreplace(self, file: File) -> None:
        assert file.attach(address=PLACE, flags=SHARED | NOREPLACE) == PLACE
        assert file.refused(address=PLACE, flags=SHARED | NOREPLACE) == "EEXIST"
        assert file.refused(address=PLACE + QUANTUM, flags=SHARED | NOREPLACE) == "EEXIST"
        assert file.attach(address=PLACE, flags=SHARED | FIXED) == PLACE

    def test_locking_more_than_the_limit(self, file: File) -> None:
        limit = struct.pack("QQ", PAGE, PAGE)
        assert file.agent.call("setrlimit", RLIMIT_MEMLOCK, limit) == 0
        file.agent.call("setresuid", 65534, 65534, 65534)
        assert file.refused(flags=SHARED | LOCKED) == "EAGAIN"
        assert file.refused(flags=SHARED | LOCKED, offset=1 << 63) == "EAGAIN"
        assert file.agent.call("setrlimit", RLIMIT_MEMLOCK, bytes(16)) == 0
        assert file.refused(flags=SHARED | LOCKED) == "EPERM"


class TestHints:
    @pytest.mark.parametrize(
        ("hint", "base"),
        [(PLACE, PLACE), (PLACE + 1, PLACE), (PLACE + PAGE, PLACE + QUANTUM),
         (PLACE - PAGE, PLACE), (PLACE + QUANTUM + 4095, PLACE + QUANTUM)],
    )  # fmt: skip
    def test_are_rounded_up(self, region: File, hint: int, base: int) -> None:
        assert region.attach(address=hint) == base

    @pytest.mark.parametrize("hint", [0, 1, TASK_END, TASK_END - QUANTUM, 1 << 63])
    def test_of_nowhere(self, region: File, hint: int) -> None:
        base = region.attach(address=hint)
        assert base % QUANTUM == 0
        assert 0 < base < TASK_END

    def test_that_are_taken(self, region: File) -> None:
        assert region.attach(address=PLACE) == PLACE
        other = region.attach(address=PLACE + QUANTUM)
        assert other % QUANTUM == 0
        assert other >= PLACE + region.size or other <= PLACE - region.size


class TestFixedOverAttachments:
    def test_other_memory_over_a_part(self, region: File) -> None:
        base = region.attach()
        region.agent.store(base, 5)
        for start, size in [
            (0, PAGE),
            (QUANTUM, QUANTUM),
            (0, region.size - PAGE),
            (-PAGE, 3 * PAGE),
        ]:
            failed = region.agent.result(
                "mmap", base + start, size, READ, PRIVATE | ANONYMOUS | FIXED, -1, 0
            )
            assert failed == (-1, "EINVAL")
        assert region.agent.load(base) == "5"
        assert len(clients(region.path)) == 1

    @pytest.mark.parametrize("more", [0, PAGE])
    def test_other_memory_over_all(self, region: File, more: int) -> None:
        base = region.attach(address=PLACE)
        region.agent.store(base, 5)
        flags = PRIVATE | ANONYMOUS | FIXED
        region.agent.call("mmap", base - more, region.size + 2 * more, READ_WRITE, flags, -1, 0)
        assert region.agent.load(base) == "0"
        assert region.agent.store(base + QUANTUM, 1) == "ok"
        assert clients(region.path) == []

    def test_another_region_over_all(self, make_region: Callable[..., File]) -> None:
        first, second = make_region(), make_region()
        base = first.attach()
        first.agent.store(base, 5)
        assert second.attach(address=base, flags=SHARED | FIXED) == base
        assert second.agent.store(base, 6) == "ok"
        assert (len(clients(first.path)), len(clients(second.path))) == (0, 1)
        with msharefs.open(first.path) as old, msharefs.open(second.path) as new:
            assert (old.attach()[0], new.attach()[0]) == (5, 6)

    def test_a_smaller_region_over_a_part(self, make_region: Callable[..., File]) -> None:
        large, small = make_region(), make_region(QUANTUM)
        base = large.attach()
        for at in (base, base + QUANTUM):
            assert small.refused(address=at, flags=SHARED | FIXED) == "EINVAL"
        assert len(clients(large.path)) == 1

    def test_what_fails_takes_nothing_away(self, region: File) -> None:
        base = region.attach()
        region.agent.store(base, 5)
        fd = region.reopen(os.O_RDONLY)
        assert region.refused(address=base, flags=SHARED | FIXED, fd=fd) == "EACCES"
        assert region.agent.load(base) == "5"


class TestOtherFiles:
    """They do not concern us."""

    def test_a_file_of_tmpfs(self, preloaded: Agent, public_tmp: Path) -> None:
        path = public_tmp / "file"
        path.write_bytes(b"a" * PAGE)
        fd = preloaded.call("open", str(path), os.O_RDWR)
        base = preloaded.call("mmap", 0, PAGE, READ_WRITE, PRIVATE, fd, 0)
        assert preloaded.store(base, 1) == "ok"
        assert path.read_bytes() == b"a" * PAGE
        assert preloaded.call("munmap", base, 1) == 0

    def test_mshare_info(self, preloaded: Agent, shared_mount: Mount) -> None:
        fd = preloaded.call("open", str(shared_mount.path / "mshare_info"), os.O_RDONLY)
        assert preloaded.say("mmap", 0, PAGE, READ, SHARED, fd, 0) == "ENODEV"

    def test_without_the_library_a_region_is_mapped_by_linux(
        self, plain: Agent, region: File
    ) -> None:
        fd = plain.call("open", region.path, os.O_RDWR)
        base = plain.call("mmap", 0, region.size, READ_WRITE, SHARED, fd, 0)
        plain.store(base + PAGE, 5)
        assert region.agent.load(region.attach() + PAGE) == "5"
        assert {client["kind"] for client in clients(region.path)} == {"preload", "native"}
        plain.call("munmap", base, region.size)

    def test_python_itself_runs(self, shared_mount: Mount) -> None:
        import subprocess
        import sys

        script = "import mmap; m = mmap.mmap(-1, 1 << 20); m[5] = 1; m.close(); print('fine')"
        said = subprocess.check_output(
            [sys.executable, "-c", script],
            env=running.environment(shared_mount.path, None), text=True,
        )  # fmt: skip
        assert said == "fine\n"


def test_exec_of_code_needs_a_mount_that_permits_it(region: File) -> None:
    region.attach(prot=READ | EXEC)


def test_the_address_of_zero(region: File) -> None:
    """The lowest quantum: the program is not there, and mmap_min_addr does not bind root."""
    assert region.attach(flags=SHARED | FIXED) == 0
    assert region.agent.load(PAGE) == "0"
    assert region.agent.call("munmap", 0, region.size) == 0
    region.agent.call("setresuid", 65534, 65534, 65534)
    assert region.refused(flags=SHARED | FIXED) == "EPERM"


def test_the_library_itself_refuses_as_much(region: File) -> None:
    """mshare_attach() has the same checks, see tests/client; here, that it is the same code."""
    with msharefs.open(region.path, os.O_RDONLY) as here, refused(13):
        here.attach(prot=mmap.PROT_READ | mmap.PROT_WRITE)
