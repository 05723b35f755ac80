"""examples/: each compiles and runs, and prints what it promises."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs
from msharefs import installed, verbs

from support import postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from msharefs import Region

    from support.server import Mount

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT = 60
KINDS = (".c", ".cpp", ".go", ".ipynb", ".py", ".rs")
pytestmark = pytest.mark.unsanitized("they are built as a user builds them")


def output(*command: str | Path, **environ: str) -> str:
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **environ},
        check=False, capture_output=True, text=True, timeout=LIMIT,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def flags() -> list[str]:
    environ = {**os.environ, "PKG_CONFIG_PATH": str(installed.libdir() / "pkgconfig")}
    command = ["pkg-config", "--cflags", "--libs", "msharefs"]
    return shlex.split(subprocess.check_output(command, env=environ, text=True))


def build(compiler: str, source: str, program: Path, *more: str) -> Path:
    warnings = ["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    output(compiler, *warnings, *more, "-o", program, EXAMPLES / source, *flags())
    return program


def test_c_a_ring(shared_mount: Mount, tmp_path: Path) -> None:
    ring = build("cc", "c/ring.c", tmp_path / "ring")
    path = shared_mount.path / "ring"
    with subprocess.Popen([ring, path, "consume"], stdout=subprocess.PIPE, text=True) as consumer:
        output(ring, path, "produce", "5000")
        assert consumer.communicate(timeout=LIMIT)[0] == f"{5000 * 5001 // 2}\n"
    assert consumer.returncode == 0


def test_c_every_call(shared_mount: Mount, tmp_path: Path) -> None:
    """The manual's examples, too."""
    program = build("cc", "c/calls.c", tmp_path / "calls")
    said = subprocess.run(
        [program, shared_mount.path / "calls"], check=True, capture_output=True, text=True,
        timeout=LIMIT, env={**os.environ, "MSHAREFS_MOUNT": str(shared_mount.path)},
    )  # fmt: skip
    assert said.stdout == (
        f"libmsharefs {msharefs.__version__}\nhello: 512 pages, 16384 bytes of page tables\n"
        "hello: 1 page\n"
    )


def test_cpp_a_histogram(shared_mount: Mount, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:  # what everybody has who builds msharefs is a C compiler
        return
    program = build(compiler, "cpp/histogram.cpp", tmp_path / "histogram", "-std=c++17")
    said = output(program, shared_mount.path / "histogram")
    assert said == "8000 counted, 16384 bytes of page tables\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("numpy_share", f"{512**2 * (512**2 - 1) // 2}, with 16384 bytes of page tables\n"),
        ("trio_clients", "100 lines; the last one: client 99; clients: 1\n"),
    ],
)
def test_python(shared_mount: Mount, name: str, said: str) -> None:
    program = EXAMPLES / f"python/{name}.py"
    assert output(sys.executable, program, shared_mount.path / name) == said


def test_rust(shared_mount: Mount, tmp_path: Path) -> None:
    if shutil.which("rustc") is None:
        return
    libdir = installed.libdir()
    output(
        "rustc", "-o", tmp_path / "first", EXAMPLES / "rust/first.rs", "-L", f"native={libdir}",
        "-C", f"link-arg=-Wl,-rpath,{libdir}",
    )  # fmt: skip
    assert output(tmp_path / "first", shared_mount.path / "rust") == "hello from Rust\n"


def test_go(shared_mount: Mount, tmp_path: Path) -> None:
    if shutil.which("go") is None:
        return
    own = {name: str(tmp_path / name) for name in ("GOCACHE", "GOPATH")}
    environ = {"PKG_CONFIG_PATH": str(installed.libdir() / "pkgconfig"), "GOTOOLCHAIN": "local"}
    program = tmp_path / "first"
    output("go", "build", "-o", program, EXAMPLES / "go/first.go", **environ, **own)
    assert output(program, shared_mount.path / "go") == "hello from Go\n"


