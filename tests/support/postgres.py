"""Debian's own PostgreSQL, in a cluster of a test's own."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import psutil
import pytest

from .wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

WAIT = 120.0
SUM = "select sum(hashtext(pgbench_accounts::text)) from pgbench_accounts"
# An invariant of pgbench's script.
CONSISTENT = (
    "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from "
    "pgbench_branches) and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from "
    "pgbench_history)"
)


def need(program: str | None, package: str) -> str:
    """The path of a program that `make test` has installed."""
    if program is None:
        missing = f"{package} is not installed: apt-get install {package}, or `make test` as root"
        if "CI" in os.environ:
            pytest.fail(missing)
        pytest.skip(missing)
    return program


class Postgres:
    """A cluster of its own in `base`, run by the user postgres."""

    def __init__(self, base: Path, before: Sequence[str]) -> None:
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))  # a system path
        self._bin = need(found[-1] if found else None, "postgresql")
        self.before = before
        self.base = base
        shutil.chown(base, "postgres", "postgres")
        self.data, self.log = base / "data", base / "log"
        self.run("initdb", "-D", self.data, "-A", "trust", "-N")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                "shared_buffers=128MB\nhuge_pages=off\nmax_connections=100\nfsync=off\n"
                f"unix_socket_directories='{base}'\nlisten_addresses=''\n"
            )

    def command(self, name: str, *arguments: str | Path) -> list[str | Path]:
        user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups")
        return [*user, f"{self._bin}/{name}", *arguments]

    def run(
        self, name: str, *arguments: str | Path, before: Sequence[str] = (), limit: float = WAIT
    ) -> str:
        """Run one of its programs, which must succeed; returns its output."""
        done = subprocess.run(
            [*before, *self.command(name, *arguments)], cwd="/", timeout=limit, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "HOME": str(self.base), "PGHOST": str(self.base)},
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stdout}\n{self.said()}"
        return done.stdout

    def start(self) -> int:
        """The postmaster's pid."""
        # pg_ctl leaves the server in the background: nobody must wait for its output.
        self.run("pg_ctl", "-D", self.data, "-l", self.log, "-w", "start", "-s", before=self.before)
        return int((self.data / "postmaster.pid").read_text().splitlines()[0])

    def stop(self) -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-m", "fast", "stop")

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """A backend that is idle for the time of the `with`."""
        psql = subprocess.Popen(
            self.command("psql", "-h", self.base, "postgres"), cwd="/",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert psql.stdin
        assert psql.stdout
        print("select pg_backend_pid() \\gset\n\\echo :pg_backend_pid", file=psql.stdin, flush=True)
        pid = int(psql.stdout.readline())
        yield
        psql.communicate()
        until(lambda: not psutil.pid_exists(pid), "the backend has ended")

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""
