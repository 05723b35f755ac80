"""The checks of CREATE_MAPPING and UNMAP: the answers of a kernel with the series, row by row."""

from __future__ import annotations

import errno
import struct

import pytest

from msharefs import verbs
from msharefs.native import ffi, lib

Q = 512 << 30
PAGE = 4096
SHARED, PRIVATE, VALIDATE, TYPE_9 = 1, 2, 3, 9
FIXED, ANON, GROWSDOWN, NOREPLACE = 0x10, 0x20, 0x100, 0x100000
HUGE, HUGETLB = 2 << 20, 0x40000
# POPULATE, NONBLOCK, STACK, 32BIT, SYNC, DENYWRITE, EXECUTABLE, LOCKED, NORESERVE, UNINITIALIZED,
# and one that means nothing.
IGNORED = (
    0x8000, 0x10000, 0x20000, 0x40, 0x80000, 0x800, 0x1000, 0x2000, 0x4000, 0x4000000, 0x80000000,
)  # fmt: skip
USUAL = SHARED | FIXED | ANON


def create(
    region_offset: int,
    size: int,
    flags: int = USUAL,
    *,
    region: int = Q,
    prot: int = 3,
    page: int = PAGE,
) -> str:
    """The answer to CREATE_MAPPING: "0" or the errno's name."""
    asked = verbs.Create(region_offset, size, 0, prot, flags)
    try:
        verbs.check_create(asked, region)
        verbs.check_create_range(asked, region, page)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "0"


@pytest.mark.parametrize(
    ("size", "page", "rounded"),
    [
        (0, PAGE, 0),
        (1, PAGE, PAGE),
        (PAGE, PAGE, PAGE),
        (1, HUGE, HUGE),
        (HUGE + 1, HUGE, 2 * HUGE),
        ((1 << 64) - 1, HUGE, 0),
    ],
)
def test_sizes_are_rounded_to_pages(size: int, page: int, rounded: int) -> None:
    assert verbs.round_up(size, page) == rounded


@pytest.mark.parametrize(
    ("region_offset", "size", "answer"),
    [
        (0, HUGE, "0"),
        (Q - HUGE, HUGE, "0"),
        (PAGE, HUGE, "EINVAL"),
        (HUGE - 1, HUGE, "EINVAL"),
        (Q - PAGE, HUGE, "EINVAL"),
        (HUGE, 0, "EINVAL"),
    ],
)
def test_huge_pages_lie_at_multiples_of_their_size(
    region_offset: int, size: int, answer: str
) -> None:
    assert create(region_offset, size, USUAL | HUGETLB, page=HUGE) == answer


def test_anonymous_huge_pages_may_be_validated_but_not_private() -> None:
    huge = FIXED | ANON | HUGETLB
    assert create(0, HUGE, VALIDATE | huge, page=HUGE) == "0"
    assert create(0, HUGE, VALIDATE | FIXED | ANON) == "EINVAL"
    assert create(0, HUGE, PRIVATE | huge, page=HUGE) == "EINVAL"


def unmap(offset: int, size: int, *, region: int = Q) -> str | int:
    """The answer to UNMAP: the end of the range, or the errno's name."""
    try:
        return verbs.check_unmap(offset, size, region)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize(
    ("region_offset", "size", "answer"),
    [
        (0, PAGE, "0"),
        (0, Q, "0"),
        (Q - PAGE, PAGE, "0"),
        # the size may be anything; one byte is a page
        (0, 1, "0"),
        (Q - PAGE, 1, "0"),
        (PAGE, PAGE + 1, "0"),
        (0, 0, "EINVAL"),
        (PAGE, 0, "EINVAL"),
        # the offset may not
        (1, PAGE, "EINVAL"),
        (PAGE - 1, PAGE, "EINVAL"),
        (Q, PAGE, "EINVAL"),
        (Q + PAGE, PAGE, "EINVAL"),
        ((1 << 64) - PAGE, PAGE, "EINVAL"),
        ((1 << 64) - PAGE, 2 * PAGE, "EINVAL"),
        (1 << 63, PAGE, "EINVAL"),
        # past the end
        (0, Q + 1, "EINVAL"),
        (PAGE, Q, "EINVAL"),
        (Q - PAGE, PAGE + 1, "EINVAL"),
        (0, 1 << 63, "EINVAL"),
        (PAGE, 1 << 63, "EINVAL"),
        # a sum that wraps passes the range check, and mmap(2) says it is too much
        (PAGE, (1 << 64) - 1, "ENOMEM"),
        (PAGE, (1 << 64) - PAGE, "ENOMEM"),
        (Q - PAGE, (1 << 64) - PAGE, "ENOMEM"),
        (1, (1 << 64) - 1, "ENOMEM"),
        # also where only the sum with the address of the host mm wraps
        (0, (1 << 64) - 1, "ENOMEM"),
    ],
)
def test_range_of_a_mapping(region_offset: int, size: int, answer: str) -> None:
    assert create(region_offset, size) == answer


