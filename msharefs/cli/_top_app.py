"""The screen of ``msharefs top``. Needs textual, the extra `tui`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual.app import App
from textual.binding import Binding
from textual.containers import Vertical
from textual.widgets import DataTable, Footer, Input, Static

from msharefs import units

from . import _live, _show
from ._top_table import CLIENTS, REGIONS, TEXTS, cell

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult


class Top(App[None]):
    """Two tables; `look` gives the figures, every `seconds`."""

    TITLE = "msharefs top"
    CSS = """
    #head { height: 1; background: $primary; color: $text; padding: 0 1; }
    .title { height: 1; color: $text-muted; padding: 0 1; }
    #regions, #clients { height: 1fr; }
    #filter { display: none; height: 3; }
    #filter.shown { display: block; }
    """
    BINDINGS: ClassVar[list[Any]] = [
        Binding("q", "quit", "Quit"),
        Binding("s", "sort", "Sort by next"),
        Binding("r", "reverse", "Other way round"),
        Binding("p", "pause", "Pause"),
        Binding("slash", "filter", "Filter"),
        Binding("escape", "unfilter", "All", show=False),
    ]

    def __init__(self, look: Callable[[], _live.Look], seconds: float) -> None:
        super().__init__()
        self._look, self._seconds = look, seconds
        self._before: _live.Look | None = None
        self._now: _live.Look | None = None
        self._wanted = ""
        self.paused = False
        self.sorts = {"regions": "page tables", "clients": "own tables"}
        self.upwards = {"regions": False, "clients": False}

    def compose(self) -> ComposeResult:
        """The screen, from top to bottom."""
        yield Static(id="head")
        with Vertical():
            yield Static("regions", classes="title")
            yield DataTable(id="regions", cursor_type="row", zebra_stripes=True)
            yield Static("clients", classes="title")
            yield DataTable(id="clients", cursor_type="row", zebra_stripes=True)
        yield Input(id="filter", placeholder="a part of a region's or a program's name")
        yield Footer()

    def on_mount(self) -> None:
        """The first look, and when the next ones come."""
        self.theme = "textual-dark"
        self.query_one("#regions").focus()
        self.set_interval(self._seconds, self._again)
        self._again()

    def _again(self) -> None:
        """Look, without the screen waiting for it."""
        if not self.paused:
            self.run_worker(self._look_and_show, thread=True, exclusive=True)

    def _look_and_show(self) -> None:
        found = self._look()
        self.call_from_thread(self.take, found)

    def take(self, found: _live.Look) -> None:
        """Show a look."""
        if self.paused:
            return
        self._before, self._now = self._now, found
        self.draw()

    def draw(self) -> None:
        """Both tables, and the line above."""
        now = self._now
        if now is None:
            return
        regions = _live.rows_of_regions(now, self._before)
        clients = _live.rows_of_clients(now, self._before)
        tables = sum(row["page_table_bytes"] for row in regions)
        faults = sum(row["faults_per_second"] or 0 for row in regions)
        head = (
            f"regions {len(regions)}, page tables {units.size(tables)}, clients {len(clients)}, "
            f"faults/s {faults:,.0f}" + (", paused" if self.paused else "")
        )
        if now.silent:
            head += f"; not answering: {', '.join(map(_show.printable, now.silent))}"
        self.query_one("#head", Static).update(Text(head))
        self._fill("regions", regions, REGIONS)
        self._fill("clients", clients, CLIENTS)

    def _fill(self, name: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> None:
        wanted = self._wanted.lower()
        shown = [
            row
            for row in rows
            if any(wanted in str(row.get(key)).lower() for key in ("name", "region", "comm", "pid"))
        ]
        key = columns[self.sorts[name]]
        known = sorted(
            (row for row in shown if row[key] is not None),
            key=lambda row: row[key],
            reverse=not self.upwards[name],
        )
        table = self.query_one(f"#{name}", DataTable)
        at = table.cursor_row
        table.clear(columns=True)
        rows = known + [row for row in shown if row[key] is None]
        written = []
        for column, place in columns.items():
            mark = (" ▲" if self.upwards[name] else " ▼") * (column == self.sorts[name])
            cells = _aligned(column, [column + mark, *(cell(column, row[place]) for row in rows)])
            table.add_column(cells[0], key=column)
            written.append(cells[1:])
        table.add_rows(zip(*written, strict=True))
        if at < table.row_count:
            table.move_cursor(row=at)

    def _of_focus(self) -> tuple[str, dict[str, str]]:
        """The table that has the focus, and its columns."""
        if self.focused is not None and self.focused.id == "clients":
            return "clients", CLIENTS
        return "regions", REGIONS

    def action_sort(self) -> None:
        """Sort by the next column."""
        name, columns = self._of_focus()
        keys = list(columns)
        self.sorts[name] = keys[(keys.index(self.sorts[name]) + 1) % len(keys)]
        self.draw()

    def action_reverse(self) -> None:
        """The other way round."""
        name, _ = self._of_focus()
        self.upwards[name] = not self.upwards[name]
        self.draw()

    def action_pause(self) -> None:
        """Stand still, or go on."""
        self.paused = not self.paused
        self.draw()

    def action_filter(self) -> None:
        """Ask for a part of a name."""
        field = self.query_one("#filter", Input)
        field.add_class("shown")
        field.focus()

    def action_unfilter(self) -> None:
        """Show everything."""
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is written."""
        self._wanted = event.value
        self.draw()

    def on_input_submitted(self) -> None:
        """The filter stays, its line goes."""
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one("#filter").remove_class("shown")
        self.query_one("#regions").focus()


def _aligned(column: str, cells: list[str]) -> list[Text]:
    """The cells of a column, the heading first; numbers are on the right."""
    if column in TEXTS:
        return list(map(Text, cells))
    width = max(map(len, cells))
    return [Text(each.rjust(width)) for each in cells]
