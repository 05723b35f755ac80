"""``msharefs pagetable R``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from msharefs import units

from . import _complete, _json, _plot, _region, _show

if TYPE_CHECKING:
    from collections.abc import Iterator

ENTRIES = 512  # entries of an x86-64 table
TABLE_BYTES = 4096


def alike(table: dict[str, Any], marks: bool) -> tuple[int, ...]:
    """The figures that the tables of a run have in common."""
    marked = (table["accessed"], table["dirty"]) if marks else ()
    return table["present"], table["huge"], *marked


def runs(tables: list[dict[str, Any]], marks: bool) -> Iterator[list[dict[str, Any]]]:
    """Group tables that follow each other and are equally full."""
    run: list[dict[str, Any]] = []
    for table in tables:
        if run and (
            table["start"] != run[-1]["end"] or alike(table, marks) != alike(run[-1], marks)
        ):
            yield run
            run = []
        run.append(table)
    if run:
        yield run


def frames(run: list[dict[str, Any]]) -> str:
    """Name the frames of a run, or only count them if their numbers do not follow each other."""
    numbers = [table["frame"] for table in run]
    if len(run) == 1:
        return f"frame {numbers[0]}"
    if numbers == list(range(numbers[0], numbers[0] + len(run))):
        return f"frames {numbers[0]}-{numbers[-1]}"
    return f"{len(run)} frames"


def lines(pagetable: dict[str, Any], every: bool, marks: bool) -> Iterator[str]:
    """The tree for people: a heading for each level, under it its tables by address."""
    for level in pagetable["levels"]:
        tables = level["tables"]
        count = f"{len(tables)} table{'' if len(tables) == 1 else 's'}"
        yield f"{level['level']:<4} {count}, {units.size(len(tables) * TABLE_BYTES)}"
        shown = marks and level["level"] == "pte"
        for run in ([table] for table in tables) if every else runs(tables, shown):
            each = "" if len(run) == 1 else " each"
            span = f"{run[0]['start']:012x}-{run[-1]['end']:012x}"
            present, huge, *marked = alike(run[0], shown)
            pages = f", {huge} of 2 MiB" if huge else ""
            if marked:
                pages += f", {marked[0]:>3} accessed, {marked[1]:>3} dirty"
            yield f"  {span}  {present:>3}/{ENTRIES} present{pages}{each}  {frames(run)}"
    if pagetable["mappings"]:
        yield "mappings that verbs have changed"
    for mapping in pagetable["mappings"]:
        yield f"  {mapping['start']:012x}-{mapping['end']:012x}  {', '.join(mapping['flags'])}"


def show_map(path: str, plot: str | None, as_json: bool) -> None:
    """The region's map, in the terminal, as a picture or as JSON."""
    from msharefs.lab import ptmap

    from . import _map

    draw = _plot.module() if plot else None
    with _region.opened(path) as region:
        found = ptmap.look(region)
    if draw is not None:
        draw.draw_map(found, plot)
    elif as_json:
        _show.print_json(_json.document("map", found))
    else:
        for line in _map.lines(found, coloured=_show.has_colour()):
            _show.show(line)


@click.command()
@click.argument("region", shell_complete=_complete.regions)
@click.option(
    "--all", "every", is_flag=True, help="One line for every table, also where they are alike."
)
@click.option(
    "--marks", is_flag=True, help="Of each PTE table: how many pages were accessed, and written."
)
@click.option(
    "--map", "as_map", is_flag=True,
    help="Draw a map: a cell for 2 MiB, by entries present and by who has it.",
)  # fmt: skip
@click.option(
    "--plot", metavar="FILE", type=click.Path(dir_okay=False, readable=False),
    callback=_plot.check,
    help="Write the map as a picture to this file: SVG, or PNG if its name ends so.",
)  # fmt: skip
@_show.json_option
def command(
    region: str, every: bool, marks: bool, as_map: bool, plot: str | None, as_json: bool
) -> None:
    """Show a region's page tables, level by level.

    Addresses are those of the host mm, as the tables have them. Tables that follow each other and
    are equally full share a line. With --map, offsets are the region's, and --json is the map's.
    """
    if as_map or plot:
        show_map(region, plot, as_json)
        return
    pagetable = _region.describe(region, "pagetable")
    if as_json:
        _show.print_json(_json.document("pagetable", {"region": region, **pagetable}))
        return
    for line in lines(pagetable, every, marks):
        click.echo(line)
