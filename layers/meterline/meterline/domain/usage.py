"""Events: one billable unit of work each, reported once by whoever did the work."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

MAX_AHEAD = timedelta(minutes=5)
"""How far ahead of us a sender's clock may be. Stripe takes no usage further in the future."""
CORRECTIONS = "meterline.correction"
"""The source of entries that take an event back; nobody else may report under it."""


@dataclass(frozen=True, slots=True)
class EventKey:
    """What makes two reports the same event: who is billed, who reported it, and its id.

    Ids are the sender's own, so they are only unique per customer and source.
    """

    customer: str
    source: str
    id: str

    @property
    def text(self) -> str:
        """The key as one string. The parts hold no control characters, so it cannot collide."""
        return f"{self.customer}\x1f{self.source}\x1f{self.id}"

    @classmethod
    def parse(cls, text: str) -> EventKey:
        """Read a key written by `text`."""
        customer, source, event_id = text.split("\x1f")
        return cls(customer, source, event_id)

    @property
    def identifier(self) -> str:
        """The event's name at the billing layer: the same on every attempt, 43 characters.

        Stripe takes at most 100 characters and refuses a repeated one for 24 hours.
        """
        return "ml_" + hashlib.sha256(self.text.encode()).hexdigest()[:40]


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One event as the ledger keeps it. `quantity` is exact, in the meter's own unit."""

    key: EventKey
    at: datetime
    meter: str
    quantity: Decimal
    digest: bytes
    """Of everything the sender said: a second report with another digest is a conflict."""
    received_at: datetime
    action: str | None = None
    user: str | None = None
    provider: str | None = None
    model: str | None = None
    usage: Mapping[str, int] | None = None
    rate_card: str | None = None
    authorization: str | None = None
    tier: str | None = None
    status: str | None = None
    """`partial` when the provider's answer was cut and its report is of what came before."""
    response_id: str | None = None
    """The provider's own id of the answer, kept as evidence."""
