"""Events as rows of a CSV file (RFC 4180) that spreadsheets open safely."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from datetime import datetime

from meterline.domain.times import format_time, parse_time
from meterline.domain.usage import LedgerEntry
from meterline.errors import UnreadablePageCallError
from meterline.schemas.usage import write_quantity

COLUMNS = (
    *("time", "id", "source", "meter", "quantity", "user", "action"),
    *("provider", "model", "usage", "rate_card", "status", "received_at"),
)
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
"""What a spreadsheet takes for a formula (OWASP, CSV injection)."""


def write_csv(entries: Iterable[LedgerEntry], *, header: bool = True) -> str:
    """A header, if it is wanted, and a row for each event; times in UTC, quantities exact."""
    text = io.StringIO()
    writer = csv.writer(text)
    if header:
        writer.writerow(COLUMNS)
    for entry in entries:
        usage = entry.usage or {}
        writer.writerow(
            (
                format_time(entry.at),
                _defuse(entry.key.id),
                _defuse(entry.key.source),
                entry.meter,
                write_quantity(entry.quantity),
                _defuse(entry.user),
                _defuse(entry.action),
                _defuse(entry.provider),
                _defuse(entry.model),
                " ".join(f"{kind}={count}" for kind, count in sorted(usage.items())),
                _defuse(entry.rate_card),
                _defuse(entry.status),
                format_time(entry.received_at),
            )
        )
    return text.getvalue()


def read_span(start: str | None, end: str | None) -> tuple[datetime, datetime]:
    """`from` and `to` of a query; raises `UnreadablePageCallError`."""
    try:
        span = parse_time(start or ""), parse_time(end or "")
    except ValueError:
        raise UnreadablePageCallError(
            "from and to must be times such as 2026-11-22T06:00:00Z."
        ) from None
    if span[1] <= span[0] or (span[1] - span[0]).days > 400:
        raise UnreadablePageCallError("to must be after from, by 400 days at most.")
    return span


def _defuse(text: str | None) -> str:
    if text is None:
        return ""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
