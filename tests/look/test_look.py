"""The look verbs on real mounts: they show what real processes did."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import msharefs
from msharefs.cli import cli

from support import proc, schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

pytestmark = [pytest.mark.smoke, pytest.mark.mount("quantum=2M", "owner=file")]

QUANTUM = 2 << 20
PAGES = 3 * QUANTUM // 4096  # of the region that most tests use: it needs more than one PTE page
NOBODY = 65534

# Attaches, touches each page (argv[2] is w or r), says so, and stays until its stdin ends.
CLIENT = """
import sys, msharefs
with msharefs.open(sys.argv[1]) as region:
    view = region.attach()
    for offset in range(0, len(view), 4096):
        if sys.argv[2] == 'w':
            view[offset] = offset // 4096 % 251
        else:
            assert view[offset] == offset // 4096 % 251, offset
    print('done', flush=True)
    sys.stdin.read()
"""


def look(verb: str, target: Path, *options: str) -> Any:
    """The document that a verb prints with --json."""
    result = run(verb, "--json", *options, str(target))
    assert result.returncode == 0, result.stderr
    document = schema.check(json.loads(result.stdout))
    lists = {"ls": "regions", "clients": "clients", "maps": "mappings"}
    return document[lists[verb]] if verb in lists else document


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "msharefs", *arguments],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def region(mount: Mount, name: str = "r", size: int = 3 * QUANTUM) -> Path:
    """Make a region that is mapped from end to end."""
    path = mount.path / name
    with msharefs.open(path, os.O_RDWR | os.O_CREAT) as made:
        made.truncate(size)
        made.map(0, size)
    return path


@contextlib.contextmanager
def client(path: Path, how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is attached and has touched every page."""
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT, path, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout
            assert process.stdout.readline() == "done\n"
            yield process
        finally:
            if process.poll() is None:
                process.communicate(timeout=20)


@pytest.mark.mount("quantum=2M", "owner=file", "fault_around=1", "faults=watched")
def test_figures_are_those_of_the_processes(mount: Mount) -> None:
    path = region(mount)
    before = look("stat", path)
    assert (before["name"], before["size_bytes"]) == ("r", 3 * QUANTUM)
    assert (before["quantum_bytes"], before["vmas"], before["rss_bytes"]) == (QUANTUM, 1, 0)
    with client(path, "w") as writer, client(path, "r") as first, client(path, "r") as second:
        after = look("stat", path)
        assert after["clients"] == 3
        assert after["rss_bytes"] == 3 * QUANTUM
        assert after["table_frames"]["pte"] == 3
        assert after["page_table_bytes"] == 4096 * sum(after["table_frames"].values())
        assert after["counters"]["faults"] == PAGES, "a page is filled once, for all"
        assert after["counters"]["segv"] == 0

        clients = {entry["pid"]: entry for entry in look("clients", path)}
        assert set(clients) == {writer.pid, first.pid, second.pid}
        assert clients[writer.pid]["faults"] == PAGES
        for reader in (first, second):
            assert clients[reader.pid]["faults"] == 0
            assert clients[reader.pid]["links"] == 3, "one for each quantum"
        for process in (writer, first, second):
            entry = clients[process.pid]
            assert entry["base"] in [each.start for each in proc.maps(process.pid)]
            assert entry["base"] % QUANTUM == 0
            assert entry["comm"] == Path(f"/proc/{process.pid}/comm").read_text().strip()
            assert entry["kind"] == "attached"

        levels = {level["level"]: level["tables"] for level in look("pagetable", path)["levels"]}
        assert sum(table["present"] for table in levels["pte"]) == PAGES
        for upper, lower in (("pgd", "pud"), ("pud", "pmd"), ("pmd", "pte")):
            assert sum(table["present"] for table in levels[upper]) == len(levels[lower])
        frames = [table["frame"] for tables in levels.values() for table in tables]
        assert len(set(frames)) == len(frames) == sum(after["table_frames"].values())
    assert look("clients", path) == []


def test_a_killed_client_is_no_client(mount: Mount) -> None:
    path = region(mount)
    with client(path, "w") as survivor:
        with client(path, "r") as victim:
            victim.send_signal(signal.SIGKILL)
            victim.wait(10)
        assert [entry["pid"] for entry in look("clients", path)] == [survivor.pid]


