"""Looking at a whole mount: clients of all regions, ls --all, --watch, top and metrics."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import msharefs
from msharefs import summary
from msharefs.cli import _live, cli

from support import schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.server import Mount

QUANTUM = 2 << 20
NOBODY = 65534

# Attaches, touches each page, says so, and stays until its stdin ends.
CLIENT = """
import sys, msharefs
with msharefs.open(sys.argv[1]) as region:
    view = region.attach()
    for offset in range(0, len(view), 4096):
        view[offset] = 1
    print('done', flush=True)
    sys.stdin.read()
"""
ADOPTER = """
import mmap, sys
memory = mmap.mmap(-1, 4 << 20)
memory[0] = 1
print('done', flush=True)
sys.stdin.read()
"""


def started(*command: str | Path) -> subprocess.Popen[str]:
    """A process that has said that it is done."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "done\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=20)


@pytest.fixture(scope="module")
def scene(shared_mount: Mount) -> Iterator[dict[str, Any]]:
    """Two regions, a client of each, adopted memory, and a region unlinked while in use."""
    for name in ("a", "sub/b", "gone"):
        path = shared_mount.path / name
        path.parent.mkdir(exist_ok=True)
        with msharefs.open(path, os.O_RDWR | os.O_CREAT) as region:
            region.truncate(QUANTUM)
            region.map(0, QUANTUM)
    processes = [
        started(sys.executable, "-c", CLIENT, shared_mount.path / name)
        for name in ("a", "sub/b", "gone")
    ]
    (shared_mount.path / "gone").unlink()
    adopter = [sys.executable, "-m", "msharefs", "run", "--mount", str(shared_mount.path),
               "--adopt-anon", "4M", "--", sys.executable, "-c", ADOPTER]  # fmt: skip
    processes.append(started(*adopter))
    yield {"mount": shared_mount.path, "pids": [process.pid for process in processes]}
    for process in processes:
        ended(process)


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exception is None, result.output
    return result.output


def look(*arguments: str | Path) -> Any:
    return schema.check(json.loads(run(*arguments, "--json")))


def test_ls_all_has_what_has_no_name(scene: dict[str, Any]) -> None:
    plain = look("ls", scene["mount"])
    assert [each["name"] for each in plain["regions"]] == ["a"]
    found = look("ls", "--all", "-R", scene["mount"])
    assert {each["name"] for each in found["regions"] if not each.get("unnamed")} == {"a", "sub/b"}
    unnamed = {each["name"].split(" ")[0]: each for each in found["regions"] if "adopted" in each}
    assert set(unnamed) == {"(adopted", "(unlinked"}
    assert unnamed["(adopted"]["size_bytes"] == 4 << 20
    assert unnamed["(adopted"]["clients"] == 1
    assert unnamed["(unlinked"]["rss_bytes"] == QUANTUM
    for key in ("rss_bytes", "page_table_bytes", "clients"):
        assert found["total"][key] == sum(each[key] for each in found["regions"])
    assert run("ls", "--all", "-R", scene["mount"]).splitlines()[-1].startswith("4 regions")


def test_sorted_by_what_one_wants(scene: dict[str, Any]) -> None:
    names = [
        each["name"] for each in look("ls", "--all", "--sort", "size", scene["mount"])["regions"]
    ]
    assert names[0].startswith("(adopted memory"), "the largest first"


def test_another_user_sees_no_regions_of_others(scene: dict[str, Any]) -> None:
    assert len(summary.regions(scene["mount"])) == 4
    os.seteuid(NOBODY)
    try:
        assert summary.regions(scene["mount"]) == []
    finally:
        os.seteuid(0)


def test_clients_of_a_mount_and_of_one_process(scene: dict[str, Any]) -> None:
    found = look("clients", scene["mount"])["clients"]
    assert {(each["region"].split(" ")[0], each["kind"]) for each in found} == {
        ("a", "attached"), ("sub/b", "attached"), ("(adopted", "adopted"),
        ("(unlinked", "attached"),
    }  # fmt: skip
    pid = scene["pids"][1]
    (one,) = look("clients", "--pid", str(pid))["clients"]
    assert (one["pid"], one["region"]) == (pid, str(scene["mount"] / "sub/b"))
    assert look("clients", "--pid", str(os.getpid()), scene["mount"])["clients"] == []
    lines = run("clients", scene["mount"]).splitlines()
    assert lines[0].split()[:3] == ["region", "pid", "command"]
    assert len(lines) == 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["clients"], "name a region or a mount"),
        (["stat", "--count", "3", "x"], "--count is for --watch"),
        (["metrics", "--listen", "1", "--textfile", "x"], "give --textfile or --listen"),
        (["metrics", "--listen", "here"], "write ADDRESS:PORT"),
        (["top"], "no terminal"),
    ],
)
def test_wrong_usage(scene: dict[str, Any], arguments: list[str], said: str) -> None:
    del scene
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert said in result.output


