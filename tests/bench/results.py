"""The bench's one table: to the terminal, to a text file and to a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Row:
    """One figure next to its baseline and its target; no target, no verdict."""

    what: str
    figure: float
    unit: str
    baseline: str = ""
    ratio: str = ""
    target: str = ""
    met: bool | None = None


def make_table(rows: Sequence[Row], notes: Sequence[str]) -> Table:
    """The rows as a table, with the notes below."""
    table = Table(title="Meterline bench", caption="\n".join(notes), caption_justify="left")
    for heading in ("what", "figure", "unit", "baseline", "ratio", "target", "met"):
        table.add_column(heading, justify="right" if heading in ("figure", "ratio") else "left")
    for row in rows:
        met = {None: "", True: "yes", False: "NO"}[row.met]
        table.add_row(
            row.what, _figure(row.figure), row.unit, row.baseline, row.ratio, row.target, met
        )
    return table


def write_results(rows: Sequence[Row], notes: Sequence[str], directory: Path) -> None:
    """Show the table, and write `bench.txt` and `bench.json`."""
    table = make_table(rows, notes)
    Console(width=None if Console().is_terminal else 150).print(table)
    with (directory / "bench.txt").open("w") as file:
        Console(file=file, width=150).print(table)
    found = {"rows": [asdict(row) for row in rows], "notes": list(notes)}
    (directory / "bench.json").write_text(json.dumps(found, indent=1) + "\n")


def _figure(number: float) -> str:
    if number >= 1000:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number else "0"
