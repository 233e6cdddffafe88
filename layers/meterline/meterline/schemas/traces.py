"""Invoices, and the events behind them, as they cross the HTTP border."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from meterline.domain.invoice_checks import CheckedSpan, InvoiceCheck
from meterline.domain.meters import Meter
from meterline.domain.times import format_time, parse_time
from meterline.domain.usage import LedgerEntry
from meterline.errors import InvalidRequestError
from meterline.schemas.names import SenderText
from meterline.schemas.periods import write_period
from meterline.schemas.usage import write_quantity
from meterline.services.trace_usage import EventPage, Place, TracedEvent

DEFAULT_EVENTS = 1000
MAX_EVENTS_PER_PAGE = 5000
"""Events on one page: some 2 MB of the 6 that a function may answer (Lambda quotas)."""
_MARK = "place"
_PART = "\x1f"
_SENDER_TEXT: TypeAdapter[str] = TypeAdapter(SenderText)


def read_event_limit(told: str | None) -> int:
    """How many events a page is to hold; raises `InvalidRequestError`."""
    if told is None:
        return DEFAULT_EVENTS
    digits = told.isascii() and told.isdigit() and len(told) <= 4
    if not (digits and 1 <= int(told) <= MAX_EVENTS_PER_PAGE):
        raise InvalidRequestError(
            "invalid_limit", f"limit must be from 1 to {MAX_EVENTS_PER_PAGE}."
        )
    return int(told)


def read_place(told: str | None) -> Place | None:
    """Behind which event a page begins; raises `InvalidRequestError`."""
    if told is None:
        return None
    try:
        text = base64.b64decode(told, altchars=b"-_", validate=True).decode()
        mark, line, at, key = text.split(_PART, 3)
        if mark == _MARK and line.isascii() and line.isdigit() and len(line) <= 4:
            return Place(int(line), parse_time(at), key)
    except (binascii.Error, ValueError):
        pass  # Whatever is wrong with it, there is one thing to say.
    raise InvalidRequestError("invalid_cursor", "cursor must be next_cursor of the page before.")


def write_place(place: Place | None) -> str | None:
    """The cursor of the page that begins behind a place; opaque to callers."""
    if place is None:
        return None
    text = _PART.join((_MARK, str(place.line), format_time(place.at), place.key))
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_event_name(asked: Mapping[str, str]) -> tuple[str, str]:
    """`source` and `id` of a query; raises `InvalidRequestError`."""
    try:
        return (
            _SENDER_TEXT.validate_python(asked.get("source")),
            _SENDER_TEXT.validate_python(asked.get("id")),
        )
    except ValidationError:
        raise InvalidRequestError(
            "invalid_event_name", "Name the event by source and id, as it was reported."
        ) from None


def write_invoice(check: InvoiceCheck, meters: Mapping[str, Meter]) -> dict[str, Any]:
    """An invoice next to the ledger."""
    return {
        "id": check.invoice,
        "state": check.state.value,
        "currency": check.currency,
        "checked_at": format_time(check.checked_at),
        "lines": [write_line(span, meters[span.meter]) for span in check.spans],
    }


def write_line(span: CheckedSpan, meter: Meter) -> dict[str, Any]:
    """What an invoice bills of one meter in one period, all its tiers together."""
    counted, billed, settled = map(
        meter.from_sub_units,
        (span.ledger_sub_units, span.billed_sub_units, span.settled_sub_units),
    )
    return {
        "meter": span.meter,
        "period": write_period(span.period),
        "plan": span.plan,
        "quantity": write_quantity(counted),
        "billed": write_quantity(billed),
        "settled_later": write_quantity(settled),
        "events": span.events,
        "digest": span.digest,
    }


def write_events(page: EventPage) -> dict[str, Any]:
    """A page of the events behind an invoice."""
    return {
        "events": [write_event(entry) for entry in page.entries],
        "next_cursor": write_place(page.next_after),
    }


def write_event(entry: LedgerEntry) -> dict[str, Any]:
    """An event as the ledger keeps it."""
    return {
        "source": entry.key.source,
        "id": entry.key.id,
        "time": format_time(entry.at),
        "received_at": format_time(entry.received_at),
        "meter": entry.meter,
        "quantity": write_quantity(entry.quantity),
        "user": entry.user,
        "action": entry.action,
        "provider": entry.provider,
        "model": entry.model,
        "usage": dict(entry.usage) if entry.usage is not None else None,
        "rate_card": entry.rate_card,
        "tier": entry.tier,
        "status": entry.status,
        "response_id": entry.response_id,
    }


def write_trace(found: TracedEvent, meters: Mapping[str, Meter]) -> dict[str, Any]:
    """An event, how it was told to the billing layer, and the invoice line that bills it."""
    sent, check, line = found.sent, found.invoice, found.line
    return {
        "event": write_event(found.entry),
        "billing": {
            "mode": sent.mode.value,
            "identifier": sent.identifier,
            "state": sent.state.value,
            "batch": sent.batch,
            "problem": sent.problem,
        },
        "invoice": check.invoice if check is not None else None,
        "invoice_state": check.state.value if check is not None else None,
        "line": write_line(line, meters[line.meter]) if line is not None else None,
    }


def write_invoices(checks: Sequence[InvoiceCheck], meters: Mapping[str, Meter]) -> dict[str, Any]:
    """A customer's invoices."""
    return {"invoices": [write_invoice(check, meters) for check in checks]}
