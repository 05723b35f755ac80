"""Slices and arrays of an attached view hold it: closing is refused, and never SIGSEGV later."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import msharefs
from msharefs.native import ffi

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")
SIZE = 2 << 20
PAGE = mmap.PAGESIZE


@pytest.fixture
def path(shared_mount: Mount) -> Iterator[Path]:
    made = shared_mount.path / "views"
    with msharefs.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL) as region:
        region.truncate(SIZE)
        region.map(0, SIZE)
    yield made
    made.unlink()


KINDS: dict[str, Callable[[memoryview], object]] = {
    "slice": lambda view: view[PAGE : 2 * PAGE],
    "slice of a slice": lambda view: view[PAGE:][1:],
    "cast": lambda view: view.cast("Q"),
    "read-only": lambda view: view.toreadonly(),
    "memoryview": memoryview,
    "frombuffer": lambda view: np.frombuffer(view, np.uint8),
    "asarray": np.asarray,
    "array of a slice": lambda view: np.asarray(view[:PAGE])[::2].reshape(2, -1),
    "array of a cast": lambda view: np.asarray(view.cast("d")),
    "cffi": ffi.from_buffer,
    "owner": lambda view: view.obj,
}


def touch(held: object) -> None:
    """Read from it: SIGSEGV if its memory has gone."""
    if isinstance(held, np.ndarray):
        assert held.sum() == 0
    elif isinstance(held, ffi.CData):
        assert not any(ffi.buffer(held, 8)[:])
    else:
        assert not any(memoryview(held)[:8].tolist())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", ["close", "detach", "detach the view"])
def test_a_view_in_use_stays(path: Path, kind: str, verb: str) -> None:
    with msharefs.open(path) as region:
        view = region.attach()
        end = {
            "close": region.close,
            "detach": region.detach,
            "detach the view": lambda: region.detach(view),
        }[verb]
        held = KINDS[kind](view)
        for _ in range(2):
            with pytest.raises(BufferError, match=r"views: .* is in use: .* again$"):
                end()
            touch(held)
            assert len(region.addresses) == 1
            assert region.stat()["clients"] == 1
        del held
        end()
        assert region.addresses == []
        with pytest.raises(ValueError, match="released"):
            view[0]


def test_a_with_block_is_left_with_the_error(path: Path) -> None:
    region = msharefs.open(path)
    with pytest.raises(BufferError, match="is in use"), region:
        array = np.frombuffer(region.attach(), np.uint8)
    assert not array.any()
    del array
    region.close()
    assert region.fd == -1
    region.close()


def test_the_error_in_a_with_block_is_still_told(path: Path) -> None:
    region = msharefs.open(path)
    part = region.attach()[:PAGE]
    with pytest.raises(BufferError) as caught, region:
        raise LookupError
    assert isinstance(caught.value.__context__, LookupError)
    part.release()
    region.close()


def test_a_released_view_holds_nothing(path: Path) -> None:
    with msharefs.open(path) as region:
        with region.attach() as view, view[:PAGE] as part:
            part[0] = 1
        assert len(region.addresses) == 1
    assert region.addresses == []


def test_of_two_attachments_the_free_one_goes(path: Path) -> None:
    with msharefs.open(path) as region:
        held = region.attach()[PAGE:]
        (address,) = region.addresses
        region.attach()
        with pytest.raises(BufferError, match=f"{address:#x}"):
            region.close()
        assert region.addresses == [address]
        touch(held)
        del held


def test_a_collected_region_leaves_its_views(path: Path) -> None:
    """In a process of its own: the attachment ends with it."""
    script = """
import gc, sys, numpy, msharefs
def attached():
    region = msharefs.open(sys.argv[1])
    region.cycle = region
    return numpy.frombuffer(region.attach(), numpy.uint8)
array = attached()
gc.collect()
assert not array.any()
class Last:
    def __init__(self, region, array):
        self.region, self.array = region, array
    def __del__(self):
        print(self.array[-1], len(self.region.addresses))
region = msharefs.open(sys.argv[1])
array = numpy.frombuffer(region.attach(), numpy.uint8)
last = Last(region, array)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\n", "")
