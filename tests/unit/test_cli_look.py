"""The output of the look verbs for people, made from the documents that --json prints."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

from msharefs.cli import _json, _region, _show, clients, ls, maps, pagetable, stat

if TYPE_CHECKING:
    import click

GIB = 1 << 30
QUANTUM = 512 * GIB

STAT: dict[str, Any] = {
    "name": "r",
    "size_bytes": QUANTUM,
    "quantum_bytes": QUANTUM,
    "vmas": 2,
    "rss_bytes": 256 << 20,
    "page_table_bytes": 131 * 4096,
    "table_frames": {"pgd": 1, "pud": 1, "pmd": 1, "pte": 128},
    "clients": 32,
    "owner": {
        "kind": "process", "pid": 4711, "start_time": 99, "cgroup": "/user.slice",
        "charged_data_bytes": 256 << 20, "charged_table_bytes": 131 * 4096,
    },
    "counters": {
        "faults": 65536, "links": 31, "materialised_pages": 7, "unmaps": 3, "segv": 1,
    },
    "vmstat": {"pgfault": 65536, "nr_page_table_pages": 131, "nr_shmem": 65536},
    "charge": {"to": "toucher", "left_bytes": 0, "why": ""},
    "budget": {"bytes": 0, "clients_grown": 0},
}  # fmt: skip

MAPS = [
    {"start": 0, "end": 256 << 20, "prot": "rw-s", "offset": 0, "object": "anon"},
    {"start": GIB, "end": GIB + 4096, "prot": "r--s", "offset": 8192, "object": "/srv/da\nta"},
]

CLIENT = {
    "pid": 4712, "start_time": 100, "comm": "mshare-worker", "kind": "attached",
    "base": 0x7F8000000000, "size": QUANTUM, "offset": 0, "prot": "rw-", "links": 1,
    "faults": 65536, "materialised_pages": 65536, "segv": 2, "budget_bytes": 0,
    "budget_asked_bytes": 0, "budget_grown": 0, "evicted_spans": 0, "refaulted_spans": 0,
    "unshared_tables": 0,
}  # fmt: skip


def table(frame: int, start: int, end: int, present: int, huge: int = 0) -> dict[str, int]:
    return {"frame": frame, "start": start, "end": end, "present": present, "huge": huge}


def pte(frame: int, number: int, present: int) -> dict[str, int]:
    return table(frame, number << 21, (number + 1) << 21, present)


PAGETABLE = {
    "levels": [
        {"level": "pgd", "tables": [table(0, 0, 1 << 48, 1)]},
        {
            "level": "pte",
            "tables": [pte(4, 0, 512), pte(5, 1, 512), pte(6, 2, 512), pte(9, 3, 7), pte(8, 9, 7)],
        },
    ],
    "mappings": [],
}


def answer(monkeypatch: pytest.MonkeyPatch, command: click.Command, *arguments: str) -> Result:
    """Run a verb on our documents instead of a region's."""
    documents = {"stat": STAT, "maps": MAPS, "pagetable": PAGETABLE, "clients": [CLIENT]}
    monkeypatch.setattr(_region, "describe", lambda _path, kind: documents[kind])
    result = CliRunner().invoke(command, arguments)
    assert result.exception is None
    return result


@pytest.mark.parametrize(
    ("module", "document"),
    [
        (stat, _json.region(STAT)),
        (maps, {"region": "r", "mappings": [_json.mapping(vma) for vma in MAPS]}),
        (pagetable, {"region": "r", **PAGETABLE}),
        (clients, {"target": "r", "clients": [_json.client(CLIENT)]}),
    ],
)
def test_json_is_the_document(monkeypatch: pytest.MonkeyPatch, module: Any, document: Any) -> None:
    result = answer(monkeypatch, module.command, "--json", "r")
    assert json.loads(result.output) == {
        "kind": f"msharefs {module.__name__.rpartition('.')[2]}",
        "version": 1,
        **document,
    }


