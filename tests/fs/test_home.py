"""Where regions live: a root server's own tmpfs, others' places, and one that vanishes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import msharefs
from msharefs import home, mountpoint, verbs
from msharefs.server.options import MountOptions
from msharefs.server.state import StateDirectory

from support import libc, namespace
from support.baredev import in_bare_dev
from support.calls import NOBODY
from support.proc import mounts as all_mounts
from support.wait import until

if TYPE_CHECKING:
    from collections.abc import Iterator

MSHAREFS = [sys.executable, "-P", "-m", "msharefs"]
QUANTUM = 2 << 20
AS_NOBODY = (
    f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    " --inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
)
DEVICES = (
    "mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/userfaultfd c 10 257;"
    " mount -t tmpfs -o mode=1777 tmpfs /mnt; cd /;"
)

needs_fusermount = pytest.mark.skipif(
    shutil.which("fusermount3") is None, reason="needs the package fuse3"
)


def run(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MSHAREFS, *map(str, arguments)], env={**os.environ, **environ},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def succeeds(*arguments: str | Path) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def directory(public_tmp: Path) -> Path:
    made = public_tmp / "mnt"
    made.mkdir()
    return made


@contextlib.contextmanager
def mounted(directory: Path, *options: str) -> Iterator[Path]:
    """A mount as users make it; its state directory."""
    succeeds("mount", "-o", ",".join(("quantum=2M", *options)), directory)
    try:
        yield home.own(directory)
    finally:
        done = run("umount", directory)
    assert done.returncode == 0, done.stderr


def server_of(directory: Path) -> psutil.Process:
    server = mountpoint.open_server(directory)
    os.close(server.pidfd)
    return psutil.Process(server.pid)


def crash(directory: Path) -> None:
    server = server_of(directory)
    server.send_signal(signal.SIGKILL)
    psutil.wait_procs([server], timeout=10)


@contextlib.contextmanager
def region(directory: Path, size: int = QUANTUM) -> Iterator[msharefs.Region]:
    with msharefs.open(directory / "r", os.O_RDWR | os.O_CREAT) as made:
        made.truncate(size)
        made.map(0, size)
        yield made


# A root server's own


def test_a_root_server_has_a_tmpfs_that_nobody_else_enters(directory: Path) -> None:
    with mounted(directory) as state:
        memory = state / "memory"
        assert mountpoint.fstype(memory.stat().st_dev) == "tmpfs"
        assert stat.S_IMODE(memory.stat().st_mode) == 0o700
        room = os.statvfs(memory)
        assert room.f_blocks * room.f_frsize > 1 << 50  # no limit
        assert not room.f_flag & os.ST_NOEXEC
        assert room.f_flag & os.ST_NOSUID
        entered = subprocess.run(
            [*AS_NOBODY.split()[:4], "ls", memory], capture_output=True, check=False
        )
        assert entered.returncode != 0
        assert (state / "control").is_socket()
    assert not state.exists()
    assert not [each for each in all_mounts() if each.path.startswith(str(home.TOP))]


def test_size_and_huge_pages_are_as_asked_for(directory: Path) -> None:
    with mounted(directory, "size=24M", "huge=within_size") as state:
        room = os.statvfs(state / "memory")
        assert room.f_blocks * room.f_frsize == 24 << 20
        (line,) = (
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if line.split()[4] == str(state / "memory")
        )
        assert "huge=within_size" in line
        said = succeeds("stat", directory)
        assert f"kept in {state}: a tmpfs of the server's own" in said
        assert "of 24 MiB" in said
        with (
            pytest.raises(OSError, match=r"room for (19|2\d)\.?\d* MiB beside"),
            region(directory, 32 << 20),
        ):
            pass


@pytest.mark.parametrize("option", ["size=1G", "huge=always"])
def test_they_are_for_that_tmpfs_only(directory: Path, public_tmp: Path, option: str) -> None:
    done = run("mount", "-o", f"{option},state={public_tmp / 'state'}", directory)
    assert done.returncode == 2
    assert "whose file system decides" in done.stderr


def test_regions_are_found_again_after_a_crash(directory: Path) -> None:
    with mounted(directory) as state:
        with region(directory) as made, made.attach() as view:
            view[5] = 77
        crash(directory)
        succeeds("mount", "-o", "quantum=2M,size=1G", directory)
        room = os.statvfs(state / "memory")
        assert room.f_blocks * room.f_frsize == 1 << 30
        with msharefs.open(directory / "r", os.O_RDWR) as made, made.attach() as view:
            assert view[5] == 77
        crash(directory)
        assert "1 regions checked" in succeeds("check", state)
        done = run("mount", "-o", "quantum=2M,size=4K", directory)
        assert done.returncode == 1
        assert "do not fit into -o size=4096" in done.stderr
        succeeds("mount", "-o", "quantum=2M", directory)
        with msharefs.open(directory / "r", os.O_RDWR) as made, made.attach() as view:
            assert view[5] == 77


def test_two_have_one_each(directory: Path, public_tmp: Path) -> None:
    other = public_tmp / "other"
    other.mkdir()
    with mounted(directory) as state:
        with mounted(other) as others:
            assert state != others
            (directory / "r").touch()
            assert not (other / "r").exists()
        assert not others.exists()
        assert (directory / "r").exists()
        assert "running server" in run("mount", "-o", f"state={state}", other).stderr


def test_what_a_killed_server_left_empty_is_swept(directory: Path, public_tmp: Path) -> None:
    other, third = public_tmp / "other", public_tmp / "third"
    other.mkdir()
    third.mkdir()
    succeeds("mount", other)
    crash(other)
    succeeds("mount", third)
    (third / "r").touch()
    crash(third)
    with mounted(directory):
        assert not home.own(other).exists()
        assert home.own(third).exists()  # it has a region, which the next mount there finds
    namespace.detach(other)
    succeeds("mount", third)
    assert (third / "r").exists()
    succeeds("umount", third)


def test_it_is_in_no_other_mount_namespace(directory: Path) -> None:
    """Not where mounts are shared, either, as they are under systemd."""
    script = f"""
        set -e
        mount --make-rshared /
        unshare --mount --propagation slave sh -c 'echo up; read x; cat /proc/self/mountinfo' \\
            >"$1/other" <"$1/fifo" & exec 3>"$1/fifo"
        until grep -q up "$1/other"; do sleep 0.01; done
        {" ".join(MSHAREFS)} mount "$2"; grep -c " $3/.*/memory " /proc/self/mountinfo
        echo >&3; wait
        {" ".join(MSHAREFS)} umount "$2"; grep -c " $3/" /proc/self/mountinfo || true
        grep -c " $2 " "$1/other"; grep -c " $3/" "$1/other" || true
    """
    os.mkfifo(directory.parent / "fifo")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", directory.parent, directory, home.TOP],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["1", "0", "1", "0"], "")


# The places of others


def test_where_mounting_is_refused_it_is_dev_shm(tmp_path: Path) -> None:
    script = "import sys; from msharefs import home; print(home.default_state(home.Path('/mnt')))"
    command = f'setpriv --bounding-set=-sys_admin {sys.executable} -P -c "{script}"'
    done = in_bare_dev(f"cd {tmp_path}; {command}")
    assert done.stdout.startswith(f"{namespace.SHM}/msharefs-0-"), done.stderr


@needs_fusermount
def test_a_user_without_room_in_dev_shm_gets_the_runtime_directory() -> None:
    msharefs_of = f"XDG_RUNTIME_DIR=/mnt/run {AS_NOBODY} {' '.join(MSHAREFS)}"
    made = f"mkdir /mnt/m /mnt/run; chown {NOBODY} /mnt/m /mnt/run;"
    done = in_bare_dev(f"""{DEVICES} {made} mount -t tmpfs -o size=64K tmpfs /dev/shm
        {msharefs_of} mount /mnt/m; {msharefs_of} stat /mnt/m 2>/dev/null | head -1; ls /mnt/run
        {msharefs_of} umount /mnt/m; ls /mnt/run""")
    assert done.returncode == 0, done.stderr
    said, state = done.stdout.splitlines()
    assert f"kept in /mnt/run/{state}: a tmpfs that is shared" in said


@needs_fusermount
def test_a_user_without_a_place_is_told_why() -> None:
    msharefs_of = f"XDG_RUNTIME_DIR=/proc {AS_NOBODY} {' '.join(MSHAREFS)}"
    made = f"mkdir /mnt/m; chown {NOBODY} /mnt/m; chmod 755 /dev/shm;"
    done = in_bare_dev(f"set +e; {DEVICES} {made} {msharefs_of} mount /mnt/m; echo $?")
    assert done.stdout == "1\n"
    assert done.stderr == (
        "msharefs: there is no place for regions: /dev/shm may not be written to by this user; "
        "/proc is on proc and not on tmpfs, in memory. Name a directory on tmpfs (-o state=DIR)\n"
    )


def test_files_of_others_are_not_taken(directory: Path, public_tmp: Path) -> None:
    """Places may be open to everybody."""
    planted = public_tmp / "planted"
    elsewhere = public_tmp / "elsewhere"
    elsewhere.mkdir()
    planted.symlink_to(elsewhere)
    with pytest.raises(NotADirectoryError, match="remove it"):
        StateDirectory(MountOptions(directory=directory, state=planted))
    assert os.listdir(elsewhere) == []


# Room for a program's own memory

FILL = """
import mmap, os, sys
made = [mmap.mmap(-1, int(size) << 20) for size in sys.argv[1:]]
for each in made:
    each.write(b"x" * len(each))
