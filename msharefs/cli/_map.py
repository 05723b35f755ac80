"""The page-table map of a region in the terminal."""

from __future__ import annotations

from itertools import groupby
from string import ascii_lowercase
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
# Without colours, or with more clients than colours, a sign tells who has a cell: the
# second one if it is more than half full. A client alone has a letter.
MANY_SIGNS = {"nobody": "-=", "several": "+#", "all": "%@"}


class Signs:
    """How the cells of one map are written: shades in colours, or signs without."""

    def __init__(self, found: dict[str, Any], *, coloured: bool) -> None:
        clients = len(found["clients"])
        self._words = [ptmap.holder(group, clients) for group in found["groups"]]
        used = {
            self._words[who]
            for part in found["ranges"]
            for who, present in zip(part["who"], part["present"], strict=True)
            if present
        }
        alone = sorted(used - set(MANY), key=int)
        self.words = [*alone, *sorted(used & set(MANY))]
        """The holders of cells, for the legend."""
        self.shaded = coloured and len(alone) <= len(ONE)
        letters = zip(alone, ascii_lowercase, strict=False)
        self._signs: dict[str, str] = MANY_SIGNS | {
            word: letter + letter.upper() for word, letter in letters
        }
        self._colours = MANY | dict(zip(alone, ONE, strict=False))

    def cell(self, present: int, who: int) -> tuple[str, str]:
        """The sign and the style of a cell: a dot without a table."""
        word = self._words[who]
        if present == 0:
            return "·", ""
        if self.shaded:
            return SHADES[-(-present * 4 // ptmap.ENTRIES)], self._colours[word]
        return self._pair(word)[present * 2 > ptmap.ENTRIES], ""

    def legend(self, word: str) -> tuple[str, str]:
        """The sign of a holder, and its style."""
        return ("█", self._colours[word]) if self.shaded else (self._pair(word), "")

    def _pair(self, word: str) -> str:
        return self._signs.get(word, "?!")  # more clients than letters

    @property
    def explained(self) -> str:
        """The legend of a cell's fill, besides its holders."""
        if self.shaded:
            return "· no table   ░ ▒ ▓ █ up to 128, 256, 384, 512 entries present"
        return (
            "· no table   else whose it is; of two signs the second: more than 256 of 512 entries"
        )


def holders(numbers: list[int]) -> str:
    """The numbers of clients that have the cells of a line."""
    low, high = min(numbers), max(numbers)
    count = str(low) if low == high else f"{low}-{high}"
    return f"{count} client{'' if count == '1' else 's'}"


def _line(
    present: tuple[int, ...], who: tuple[int, ...], groups: list[list[int]], signs: Signs
) -> Text:
    line = Text()
    for count, index in zip(present, who, strict=True):
        line.append(*signs.cell(count, index))
    line.append(" " * (WIDTH - len(present)))
    line.append(f"  {sum(present):>6,} entries, {holders([len(groups[i]) for i in who])}")
    return line


def lines(found: dict[str, Any], *, coloured: bool) -> Iterator[Text]:
    """A heading, the map, and what its signs mean; equal lines are shown once."""
    groups, signs = found["groups"], Signs(found, coloured=coloured)
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
            yield Text(f"{start:012x}  ").append_text(_line(present, who, groups, signs))
            if more:
                count = f"{len(more)} more line{'' if len(more) == 1 else 's'} like this"
                yield Text(f"{'':12}  {count}")
    yield Text(signs.explained)
    yield _legend(found, signs)
    if found["unseen"]:
        pids = ", ".join(str(found["clients"][number]["pid"]) for number in found["unseen"])
        yield Text(f"whose page tables may not be seen: {pids}")


def _legend(found: dict[str, Any], signs: Signs) -> Text:
    legend = Text("in the tables of")
    for word in signs.words:
        sign, style = signs.legend(word)
        legend.append("  ")
        legend.append(f"{sign} ", style)
        if word in MANY:
            legend.append("all clients" if word == "all" else word)
        else:
            client = found["clients"][int(word)]
            legend.append(f"{_show.printable(client['comm'])} {client['pid']} only")
    return legend
