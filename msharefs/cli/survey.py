"""``msharefs survey``: what sharing page tables would save on a running system."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from msharefs import units
from msharefs.lab import head
from msharefs.lab.survey import figures, page, selection, words

from . import _show
from ._progress import Bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

LINES = 12
"""Of each table for people; --json has all."""

KEPT = 1000
"""Looks of --watch that a page has."""


class Pids(click.ParamType):
    """Numbers of processes with commas between them."""

    name = "pids"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        """At least one."""
        numbers = str(value).split(",")
        if not all(number.isascii() and number.isdigit() and int(number) for number in numbers):
            self.fail(f"{value} is no list of process numbers: write 812 or 812,813", param, ctx)
        return [int(number) for number in numbers]


def objects(found: dict[str, Any]) -> Table:
    """What is mapped, and what sharing its tables would save."""
    columns = ("processes", "size", "own tables", "shared", "would go")
    lines = _show.table("object", "class", *columns, right=columns)
    for one in found["objects"][:LINES]:
        lines.add_row(
            _show.printable(one["name"]),
            one["class"],
            f"{one['processes']:,}",
            units.size(one["bytes"]) if one["bytes"] else "",
            units.size(one["own_tables_bytes"]) if one["own_tables_bytes"] else "",
            units.size(one["page_table_bytes"]) if one["page_table_bytes"] else "",
            units.size(one["saved_bytes"]),
        )
    return lines


def programs(found: dict[str, Any]) -> Table:
    """Whose page tables they are."""
    columns = ("processes", "page tables", "for shared memory alone")
    lines = _show.table("program", *columns, right=columns)
    for one in found["programs"][:LINES]:
        lines.add_row(
            _show.printable(one["program"]),
            f"{one['processes']:,}",
            units.size(one["vmpte_bytes"]),
            units.size(one["gone_bytes"]),
        )
    return lines


def classes(found: dict[str, Any]) -> Table:
    """By kind of memory."""
    columns = ("objects", "own tables", "would go")
    lines = _show.table("class", *columns, "", right=columns)
    for one in found["classes"]:
        if one["objects"] or one["saved_bytes"]:
            lines.add_row(
                one["class"],
                f"{one['objects']:,}",
                units.size(one["own_tables_bytes"]) if one["own_tables_bytes"] else "",
                units.size(one["saved_bytes"]),
                one["what"],
            )
    return lines


def schemes(found: dict[str, Any]) -> Table:
    """By the way of sharing, each by itself."""
    lines = _show.table(
        "would go", "if tables are shared so, each way by itself", right=("would go",)
    )
    for one in found["schemes"]:
        lines.add_row(units.size(one["saved_bytes"]), one["what"])
    return lines


def advice(found: dict[str, Any]) -> Iterator[str]:
    """What would help today: too many words for a table."""
    yield "What would help on this kernel today:"
    for one in found["advice"][:LINES]:
        saved = units.size(one["saved_bytes"])
        yield f"{saved:>10}  {one['way']} for {one['for']}: {one['price']}"
        yield f"{'':10}  {one['how']}"


def sections(found: dict[str, Any]) -> Iterator[Table]:
    """All tables for people, the most wanted first."""
    if found["objects"]:
        yield objects(found)
    if found["programs"]:
        yield programs(found)
    if found["objects"]:
        yield classes(found)
        yield schemes(found)


def show(found: dict[str, Any]) -> None:
    """Print the survey for people."""
    print(_show.printable(words.answer(found)))
    for table in sections(found):
        print()
        _show.show(table)
    for notes in (list(advice(found)) if found["advice"] else [], list(words.remarks(found))):
        if notes:
            print()
        for note in notes:
            print(_show.printable(note))


def choose(
    pids: list[int] | None, tree: int | None, cgroup: Path | None, system: bool, *, strict: bool
) -> list[int]:
    """The processes that the options name; all of them without one. `strict`: all are there."""
    given = [option for option in (pids, tree, cgroup) if option is not None]
    if len(given) + system > 1:
        raise click.UsageError("give one of --pid, --tree, --cgroup and --system")
    if pids is not None:
        return selection.chosen(pids, strict=strict)
    if tree is not None:
        return selection.tree(tree, strict=strict)
    if cgroup is not None:
        return selection.cgroup(cgroup)
    return selection.system()


@click.command()
@click.option("--pid", "pids", metavar="PID[,PID...]", type=Pids(), help="These processes.")
@click.option(
    "--tree", metavar="PID", type=click.IntRange(min=1), help="A process and all its descendants."
)
@click.option(
    "--cgroup",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The processes of a cgroup and of those below it: its directory, or its path.",
)
@click.option("--system", is_flag=True, help="All processes; that is what is done without these.")
@click.option(
    "--exact",
    is_flag=True,
    help="Look at every page. Otherwise a sample is, where tables are very many, and an error is "
    "told that holds 19 times in 20.",
)
@click.option(
    "--watch",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Look again and again, with so much time between, until interrupted or nobody is left.",
)
@click.option(
    "--html",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write it as a page, with pictures (those need the extra `plot`).",
)
@_show.json_option
def command(
    pids: list[int] | None,
    tree: int | None,
    cgroup: Path | None,
    system: bool,
    exact: bool,
    watch: float | None,
    html: Path | None,
    as_json: bool,
) -> None:
    """Measure what sharing page tables would save, for programs as they run now.

    Nothing is changed, started or stopped: /proc is read. As root everything is seen; otherwise the
    processes of other users are counted, but not looked at.
    """
    choice = partial(choose, pids, tree, cgroup, system)
    if html is not None:
        html.touch()  # so that an error comes now
    looks: list[dict[str, Any]] = []
    for found in _looks(choice, watch, exact=exact):
        looks = [*looks[-KEPT + 1 :], found]
        if html is not None:
            html.write_text(page.page(looks))
        if as_json:
            _show.print_look(found, watched=watch is not None)
        else:
            if len(looks) > 1:
                print(f"\n{'-' * 78}\n")
            if watch is not None:
                print(head.line(found))
            show(found)


def _looks(
    choice: Callable[..., list[int]], watch: float | None, *, exact: bool
) -> Iterator[dict[str, Any]]:
    """One look, or one after the other."""
    started = time.monotonic()
    chosen = choice(strict=True)
    while True:
        since = time.monotonic() - started
        with Bars() as bars:
            found = figures.survey(chosen, bars.step, exact=exact)
        yield {**found, "since_seconds": since}
        if watch is None or not found["processes"]:
            return
        time.sleep(max(0.0, started + since + watch - time.monotonic()))
        chosen = choice(strict=False)
        if not chosen:
            return