if os.fork() == 0:
    for each in made:
        each[7] = 1
    os._exit(0)
os.wait()
sys.exit(any(each[7] != 1 for each in made))
"""


@contextlib.contextmanager
def overcommit(policy: str) -> Iterator[None]:
    """1: Linux promises memory without a look, as a database asks for."""
    setting = Path("/proc/sys/vm/overcommit_memory")
    before = setting.read_text()
    setting.write_text(policy)
    try:
        yield
    finally:
        setting.write_text(before)


def fill(mount: Path, *sizes: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Fills shared memory of these sizes in MiB, which is adopted, and changes it in a child."""
    how = ["run", "--mount", mount, "--adopt-anon", "1M", "--", sys.executable, "-c", FILL]
    return run(*how, *sizes, **environ)


@pytest.fixture
def small(public_tmp: Path) -> Iterator[Path]:
    """Where a state directory has 64 MiB, as /dev/shm in a container."""
    place = public_tmp / "small"
    place.mkdir()
    namespace.tmpfs(place, "size=64m,mode=755")
    yield place
    namespace.detach(place)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("sizes", "plain"), [(["32"], 0), (["128"], 1), (["40", "40"], 1), (["20", "20"], 0)]
)
@pytest.mark.parametrize("whose", ["mount", "program"])
def test_memory_with_a_budget_is_adopted_only_if_it_fits(
    directory: Path, small: Path, sizes: list[str], plain: int, whose: str
) -> None:
    options = [f"state={small / 'state'}", *(["budget=1M"] if whose == "mount" else [])]
    environ = {} if whose == "mount" else {"MSHAREFS_PT_BUDGET": "1M"}
    with mounted(directory, *options), overcommit("1"):
        for _ in range(2):  # what the first has had is free again
            done = fill(directory, *sizes, **environ)
            assert done.returncode == 0, done.stderr
            assert done.stderr.count("stay plain: ") == plain


