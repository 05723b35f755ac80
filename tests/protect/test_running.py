"""Protection changes under load: eight processes, threads that run, forks, stopped clients."""

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import msharefs

from support import cc
from support.calls import refused
from support.stopping import go_on_all, stop_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.server import Mount

PAGE = 4096
SIZE = 2 << 20
PROCESSES, THREADS = 8, 3
R, RW, NONE = mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE, 0

# Attaches, stores into every page, and then answers each line with the byte that it reads first.
CLIENT = """
import sys, msharefs
with msharefs.open(sys.argv[1]) as region:
    view = region.attach()
    for offset in range(0, len(view), 4096):
        view[offset] = 7
    print('ready', flush=True)
    for line in sys.stdin:
        view[4096] = view[4096] + 1
        print(view[0], flush=True)
"""


@pytest.fixture(scope="module")
def hammer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = Path(__file__).with_name("hammer.c")
    return cc.build(source, tmp_path_factory.mktemp("protect") / "hammer")


class Hammers:
    """Running hammers and what they have counted."""

    def __init__(self, program: Path, path: Path, count: int, *arguments: str) -> None:
        self.processes = [
            subprocess.Popen(
                [program, path, str(number), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            for number in range(count)
        ]

    def counts(self) -> list[tuple[int, ...]]:
        """Stores, refusals and other signals of each."""
        for process in self.processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        found = []
        for process in self.processes:
            assert process.stdout
            found.append(tuple(map(int, process.stdout.readline().split())))
        return found

    def wait_for_more(self, what: int, more: int) -> None:
        """Waits until each has `more` stores (0) or refusals (1) than now."""
        before = self.counts()
        while any(
            now[what] < then[what] + more for now, then in zip(self.counts(), before, strict=True)
        ):
            pass

    def end(self) -> None:
        for process in self.processes:
            process.communicate(timeout=20)


@pytest.fixture
def region(mount: Mount) -> Iterator[msharefs.Region]:
    with msharefs.open(mount.path / "r", os.O_RDWR | os.O_CREAT) as made:
        made.truncate(SIZE)
        made.map(0, SIZE)
        yield made


def assert_sound(region: msharefs.Region) -> None:
    found = region.describe("audit")
    for what in ("held", "lost", "stray", "bad", "vmas"):
        assert found[what] == 0, found


def words(data: bytes | memoryview) -> list[int]:
    return memoryview(data).cast("Q").tolist()


@pytest.mark.mount("quantum=2M", limit=90)
@pytest.mark.parametrize("prot", [R, NONE])
def test_no_store_succeeds_after_it_returned(
    region: msharefs.Region, hammer: Path, prot: int
) -> None:
    hammers = Hammers(hammer, Path(region.path), PROCESSES, str(THREADS))
    try:
        hammers.wait_for_more(0, 1000)
        memory = os.open(f"{Path(region.path).parent.parent}/state/regions", os.O_DIRECTORY)
        pages = os.open(next(n for n in os.listdir(memory) if n.endswith(".mem")), os.O_RDONLY,
                        dir_fd=memory)  # fmt: skip
        os.close(memory)
        with mmap.mmap(pages, SIZE, prot=mmap.PROT_READ) as plain:
            os.close(pages)
            for _ in range(8):
                region.protect(0, SIZE, prot)
                before = plain[:]
                # A store in flight is finished or refused: each process has seen a refusal since.
                hammers.wait_for_more(1, 3 * THREADS)
                assert plain[:] == before, "a store has succeeded"
                assert_sound(region)
                region.protect(0, SIZE, RW)
                pairs = zip(words(plain[:]), words(before), strict=True)
                assert all(now >= then for now, then in pairs), "a byte is lost"
                hammers.wait_for_more(0, 100)
        assert all(others == 0 for _, _, others in hammers.counts())
        region.protect(0, SIZE, R)
        stores = sum(stores for stores, _, _ in hammers.counts())
        view = region.attach(prot=mmap.PROT_READ)
        # A thread may have stored and not yet counted.
        assert 0 <= sum(words(view)) - stores <= PROCESSES * THREADS, "no byte is lost"
        assert_sound(region)
    finally:
        hammers.end()


@pytest.mark.mount("quantum=2M", limit=90)
def test_forks_meanwhile(region: msharefs.Region, hammer: Path) -> None:
    hammers = Hammers(hammer, Path(region.path), 3, "1", "fork")
    try:
        view = region.attach()
        hammers.wait_for_more(0, 100)
        for _ in range(10):
            region.protect(0, SIZE, R)
            before = bytes(view)
            hammers.wait_for_more(1, 3)
            assert bytes(view) == before, "a child that was born meanwhile could store"
            region.protect(0, SIZE, RW)
            hammers.wait_for_more(0, 100)
        assert all(others == 0 for _, _, others in hammers.counts())
        assert_sound(region)
    finally:
        hammers.end()


class Client:
    """A process that has touched every page, and that can be stopped."""

    def __init__(self, path: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, path],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self.read() == "ready"

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def ask(self) -> str:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def stop(self) -> None:
        stop_all(self.pid)

    def go_on(self) -> None:
        go_on_all(self.pid)

    def end(self) -> int:
        self.go_on()
        self.process.communicate(timeout=20)
        return self.process.returncode


@pytest.fixture
def client(region: msharefs.Region) -> Iterator[Client]:
    made = Client(region.path)
    yield made
    made.end()


@pytest.mark.mount("quantum=2M")
def test_writing_is_taken_from_a_stopped_process(region: msharefs.Region, client: Client) -> None:
    client.stop()
    region.protect(0, SIZE, R)
    client.go_on()
    assert client.ask() == ""
    assert client.end() == -signal.SIGSEGV


@pytest.mark.mount("quantum=2M")
def test_a_stopped_process_keeps_its_access_or_all_lose_it(
    region: msharefs.Region, client: Client
) -> None:
    other = Client(region.path)
    client.stop()
    with refused(errno.EBUSY):
        region.protect(0, SIZE, NONE)
    text = "".join(Path(region.path).parent.parent.joinpath("server.log").read_text())
    assert "Traceback" not in text
    assert [vma["prot"] for vma in region.maps()] == ["rw-s"]
    assert other.ask() == "7", "nothing has changed for anybody"
    client.go_on()
    assert client.ask() == "7"
    assert_sound(region)
    region.protect(0, SIZE, NONE)
    assert client.ask() == ""
    assert client.end() == -signal.SIGSEGV
    assert other.end() == 0
    region.protect(0, SIZE, RW)
    assert region.attach()[0] == 7


@pytest.mark.mount("quantum=2M")
def test_the_message_names_the_process(
    region: msharefs.Region, client: Client, mount: Mount
) -> None:
    from msharefs.native import check, ffi, lib

    client.stop()
    sock = check(lib.control_connect(region.fd), "connect")
    message = ffi.new("struct msg *", {"op": lib.MSG_PROTECT})
    message.arg[0:4] = [0, SIZE, NONE, 0]
    assert lib.control_call(sock, message, ffi.NULL, 0, ffi.NULL) == -errno.EBUSY
    assert re.search(rf"\b{client.pid}\b", ffi.string(message.text).decode())
    os.close(sock)
    assert mount.process is not None


@pytest.mark.mount("quantum=2M")
def test_a_restarted_server_waits_for_those_it_does_not_know(
    region: msharefs.Region, client: Client, mount: Mount
) -> None:
    client.stop()
    region.close()
    mount.kill()
    mount.start()
    with msharefs.open(mount.path / "r") as again:
        with refused(errno.EBUSY):
            again.protect(0, SIZE, R)
        client.go_on()
        again.protect(0, SIZE, R)
        assert client.ask() == ""
        assert client.end() == -signal.SIGSEGV
        assert_sound(again)


@pytest.mark.mount("quantum=2M")
def test_a_server_that_dies_in_the_middle_changed_nothing(
    region: msharefs.Region, client: Client, mount: Mount
) -> None:
    client.stop()
    change = "import sys, msharefs; msharefs.open(sys.argv[1]).protect(0, 2 << 20, 0)"
    with subprocess.Popen([sys.executable, "-c", change, region.path],
                          stderr=subprocess.PIPE) as caller:  # fmt: skip
        while region_busy(mount) == 0:
            pass
        mount.kill()
        assert caller.stderr
        assert re.search("ENOTCONN|not connected|abort", caller.stderr.read().decode())
    region.close()
    mount.start()
    client.go_on()
    assert client.ask() == "7"
    with msharefs.open(mount.path / "r") as again:
        assert [vma["prot"] for vma in again.maps()] == ["rw-s"]
        assert_sound(again)
        again.protect(0, SIZE, R)
        assert client.ask() == ""
        assert client.end() == -signal.SIGSEGV


def region_busy(mount: Mount) -> int:
    """VMAs that are being changed, read from the host mm itself."""
    from msharefs.native import check, ffi, lib

    (path,) = (mount.state / "regions").glob("*.mm")
    mm = ffi.new("struct mm *")
    check(lib.mm_open(mm, os.open(path, os.O_RDWR)), "open")
    vmas = ffi.new("struct mm_vma[8]")
    count = check(lib.mm_vmas(mm, vmas, 8), "vmas")
    lib.mm_close(mm)
    return sum(bool(vma.flags & lib.VMA_BUSY) for vma in vmas[0:count])


@pytest.mark.mount("quantum=2M")
def test_another_program_by_exec_is_not_waited_for(
    region: msharefs.Region, mount: Mount, mounts: Callable[..., Mount]
) -> None:
    del mounts
    script = CLIENT + "\n    import os; os.execlp('cat', 'cat')"
    with subprocess.Popen(
        [sys.executable, "-c", script.replace("for line in sys.stdin", "for line in '1'"),
         region.path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdin
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n", "7\n"]
        region.close()
        mount.kill()  # whether exec(2) comes before or after, nobody tells the next server
        process.stdin.write("cat\n")
        process.stdin.flush()
        assert process.stdout.readline() == "cat\n"
        mount.start()
        with msharefs.open(mount.path / "r") as again:
            again.protect(0, SIZE, NONE)
            assert again.describe("clients") == []
        process.stdin.close()
