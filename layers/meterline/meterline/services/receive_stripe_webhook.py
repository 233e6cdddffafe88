"""Take a webhook in: verify it, write it down once, hand on what is new, and answer."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from meterline.domain.webhooks import Notice, SignatureRefusedError, verify_signature
from meterline.errors import InvalidRequestError
from meterline.ports import Inbox, NoticeQueue
from meterline.schemas.webhooks import read_notice

MAX_BODY_BYTES = 256 * 1024
"""Stripe embeds at most ten lines of an invoice in an event: some 30 KB."""


class Received(StrEnum):
    """What became of a delivery that was let in."""

    QUEUED = "queued"
    REPEATED = "repeated"
    IGNORED = "ignored"
    """Of a type that nothing is done about."""


class Receipt(NamedTuple):
    """The answer to a delivery, and what it was about."""

    received: Received
    notice: Notice


class ReceiveStripeWebhook:
    """`secrets(fresh)` gives the signing secrets; `fresh` asks for what they are right now."""

    def __init__(
        self,
        secrets: Callable[[bool], Collection[str]],
        inbox: Inbox,
        queue: NoticeQueue,
    ) -> None:
        self._secrets = secrets
        self._inbox = inbox
        self._queue = queue

    def __call__(self, body: bytes, signature: str, now: datetime) -> Receipt:
        """Take one delivery in; the 2xx may be answered when this returns.

        Raises `SignatureRefusedError`, `InvalidRequestError` and `StorageUnavailableError`; then
        nothing is lost, because Stripe delivers again what was not answered with a 2xx.
        """
        if len(body) > MAX_BODY_BYTES:
            raise InvalidRequestError(
                "body_too_large", f"An event has at most {MAX_BODY_BYTES} bytes.", status=413
            )
        self._verify(body, signature, now)
        notice = read_notice(body)
        if not notice.is_handled:
            return Receipt(Received.IGNORED, notice)
        return Receipt(take_in(notice, self._inbox, self._queue, now), notice)

    def _verify(self, body: bytes, signature: str, now: datetime) -> None:
        now_s = int(now.timestamp())
        try:
            verify_signature(body, signature, self._secrets(False), now_s)
        except SignatureRefusedError as error:
            if error.code != "signature_mismatch":
                raise
            # A secret that was rotated in a moment ago is not in the cache yet.
            verify_signature(body, signature, self._secrets(True), now_s)


def take_in(notice: Notice, inbox: Inbox, queue: NoticeQueue, now: datetime) -> Received:
    """Write the event down and queue it, unless that was done before.

    Only a queued event counts as known: after a crash between the two writes, the repeat must
    still bring it into the queue.
    """
    if inbox.note(notice, now):
        return Received.REPEATED
    queue.put(notice)
    inbox.mark_queued(notice.id, now)
    return Received.QUEUED
