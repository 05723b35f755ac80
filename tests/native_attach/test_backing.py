"""Which backing id an open gets, by the kernel's rule."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from support.isolated import isolated

if TYPE_CHECKING:
    from collections.abc import Callable

    from msharefs.server.backing import BackingFiles


class Kernel:
    """In the place of FUSE: gives ids and takes them back, or refuses with an errno."""

    def __init__(self, refusal: int = 0) -> None:
        self.refusal = refusal
        self.asked = 0
        self.ids: set[int] = set()

    def backing_open(self, fd: int) -> int:
        os.fstat(fd)  # it is open
        self.asked += 1
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        self.ids.add(self.asked)
        return self.asked

    def backing_close(self, backing: int) -> None:
        self.ids.remove(backing)


def with_kernel(work: Callable[[BackingFiles, Kernel], None], refusal: int = 0) -> None:
    """Run `work` on backing files of that kernel, in a child: it loads libfuse."""

    def child(_: Callable[[str], None]) -> None:
        from msharefs.server import backing

        kernel = backing.fuse = Kernel(refusal)  # type: ignore[assignment]
        work(backing.BackingFiles(wanted=True), kernel)

    isolated(child)


def memory() -> int:
    return os.memfd_create("memory")


def test_one_id_from_the_first_open_to_the_last_close() -> None:
    def work(files: BackingFiles, kernel: Kernel) -> None:
        first = files.open(7, memory)
        assert [files.open(7, memory) for _ in range(2)] == [first, first]
        other = files.open(8, memory)
        assert kernel.ids == {first, other}
        files.close(7)
        files.close(7)
        assert kernel.ids == {first, other}
        files.close(7)
        assert kernel.ids == {other}
        assert files.open(7, memory) not in (0, first, other)

    with_kernel(work)


@pytest.mark.parametrize("refusal", [errno.EPERM, errno.ENOTTY])
def test_one_refusal_is_enough(refusal: int) -> None:
    """No capability, or a kernel that does not know it: files are opened without."""

    def work(files: BackingFiles, kernel: Kernel) -> None:
        assert [files.open(number, memory) for number in (7, 8, 7)] == [0, 0, 0]
        assert kernel.asked == 1

    with_kernel(work, refusal)


def test_a_later_failure_is_the_opens() -> None:
    """After passthrough has worked once, an open may fail to get it, and another get it again."""

    def work(files: BackingFiles, kernel: Kernel) -> None:
        files.open(7, memory)
        kernel.refusal = errno.ENOMEM
        with pytest.raises(OSError, match="Cannot allocate"):
            files.open(8, memory)
        assert files.open(7, memory)
        kernel.refusal = 0
        assert files.open(8, memory)

    with_kernel(work)


def test_a_region_that_has_ended_gets_none() -> None:
    def work(files: BackingFiles, kernel: Kernel) -> None:
        assert files.open(7, lambda: None) == 0
        assert kernel.asked == 0
        assert files.open(8, memory)

    with_kernel(work)


def test_not_wanted() -> None:
    def child(_: Callable[[str], None]) -> None:
        from msharefs.server import backing

        files = backing.BackingFiles(wanted=False)
        assert files.open(7, memory) == 0

    isolated(child)
