"""Attaching where nobody can be made who takes the faults: it is memory all the same."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs.launch import running

from .conftest import QUANTUM
from support import cc
from support.actor import SOURCES
from support.audit import assert_whole
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

pytestmark = pytest.mark.mount("quantum=2M")

WAIT = 60.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cc.build(SOURCES / "unserved.c", tmp_path_factory.mktemp("unserved") / "unserved")


@pytest.fixture
def region(shared_mount: Mount) -> Iterator[msharefs.Region]:
    with msharefs.open(shared_mount.path / "r", os.O_RDWR | os.O_CREAT) as made:
        made.truncate(QUANTUM)
        made.map(0, QUANTUM)
        yield made
        os.unlink(made.path)


@pytest.mark.parametrize("client", ["thread", "shadow"])
@pytest.mark.parametrize(
    ("where", "why"),
    [("vfork", "after vfork(2)"), ("newpid", "after unshare(CLONE_NEWPID)")],
)
def test_attaching(
    program: Path, region: msharefs.Region, shared_mount: Mount, client: str, where: str, why: str
) -> None:
    told = {"MSHAREFS_CLIENT": client, running.VERBOSE: "1"}
    environ = {**running.environment(shared_mount.path, None), **told}
    done = subprocess.run(
        [program, where, region.path], env=environ, capture_output=True, text=True, timeout=WAIT,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert f"nobody can take its faults {why}" in done.stderr
    until(lambda: not region.describe("clients"), "the server has heard of its end")
    assert_whole(region)