def test_watch_says_what_was_added(scene: dict[str, Any]) -> None:
    path = scene["mount"] / "a"
    with msharefs.open(path) as region:
        watcher = subprocess.Popen(
            [sys.executable, "-m", "msharefs", "stat", "--watch", "0.05", "--json", path],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with watcher:
            assert watcher.stdout
            before = schema.check(json.loads(watcher.stdout.readline()))
            region.unmap(0, 4096)
            for line in watcher.stdout:
                found = schema.check(json.loads(line))
                if found["counters"]["unmaps"] > before["counters"]["unmaps"]:
                    break
            watcher.kill()
        region.map(0, 4096)
    blocks = run("stat", "--watch", "0.01", "--count", "2", path).split("\n\n")
    assert len(blocks) == 2
    lines = run("clients", "--watch", "0.01", "--count", "2", path).splitlines()
    assert lines[-1].split()[-2:] == ["+0", "+0"]


def test_rates_are_differences_over_the_time_between() -> None:
    def at(seconds: float, faults: int, inode: int = 7) -> _live.Look:
        region = {
            "mount": "/m", "name": "r", "inode": inode, "size_bytes": 1, "rss_bytes": 1,
            "page_table_bytes": 1, "clients": 0, "budget_bytes": 0, "adopted": False,
            "unnamed": False,
            "counters": {"faults": faults, "links": 0, "unmaps": 0, "evicted_spans": 0},
        }  # fmt: skip
        return _live.Look(seconds, [region], [], [])

    (row,) = _live.rows_of_regions(at(12, 300), at(10, 100))
    assert row["faults_per_second"] == 100
    (row,) = _live.rows_of_regions(at(12, 300, inode=8), at(10, 100))
    assert row["faults_per_second"] is None, "it was not there before"
    (row,) = _live.rows_of_regions(at(12, 300), None)
    assert row["faults_per_second"] is None


def test_top_once_and_as_json(scene: dict[str, Any]) -> None:
    found = look("top", "-d", "0.1", scene["mount"])
    assert {each["name"] for each in found["regions"]} > {"a", "sub/b"}
    by_pid = {each["pid"]: each for each in found["clients"]}
    assert by_pid[scene["pids"][0]]["own_tables_bytes"] > 0
    assert found["silent_mounts"] == []
    text = run("top", "--once", "-d", "0.1", scene["mount"])
    assert "shootdowns/s" in text
    assert str(scene["pids"][1]) in text


def test_metrics_for_prometheus(scene: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "msharefs.prom"
    run("metrics", "--textfile", path, scene["mount"])
    text = path.read_text()
    mount = re.escape(str(scene["mount"]))
    for line in (
        rf'^msharefs_up{{mount="{mount}"}} 1\.0$',
        rf'^msharefs_page_table_bytes{{mount="{mount}",region="sub/b"}} 16384\.0$',
        rf'^msharefs_attached_processes{{mount="{mount}",region="a"}} 1\.0$',
        rf'^msharefs_resident_bytes{{mount="{mount}",region="\(unnamed\)"}} ',
        rf'^msharefs_faults_total{{mount="{mount}",region="a"}} [1-9]',
        rf'^msharefs_limit_used{{limit="regions",mount="{mount}"}} 4\.0$',
    ):
        assert re.search(line, text, re.MULTILINE), line
    assert not re.search(r"_total{[^}]*unnamed", text), "sums that shrink are no counters"
    assert not re.search(r"pid=|comm=", text)


def test_metrics_are_served_to_this_machine_alone(scene: dict[str, Any]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "msharefs", "metrics", "--listen", "0", scene["mount"]],
        stderr=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stderr
        said = server.stderr.readline()
        try:
            found = re.fullmatch(r"msharefs: metrics at http://127\.0\.0\.1:(\d+)/metrics\n", said)
            assert found, said
            connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
            connection.request("GET", "/metrics")
            assert b"msharefs_faults_total" in connection.getresponse().read()
            connection.close()
        finally:
            server.terminate()
    assert server.returncode == 128 + 15


def test_the_dashboard_shows_metrics_that_there_are(scene: dict[str, Any]) -> None:
    text = run("metrics", scene["mount"])
    dashboard = (Path(__file__).parents[2] / "docs/grafana.json").read_text()
    shown = set(re.findall(r"msharefs_[a-z_]+", json.loads(dashboard) and dashboard))
    assert shown <= set(re.findall(r"^msharefs_[a-z_]+", text, re.MULTILINE))
