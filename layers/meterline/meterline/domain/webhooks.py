"""Webhooks: whether a delivery is the billing layer's own, and what it may say.

A delivery is only a hint that something happened: deliveries repeat and come out of order
(Stripe's documentation, webhooks), so no state is ever taken from one.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection
from dataclasses import dataclass

from meterline.errors import MeterlineError

TOLERANCE_S = 300
"""Older or newer signatures are refused, as in Stripe's own libraries: a replay's time is short."""

_TIMESTAMP = re.compile(r"[0-9]{1,15}")

HANDLED = frozenset(
    {
        "billing.alert.triggered",
        "customer.subscription.created",
        "customer.subscription.deleted",
        "customer.subscription.updated",
        "invoice.created",
        "invoice.finalization_failed",
        "invoice.finalized",
        "invoice.paid",
        "invoice.upcoming",
        "v1.billing.meter.error_report_triggered",
        "v1.billing.meter.no_meter_found",
    }
)
"""The types of events that are acted on; the last two are thin events."""


class SignatureRefusedError(MeterlineError):
    """The delivery is not signed as it must be; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Notice:
    """One event of the billing layer, by name: what it was about is asked for when it is handled.

    `customer` is the billing layer's id, where the event names one.
    """

    id: str
    type: str
    object_id: str | None
    customer: str | None
    created_s: int

    @property
    def is_handled(self) -> bool:
        """Whether anything is to be done about events of this type."""
        return self.type in HANDLED


def verify_signature(body: bytes, header: str, secrets: Collection[str], now_s: int) -> None:
    """Raise `SignatureRefusedError` unless one of `secrets` signed the body, and lately.

    The header is `t=<seconds>,v1=<hex>[,v1=<hex>…]`: HMAC-SHA256 over `t.body`, one for each
    secret while the billing layer rotates them (Stripe's documentation, webhook signatures).
    """
    signed_s: str | None = None
    signatures = []
    for part in header.split(","):
        name, _, value = part.strip().partition("=")
        if name == "t":
            signed_s = value
        elif name == "v1":
            signatures.append(value)
    if signed_s is None or not _TIMESTAMP.fullmatch(signed_s) or not signatures:
        raise SignatureRefusedError("signature_missing", "There is no Stripe-Signature to check.")
    message = signed_s.encode() + b"." + body
    # Once for each secret: a stranger chooses how many signatures there are, and how long the body.
    expected = [
        hmac.new(secret.encode(), message, hashlib.sha256).hexdigest().encode()
        for secret in secrets
    ]
    # Every pair is compared, so that the time taken tells nothing of which secret came near.
    matches = [
        hmac.compare_digest(ours, signature.encode("utf-8", "surrogatepass"))
        for ours in expected
        for signature in signatures
    ]
    if not any(matches):
        raise SignatureRefusedError("signature_mismatch", "The signature is not ours.")
    if abs(now_s - int(signed_s)) > TOLERANCE_S:
        raise SignatureRefusedError(
            "signature_expired", f"The signature is more than {TOLERANCE_S} s away from now."
        )
