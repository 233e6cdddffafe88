"""Ledger entries and projected events for the storage tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from meterline.domain.usage import EventKey, LedgerEntry

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def make_entry(
    customer: str, event_id: str, *, source: str = "backend", **said: Any
) -> LedgerEntry:
    """An entry of one credit at noon, but for what is said."""
    entry = LedgerEntry(
        key=EventKey(customer, source, event_id),
        at=NOON,
        meter="credits",
        quantity=Decimal(1),
        digest=b"d" * 16,
        received_at=NOON,
    )
    return replace(entry, **said)
