"""Find the events that no webhook brought, and hand them on as if one had."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from meterline.ports import BillingEvents, Inbox, NoticeQueue
from meterline.services.receive_stripe_webhook import Received, take_in

FIRST_LOOK_S = 3 * 86400
"""How far back the first poll looks: for so long Stripe itself tries to deliver (its docs)."""
OVERLAP_S = 900
"""Each poll looks again at the last quarter of an hour: lists are eventually consistent, and an
event that is created there may be delivered by its webhook in the meantime."""


class Polled(NamedTuple):
    """How many events the list had, and how many of them no webhook had brought."""

    seen: int
    missed: int


class PollStripeEvents:
    """Reads the billing layer's own list of events from where the last poll ended."""

    def __init__(self, events: BillingEvents, inbox: Inbox, queue: NoticeQueue) -> None:
        self._events = events
        self._inbox = inbox
        self._queue = queue

    def __call__(self, now: datetime) -> Polled:
        """Take in what is missing; raises `BillingUnavailableError`, `StorageUnavailableError`.

        The cursor moves when all of it is taken in, so that a poll that breaks off is repeated.
        """
        now_s = int(now.timestamp())
        cursor = self._inbox.cursor()
        since_s = (cursor if cursor is not None else now_s - FIRST_LOOK_S) - OVERLAP_S
        seen = missed = 0
        for notice in self._events.since(since_s):
            seen += 1
            if take_in(notice, self._inbox, self._queue, now) is Received.QUEUED:
                missed += 1
        self._inbox.move_cursor(now_s)
        return Polled(seen, missed)