def test_maps_follow_map_and_unmap(mount: Mount) -> None:
    path = region(mount)
    with msharefs.open(path) as opened:
        opened.unmap(QUANTUM, 8192)
    assert [(vma["start_bytes"], vma["end_bytes"], vma["prot"]) for vma in look("maps", path)] == [
        (0, QUANTUM, "rw-s"),
        (QUANTUM + 8192, 3 * QUANTUM, "rw-s"),
    ]
    assert run("maps", str(path)).stdout.splitlines() == [
        "000000000000-000000200000 rw-s 00000000 00:00 0".ljust(73) + "[anon]",
        "000000202000-000000600000 rw-s 00202000 00:00 0".ljust(73) + "[anon]",
    ]


def test_ls_lists_what_is_there(mount: Mount) -> None:
    region(mount, "b")
    (mount.path / "a").touch()
    (mount.path / "sub").mkdir()
    region(mount, "sub/c", QUANTUM)
    shown = {entry["name"]: entry["size_bytes"] for entry in look("ls", mount.path)}
    assert shown == {"a": 0, "b": 3 * QUANTUM}
    shown = {entry["name"]: entry["size_bytes"] for entry in look("ls", mount.path, "-R")}
    assert shown == {"a": 0, "b": 3 * QUANTUM, "sub/c": QUANTUM}
    stat = look("stat", mount.path / "sub" / "c")
    assert look("ls", mount.path / "sub") == [
        {key: value for key, value in stat.items() if key not in ("kind", "version")}
    ]
    header, first, second, total = run("ls", str(mount.path)).stdout.splitlines()
    assert header.split()[0] == "name"
    assert first.split()[:2] == ["a", "unsized"]
    assert second.split()[:3] == ["b", "6", "MiB"]
    assert total.split()[:4] == ["2", "regions", "6", "MiB"]


def test_each_verb_has_a_face_for_people(mount: Mount) -> None:
    path = region(mount)
    with client(path, "w") as process:
        assert str(process.pid) in run("clients", str(path)).stdout
        stat = run("stat", str(path)).stdout
        assert "page tables" in stat
        assert "pte 3" in stat
        pagetable = run("pagetable", str(path)).stdout.splitlines()
        assert [line for line in pagetable if line.startswith("pte")] == ["pte  3 tables, 12 KiB"]
        assert pagetable[-1].split()[1:4] == ["512/512", "present", "each"]


@pytest.mark.parametrize(
    ("name", "verb", "said"),
    [
        ("mshare_info", "stat", "is not a region"),
        ("", "maps", "is a directory, not a region"),
        ("unsized", "maps", "has no size yet"),
        ("unsized", "ls", "is not a directory"),
        ("none", "clients", "there is no such file"),
    ],
)
def test_what_cannot_be_looked_at_is_a_sentence(
    mount: Mount, name: str, verb: str, said: str
) -> None:
    (mount.path / "unsized").touch()
    result = run(verb, str(mount.path / name))
    assert (result.returncode, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


def test_a_dead_server_is_a_sentence(mount: Mount) -> None:
    path = region(mount)
    mount.kill()
    for verb, target in (("stat", path), ("ls", mount.path)):
        result = run(verb, str(target))
        assert (result.returncode, result.stdout) == (1, "")
        assert "the server of this mount is gone; `msharefs mount` on the same" in result.stderr


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be an unprivileged user for a while."""
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_looking_needs_the_right_to_read_and_no_more(mount: Mount) -> None:
    for name, mode in (("public", 0o444), ("private", 0o600)):
        region(mount, name).chmod(mode)
    runner = CliRunner()
    # Load the verbs before: another user may not be able to read where Python lies.
    for verb in ("stat", "ls"):
        runner.invoke(cli, [verb, "--json", str(mount.path / "public")])
    with nobody():
        public = runner.invoke(cli, ["stat", "--json", str(mount.path / "public")])
        private = runner.invoke(cli, ["stat", str(mount.path / "private")])
        listed = runner.invoke(cli, ["ls", "--json", str(mount.path)])
    assert json.loads(public.output)["size_bytes"] == 3 * QUANTUM
    assert isinstance(private.exception, PermissionError)
    assert [entry.get("error") for entry in json.loads(listed.output)["regions"]] == [
        "Permission denied",
        None,
    ]


# Another user, who may not be able to read where Python lies: everything is loaded before.
AS_NOBODY = f"""
import os, rich.console, msharefs.client
from msharefs.cli import VERBS, cli, main
for verb in VERBS:
    cli.get_command(None, verb)
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
main()
"""


@pytest.mark.parametrize("verb", ["stat", "maps", "pagetable", "clients"])
def test_a_region_that_may_not_be_read_is_one_sentence_and_1(mount: Mount, verb: str) -> None:
    path = region(mount)
    path.chmod(0o600)
    result = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, verb, path],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"msharefs: {path}: may not be read by you (mode 0600, of user 0): "
        "let that user give you the right (chmod), or look as root\n"
    )
