"""Correct an event: a further entry that takes it back. The ledger itself is never changed."""

from __future__ import annotations

import hashlib
from datetime import datetime

from meterline.domain.usage import CORRECTIONS, EventKey, LedgerEntry
from meterline.errors import MeterlineError, NotFoundError, StorageUnavailableError
from meterline.ports import EventsByKey, Ledger, Recorded


class AlreadyCorrectedError(MeterlineError):
    """The event was taken back before."""


class CorrectEvent:
    """Reverses one event, once.

    The entry goes the way of every other one: totals, emission, bill. In a period that is not
    final it lowers the bill itself; in one that is, it becomes a credit on the next invoice. So no
    adjustment is sent to Stripe: within its 24 hours that would do the same, and be in no ledger.
    """

    def __init__(self, events: EventsByKey, ledger: Ledger) -> None:
        self._events = events
        self._ledger = ledger

    def __call__(self, key: EventKey, now: datetime) -> LedgerEntry:
        """Take the event back; the entry that does it.

        Raises `NotFoundError`, `AlreadyCorrectedError` and `StorageUnavailableError`.
        """
        found = self._events.find(key)
        if found is None or key.source == CORRECTIONS:
            raise NotFoundError(f"There is no event {key.id} of {key.source} to take back.")
        # Named after what it takes back, so that a second try is the same entry.
        reversal = EventKey(
            key.customer, CORRECTIONS, hashlib.sha256(key.text.encode()).hexdigest()
        )
        entry = LedgerEntry(
            key=reversal,
            at=found.at,
            meter=found.meter,
            quantity=-found.quantity,
            digest=hashlib.sha256(found.digest + b"reversed").digest(),
            received_at=now,
            action=found.action,
            user=found.user,
            status="correction",
            response_id=key.id[:255],
        )
        [outcome] = self._ledger.record([entry])
        if outcome is Recorded.UNDECIDED:
            raise StorageUnavailableError(f"{key.id} is perhaps not taken back: try it again")
        if outcome is not Recorded.ACCEPTED:
            raise AlreadyCorrectedError(f"{key.id} was taken back before ({outcome.name.lower()}).")
        return entry
