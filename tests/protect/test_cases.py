"""A change of protection, case by case: the kernel's mprotect(2) first, then ours, and compared."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import msharefs

from support import cc, proc
from support.calls import refused

if TYPE_CHECKING:
    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")

SIZE = 8 << 20
PAGE = 4096
R, W, RW, NONE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE, 0


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).with_name("cases.c")
    return cc.build(source, tmp_path_factory.mktemp("protect") / "cases")


def run(*command: str | Path) -> list[str]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, (result.returncode, result.stderr, result.stdout[-500:])
    return result.stdout.splitlines()


def test_same_as_mprotect(cases: Path, mount: Mount) -> None:
    plain = run(cases, "plain")
    assert len(plain) == 4**3 + 2
    assert any("signal 11 code 2" in line for line in plain), "SIGSEGV, SEGV_ACCERR"
    assert "copy out:EFAULT" in plain[0]
    ours = run(cases, "region", mount.path / "r")
    for expected, found in zip(plain, ours, strict=True):
        assert found == expected
    with msharefs.open(mount.path / "r") as region:
        assert_sound(region)


def make(mount: Mount, size: int = SIZE) -> msharefs.Region:
    region = msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT)
    region.truncate(size)
    region.map(0, size)
    return region


def assert_sound(region: msharefs.Region) -> None:
    found = region.describe("audit")
    assert {name: found[name] for name in ("held", "lost", "stray", "bad", "vmas")} == {
        "held": 0, "lost": 0, "stray": 0, "bad": 0, "vmas": 0,
    }  # fmt: skip
    assert found["frame_bytes"] == PAGE * sum(found["tables"].values())


def prots(region: msharefs.Region) -> list[tuple[int, int, str]]:
    return [(vma["start"] // PAGE, vma["end"] // PAGE, vma["prot"]) for vma in region.maps()]


def test_vmas_split_and_merge(mount: Mount) -> None:
    end = SIZE // PAGE
    with make(mount) as region:
        assert prots(region) == [(0, end, "rw-s")]
        region.protect(10 * PAGE, 5 * PAGE, R)
        assert prots(region) == [(0, 10, "rw-s"), (10, 15, "r--s"), (15, end, "rw-s")]
        region.protect(12 * PAGE, 8 * PAGE, NONE)
        assert prots(region) == [
            (0, 10, "rw-s"), (10, 12, "r--s"), (12, 20, "---s"), (20, end, "rw-s"),
        ]  # fmt: skip
        region.protect(0, SIZE, R)
        assert prots(region) == [(0, end, "r--s")]
        region.protect(0, SIZE, RW)
        assert prots(region) == [(0, end, "rw-s")]


def test_two_mappings_do_not_become_one(mount: Mount) -> None:
    with make(mount) as region:
        region.map(0, PAGE, R)
        region.protect(0, SIZE, R)
        assert prots(region) == [(0, 1, "r--s"), (1, SIZE // PAGE, "r--s")]


def test_what_is_refused(mount: Mount) -> None:
    with make(mount) as region:
        whole = region.maps()
        region.unmap(SIZE - 2 * PAGE, PAGE)
        holed = region.maps()
        for offset, size, prot, number in (
            (SIZE, PAGE, R, errno.EINVAL),
            (0, SIZE + 1, R, errno.EINVAL),
            (PAGE, SIZE, R, errno.EINVAL),
            (1, PAGE, R, errno.EINVAL),
            (0, (1 << 64) - 1, R, errno.EINVAL),
            (0, PAGE, 8, errno.EINVAL),
            (0, SIZE, R, errno.ENOMEM),
            (SIZE - 2 * PAGE, PAGE, R, errno.ENOMEM),
            (SIZE - 3 * PAGE, 3 * PAGE, NONE, errno.ENOMEM),
        ):
            with refused(number):
                region.protect(offset, size, prot)
            assert region.maps() == holed, "unlike mprotect(2), nothing is changed before a hole"
        assert whole != holed
        region.protect(0, 0, NONE)
        assert region.maps() == holed
        with msharefs.open(mount.path / "r", os.O_RDONLY) as reader, refused(errno.EACCES):
            reader.protect(0, PAGE, R)
    unsized = msharefs.open(mount.path / "unsized", os.O_RDWR | os.O_CREAT)
    with unsized as region, refused(errno.EINVAL):
        region.protect(0, PAGE, R)


def figures(region: msharefs.Region) -> dict[str, Any]:
    """What stat says, without the count of the changes."""
    found = region.stat()
    del found["shootdowns"]
    return found


@pytest.mark.mount("quantum=2M", "faults=watched")
def test_figures_do_not_change(mount: Mount) -> None:
    """Tables, memory and counts stay; entries keep accessed and dirty, and get the new rights."""
    with make(mount) as region:
        view = region.attach()
        for offset in range(0, SIZE // 2, PAGE):
            view[offset] = 1
        before = figures(region)
        for prot in (R, NONE, RW, R, RW):
            region.protect(0, SIZE, prot)
            assert_sound(region)
            assert figures(region) == before
        for offset in range(0, SIZE // 2, PAGE):
            view[offset] += 1
        after = figures(region)
        # All access was taken once, so we made the pages reachable again: our work, no fault.
        assert (
            after["counters"].pop("materialised_pages") > before["counters"]["materialised_pages"]
        )
        del before["counters"]["materialised_pages"]
        assert after == before, "writing again needs no fault that counts"
        assert_sound(region)


def test_what_nobody_touched_costs_no_page_table(mounts: object) -> None:
    mount = mounts("quantum=1G")  # type: ignore[operator]
    with make(mount, 1 << 30) as region:
        view = region.attach()
        for offset in range(0, 1 << 20, PAGE):
            view[offset] = 1
        view[900 << 20] = 1
        before = vmpte()
        for prot in (R, RW, NONE, RW, R):
            region.protect(0, 1 << 30, prot)
        assert vmpte() == before
        assert view[5 * PAGE] == 1
        assert view[900 << 20] == 1


def vmpte() -> int:
    return proc.status_bytes(os.getpid(), "VmPTE")


def test_by_the_control_socket(mount: Mount) -> None:
    from msharefs.native import check, ffi, lib

    with make(mount) as region:
        sock = check(lib.control_connect(region.fd), "connect")
        message = ffi.new("struct msg *", {"op": lib.MSG_PROTECT})
        message.arg[0:4] = [PAGE, PAGE, R, 0]
        assert lib.control_call(sock, message, ffi.NULL, 0, ffi.NULL) == 0
        assert prots(region)[1] == (1, 2, "r--s")
        message.op = lib.MSG_PROTECT
        message.arg[0:4] = [PAGE, PAGE, R, 1]
        assert lib.control_call(sock, message, ffi.NULL, 0, ffi.NULL) == -errno.EINVAL
        os.close(sock)