def test_what_has_a_unit_has_it_in_its_name() -> None:
    client = _json.client(CLIENT | {"parts": [(4096, 8192, 0)]})
    assert (client["size_bytes"], client["offset_bytes"], client["start_time_ticks"]) == (
        QUANTUM, 0, 100,
    )  # fmt: skip
    assert client["parts"] == [{"base": 4096, "size_bytes": 8192, "offset_bytes": 0}]
    assert not {"size", "offset", "start_time"} & set(client)
    mapping = _json.mapping(MAPS[0])
    assert (mapping["start_bytes"], mapping["end_bytes"]) == (0, 256 << 20)
    assert _json.region(STAT)["owner"]["start_time_ticks"] == 99


def test_stat_shows_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = answer(monkeypatch, stat.command, "r").output.splitlines()
    shown = {name.strip(): value.strip() for name, value in (line.split("  ", 1) for line in lines)}
    assert shown == {
        "name": "r",
        "size": "512 GiB (549755813888 bytes)",
        "quantum": "512 GiB",
        "mappings": "2",
        "resident": "256 MiB",
        "page tables": "524 KiB (pgd 1, pud 1, pmd 1, pte 128)",
        "clients": "32",
        "budget": "none",
        "owner": "pid 4711, cgroup /user.slice; the region ends with it",
        "charged to it": "256 MiB of data, 524 KiB of page tables",
        "pages are paid by": "whoever touches them first",
        "faults": "65536",
        "links": "31",
        "materialised pages": "7",
        "unmaps": "3",
        "segv": "1",
        "as in vmstat": "pgfault 65536, nr_page_table_pages 131, nr_shmem 65536",
    }


def test_stat_of_an_unsized_region_says_so() -> None:
    assert ("size", "unsized (0 bytes)") in stat.rows(STAT | {"size_bytes": 0})


def test_stat_says_how_many_need_more_than_their_budget() -> None:
    def budget(grown: int) -> str:
        return dict(stat.rows(STAT | {"budget": {"bytes": 1 << 20, "clients_grown": grown}}))[
            "budget"
        ]

    assert budget(0) == "1 MiB of its own page tables for each client"
    assert budget(3) == "1 MiB of its own page tables for each client; 3 of 32 need more"


def test_clients_show_unshared_tables_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "unshared" not in answer(monkeypatch, clients.command, "r").output
    document = [CLIENT, CLIENT | {"unshared_tables": 3}]
    monkeypatch.setattr(_region, "describe", lambda _path, _kind: document)
    head, none, some = CliRunner().invoke(clients.command, ["r"]).output.splitlines()
    assert [line.split()[-1] for line in (head, none, some)] == ["unshared", "0", "3"]


def test_clients_show_budgets_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "budget" not in answer(monkeypatch, clients.command, "r").output
    grown = {
        "budget_bytes": 9 << 18, "budget_asked_bytes": 1 << 20, "budget_grown": 2,
        "evicted_spans": 1234, "refaulted_spans": 567,
    }  # fmt: skip
    document = [CLIENT, CLIENT | grown, CLIENT | grown | {"budget_asked_bytes": 9 << 18}]
    monkeypatch.setattr(_region, "describe", lambda _path, _kind: document)
    head, none, more, kept = CliRunner().invoke(clients.command, ["r"]).output.splitlines()
    assert head.split()[-3:] == ["budget", "evicted", "refaulted"]
    assert none.split()[-3:] == ["none", "0", "0"]
    assert more.endswith(" 2.25 MiB, asked 1 MiB     1234        567")
    assert kept.split()[-4:] == ["2.25", "MiB", "1234", "567"]


def test_maps_has_the_columns_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = answer(monkeypatch, maps.command, "r").output.splitlines()
    assert first == "000000000000-000010000000 rw-s 00000000 00:00 0".ljust(73) + "[anon]"
    assert second == "000040000000-000040001000 r--s 00002000 00:00 0".ljust(73) + r"/srv/da\nta"
    # Our own first line with a name, in the same Python, by the kernel itself.
    kernel = next(line for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line)
    assert kernel.index("/") == first.index("[")
    assert len(kernel[:73].split()) == len(first[:73].split())


