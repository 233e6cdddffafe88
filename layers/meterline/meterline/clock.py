"""The clock, as handlers read it: what they call is handed its time."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time of the call."""
    return datetime.now(UTC)
