"""A hostile user does everything at once, beside another user's PostgreSQL on adopted memory.

It loses no transaction, and the mount answers. `scripts/attack SECONDS` is the same for longer, and
prints the figures.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from support import fakefuse
from support.attackers import Attack
from support.postgres import CONSISTENT, Postgres

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.server import Mount

SECONDS = float(os.environ.get("MSHAREFS_ATTACK_SECONDS", "10"))
PROMISED = 0.2
"""Seconds in which the mount answers, 99 times of 100."""
ALONE = "MSHAREFS_ATTACK_SECONDS" in os.environ
"""The machine has nothing else to do, so waiting for a processor counts, too."""
PATIENCE = PROMISED if ALONE else 0.5
CLIENTS = 4

# Looks at a mount all the time, and prints how long each look took; and how long without the time
# that the server and we ourselves have waited for a processor.
LOOKER = """
import os, sys, time
path, server, seconds = sys.argv[1:]
def waited():
    found = 0
    for who in (f"{server}/task/{server}", "self"):
        with open(f"/proc/{who}/schedstat") as file:
            found += int(file.read().split()[1])
    return found / 1e9
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    before, start = waited(), time.monotonic()
    os.stat(path)
    took = time.monotonic() - start
    print(took, max(0, took - (waited() - before)))
    time.sleep(0.005)
"""


class Looks(NamedTuple):
    """Figures of the looks, in seconds."""

    count: int
    median: float
    p99: float
    longest: float
    p99_served: float
    """Without waiting for a processor."""

    def __str__(self) -> str:
        return (
            f"{self.count} times stat(2): p50 {self.median * 1e3:.1f} ms, p99 "
            f"{self.p99 * 1e3:.1f} ms, longest {self.longest * 1e3:.1f} ms; without waiting for a "
            f"processor p99 {self.p99_served * 1e3:.1f} ms"
        )


class Load(NamedTuple):
    """Figures of pgbench."""

    done: int
    failed: int
    aborted: int

    def __str__(self) -> str:
        return f"pgbench: {self.done} transactions, {self.failed} failed, {self.aborted} aborted"


def load(server: Postgres, mount: Mount, seconds: float) -> tuple[Load, Looks]:
    """pgbench for so long, while the mount is looked at."""
    looker = subprocess.Popen(
        [sys.executable, "-c", LOOKER, str(mount.path / "mshare_info"),
         str(mount.pid), str(seconds)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = server.run(
        "pgbench", "-n", "-c", str(CLIENTS), "-j", "2", "-T", f"{seconds:.0f}", "bench",
        limit=seconds + 120,
    )  # fmt: skip
    lines = [tuple(map(float, line.split())) for line in looker.communicate()[0].splitlines()]
    times, served = (sorted(column) for column in zip(*lines, strict=True))
    done = int(re.findall(r"number of transactions actually processed: (\d+)", said)[0])
    failed = int(re.findall(r"number of failed transactions: (\d+)", said)[0])
    at = len(times) * 99 // 100
    looks = Looks(len(times), times[len(times) // 2], times[at], times[-1], served[at])
    return Load(done, failed, said.count("aborted")), looks


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(3 * SECONDS + 240)
def test_beside_postgresql(mounts: Callable[..., Mount], public_tmp: Path) -> None:
    mount = mounts("quantum=2M", limit=3 * SECONDS + 200)
    mount.damaged = True  # by the attackers, and theirs
    base = public_tmp / "postgres"
    base.mkdir()
    adopt = ["run", "--mount", str(mount.path), "--adopt-anon", "64M", "--"]
    server = Postgres(base, [sys.executable, "-m", "msharefs", *adopt])
    server.start()
    try:
        server.run("createdb", "bench")
        server.run("pgbench", "-i", "-s", "2", "-q", "bench")
        before = load(server, mount, SECONDS)
        with fakefuse.mounted(public_tmp / "fuse") as fuse:
            fuse.silent = {fakefuse.GETATTR, fakefuse.STATFS}
            with Attack(mount.path, mount.state, fuse) as attack:
                start = time.monotonic()
                during = load(server, mount, SECONDS)
                took = time.monotonic() - start
                assert not attack.ended()
                rounds = attack.rounds()
            fuse.abort()
        print(f"alone:  {before[0]}; {before[1]}")
        print(f"attack: {during[0]}; {during[1]}; {took:.0f} s, {rounds}")
        assert all(rounds.values())
        for pgbench, looks in (before, during):
            assert pgbench.done > 0
            assert (pgbench.failed, pgbench.aborted) == (0, 0)
            assert (looks.p99 if ALONE else looks.p99_served) < PATIENCE
        assert server.run("psql", "-Atc", CONSISTENT, "bench") == "t\n"
    finally:
        server.stop()
    assert not re.search(r"FATAL|PANIC|terminated by signal", server.said())
    for path in mount.path.glob("*[0-9]"):
        path.unlink()
