"""Traces of an hourly meter: what a crash of the emitter leaves behind can be read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest

from meterline.catalog import load_meters
from meterline.domain.measuring import floor_hour
from meterline.domain.sending import HourSending
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import NotFoundError
from meterline.services.trace_usage import InvoiceEvents, SendingState, TraceUsage

NOW = datetime(2026, 11, 22, 12, 2, tzinfo=UTC)


class OneEvent:
    """All that a trace reads: one event of `tokens`, whose hour's sending stands like this."""

    def __init__(self, lapse: str) -> None:
        self._lapse = lapse

    def find(self, key: EventKey) -> LedgerEntry:
        return LedgerEntry(key, NOW, "tokens", Decimal(5), b"0" * 16, NOW)

    def invoice_of(self, *_which: Any) -> None:
        return None

    def load_hour(self, _due: Any) -> HourSending:
        return HourSending(version=2, lapse=self._lapse)

    def hours_between(self, *_span: Any) -> Mapping[datetime, int]:
        return {floor_hour(NOW): 5}


@pytest.mark.parametrize("parking", ["", "parking:"])
def test_an_hour_whose_parking_was_cut_off_is_told_as_one_that_is_parked(parking: str) -> None:
    kept = cast(Any, OneEvent(f"{parking}refused:archived_meter:5"))
    trace = TraceUsage(kept, kept, kept, kept, kept, kept, load_meters())
    sent = trace.find_event(EventKey("acme", "backend/reports", "req_8f2")).sent
    assert (sent.state, sent.problem) == (SendingState.REFUSED, "archived_meter")


class FakeInvoices:
    """Refuses a key as DynamoDB does: one of more than 2,048 bytes (developer guide, quotas)."""

    def get(self, invoice: str) -> None:
        assert len(f"invoice#{invoice}".encode()) <= 2_048


@pytest.mark.parametrize("invoice", ["", "in_1", "i" * 3_000, "\N{WHITE SMILING FACE}" * 255])
def test_an_invoice_that_nobody_has_is_not_found_whatever_it_is_called(invoice: str) -> None:
    events = InvoiceEvents(cast(Any, FakeInvoices()), cast(Any, None))
    with pytest.raises(NotFoundError):
        events.get_invoice("acme", invoice)
