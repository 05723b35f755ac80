"""Reading /proc: whatever name a process, a file or a mount has, and processes that have ended."""

from __future__ import annotations

import ast
import contextlib
import errno
import mmap
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import msharefs
from msharefs import mountpoint, proc, processes

from support import namespace
from support.calls import refused
from support.isolated import isolated
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = os.getpid()
NAMES = [
    b"plain",
    b"a b",
    b") R 1 (",
    b"a) Z 1 1",
    b"a\nb",
    b"x\nTgid:\t1",
    b"\n",
    b"\xff\xfe",
    b"a\\nb",
]
OF_A_PROCESS: dict[str, Callable[[int], object]] = {
    "stat": proc.stat,
    "status": lambda pid: proc.status(pid, "Tgid"),
    "comm": proc.comm,
    "cgroup": proc.cgroup,
    "limits": lambda pid: proc.soft_limit(pid, "Max address space"),
    "task": proc.threads,
    "ns": proc.pid_namespace,
    "cwd": proc.directories,
    "fd": proc.open_files,
    "pagemap": proc.open_pagemap,
    "mem": proc.open_memory,
    "maps": proc.maps,
    "mountinfo": proc.mounts,
}


NOT_READ = {"ns", "cwd", "pagemap", "mem", "mountinfo"}

SLEEPER = """
import os, signal, sys
with open("/proc/self/comm", "wb") as file:
    file.write(os.fsencode(sys.argv[1]))
print(flush=True)
signal.pause()
"""


@contextlib.contextmanager
def child(name: bytes = b"child") -> Iterator[int]:
    """A process of that name, which does nothing."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", SLEEPER, name], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"\n"
            yield process.pid
        finally:
            process.kill()


def end(pid: int) -> None:
    """Of a child, unless it has ended before."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_process_of_any_name(name: bytes) -> None:
    with child(name) as pid:
        until(lambda: proc.stat(pid).state == "S", "it sleeps")
        found = proc.stat(pid)
        assert found.threads == 1
        assert found.start_time >= proc.stat(HERE).start_time
        assert found.minor_faults > 0
        assert proc.status(pid, "Tgid") == proc.status(pid, "Pid") == str(pid)
        assert proc.status(pid, "NSpid").split()[-1] == str(pid)
        assert proc.status(pid, "VmPTE").endswith(" kB")
        assert proc.comm(pid) == name.decode(errors="replace")
        assert proc.threads(pid) == [pid]
        assert processes.is_alive(pid, found.start_time)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert proc.stat(pid).state == "Z"
        assert not processes.is_alive(pid, found.start_time)


def test_a_field_that_a_process_has_not() -> None:
    assert proc.status(HERE, "VmPT") == ""
    assert proc.status(HERE, "mPTE") == ""


@pytest.mark.parametrize("look", OF_A_PROCESS.values(), ids=OF_A_PROCESS)
def test_a_process_that_has_ended(look: Callable[[int], object]) -> None:
    with child() as pid:
        end(pid)
        with refused(errno.ESRCH):
            look(pid)


@pytest.mark.parametrize("what", sorted(OF_A_PROCESS.keys() - NOT_READ))
def test_a_process_that_ends_while_it_is_read(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between open and read, where the kernel's answer is another. Mounts outlive the process."""
    with child() as pid:

        def first(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                made = function(*arguments, **options)
                end(pid)
                return made

            return call

        monkeypatch.setattr(proc, "open", first(open), raising=False)
        monkeypatch.setattr(os, "listdir", first(os.listdir))
        if what in ("task", "fd"):  # its listing was whole, and then nothing of it is there
            assert OF_A_PROCESS[what](pid) in ([pid], {})
        else:
            with refused(errno.ESRCH):
                OF_A_PROCESS[what](pid)


def test_what_is_told_of_processes_that_have_ended() -> None:
    with child() as pid:
        end(pid)
        assert processes.start_time(pid) == processes.process_of(pid) == 0
        assert processes.command(pid) == processes.cgroup(pid) == ""
        assert not processes.is_alive(pid, 0)
        assert not processes.thread_runs(pid)
        assert processes.mapped_files(pid, 1) == []
        with refused(errno.ESRCH):
            processes.fetch_descriptor(pid, 0)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"0::/\n", "/"),
        (b"0::/user.slice/a b:c\n", "/user.slice/a b:c"),
        (b"5:cpu,memory:/one\n0::/two\n", "/one"),
        (b"5:cpu,memoryx:/one\n1:name=memory:/x\n0::/two\n", "/two"),
        (b"0::/\xff\n", "/\N{REPLACEMENT CHARACTER}"),
        (b"", ""),
    ],
)
def test_cgroups(text: bytes, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_read", lambda *_: text)
    assert proc.cgroup(HERE) == path


def test_limits() -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (4096, before[1]))
    try:
        assert proc.soft_limit(HERE, "Max core file size") == 4096
        resource.setrlimit(resource.RLIMIT_CORE, (0, before[1]))
        assert proc.soft_limit(HERE, "Max core file size") == 0
        for name in ("Max address space", "Max locked memory"):
            number = resource.RLIMIT_AS if "address" in name else resource.RLIMIT_MEMLOCK
            soft = resource.getrlimit(number)[0]
            assert proc.soft_limit(HERE, name) == (None if soft < 0 else soft)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


