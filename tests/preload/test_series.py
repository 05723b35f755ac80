"""An unmodified program for the kernel series does the same here as with Linux's own memory."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import msharefs

from support import cc
from support.actor import SOURCES

if TYPE_CHECKING:
    from pathlib import Path

    from support.server import Mount

WAIT = 60.0
RUN = [sys.executable, "-m", "msharefs", "run", "--"]

pytestmark = [pytest.mark.smoke, pytest.mark.mount("quantum=2M")]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled tests/programs/series.c: it uses only the numbers of our header."""
    made = cc.build(SOURCES / "series.c", tmp_path_factory.mktemp("series") / "series")
    needed = subprocess.check_output(["readelf", "-d", made], text=True)
    assert "msharefs" not in "".join(line for line in needed.splitlines() if "NEEDED" in line)
    return made


def output(*command: object) -> list[str]:
    """The output of a program that ends well."""
    return subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT, check=True
    ).stdout.splitlines()


def left(mount: Mount) -> list[Path]:
    return [path for path in mount.path.iterdir() if path.name != "mshare_info"]


def test_the_kernels_own_example(program: Path, mount: Mount) -> None:
    plain = output(program, "memory")
    assert "answer: an answer" in plain
    here = output(*RUN, program, "region", mount.path / "region")
    assert here == [*plain, "unlink: fine"]
    assert not left(mount)


def test_the_same_with_no_library_at_all(program: Path, mount: Mount) -> None:
    """The native attachment: everything works, except that holes are not enforced."""
    plain = output(program, "memory")
    native = output(program, "region", mount.path / "region")
    hole = plain.index("store into a hole: Segmentation fault")
    assert native == [
        *plain[:hole], "store into a hole: fine", *plain[hole + 1 :], "unlink: fine",
    ]  # fmt: skip
    assert not left(mount)


REFUSALS = """
    open, exclusively, what is there: EEXIST
    object without a size: EINVAL
    unknown command without a size: EINVAL
    half a quantum: EINVAL
    fallocate not from 0: EINVAL
    fallocate keeping the size: EOPNOTSUPP
    size: fine
    size again: EINVAL
    larger: EINVAL
    unknown command: ENOTTY
    nowhere to read the object: EFAULT
    private object: EINVAL
    object wherever: EINVAL
    object of nothing: EINVAL
    object between pages: EINVAL
    object over the end: EINVAL
    object of a bad descriptor: EBADF
    object: fine
    object instead: fine
    object beside: EEXIST
    unmap a hole: fine
    unmap between pages: EINVAL
    unmap over the end: EINVAL
    read: EINVAL
    write: EINVAL
    fsync: EINVAL
    mmap: fine
    size, read-only: EINVAL
    mmap to write, read-only: EACCES
    mmap to read, read-only: fine
    unlink: fine
"""
"""The answers of the series, in the order of tests/programs/series.c."""


@pytest.mark.parametrize("run", [RUN, []], ids=["library", "native"])
def test_what_is_refused(program: Path, mount: Mount, run: list[str]) -> None:
    answers = output(*run, program, "refusals", mount.path / "region")
    assert answers == [line.strip() for line in REFUSALS.strip().splitlines()]
    assert not left(mount)


@pytest.mark.slow
def test_threads_that_do_everything_at_once(
    tmp_path_factory: pytest.TempPathFactory, mount: Mount
) -> None:
    program = cc.build(SOURCES / "storm.c", tmp_path_factory.mktemp("storm") / "storm")
    with (tmp_path_factory.mktemp("plain") / "file").open("wb") as file:
        file.truncate(1 << 20)
    assert output(program, file.name, "20") == ["done"]
    path = make(mount)
    assert output(*RUN, program, path, "20") == ["done"]
    with msharefs.open(path, os.O_RDONLY) as region:
        assert region.describe("clients") == []
        assert region.stat()["counters"]["links"] >= 2 * 20


def test_a_child_that_nobody_told_us_of(
    tmp_path_factory: pytest.TempPathFactory, mount: Mount
) -> None:
    program = cc.build(SOURCES / "bare_clone.c", tmp_path_factory.mktemp("clone") / "clone")
    path = make(mount)
    with subprocess.Popen(
        [*RUN, program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "1 2\n"
        with msharefs.open(path) as region:
            assert len(region.describe("clients")) == 1
            region.unmap(0, 4096)  # the server still reaches the parent
        process.communicate(timeout=WAIT)
    assert process.returncode == 0


def make(mount: Mount) -> Path:
    """A region, mapped from end to end, of the mount's quantum."""
    path = mount.path / "r"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        size = region.stat()["quantum_bytes"]
        region.truncate(size)
        region.map(0, size)
    return path
