"""The page-table map of a region in the terminal."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.text import Text

from msharefs import units
from msharefs.lab import ptmap

from . import _show

if TYPE_CHECKING:
    from collections.abc import Iterator

WIDTH = 64  # cells per line: 128 MiB
SHADES = " ░▒▓█"
ONE = ("cyan", "magenta", "yellow", "blue", "bright_red", "bright_magenta")
MANY = {"nobody": "bright_black", "several": "white", "all": "green"}


def colour(word: str) -> str:
    """A client's colour, or that of many."""
    return MANY[word] if word in MANY else ONE[int(word) % len(ONE)]


def shade(present: int) -> str:
    """A cell: a dot without a table, else a quarter of the entries each."""
    if present == 0:
        return "·"
    return SHADES[-(-present * 4 // ptmap.ENTRIES)]


def holders(numbers: list[int]) -> str:
    """The numbers of clients that have the cells of a line."""
    low, high = min(numbers), max(numbers)
    count = str(low) if low == high else f"{low}-{high}"
    return f"{count} client{'' if count == '1' else 's'}"


def _line(present: tuple[int, ...], who: tuple[int, ...], groups: list[list[int]], clients: int
          ) -> Text:  # fmt: skip
    line = Text()
    for count, index in zip(present, who, strict=True):
        line.append(shade(count), colour(ptmap.holder(groups[index], clients)))
    line.append(" " * (WIDTH - len(present)))
    line.append(f"  {sum(present):>6,} entries, {holders([len(groups[i]) for i in who])}")
    return line


def lines(found: dict[str, Any]) -> Iterator[Text]:
    """A heading, the map, and what its signs mean; lines that are alike are shown once."""
    groups, clients = found["groups"], len(found["clients"])
    cell = found["cell_bytes"]
    yield Text(f"one cell is {units.size(cell)}, a line {units.size(cell * WIDTH)}; region offsets")
    for part in found["ranges"]:
        cells = range(0, len(part["present"]), WIDTH)
        rows = [
            (
                part["start"] + at * cell,
                tuple(part["present"][at : at + WIDTH]),
                tuple(part["who"][at : at + WIDTH]),
            )
            for at in cells
        ]
        for _, alike in groupby(rows, key=lambda row: row[1:]):
            (start, present, who), *more = alike
            yield Text(f"{start:012x}  ").append_text(_line(present, who, groups, clients))
            if more:
                count = f"{len(more)} more line{'' if len(more) == 1 else 's'} like this"
                yield Text(f"{'':12}  {count}")
    yield Text("· no table   ░ ▒ ▓ █ up to 128, 256, 384, 512 entries present")
    yield _legend(found)
    if found["unseen"]:
        pids = ", ".join(str(found["clients"][number]["pid"]) for number in found["unseen"])
        yield Text(f"whose page tables may not be seen: {pids}")


def _legend(found: dict[str, Any]) -> Text:
    clients = len(found["clients"])
    words = {
        ptmap.holder(found["groups"][who], clients)
        for part in found["ranges"]
        for who, present in zip(part["who"], part["present"], strict=True)
        if present
    }
    legend = Text("in the tables of")
    for word in sorted(words):
        legend.append("  ")
        legend.append("█ ", colour(word))
        if word in MANY:
            legend.append("all clients" if word == "all" else word)
        else:
            client = found["clients"][int(word)]
            legend.append(f"{_show.printable(client['comm'])} {client['pid']} only")
    return legend
