"""Maps and pictures: they show the pages that are there."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.image import imread

from msharefs import client
from msharefs.cli import _map
from msharefs.cli import pagetable as verb
from msharefs.lab import plot, ptmap
from msharefs.lab.bench import backends, pagetables, pictures
from msharefs.lab.workers import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.server import Mount

CELL = 2 << 20
PAGES = 512  # pages of a cell


def pixels(path: Path) -> tuple[int, int, set[bytes]]:
    """Width, height and colours of a PNG."""
    picture = (imread(path)[:, :, :3] * 255).round().astype("uint8")
    height, width, _ = picture.shape
    return width, height, {bytes(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0)}


def rgb(colour: str) -> bytes:
    return bytes.fromhex(colour.removeprefix("#"))


@pytest.fixture
def region(mount: Mount) -> Iterator[client.Region]:
    """8 MiB at the start and 4 MiB at 1 GiB; three clients: full, shared, sparse, untouched."""
    path = mount.path / "r"
    with client.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as region, Workers(3) as workers:
        region.truncate(512 << 30)
        region.map(0, 4 * CELL)
        region.map(1 << 30, 2 * CELL)
        workers.ask(f"attach {path}")
        for number, first, count in ((0, 0, 2 * PAGES), (1, PAGES, PAGES), (2, 3 * PAGES, 5)):
            workers.ask(f"order 0 {first} {count} {count} sequential", [number])
            workers.ask("touch 1 write", [number])
        yield region


def test_the_map_knows_how_full_and_whose(region: client.Region) -> None:
    found = json.loads(json.dumps(ptmap.look(region)))
    first, second = found["ranges"]
    assert (first["start"], second["start"]) == (0, 1 << 30)
    assert first["present"][:3] == [PAGES, PAGES, 0]
    assert 5 <= first["present"][3] < PAGES // 4
    assert second["present"] == [0, 0]
    whose = [{found["clients"][n]["pid"] for n in found["groups"][g]} for g in first["who"]]
    assert [len(group) for group in whose] == [1, 2, 0, 1]
    assert whose[0] < whose[1]
    assert not whose[3] & whose[1]
    assert found["unseen"] == []


def test_the_map_in_the_terminal(region: client.Region) -> None:
    result = CliRunner().invoke(verb.command, [region.path, "--map"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    first, several, none, last = lines[1].split()[1]
    assert (several, none) == ("#", "·")
    assert first.isupper()  # more than half full
    assert last.islower()
    assert first.lower() != last
    assert "0-2 clients" in lines[1]
    assert lines[2].split()[:2] == ["000040000000", "··"]
    assert "+# several" in lines[4]
    for letter in (first.lower(), last):
        assert f"{letter}{letter.upper()} mshare-worker" in lines[4]


def alone(clients: int) -> dict[str, Any]:
    """A map where each client has a full cell alone, then several, all and nobody."""
    groups = [[], *([number] for number in range(clients)), [0, 1], list(range(clients))]
    who = [*range(1, len(groups)), 0]
    return {
        "name": "r", "cell_bytes": CELL, "unseen": [], "groups": groups,
        "clients": [{"pid": 100 + number, "comm": "c"} for number in range(clients)],
        "ranges": [{"start": 0, "present": [PAGES] * len(who), "who": who}],
    }  # fmt: skip


@pytest.mark.parametrize(("clients", "coloured"), [(6, False), (6, True), (7, True), (26, False)])
def test_no_two_holders_look_alike_in_the_terminal(clients: int, coloured: bool) -> None:
    """In colours, without, and where there are more clients than colours."""
    _, picture, _, legend = _map.lines(alone(clients), coloured=coloured)
    marks = [span for span in legend.spans if legend.plain[span.start] == "█"]
    signs = re.findall(r"  (\S+) (?:c \d+ only|all clients|several|nobody)", legend.plain)
    looks = {(sign, str(marks[n].style) if marks else "") for n, sign in enumerate(signs)}
    assert len(looks) == len(signs) == clients + 3
    assert bool(marks) == (coloured and clients <= 6)
    cells = picture.plain.split()[1]
    if not marks:
        assert set(cells) == {sign[1] for sign in signs}  # all cells are full


def test_no_two_holders_look_alike_in_the_picture() -> None:
    """Neither in colour, nor, up to seven, for those who see no colours: there are hatches."""
    looks = [(patch.get_facecolor(), patch.get_hatch()) for patch in plot._map_legend(alone(26))]
    assert len(set(looks)) == 26 + 3 + 1
    assert len({hatch for _, hatch in looks[:7]}) == 7


def test_a_picture_of_it(region: client.Region, tmp_path: Path) -> None:
    path = tmp_path / "map.png"
    result = CliRunner().invoke(verb.command, [region.path, "--plot", str(path)])
    assert result.exit_code == 0, result.output
    *_, colours = pixels(path)
    assert rgb(plot.MANY["several"]) in colours  # a full cell has its colour undiluted
    owner = next(n for n in (0, 1, 2) if [n] in ptmap.look(region)["groups"])
    assert any(rgb(colour) in colours for colour in plot.ONE), owner
    assert rgb(plot.MANY["all"]) not in colours


def test_lines_that_are_alike_are_told_once() -> None:
    found = {
        "cell_bytes": CELL, "clients": [], "unseen": [], "groups": [[]],
        "ranges": [{"start": 0, "present": [0] * 64 * 100, "who": [0] * 64 * 100}],
    }  # fmt: skip
    lines = [line.plain.strip() for line in _map.lines(found, coloured=False)]
    assert lines[2] == "99 more lines like this"
    assert len(lines) == 5


def test_the_sample_has_everything_a_map_can_show() -> None:
    with backends.Backends(("msharefs",)) as kinds:
        found = pagetables.sample_map(kinds)
    assert found is not None
    words = {ptmap.holder(group, len(found["clients"])) for group in found["groups"]}
    assert words == {"nobody", "all", "several", "0", "1", "2", "3"}


def spread(value: float) -> dict[str, float]:
    return {"median": value, "low": value * 0.9, "high": value * 1.2}


def bench_document() -> dict[str, Any]:
    def row(**keys: float) -> dict[str, Any]:
        return {"figures": {key: spread(value) for key, value in keys.items()},
                "ratio": spread(0.5)}  # fmt: skip

    tables = [
        {"case": {}, "processes": count, "rows": {
            "memfd": row(tables_bytes=count << 17, vmpte_bytes=count << 17),
            "thp": row(tables_bytes=0, vmpte_bytes=0),
            "msharefs": row(tables_bytes=1 << 17, vmpte_bytes=count << 17)}}
        for count in (1, 10, 100)
    ]  # fmt: skip
    touch = {"case": {"access": "write"}, "processes": 1,
             "rows": {"memfd": row(ns_per_page=900), "msharefs": row(ns_per_page=450)}}  # fmt: skip
    calls = {"case": {"call": "stat"}, "processes": 1,
             "rows": {"memfd": row(p50_ns=900), "msharefs": row(p50_ns=2e6)}}  # fmt: skip
    tables_of_two = {"memfd": row(page_table_bytes=1 << 20), "msharefs": row(page_table_bytes=4096)}
    clients = {"case": {}, "processes": 9, "rows": tables_of_two}
    common = {"title": "what is done", "size_bytes": 64 << 20, "baseline": "memfd"}
    return {"scenarios": [
        {"name": "pagetables", "headline": "tables_bytes", "cases": tables, **common},
        {"name": "populated", "headline": "ns_per_page", "cases": [touch], **common},
        {"name": "metadata", "headline": "p50_ns", "cases": [calls], **common},
        {"name": "clients", "headline": "page_table_bytes", "cases": [clients], **common},
        {"name": "unmap", "headline": "ns", "cases": [{**clients, "rows": {}}], **common},
    ]}  # fmt: skip


def test_pictures_of_a_benchmark(tmp_path: Path) -> None:
    drawn = pictures.draw(bench_document(), str(tmp_path / "new"))
    assert [path.name for path in drawn] == [
        "pagetables.svg", "populated.svg", "metadata.svg", "clients.svg",
    ]  # fmt: skip
    for path in drawn:
        shown = path.read_text()
        for row in ("memfd", "msharefs"):
            assert plot.COLOURS[row] in shown, (path.name, row)
        assert plot.COLOURS["thp"] not in shown  # there is nothing to show of it


def test_a_cell_is_as_full_as_its_table(tmp_path: Path) -> None:
    """And a table of next to nothing is seen."""
    counts = {}
    for present in (512, 256, 1):
        found = alone(1)
        found["ranges"][0] = {"start": 0, "present": [present] * 64, "who": [1] * 64}
        path = tmp_path / "map.png"
        plot.draw_map(found, str(path))
        picture = (imread(path)[:, :, :3] * 255).round().astype("uint8")
        # Without the legend, below.
        upper = picture[: len(picture) // 2]
        counts[present] = int((upper == list(rgb(plot.ONE[0]))).all(axis=2).sum())
    assert counts[256] == pytest.approx(counts[512] / 2, rel=0.15)
    assert 0 < counts[1] < counts[256] / 2


def test_lines_of_a_map_that_are_alike_are_drawn_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A terabyte of untouched memory was too many pixels, and a file of megabytes."""
    monkeypatch.setattr(plot, "MAP_LINES", 20)
    found = alone(1)
    found["ranges"] = [
        {"start": 0, "present": [0] * (1 << 19), "who": [0] * (1 << 19)},
        {"start": 1 << 40, "present": [1, 2] * 20_000, "who": [1] * 40_000},
        {"start": 2 << 40, "present": list(range(1, 513)) * 63 + [1] * 99, "who": [1] * 32_355},
    ]
    path = tmp_path / "map.svg"
    plot.draw_map(found, str(path))
    shown = path.read_text()
    assert "8,191 more like this" in shown
    assert "624 more like this" in shown
    assert "and more" in shown
    assert len(shown) < 1 << 20
    plot.draw_map(found, str(tmp_path / "map.png"))


def test_a_picture_is_of_a_kind_that_is_drawn(region: client.Region) -> None:
    result = CliRunner().invoke(verb.command, [region.path, "--plot", "map.jpg"])
    assert result.exit_code == 2
    assert "map.jpg: a picture is .svg or .png" in result.output


def test_lines_without_zeros() -> None:
    drawn = pictures._lines(bench_document()["scenarios"][0])
    lines = {name: list(zip(counts, sizes, strict=True)) for name, counts, sizes in drawn}
    assert set(lines) == {"memfd", "msharefs", "msharefs, own tables today"}
    assert lines["memfd"][-1] == (100, 100 << 17)
    assert [size for _, size in lines["msharefs"]] == [1 << 17] * 3