def test_memory_without_a_budget_needs_no_room(directory: Path, small: Path) -> None:
    """It is a program's own, and not in the state directory."""
    libc.mount(small, flags=libc.MS_REMOUNT | libc.MS_NOEXEC, options="size=64m")
    with mounted(directory, f"state={small / 'state'}"):
        done = fill(directory, "80", "80")
        assert (done.returncode, done.stderr) == (0, "")


def test_memory_that_may_be_sparse_is_not_promised(directory: Path, small: Path) -> None:
    sparse = verbs.MAP_SHARED | verbs.MAP_FIXED | verbs.MAP_ANONYMOUS | verbs.MAP_NORESERVE
    with (
        mounted(directory, f"state={small / 'state'}"),
        region(directory, 32 << 20) as made,
        msharefs.open(directory / "large", os.O_RDWR | os.O_CREAT) as large,
    ):
        large.truncate(1 << 30)
        large.map(0, 1 << 30, flags=sparse)
        for size in (1 << 30, 40 << 20):
            with pytest.raises(OSError, match="room for"):
                large.map(0, size)
        made.unmap(0, 32 << 20)
        large.map(0, 40 << 20)


@pytest.mark.parametrize("whose", ["mount", "program"])
def test_memory_with_a_budget_is_not_adopted_where_code_may_not_run(
    directory: Path, small: Path, whose: str
) -> None:
    libc.mount(small, flags=libc.MS_REMOUNT | libc.MS_NOEXEC, options="size=64m")
    options = [f"state={small / 'state'}", *(["budget=1M"] if whose == "mount" else [])]
    environ = {} if whose == "mount" else {"MSHAREFS_PT_BUDGET": "1M"}
    with mounted(directory, *options):
        done = fill(directory, "8", **environ)
        assert done.returncode == 0
        assert "stay plain" in done.stderr