def test_a_notebook(shared_mount: Mount, tmp_path: Path) -> None:
    """Executed as `jupyter execute` does it, in which the first error is one of the whole."""
    executed = tmp_path / "executed.ipynb"
    environ = {name: str(tmp_path) for name in ("HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR")}
    subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "jupyter-execute", "--output", executed,
         EXAMPLES / "notebook/region.ipynb"],
        env={**os.environ, **environ, "MSHAREFS_MOUNT": str(shared_mount.path)},
        check=True, capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    cells = json.loads(executed.read_text())["cells"]
    empty, filled, added, _ = [cell["outputs"] for cell in cells if cell["cell_type"] == "code"]
    (before,), (after,) = (each[0]["data"]["text/html"] for each in (empty, filled))
    assert before.count("<rect ") == 0
    assert after.count("<rect ") == 16
    assert added[0]["text"] == ["0 bytes of page tables added\n"]


def test_drgn_walks_the_tables_of_a_running_program(shared_mount: Mount) -> None:
    path = shared_mount.path / "drgn"
    program = (
        "import msharefs, os, sys\n"
        "region = msharefs.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "region.truncate(8 << 20)\n"
        "region.map(2 << 20, 4 << 20)\n"
        "region.attach()[2 << 20] = 1\n"
        "print(flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        done = subprocess.run(
            [sys.executable, EXAMPLES / "drgn/msharefs_mm.py", str(process.pid)],
            check=False, capture_output=True, text=True, timeout=LIMIT,
        )  # fmt: skip
        process.stdin.write(b"\n")
    assert (process.returncode, done.returncode) == (0, 0), done
    region, vma, entries = done.stdout.splitlines()
    assert re.fullmatch(
        r"region \d+: 8 MiB, snapshot \d+, tables: 1 PTE, 1 PMD, 1 PUD, 1 PGD", region
    )
    assert vma == "  000000200000-000000600000 rw-s object 0"
    assert entries.endswith(" PTE 0x8000800000200067"), entries


DEBUGGED = """
#include <fcntl.h>
#include <msharefs.h>
int main(int argc, char **argv)
{
    struct mshare_stat found;
    return argc < 2 || mshare_stat(open(argv[1], O_RDONLY), &found, sizeof found);
}
"""


def test_gdb_prints_what_people_read(shared_mount: Mount, tmp_path: Path) -> None:
    if shutil.which("gdb") is None:
        return
    path = shared_mount.path / "gdb"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        region.truncate(2 << 20)
        region.map(0, 2 << 20)
    (tmp_path / "p.c").write_text(DEBUGGED)
    build("cc", str(tmp_path / "p.c"), tmp_path / "p", "-O0")
    steps = ["break mshare_stat", "run", "finish", "up 0", "next", "print found",
             "mshare-entry 0x8000000123456867"]  # fmt: skip
    said = output(
        "gdb", "-q", "-batch", "-nx", "-ex", "set debuginfod enabled off",
        "-x", EXAMPLES / "gdb/msharefs_gdb.py",
        *(word for step in steps for word in ("-ex", step)), "--args", tmp_path / "p", path,
    )  # fmt: skip
    assert "2 MiB region, 0 B resident, " in said
    assert " 0 clients, 0 faults, 0 links" in said
    assert "frame 0x123456000: present, writable, user, accessed, dirty, no-execute" in said


def test_a_notebook_shows_a_region(shared_mount: Mount) -> None:
    path = shared_mount.path / "<b>"
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
        assert "unsized" in region._repr_html_()
        region.truncate(4 << 20)
        region.map(0, 4 << 20)
        region.attach()[:4096] = bytes(4096)
        shown = region._repr_html_()
        assert "&lt;b&gt;" in shown
        assert "<b>/" not in shown
        assert shown.count("<rect ") == 1, "one table is there"
        assert "4 KiB" in shown
        region.detach()


def test_the_page_names_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    found = [path for path in EXAMPLES.rglob("*") if path.suffix in KINDS]
    assert len(found) == 13
    for path in found:
        assert f"({path.relative_to(EXAMPLES)})" in page


