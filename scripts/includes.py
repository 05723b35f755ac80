"""The rule of rooms and floors: compares the code with scripts/rooms.toml.

Reads each `#include "..."` of native/ and each import of msharefs/, prints a sentence for each that
goes up a floor, through a wall or round in a circle, and then exits 1. The first argument may be
another tree than the one this file lies in.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

HERE = Path(__file__).resolve().parent
TABLE = "scripts/rooms.toml"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


class File(NamedTuple):
    """A .c with its header, or a Python module: `native/client/view.[ch]` is client, view."""

    room: str
    name: str


class Use(NamedTuple):
    """One file includes or imports another."""

    by: File
    of: File
    said: str
    """As "native/client/view.c includes native/client/view.h"."""


def uses_in_native(root: Path) -> Iterator[Use | str]:
    """Each include of native/, or the sentence that says why it leads nowhere."""
    native = root / "native"
    for path in sorted(native.glob("*/*.[ch]")):
        by = File(path.parent.name, path.name.split(".")[0])
        for written in INCLUDE.findall(path.read_text()):
            said = f'{path.relative_to(root)} includes "{written}"'
            target = native / ("include" if "/" not in written else "") / written
            if target.parent.parent != native or not target.is_file():
                yield f'{said}: there is no such file; paths begin in native/, as in "core/mm.h"'
                continue
            said = f"{path.relative_to(root)} includes {target.relative_to(root)}"
            yield Use(by, File(target.parent.name, target.stem), said)


def uses_in_python(root: Path) -> Iterator[Use]:
    """Each import of msharefs/ from msharefs/, even of only a type."""
    package = root / "msharefs"
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(root).with_suffix("").parts  # msharefs, lab, bench, run
        if place == ("msharefs", "__main__"):
            continue  # `python -m msharefs` is the command line
        for module in _imported(ast.parse(path.read_text()), place[:-1]):
            if module[:1] != ("msharefs",):
                continue
            target = _module(package, module[1:])
            if target is not None:
                by = _python_file(place[1:])
                yield Use(by, target, f"{path.relative_to(root)} imports {'.'.join(module)}")


def _imported(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            start += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield (*start, alias.name)


def _module(package: Path, names: tuple[str, ...]) -> File | None:
    """The module of `names`, the last of which may be imported from it. None: the package."""
    while names:
        path = package.joinpath(*names)
        if path.with_suffix(".py").is_file():
            return _python_file(names)
        if path.is_dir():
            return _python_file((*names, "__init__"))
        names = names[:-1]
    return None


def _python_file(names: tuple[str, ...]) -> File:
    """The room is a folder of msharefs/; deeper files are still in it."""
    return File("root", names[0]) if len(names) == 1 else File(names[0], "/".join(names[1:]))


def against_walls(rooms: dict[str, Any], uses: Iterable[Use]) -> Iterator[str]:
    """A sentence for each use of a room that is closed to the user."""
    for by, of, said in uses:
        room = rooms.get(by.room)
        if room is None:
            yield f"{said}: {TABLE} has no room {by.room}"
            continue
        opened = room["uses"]
        if of.room != by.room and of.room not in opened and f"{of.room}/{of.name}" not in opened:
            may = f"may use {', '.join(opened)} only" if opened else "uses no other room"
            yield f"{said}: that goes through a wall: {by.room} ({room['is']}) {may}"


def against_floors(room: str, floors: list[dict[str, Any]], uses: Iterable[Use]) -> Iterator[str]:
    """A sentence for each use of a floor above."""
    number = {name: at for at, floor in enumerate(floors, 1) for name in floor["files"]}

    def on(name: str) -> str:
        return f"{name} is on floor {number[name]} ({floors[number[name] - 1]['is']})"

    for by, of, said in uses:
        if by.room != room or of.room != room or not {by.name, of.name} <= number.keys():
            continue
        if number[of.name] < number[by.name]:
            yield f"{said}: that goes up: {on(by.name)}, {on(of.name)}; calls go down"


def against_table(room: str, floors: list[dict[str, Any]], native: Path) -> Iterator[str]:
    """A sentence for each file that has no floor, and for each floor of no file."""
    on_floors = [name for floor in floors for name in floor["files"]]
    files = {path.name.split(".")[0] for path in (native / room).glob("*.[ch]")}
    for name in sorted(files - {*on_floors}):
        yield f"native/{room}/{name} has no floor: give it one in {TABLE}"
    for name in sorted({*on_floors} - files):
        yield f"{TABLE} has a floor for native/{room}/{name}, which is not there"


def against_headers(room: str, root: Path) -> Iterator[str]:
    """A sentence for each .c that does not include a header of its own name."""
    for path in sorted((root / "native" / room).glob("*.c")):
        header = f"{room}/{path.stem}.h"
        if header not in INCLUDE.findall(path.read_text()):
            yield (
                f"{path.relative_to(root)} does not include {header}: each .c has a header of its "
                "name, so that what it lends to others is seen"
            )


def in_circles(uses: Iterable[Use]) -> Iterator[str]:
    """The sentences of one circle of files that use each other, if there is any."""
    said = {(use.by, use.of): use.said for use in uses if use.by != use.of}
    graph: dict[File, set[File]] = {}
    for by, of in said:
        graph.setdefault(by, set()).add(of)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # each is used by the one before
        for by, of in pairwise(circle):
            yield f"{said[by, of]}: that closes a circle of {len(circle) - 1} files"


def check(root: Path) -> list[str]:
    """Everything that is wrong in the tree."""
    table = tomllib.loads((HERE / "rooms.toml").read_text())
    found = list(uses_in_native(root))
    wrong = [use for use in found if isinstance(use, str)]
    native = [use for use in found if not isinstance(use, str)]
    wrong += against_walls(table["native"], native)
    for room, rules in table["native"].items():
        if floors := rules.get("floors"):
            wrong += against_table(room, floors, root / "native")
            wrong += against_floors(room, floors, native)
        if rules.get("own_headers"):
            wrong += against_headers(room, root)
    python = list(uses_in_python(root))
    wrong += against_walls(table["python"], python)
    return [*wrong, *in_circles(native), *in_circles(python)]


if __name__ == "__main__":
    sentences = check(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent)
    for sentence in sentences:
        print(sentence)
    sys.exit(bool(sentences))
