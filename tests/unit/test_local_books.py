"""What `make run` prints and leaves: its books, and the addresses of a stack that runs."""

from __future__ import annotations

import io
import signal
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from infra.local import run
from infra.local.books import Bill, Book, MeterBook, print_books
from infra.local.stripe_account import Subscriber
from infra.local.workload import Fate
from meterline.catalog import load_meters


def test_a_terminal_of_80_columns_shows_every_figure_whole() -> None:
    fates = Counter({Fate.ACCEPTED: 1_234_567, Fate.DUPLICATE: 123_456})
    subscriber = Subscriber("cus_1", "sub_1", "clock_1", datetime(2026, 11, 1, tzinfo=UTC))
    book = Book("acme", subscriber, fates, fates)
    book.meters["credits"] = MeterBook(9, 123_456_789, 9, 123_456_789, 123_456_789)
    book.meters["outcomes"] = MeterBook(1, 642_345, 1, 642_345, 642_344)
    book.bills.append(Bill("in_1", 12_345_67, 12_345_67, 12_374_67))
    told = io.StringIO()
    print_books(Console(file=told, width=80), [book], load_meters(), "usd")
    text = told.getvalue()
    assert "…" not in text
    for figure in ("1,358,023", "123,456.789", "642,344", "12,345.67", "12,374.67"):
        assert figure in text
    assert "0 of 1 customers agree" in text
    assert "acme: outcomes: expected 1 events" in text


def test_a_trace_that_cannot_be_read_leaves_the_addresses_of_a_stack_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints, trace = tmp_path / "endpoints.json", tmp_path / "trace.csv"
    endpoints.write_text("{}")
    trace.write_text("a,b\n1,2\n")
    monkeypatch.setattr(run, "ENDPOINTS", endpoints)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ended = CliRunner().invoke(run.main, ["--trace", str(trace)])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.exit_code == 2, ended.output
    assert endpoints.exists()