def test_relro_in_ten_children(shared_mount: Mount, tmp_path: Path) -> None:
    library = tmp_path / "librelro.so"
    linked = "-Wl,-z,relro,-z,now,-z,max-page-size=0x200000"
    build("cc", "c/relro.c", library, "-DLIBRARY", "-shared", "-fPIC", linked)
    program = build("cc", "c/relro.c", tmp_path / "relro")
    path = shared_mount.path / "relro"
    done = subprocess.run(
        [program, path, library], check=False, capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 0, done
    said = re.fullmatch(
        r"(\d+) KiB of RELRO in 11 processes, with (\d+) bytes of page tables\n", done.stdout
    )
    assert said is not None, done
    quanta = int(said[1]) // 2048
    assert quanta in (1, 2), "the linker may begin the segment a quantum before"
    assert int(said[2]) == 4096 * (3 + quanta)
    assert done.stderr == "relro: making it writable again: Operation not permitted\n"


def test_reclaim_of_what_many_have_mapped(shared_mount: Mount) -> None:
    path = shared_mount.path / "pageout"
    said = output(sys.executable, EXAMPLES / "python/pageout.py", path, "8M", "3").splitlines()
    assert said[0].endswith("    8 MiB in memory, mapped    24 MiB")
    assert said[1].split()[0] == "PAGEOUT"
    assert said[1].endswith("     0 B in memory, mapped       0 B")
    assert said[2].endswith("    8 MiB in memory, mapped    24 MiB")
    assert said[3] == "PAGEOUT while locked Invalid argument"
    assert said[4].endswith("     8 MiB in memory, mapped    24 MiB")


READ_ONLY = "default_transaction_read_only=on\n"


@contextlib.contextmanager
def running(server: postgres.Postgres, path: Path, library: Path, wanted: str) -> Iterator[Region]:
    """The server, with its buffers in a region and these verbs on it."""
    server.before = ["env", f"LD_PRELOAD={library}", f"PG_REGION={path}", f"PG_VERBS={wanted}"]
    server.start()
    try:
        with msharefs.open(path) as region:
            yield region
    finally:
        server.stop()
        path.unlink(missing_ok=True)


@pytest.mark.slow
def test_postgresql_with_verbs(shared_mount: Mount, public_tmp: Path) -> None:
    """Three runs: its buffers are there before the first query; locked; sealed, and read only."""
    library = build("cc", "c/pg_verbs.c", public_tmp / "pg_verbs.so", "-shared", "-fPIC")
    base = public_tmp / "cluster"
    base.mkdir()
    server = postgres.Postgres(base, [])
    settings = server.data / "postgresql.conf"
    with settings.open("a") as file:  # 8 MiB may be locked by anybody
        file.write("shared_buffers=1MB\nmax_connections=10\nwal_buffers=64kB\n")

    def queries(*script: str) -> None:
        said = server.run("pgbench", *script, "-c", "4", "-t", "100", "bench")
        assert "number of transactions actually processed: 400/400" in said

    def stays(region: Region, flags: set[str]) -> None:
        """The buffers are in memory and shared, by more than one backend."""
        (buffers,) = region.maps()
        assert set(buffers["flags"]) == flags
        assert buffers["end"] > 1 << 20
        assert set(region.query(0, buffers["end"])) == {1}
        assert len({client["pid"] for client in region.clients()}) > 3

    with running(server, shared_mount.path / "populated", library, "populate") as region:
        faults = region.stat()["counters"]["faults"]
        server.run("createdb", "bench")
        server.run("pgbench", "-i", "-q", "bench")
        queries()
        stays(region, set())
        assert region.stat()["counters"]["faults"] == faults, "nothing was left to fault"

    with running(server, shared_mount.path / "locked", library, "lock") as region:
        queries()
        stays(region, {"locked"})
        with pytest.raises(OSError, match="locked") as caught:
            region.advise(0, 4096, verbs.MADV_PAGEOUT)
        assert caught.value.errno == errno.EINVAL

    text = settings.read_text()
    settings.write_text(text + READ_ONLY)
    with running(server, shared_mount.path / "sealed", library, "populate,seal") as region:
        queries("-S")
        stays(region, {"sealed"})
        done = server.run("psql", "-d", "bench", "-Atc", "select count(*) > 300 from pg_class")
        assert done.strip() == "t", "its catalog can be read"
        with pytest.raises(AssertionError, match="read-only transaction"):
            server.run("psql", "-d", "bench", "-v", "ON_ERROR_STOP=1", "-c", "create table t()")
        for change in (region.unmap, region.map, lambda at, size: region.protect(at, size, 0)):
            with pytest.raises(PermissionError):
                change(0, 4096)
