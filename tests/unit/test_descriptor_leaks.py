"""Descriptors that the server opens before something fails: they are closed again."""

from __future__ import annotations

import errno
import os
import types
from typing import TYPE_CHECKING

import pytest
import trio

from msharefs.server import connection, hostmm, objects, owners, regions
from msharefs.server.hostmm import HostMM
from msharefs.server.options import MountOptions

from support.calls import refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = 2 << 20


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """As many descriptors afterwards as before."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


def make(directory: Path) -> None:
    owner = owners.Owner(os.getpid(), 1, "")
    HostMM.make("r", directory, 1, SIZE, SIZE, owner).close()


def test_a_host_mm_that_is_broken(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "1.mm").write_bytes(b"")
    with refused(errno.EUCLEAN):
        HostMM("r", tmp_path, 1)


def test_a_host_mm_without_its_pages(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "1.mem").unlink()
    with refused(errno.ENOENT):
        HostMM("r", tmp_path, 1)


def test_a_region_that_cannot_be_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "regions"
    state.mkdir()
    make(state)

    async def refuse(_: HostMM) -> None:
        raise OSError(errno.EUCLEAN, "broken")

    monkeypatch.setattr(hostmm.HostMM, "recover", refuse)
    found = regions.Regions(
        MountOptions(directory=tmp_path, state=tmp_path, quantum=SIZE), tmp_path
    )
    trio.run(found.adopt, {1: SIZE})
    assert (state / "1.mm.broken").exists()
    assert found.size(1) == 0
    found.close()


def test_a_file_that_cannot_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.touch()
    status = path.stat()
    record = objects.Record(str(path), status.st_dev, status.st_ino, True, 4096, False, user=0)

    def fail(_record: objects.Record, _fd: int) -> bool:
        raise OSError(errno.EIO, "no answer")

    monkeypatch.setattr(objects, "_is_file_of", fail)
    with refused(errno.ENOENT):
        objects._find(record, [])


def test_an_answer_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    client = connection.Connection.__new__(connection.Connection)

    async def describe(what: str) -> bytes:
        return what.encode()

    client.region = types.SimpleNamespace(describe=describe)  # type: ignore[assignment]
    request = types.SimpleNamespace(text=b"stat\0")

    def fail(_fd: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, "no memory")

    monkeypatch.setattr(connection.os, "write", fail)
    with refused(errno.ENOSPC):
        trio.run(client._describe, request)
