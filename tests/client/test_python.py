"""Python programs hear why a verb is refused: errno, region, value, and what to do."""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import pytest

import msharefs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 2 << 20
PAGE = mmap.PAGESIZE


@pytest.fixture
def path(shared_mount: Mount) -> Iterator[Path]:
    made = shared_mount.path / "r"
    made.touch()
    os.truncate(made, SIZE)
    yield made
    made.unlink()


@pytest.fixture
def region(path: Path) -> Iterator[msharefs.Region]:
    with msharefs.open(path) as opened:
        opened.map(0, PAGE)
        yield opened


def said(call: Callable[[], object], code: int) -> str:
    with pytest.raises(OSError, match=rf"^\[Errno {code}\] ") as caught:
        call()
    return str(caught.value.strerror)


@pytest.mark.parametrize(
    ("verb", "arguments", "code", "sentence"),
    [
        ("map", (1, PAGE), errno.EINVAL, "region_offset 0x1 is not a multiple of 4096"),
        ("map", (0, 0), errno.EINVAL, "size 0: map at least a byte"),
        ("map", (SIZE, PAGE), errno.EINVAL, "region_offset 0x200000 is not below 0x200000"),
        ("map", (0, 2 * SIZE), errno.EINVAL, "the mapping ends at 0x400000"),
        ("map", (0, PAGE, 3, mmap.MAP_PRIVATE), errno.EINVAL, "MAP_SHARED and MAP_FIXED"),
        ("unmap", (PAGE, 0), errno.EINVAL, "a page-aligned offset and a size are needed"),
        ("unmap", (0, 2 * SIZE), errno.EINVAL, "is not inside 0x200000"),
        ("protect", (0, PAGE, 64), errno.EINVAL, "prot 0x40"),
        ("protect", (PAGE, PAGE, 1), errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named(
    region: msharefs.Region, verb: str, arguments: tuple[int, ...], code: int, sentence: str
) -> None:
    before = region.maps()
    told = said(lambda: getattr(region, verb)(*arguments), code)
    assert sentence in told
    assert region.maps() == before


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda region: region.truncate(SIZE), errno.EINVAL),
        (lambda region: region.map(PAGE, PAGE, fd=-1, flags=mmap.MAP_SHARED | 0x10), errno.EBADF),
        (lambda region: region.map_from(PAGE, SIZE), errno.EINVAL),
        (lambda region: region.unmap(1, PAGE), errno.EINVAL),
        (lambda region: region.protect(PAGE, PAGE, 1), errno.ENOMEM),
        (lambda region: region.advise(0, PAGE, 8), errno.EINVAL),
        (lambda region: region.lock(PAGE, PAGE), errno.ENOMEM),
        (lambda region: region.unlock(PAGE, PAGE), errno.ENOMEM),
        (lambda region: region.mbind(0, PAGE, 99), errno.EINVAL),
        (lambda region: region.sync(0, PAGE, 64), errno.EINVAL),
        (lambda region: region.query(PAGE, PAGE), errno.ENOMEM),
        (lambda region: region.seal(PAGE, PAGE), errno.ENOMEM),
        (lambda region: region.set_owner(-1), errno.EBADF),
        (lambda region: region.attach(PAGE, flags=0x10), errno.EINVAL),
        (lambda region: region.attach(offset=PAGE), errno.EINVAL),
        (lambda region: region.attach(budget=1), errno.EINVAL),
        (lambda region: region.detach(memoryview(b"")), errno.EINVAL),
        (lambda region: region.describe("nonsense"), errno.EINVAL),
    ],
)
def test_an_error_has_the_file(
    region: msharefs.Region, call: Callable[[msharefs.Region], object], code: int
) -> None:
    """As those of os.open and its relatives."""
    with pytest.raises(OSError, match=r"^\[Errno \d+\] ") as caught:
        call(region)
    assert (caught.value.errno, caught.value.filename) == (code, region.path)
    assert region.path not in str(caught.value.strerror), "once is enough"


def test_a_region_without_a_size(shared_mount: Mount) -> None:
    unsized = shared_mount.path / "u"
    unsized.touch()
    with msharefs.open(unsized) as region:
        for call in (lambda: region.map(0, PAGE), lambda: region.unmap(0, PAGE), region.attach):
            assert "no size yet; truncate it first" in said(call, errno.EINVAL)


def test_a_read_only_descriptor(path: Path) -> None:
    with msharefs.open(path, os.O_RDONLY) as region:
        assert "open it with O_RDWR" in said(lambda: region.map(0, PAGE), errno.EACCES)
        assert "open it with O_RDWR" in said(lambda: region.unmap(0, PAGE), errno.EACCES)


def test_what_it_says_of_itself(path: Path, shared_mount: Mount) -> None:
    region = msharefs.open(path)
    assert repr(region) == f"<msharefs.Region '{path}' fd={region.fd}, 0 attached>"
    assert (region.size, region.quantum, region.closed) == (path.stat().st_size, 2 << 20, False)
    view = region.attach()
    assert repr(region).endswith("1 attached>")
    assert [client["pid"] for client in region.clients()] == [os.getpid()]
    region.detach(view)
    assert region.clients() == []
    region.close()
    assert region.closed
    assert repr(region) == f"<msharefs.Region '{path}' closed>"
    unsized = shared_mount.path / "unsized"
    with msharefs.open(unsized, os.O_RDWR | os.O_CREAT) as other:
        assert other.size == 0