def test_pagetable_folds_runs_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answer(monkeypatch, pagetable.command, "r").output.splitlines() == [
        "pgd  1 table, 4 KiB",
        "  000000000000-1000000000000    1/512 present  frame 0",
        "pte  5 tables, 20 KiB",
        "  000000000000-000000600000  512/512 present each  frames 4-6",
        "  000000600000-000000800000    7/512 present  frame 9",
        "  000001200000-000001400000    7/512 present  frame 8",
    ]


def test_pagetable_tells_huge_pages_from_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [table(1, 0, 1 << 30, 4, huge=3), table(2, 1 << 30, 2 << 30, 4)]
    document = {"levels": [{"level": "pmd", "tables": tables}]}
    monkeypatch.setattr(_region, "describe", lambda _path, _kind: document)
    lines = CliRunner().invoke(pagetable.command, ["r"]).output.splitlines()
    assert lines[1:] == [
        "  000000000000-000040000000    4/512 present, 3 of 2 MiB  frame 1",
        "  000040000000-000080000000    4/512 present  frame 2",
    ]


def test_pagetable_shows_marks_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = [(512, 3), (512, 3), (512, 4)]
    tables = [pte(4 + at, at, 512) | {"accessed": a, "dirty": d} for at, (a, d) in enumerate(marks)]
    document = {"levels": [{"level": "pte", "tables": tables}], "mappings": []}
    monkeypatch.setattr(_region, "describe", lambda _path, _kind: document)
    lines = CliRunner().invoke(pagetable.command, ["--marks", "r"]).output.splitlines()
    assert lines[1:] == [
        "  000000000000-000000400000  512/512 present, 512 accessed,   3 dirty each  frames 4-5",
        "  000000400000-000000600000  512/512 present, 512 accessed,   4 dirty  frame 6",
    ]


