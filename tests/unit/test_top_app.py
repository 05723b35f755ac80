"""The screen of `msharefs top`, by textual's pilot: no terminal, and no server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from textual.widgets import DataTable, Static

from msharefs.cli import _live
from msharefs.cli._top_app import Top

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from textual.pilot import Pilot


def region(inode: int, name: str, tables: int, faults: int) -> dict[str, Any]:
    return {
        "mount": "/mnt", "inode": inode, "name": name, "size_bytes": 2 << 20, "rss_bytes": 4096,
        "page_table_bytes": tables, "clients": 1, "budget_bytes": 0, "adopted": False,
        "unnamed": False,
        "counters": {"faults": faults, "links": 1, "unmaps": 0, "evicted_spans": 0},
    }  # fmt: skip


def looks() -> Callable[[], _live.Look]:
    """Each look is a second after the last; "small" has ten faults more each time."""
    count = 0

    def look() -> _live.Look:
        nonlocal count
        count += 1
        regions = [region(1, "large", 8 << 20, 5), region(2, "small", 4096, 10 * count)]
        client = {
            "mount": "/mnt", "region": "small", "pid": 1, "start_time": 1, "base": 4096,
            "comm": "worker", "kind": "attached", "faults": 10 * count, "links": 1,
            "evicted_spans": 0, "budget_bytes": 0,
        }  # fmt: skip
        return _live.Look(float(count), regions, [client], ["/silent"])

    return look


def names(app: Top) -> list[str]:
    table = app.query_one("#regions", DataTable)
    return [str(table.get_row_at(at)[1]) for at in range(table.row_count)]


def play(steps: Callable[[Top, Pilot[None]], Awaitable[None]]) -> None:
    async def run() -> None:
        look = looks()
        app = Top(look, 3600)  # its own looks are none of the test's: it looks by itself
        async with app.run_test(size=(160, 40)) as pilot:
            await app.workers.wait_for_complete()
            await pilot.pause()
            app.take(look())
            await pilot.pause()
            await steps(app, pilot)

    asyncio.run(run())


def test_figures_and_rates() -> None:
    async def steps(app: Top, pilot: Pilot[None]) -> None:
        del pilot
        assert names(app) == ["large", "small"], "the costliest first"
        table = app.query_one("#regions", DataTable)
        cells = dict(
            zip((str(key.value) for key in table.columns), table.get_row_at(1), strict=True)
        )
        assert str(cells["faults/s"]).strip() == "10"
        assert str(cells["page tables"]).strip() == "4 KiB"
        head = str(app.query_one("#head", Static).render())
        assert "regions 2, page tables 8.004 MiB, clients 1, faults/s 10" in head
        assert "not answering: /silent" in head
        assert app.query_one("#clients", DataTable).row_count == 1

    play(steps)


def test_keys_sort_reverse_filter_and_pause() -> None:
    async def steps(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("r")
        assert names(app) == ["small", "large"]
        await pilot.press("r", "s", "s")
        assert app.sorts["regions"] == "faults/s"
        assert names(app) == ["small", "large"]
        await pilot.press("slash", *"lar", "enter")
        assert names(app) == ["large"]
        await pilot.press("escape")
        assert len(names(app)) == 2
        await pilot.press("p")
        assert app.paused
        before = app._now
        app.take(looks()())
        assert app._now is before
        await pilot.press("p")
        await app.workers.wait_for_complete()
        assert not app.paused

    play(steps)
