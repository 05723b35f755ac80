"""native/README.md, compared with the code that it leads through."""

from __future__ import annotations

import re
from pathlib import Path

NATIVE = Path(__file__).parents[2] / "native"
ESSAY = (NATIVE / "README.md").read_text()


def drawn() -> dict[str, set[str]]:
    """The drawing of who includes whom: a row for each folder, an x under each one it includes."""
    drawing = re.search(r"^ +include .*\n(?: {8}\w+ .*\n)+", ESSAY, re.MULTILINE)
    assert drawing
    head, *rows = drawing[0].splitlines()
    columns = [(match.start(), match.end(), match[0]) for match in re.finditer(r"\w+", head)]
    found = {}
    for row in rows:
        folder, *marks = re.finditer(r"\w+", row)
        found[folder[0]] = {
            name for mark in marks for start, end, name in columns if start <= mark.start() < end
        }
        assert len(found[folder[0]]) == len(marks), f"an x of {folder[0]} is under no folder"
    return found


def included() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in NATIVE.glob("*/*.[ch]"):
        for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.MULTILINE):
            found.setdefault(path.parent.name, set()).add(
                name.split("/")[0] if "/" in name else "include"
            )
    return {folder: names - {folder} for folder, names in found.items() if names - {folder}}


def test_the_drawing_of_includes_is_the_code() -> None:
    assert drawn() == included()


def test_nothing_in_the_drawing_stands_above_the_diagonal() -> None:
    before = {"include"}
    for folder, names in drawn().items():
        assert names <= before, folder
        before.add(folder)


def test_every_file_it_names_is_there() -> None:
    named = set(
        re.findall(r"`((?:core|client|preload|server|fuse|python|worker|walk)/[\w.]+)`", ESSAY)
    )
    assert len(named) > 20
    assert not [name for name in named if not (NATIVE / name).is_file()]