@pytest.mark.parametrize(
    ("region_offset", "size", "answer"),
    [
        (0, 254 * Q, "0"),
        (254 * Q, Q - PAGE, "0"),  # up to the last page of a process
        (254 * Q, Q, "ENOMEM"),
        (255 * Q - PAGE, PAGE, "ENOMEM"),
        (255 * Q, PAGE, "ENOMEM"),
        (0, 256 * Q, "ENOMEM"),
        (255 * Q, 1, "ENOMEM"),
        (256 * Q, PAGE, "EINVAL"),
        # too far wins over misaligned, as in get_unmapped_area()
        (255 * Q + 1, PAGE, "ENOMEM"),
    ],
)
def test_a_region_may_be_larger_than_a_host_mm(region_offset: int, size: int, answer: str) -> None:
    assert create(region_offset, size, region=256 * Q) == answer


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (SHARED | FIXED | ANON, "0"),
        (SHARED | FIXED | ANON | NOREPLACE, "0"),
        (SHARED | ANON, "EINVAL"),
        (SHARED | ANON | NOREPLACE, "EINVAL"),
        (FIXED | ANON, "EINVAL"),
        (0, "EINVAL"),
        (PRIVATE | FIXED | ANON, "EINVAL"),
        (VALIDATE | FIXED | ANON, "EINVAL"),
        (TYPE_9 | FIXED | ANON, "EINVAL"),
        (SHARED | FIXED | ANON | GROWSDOWN, "EINVAL"),
        # with an object these two depend on the object, not on the flags
        (VALIDATE | FIXED, "0"),
        (SHARED | FIXED, "0"),
        *((USUAL | flag, "0") for flag in IGNORED),
    ],
)
def test_flags_of_a_mapping(flags: int, answer: str) -> None:
    assert create(0, PAGE, flags) == answer


@pytest.mark.parametrize("prot", [*range(8), 8, 0x1000003, 0xFFFFFFFF])
def test_any_protection_will_do(prot: int) -> None:
    assert create(0, PAGE, prot=prot) == "0"


def test_the_first_of_two_mistakes_answers() -> None:
    """Offset, then flags, then (after the object) the range; the sentences tell, not the errno."""
    with pytest.raises(OSError, match="region_offset") as caught:
        verbs.check_create(verbs.Create(Q, 0, 0, 3, 0), Q)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="flags"):
        verbs.check_create(verbs.Create(1, 0, 0, 3, 0), Q)
    # Size and alignment are not checked before the object.
    verbs.check_create(verbs.Create(1, 0, 0, 3, SHARED | FIXED), Q)
    with pytest.raises(OSError, match="ends at"):
        verbs.check_create_range(verbs.Create(1, Q, 0, 3, SHARED | FIXED), Q)
    with pytest.raises(OSError, match="size 0"):
        verbs.check_create_range(verbs.Create(1, 0, 0, 3, SHARED | FIXED), Q)


@pytest.mark.parametrize(
    ("region_offset", "size", "end"),
    [(0, 1, PAGE), (0, PAGE, PAGE), (PAGE, PAGE + 1, 3 * PAGE), (Q - PAGE, 7, Q), (0, Q, Q)],
)
def test_a_mapping_is_whole_pages(region_offset: int, size: int, end: int) -> None:
    assert verbs.Create(region_offset, size, 0, 3, USUAL).end == end


@pytest.mark.parametrize(
    ("offset", "size", "answer"),
    [
        (0, PAGE, PAGE),
        (0, Q, Q),
        (Q - PAGE, PAGE, Q),
        (PAGE, 1, 2 * PAGE),
        (PAGE, PAGE + 1, 3 * PAGE),
        (Q - PAGE, 1, Q),
        (0, 0, "EINVAL"),
        (PAGE, 0, "EINVAL"),
        (1, PAGE, "EINVAL"),
        (PAGE + 512, PAGE, "EINVAL"),
        (Q, PAGE, "EINVAL"),
        (Q, 0, "EINVAL"),
        (Q + PAGE, PAGE, "EINVAL"),
        (Q - PAGE, 2 * PAGE, "EINVAL"),
        (Q - PAGE, PAGE + 1, "EINVAL"),
        (0, Q + 1, "EINVAL"),
        ((1 << 64) - PAGE, PAGE, "EINVAL"),
        (PAGE, (1 << 64) - PAGE, "EINVAL"),
        (PAGE, (1 << 64) - 1, "EINVAL"),
        (0, 1 << 63, "EINVAL"),
    ],
)
def test_range_of_an_unmap(offset: int, size: int, answer: str | int) -> None:
    assert unmap(offset, size) == answer


@pytest.mark.parametrize(
    ("offset", "size", "answer"),
    [
        (0, 254 * Q, 254 * Q),
        (0, 255 * Q, "EINVAL"),
        (254 * Q, Q - PAGE, 255 * Q - PAGE),
        (254 * Q, Q, "EINVAL"),
        (255 * Q, PAGE, "EINVAL"),
    ],
)
def test_unmap_where_the_host_mm_ends(offset: int, size: int, answer: str | int) -> None:
    assert unmap(offset, size, region=256 * Q) == answer


def test_numbers_and_structures_are_the_kernels() -> None:
    assert lib.MSHAREFS_CREATE_MAPPING == 0x40287800
    assert lib.MSHAREFS_UNMAP == 0x40107801
    assert ffi.sizeof("struct mshare_create") == 40
    assert ffi.sizeof("struct mshare_unmap") == 16


def test_a_mapping_from_the_ioctls_bytes() -> None:
    """There are 4 bytes of padding at the end; they are ignored."""
    data = struct.pack("=QQQIIII", 0x1122334455667788, 1 << 63, 3, 4, 5, 6, 0xFFFFFFFF)
    assert verbs.Create.from_bytes(data) == verbs.Create(
        region_offset=0x1122334455667788, size=1 << 63, offset=3, prot=4, flags=5, fd=6
    )