FILE_NAMES = [b"a b", b"a\nb", b"c (deleted)", b"\xff", b"1-2 r--p 0 0:0 0 "]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_a_mapping_of_a_file_of_any_name(name: bytes, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    status = os.fstat(fd)
    try:
        os.ftruncate(fd, 4 * mmap.PAGESIZE)
        with mmap.mmap(fd, 2 * mmap.PAGESIZE, prot=mmap.PROT_READ, offset=mmap.PAGESIZE):
            every = proc.maps(HERE)
            (found,) = (each for each in every if each.inode == status.st_ino)
            assert found.end - found.start == 2 * mmap.PAGESIZE
            assert (found.prot, found.offset) == ("r--s", mmap.PAGESIZE)
            assert (found.device, os.fsencode(found.path)) == (status.st_dev, path)
            assert proc.maps(HERE, [status.st_dev], status.st_ino) == [found]
            assert proc.maps(HERE, [status.st_dev + 1], status.st_ino) == []
            assert proc.maps(HERE, [status.st_dev]) == [
                each for each in every if each.device == status.st_dev
            ]
            assert processes.times_mapped(HERE, status) == 0
            with mmap.mmap(fd, 0), mmap.mmap(fd, mmap.PAGESIZE):
                assert processes.times_mapped(HERE, status) == 2
            with contextlib.suppress(PermissionError):  # without CAP_CHECKPOINT_RESTORE
                (again,) = processes.mapped_files(HERE, status.st_ino)
                assert os.path.samestat(os.stat(again), status)
        assert processes.times_mapped(HERE, status) == 0
        assert fd in proc.open_files(HERE)
        assert os.fsencode(proc.open_files(HERE)[fd]) == path
        assert os.path.samestat(os.stat(proc.fd_path(fd)), status)
    finally:
        os.close(fd)


MOUNTS = b"""\
22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
36 22 0:31 / /mnt/a\\040b\\011c\\134d rw - fuse.msharefs msharefs rw,user_id=1000,group_id=1000
40 22 8:1 /sub /mnt/x rw master:1 shared:2 - ext4 /dev/sda1 rw
41 22 0:32 / /mnt/-\\040- rw - tmpfs  rw,user_id=5
42 22 0:33 /a /mnt/\\012\xff\xc2\x85\x0b\x1c\r rw unbindable - fuse.x\\040y - xuser_id=1,user_id=2
43 22 0:4 mnt:[4026532] /mnt/\\1234 rw - nsfs nsfs rw
"""


def test_lines_of_mountinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "_read", lambda *_: MOUNTS)
    found = [
        (os.fsencode(mount.directory), mount.fstype, mount.device, mount.uid)
        for mount in proc.mounts()
    ]
    assert found == [
        (b"/sys", "sysfs", os.makedev(0, 20), 0),
        (b"/mnt/a b\tc\\d", mountpoint.FSTYPE, os.makedev(0, 31), 1000),
        (b"/mnt/x", "ext4", os.makedev(8, 1), 0),
        (b"/mnt/- -", "tmpfs", os.makedev(0, 32), 0),
        (b"/mnt/\n\xff\xc2\x85\x0b\x1c\r", "fuse.x y", os.makedev(0, 33), 2),
        (b"/mnt/S4", "nsfs", os.makedev(0, 4), 0),
    ]


@pytest.mark.parametrize(
    "name",
    [
        b"a b",
        b" - a",
        b"a\tb\nc\\d",
        b"\\040",
        b"\xff",
        "\x85\u2028\v\r".encode(),
        b"#",
    ],
)
def test_a_mount_on_a_directory_of_any_name(name: bytes, tmp_path: Path) -> None:
    directory = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    directory.mkdir()
    namespace.tmpfs(directory, "size=64k")
    try:
        found = mountpoint.covering(directory)
        assert found is not None
        assert (found.fstype, found.device) == ("tmpfs", directory.stat().st_dev)
        assert mountpoint.fstype(found.device) == "tmpfs"
    finally:
        namespace.detach(directory)
    assert mountpoint.covering(directory) is None


def test_of_the_machine() -> None:
    figures = proc.meminfo()
    assert figures["MemTotal"] == psutil.virtual_memory().total
    assert figures["HugePages_Total"] == int(proc.sysctl("vm/nr_hugepages"))
    assert figures["Hugepagesize"] >= 1 << 20
    assert 0 < figures["PageTables"] < figures["MemTotal"]
    assert proc.cpuinfo("processor")[0] == "0"
    assert proc.cpuinfo("no such field") == []


def test_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "           CPU0       CPU1\n"
        "  4:         13          2  IO-APIC   4-edge      ttyS0 7\n"
        "TLB:         20         22   TLB shootdowns\nERR:          5\n"
    )
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert proc.interrupts() == {"4": 15, "TLB": 42, "ERR": 5}


def test_nothing_else_reads_proc() -> None:
    top = Path(msharefs.__file__).parent
    found = []
    for path in top.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        prose = [node.value for node in nodes if isinstance(node, ast.Expr)]
        found += [
            f"{path.relative_to(top)}:{node.lineno}"
            for node in nodes
            if isinstance(node, ast.Constant)
            and node not in prose
            # A path, and not a text for users that names one.
            and re.search(r"^/proc(/|$)|/proc/self/", str(node.value))
        ]
    # Cases of the series ask a process to open them.
    elsewhere = [place for place in found if not place.startswith(("proc.py:", "conformance/"))]
    assert elsewhere == []
    assert found


def test_a_name_is_shown_and_obeyed_by_no_terminal() -> None:
    def work(say: Callable[[str], None]) -> None:
        Path("/proc/self/comm").write_text("\x1b[31mred\n")
        say(processes.named(os.getpid()))
        assert processes.named(os.getpid()) == f"process {os.getpid()} (?[31mred?)"

    isolated(work)