# A state directory that vanishes


def vanish(state: Path) -> None:
    shutil.rmtree(state / "memory" if home.is_own(state) else state, ignore_errors=True)


@pytest.mark.parametrize("where", ["own", "given"])
def test_a_state_directory_that_vanishes(directory: Path, public_tmp: Path, where: str) -> None:
    given = [f"state={public_tmp / 'state'}"] if where == "given" else []
    with mounted(directory, *given) as own:
        state = public_tmp / "state" if given else own
        with (
            (state / "log").open() as log,
            region(directory, 4 << 20) as made,
            made.attach() as view,
        ):
            view[0] = 1
            vanish(state)
            gone = run("ls", directory)
            assert gone.returncode == 1
            assert "its state directory is gone" in gone.stderr
            assert gone.stdout == ""
            with pytest.raises(OSError, match="Stale file handle"):
                (directory / "new").touch()
            for request in (os.listdir, lambda path: (path / "d").mkdir()):
                with pytest.raises(OSError, match="Stale file handle"):
                    request(directory)
            assert "GONE" in succeeds("stat", directory)
            # What is attached goes on: faults, a child, changes of the region.
            view[1 << 20] = 2
            child = os.fork()
            if child == 0:
                view[8192] = view[0] + view[1 << 20]
                os._exit(0)
            os.waitpid(child, 0)
            assert view[8192] == 3
            made.unmap(0, 4096)
            made.map(0, 4096)
            assert view[0] == 0
            run("ls", directory)
            assert log.read().count("is gone") == 1
    assert not (home.TOP / home.name(directory)).exists()


def test_it_is_noticed_without_a_request(directory: Path) -> None:
    with mounted(directory) as state, (state / "log").open() as log:
        vanish(state)
        lines: list[str] = []
        until(lambda: lines.extend(log) or any("is gone" in each for each in lines), "it is told")


def test_the_root_is_sticky_but_not_v3s(directory: Path) -> None:
    """One user may not remove another's region."""
    with mounted(directory):
        (directory / "r").touch()
        done = subprocess.run(
            ["rm", "-f", directory / "r"], user=NOBODY, capture_output=True, text=True, check=False
        )
        assert "Operation not permitted" in done.stderr
        assert stat.S_IMODE(directory.stat().st_mode) == 0o1777
    with mounted(directory, "quirks=v3"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o777
