"""The event that leaves: one billable unit of work as a CloudEvent (CloudEvents 1.0, JSON)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from meterline_client.attribution import Attribution

_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

MAX_EVENT_BYTES = 16_384
"""The longest line kept; an event holds names and numbers, so a longer one is a mistake."""


def make_event_id() -> str:
    """Make an event's id: 128 random bits, made once per call, before the call."""
    return os.urandom(16).hex()


def format_time(epoch_s: float) -> str:
    """Write seconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    whole_s, fraction_us = divmod(round(epoch_s * 1_000_000), 1_000_000)
    year, month, day, hour, minute, second, *_ = time.gmtime(whole_s)
    return f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction_us:06}Z"


def format_quantity(quantity: Decimal | int | str) -> str:
    """Write a quantity as the contract's decimal string. Raises TypeError on a float or a bool.

    Raises ValueError on what is no finite number of zero or more.
    """
    if isinstance(quantity, bool | float):
        raise TypeError("a quantity is a Decimal, an int or a decimal string, never a float")
    try:
        exact = Decimal(quantity)
    except InvalidOperation as error:
        raise ValueError(f"{quantity!r} is no decimal number") from error
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"{quantity!r} is no finite quantity of zero or more")
    return format(exact, "f")


def check_usage(usage: Mapping[str, int]) -> dict[str, int]:
    """Return usage kinds fit for an event. Raises TypeError or ValueError before it is kept."""
    for kind, count in usage.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"usage {kind!r} must be a whole number, not {count!r}")
        if count < 0:
            raise ValueError(f"usage {kind!r} must not be negative")
    return dict(usage)


@dataclass(frozen=True, slots=True)
class Work:
    """What was done, in the provider's own numbers; either `usage` or `quantity` says how much."""

    meter: str
    usage: Mapping[str, int] | None = None
    quantity: str | None = None
    provider: str | None = None
    model: str | None = None
    tier: str | None = None
    response_id: str | None = None
    status: str | None = None


def encode_event(
    event_id: str, source: str, ended_at_s: float, attribution: Attribution, work: Work
) -> bytes:
    """Encode one event as a line of ASCII JSON that ends with a newline.

    Raises ValueError when the line is longer than MAX_EVENT_BYTES.
    """
    data: dict[str, object] = {"meter": work.meter}
    if attribution.user is not None:
        data["user"] = attribution.user
    if attribution.action is not None:
        data["action"] = attribution.action
    if work.provider is not None:
        data["provider"] = work.provider
    if work.model is not None:
        data["model"] = work.model
    if work.usage is not None:
        data["usage"] = dict(work.usage)
    if work.quantity is not None:
        data["quantity"] = work.quantity
    if work.tier is not None:
        data["tier"] = work.tier
    if work.response_id is not None:
        data["response_id"] = work.response_id
    if work.status is not None:
        data["status"] = work.status
    if attribution.authorization is not None:
        data["authorization"] = attribution.authorization
    line = _encode(
        {
            "specversion": "1.0",
            "id": event_id,
            "source": source,
            "type": "meterline.usage",
            "subject": attribution.customer,
            "time": format_time(ended_at_s),
            "data": data,
        }
    )
    if len(line) > MAX_EVENT_BYTES:
        raise ValueError(f"event {event_id} is longer than {MAX_EVENT_BYTES} bytes")
    return line.encode("ascii") + b"\n"