def test_pagetable_all_has_a_line_for_every_table(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = answer(monkeypatch, pagetable.command, "--all", "r").output.splitlines()
    assert [line.split()[-1] for line in lines if "frame" in line] == ["0", "4", "5", "6", "9", "8"]


def test_frames_out_of_order_are_counted() -> None:
    assert pagetable.frames([pte(7, 0, 1), pte(5, 1, 1)]) == "2 frames"


def test_clients_is_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    head, line = answer(monkeypatch, clients.command, "r").output.splitlines()
    assert len(head.split()) == 11
    assert line.split() == [
        "4712", "mshare-worker", "attached", "0x7f8000000000", "0", "B", "512", "GiB", "rw-", "1",
        "65536", "65536", "2",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_clients_on_a_narrow_terminal_keeps_what_matters(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns are left out, and named; no number is cut off."""
    found = [{**CLIENT, "pid": 4194304, "budget_bytes": 1 << 20, "budget_asked_bytes": 1 << 20}]
    monkeypatch.setattr(_region, "describe", lambda _path, _kind: found)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "dumb")
    master, slave = os.openpty()
    with os.fdopen(master, "rb") as reader:
        with open(slave, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
            patch.setattr("sys.stdout", terminal)
            clients.command(["r"], standalone_mode=False)
        text = b""
        with contextlib.suppress(OSError):  # EIO: the terminal is closed, and all of it read
            while True:
                text += os.read(reader.fileno(), 1 << 16)
    head, line, *more = text.decode().splitlines()
    assert "…" not in text.decode()
    assert len(head) <= max(width, 60)
    for word, value in (("pid", "4194304"), ("command", "mshare-worker"), ("faults", "65536")):
        assert word in head.split()
        assert value in line.split()
    left = more[0].partition("to show: ")[2].split(", ") if more else []
    every = [*clients.COLUMNS, *clients.BUDGET]
    assert sorted([*head.split(), *left]) == sorted(every)
    assert bool(left) == (width < 150)


def test_clients_says_so_when_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_region, "describe", lambda _path, _kind: [])
    assert CliRunner().invoke(clients.command, ["r"]).output == "no process is attached\n"
    shown = CliRunner().invoke(clients.command, ["--json", "r"]).output
    assert json.loads(shown)["clients"] == []


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for a mount: all kinds of regions, mshare_info, a subdirectory."""
    (tmp_path / "mshare_info").write_text(f"{QUANTUM}\n")
    (tmp_path / "unsized").touch()
    for name in ("sized", "locked", "gone", "sub/deep"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        with (tmp_path / name).open("wb") as file:
            file.truncate(QUANTUM)

    def ask(path: str, kind: str) -> dict[str, Any]:
        assert kind == "stat"
        if path.endswith("locked"):
            raise PermissionError(13, "region locked: not for you")
        if path.endswith("gone"):
            raise FileNotFoundError(2, "No such file")
        stat = copy.deepcopy(STAT) | {"name": os.path.basename(path)}
        return stat | {"size_bytes": 0} if path.endswith("unsized") else stat

    monkeypatch.setattr(_region, "ask", ask)
    monkeypatch.setattr(_region, "look", os.stat)
    return tmp_path


def test_ls_json_lists_regions_by_name(directory: Path) -> None:
    result = CliRunner().invoke(ls.command, ["--json", str(directory)])
    found = json.loads(result.output)
    assert found["regions"] == [
        {"name": "locked", "size_bytes": QUANTUM, "error": "Permission denied"},
        _json.region(STAT) | {"name": "sized"},
        _json.region(STAT) | {"name": "unsized", "size_bytes": 0},
    ]
    assert found["total"] == {
        "regions": 3, "size_bytes": 2 * QUANTUM, "vmas": 4, "rss_bytes": 512 << 20,
        "page_table_bytes": 262 * 4096, "clients": 64,
    }  # fmt: skip


def test_ls_recursive_names_regions_below(directory: Path) -> None:
    result = CliRunner().invoke(ls.command, ["--json", "-R", str(directory)])
    assert [entry["name"] for entry in json.loads(result.output)["regions"]] == [
        "locked", "sized", "sub/deep", "unsized",
    ]  # fmt: skip


def test_ls_shows_unsized_and_locked_regions_as_such(directory: Path) -> None:
    lines = CliRunner().invoke(ls.command, [str(directory)]).output.splitlines()
    by_name = {line.split()[0]: line.split()[1:] for line in lines}
    assert by_name["unsized"][0] == "unsized"
    assert by_name["locked"] == ["512", "GiB", "Permission", "denied"]
    assert by_name["sized"] == ["512", "GiB", "2", "256", "MiB", "524", "KiB", "32", "pid", "4711"]


def test_ls_of_an_empty_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_region, "look", os.stat)
    assert CliRunner().invoke(ls.command, [str(tmp_path)]).output == "no regions\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [("plain", "plain"), ("ü €", "ü €"), ("a\x1b[31m", r"a\x1b[31m"), ("x\udcff", r"x\udcff")],
)
def test_printable(name: str, text: str) -> None:
    assert _show.printable(name) == text


def test_names_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _show.table("name")
    lines.add_row("[bold]:smile:[/bold]" + "x" * 200)
    _show.show(lines)
    assert capsys.readouterr().out.splitlines()[1] == "[bold]:smile:[/bold]" + "x" * 200


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("", 0o040755, "is a directory, not a region"),
        ("mshare_info", 0o100444, "is not a region"),
        ("link", 0o120777, "is not a region"),
    ],
)
def test_what_is_no_region(
    monkeypatch: pytest.MonkeyPatch, name: str, mode: int, expected: str
) -> None:
    monkeypatch.setattr(_region, "look", lambda _path: os.stat_result((mode, *[0] * 9)))
    with pytest.raises(OSError, match=expected):
        _region.check_region(f"/mnt/{name}")


def test_an_unsized_region_has_nothing_to_describe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_region, "look", lambda _path: os.stat_result((0o100600, *[0] * 9)))
    with pytest.raises(OSError, match=r"r has no size yet.*truncate -s SIZE /mnt/r"):
        _region.describe("/mnt/r", "maps")
