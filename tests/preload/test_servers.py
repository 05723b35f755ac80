"""Debian's own PostgreSQL and nginx, with their shared memory in regions.

Each runs plain first, and then must do the same under `msharefs run --adopt-anon`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support import namespace, proc
from support.postgres import CONSISTENT, SUM, WAIT, Postgres, need
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ADOPT = [sys.executable, "-m", "msharefs", "run", "--adopt-anon", "64M", "--"]
CLIENTS = 50
LEAST = 64 << 20


def adopted(pid: int) -> list[int]:
    """Sizes of the memory of regions in a process."""
    found: dict[str, int] = {}
    for each in proc.maps(pid):
        if ".mem" in each.path:
            found[each.path] = found.get(each.path, 0) + each.end - each.start
    return list(found.values())


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def title(pid: int) -> str:
    """A PostgreSQL process's description of itself; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture(params=["plain", "adopted"])
def before(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """The prefix of a command line; at the end no process of it may be left."""
    yield [] if request.param == "plain" else ADOPT
    if request.param == "adopted":
        until(lambda: not list(namespace.SHM.glob("msharefs-private-*")), "the private mount gone")


def test_postgresql(public_tmp: Path, before: list[str]) -> None:
    server = Postgres(public_tmp, before)
    postmaster = server.start()
    try:
        server.run("createdb", "bench")
        server.run("pgbench", "-i", "-s", "2", "-q", "bench")
        before_it = server.run("psql", "-Atc", SUM, "bench")
        said = server.run("pgbench", "-S", "-c", str(CLIENTS), "-j", "2", "-T", "3", "bench")
        assert re.search(r"number of failed transactions: 0 ", said)
        assert int(re.findall(r"transactions actually processed: (\d+)", said)[0]) > CLIENTS
        said = server.run("pgbench", "-c", "8", "-t", "50", "bench")  # and writing
        assert "number of transactions actually processed: 400/400" in said
        assert server.run("psql", "-Atc", SUM, "bench") != before_it
        assert server.run("psql", "-Atc", CONSISTENT, "bench") == "t\n"
        sizes = adopted(postmaster)
        if before:
            assert [size for size in sizes if size > LEAST]
            with server.session():
                backend, *_ = (pid for pid in children(postmaster) if "idle" in title(pid))
                assert adopted(backend) == sizes
        else:
            assert not sizes
    finally:
        server.stop()
    assert "database system is shut down" in server.said()
    assert not re.search(r"FATAL|PANIC|terminated by signal", server.said()), server.said()


def test_postgresql_survives_a_killed_backend(public_tmp: Path, before: list[str]) -> None:
    """The postmaster then makes new shared memory: detach and adopt in one process."""
    server = Postgres(public_tmp, before)
    postmaster = server.start()
    try:
        sizes = adopted(postmaster)
        (victim,) = [pid for pid in children(postmaster) if "background writer" in title(pid)]
        os.kill(victim, signal.SIGKILL)
        until(lambda: "all server processes terminated; reinitializing" in server.said(), "noticed")
        until(lambda: server.said().count("ready to accept connections") == 2, "ready again")
        assert server.run("psql", "-Atc", "select 6 * 7", "postgres") == "42\n"
        assert adopted(postmaster) == sizes
    finally:
        server.stop()


class Nginx:
    """An nginx whose workers share a zone that counts requests."""

    WORKERS = 4
    BURST = 4

    def __init__(self, base: Path, before: Sequence[str]) -> None:
        self._program = need(shutil.which("nginx", path="/usr/sbin:/usr/bin"), "nginx-light")
        self._before = before
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (base / "file").write_text("fine")
        self.conf = base / "nginx.conf"
        self.conf.write_text(
            f"worker_processes {self.WORKERS}; pid {base}/pid; error_log {base}/error.log;\n"
            "user www-data;\n"
            "events { worker_connections 64; }\n"
            "http {\n"
            f"  access_log off; client_body_temp_path {base}/body;\n"
            f"  proxy_temp_path {base}/proxy; fastcgi_temp_path {base}/fastcgi;\n"
            f"  uwsgi_temp_path {base}/uwsgi; scgi_temp_path {base}/scgi;\n"
            "  limit_req_zone $arg_who zone=counts:64m rate=1r/m;\n"
            f"  server {{ listen 127.0.0.1:{self.port} reuseport;\n"
            f"    location / {{ limit_req zone=counts burst={self.BURST} nodelay;\n"
            f"      add_header X-Pid $pid always; root {base}; }} }} }}\n"
        )

    def start(self) -> int:
        """The master's pid; it is a daemon."""
        subprocess.run(
            [*self._before, self._program, "-c", self.conf, "-p", self.base], check=True,
            timeout=WAIT, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
        )  # fmt: skip
        return self.master()

    def master(self) -> int:
        return int((self.base / "pid").read_text())

    def ask(self, who: str) -> tuple[int, int]:
        """Status of a request, and the worker's pid."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        with contextlib.closing(connection):
            connection.request("GET", f"/file?who={who}")
            response = connection.getresponse()
            return response.status, int(response.headers["X-Pid"])


def served(server: Nginx, who: str, times: int = 40) -> tuple[int, set[int]]:
    """How many of some requests got through, and which workers answered them."""
    answers = [server.ask(who) for _ in range(times)]
    assert {status for status, _ in answers} <= {200, 503}
    return sum(status == 200 for status, _ in answers), {pid for _, pid in answers}


def test_nginx(public_tmp: Path, before: list[str]) -> None:
    server = Nginx(public_tmp, before)
    master = server.start()
    try:
        passed, workers = served(server, "first")
        assert passed == 1 + server.BURST  # counted together
        assert len(workers) > 1
        assert pwd.getpwnam("www-data").pw_uid in {
            os.stat(f"/proc/{pid}").st_uid for pid in workers
        }
        for pid in (master, *workers):
            assert [size for size in adopted(pid) if size >= LEAST] == ([LEAST] if before else [])
        os.kill(master, signal.SIGHUP)  # new workers, the same zone
        until(lambda: not workers & set(children(master)), "new workers")
        passed, _ = served(server, "first")
        assert passed == 0  # it remembers
        assert served(server, "second")[0] == 1 + server.BURST
        (victim, *_) = children(master)
        os.kill(victim, signal.SIGKILL)
        until(lambda: victim not in children(master), "the victim gone")
        until(lambda: len(children(master)) == server.WORKERS, "a new worker")
        assert served(server, "third")[0] == 1 + server.BURST
    finally:
        os.kill(master, signal.SIGQUIT)
        until(lambda: not Path(f"/proc/{master}").exists(), "nginx ended")
    said = (public_tmp / "error.log").read_text()
    assert not re.search(r"\[(emerg|crit)\]", said), said
