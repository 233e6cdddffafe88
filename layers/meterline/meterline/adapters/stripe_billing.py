"""Stripe as the billing layer: meter events out, billing periods in. The only import of `stripe`.

Where a rule has no source beside it, it is from the API reference (meter events, errors,
idempotent requests).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING

import requests
import stripe
import urllib3
from requests.adapters import HTTPAdapter

from meterline.adapters.stripe_access import StripeAccess, list_items
from meterline.domain.emission import (
    Billability,
    BillableFrom,
    BillableUsage,
    BillingLimits,
    NotApplied,
    NotBilled,
    RefusalCode,
    Refused,
    SendOutcome,
    Sent,
    Unavailable,
    Unknown,
)

if TYPE_CHECKING:
    # Thousands of types, 70 ms of a cold start: only the checker needs them.
    from stripe.params import InvoiceListParams, SubscriptionListParams
    from stripe.params.billing import MeterEventCreateParams

LIMITS = BillingLimits(max_age_s=35 * 86400, max_ahead_s=300, max_digits=15, dedupe_s=24 * 3600)
"""35 calendar days back, 5 minutes ahead; 15 digits; identifiers are unique for at least 24 h."""

_CODES = {
    "archived_meter": RefusalCode.METER_ARCHIVED,
    "meter_event_customer_not_found": RefusalCode.UNKNOWN_CUSTOMER,
    "meter_event_no_customer_defined": RefusalCode.UNKNOWN_CUSTOMER,
    "meter_event_invalid_value": RefusalCode.BAD_VALUE,
    "meter_event_value_not_found": RefusalCode.BAD_VALUE,
    "meter_event_value_too_many_digits": RefusalCode.TOO_MANY_DIGITS,
    "no_meter": RefusalCode.UNKNOWN_METER,
    "timestamp_in_future": RefusalCode.IN_FUTURE,
    "timestamp_too_far_in_past": RefusalCode.TOO_OLD,
}
"""Stripe's codes (an open list), as in its meter error reports, to ours."""

_REPEATED = "already exists with identifier"
"""What the 400 for a repeated identifier says; v1 gives it no code to tell it by (seen)."""
_REPEATED_CODE = "duplicate_meter_event"
"""The code of the same refusal in v2 (Stripe's OpenAPI document)."""

_UNAUTHORIZED_RETRY_S = 300.0
_SHORT_CACHE_S = 60.0
_LONG_CACHE_S = 3600.0
_MAX_CACHED = 10_000


@dataclass(frozen=True, slots=True)
class _Cached:
    value: BillableFrom | NotBilled
    until_s: float


class StripeBilling:
    """The BillingLayer port on Stripe's API. Safe to share between threads.

    `api_key` is asked before each call, so that a rotated key needs no restart. A connection gets
    `connect_timeout_s`, an answer `timeout_s`; both must be well below the function's own time.
    """

    def __init__(
        self,
        api_key: Callable[[], str],
        *,
        api_base: str | None = None,
        connect_timeout_s: float = 2.0,
        timeout_s: float = 8.0,
        pool_size: int = 10,
        now_s: Callable[[], float] = time.time,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        self._now_s = now_s
        self._stripe = StripeAccess(
            api_key,
            api_base=api_base,
            retries=0,
            http_client=http_client
            or stripe.RequestsClient(
                timeout=(connect_timeout_s, timeout_s), session=_make_session(pool_size)
            ),
        )
        self._billable: dict[str, _Cached] = {}

    @property
    def limits(self) -> BillingLimits:
        """Stripe's limits for meter events."""
        return LIMITS

    def send(self, usage: BillableUsage) -> SendOutcome:
        """Create one meter event, under its identifier and an Idempotency-Key of its content."""
        params: MeterEventCreateParams = {
            "event_name": usage.event_name,
            "payload": {
                "stripe_customer_id": usage.billing_customer,
                "value": str(usage.sub_units),
            },
            "identifier": usage.identifier,
            "timestamp": usage.at_s,
        }
        key = _idempotency_key(usage)
        outcome, is_stored = self._create(params, key)
        if is_stored:
            # Stripe answers a repeated key with the first answer, a 500 included, for at least
            # 24 h. Under a new key the question is asked anew; the identifier is what keeps
            # the usage from being counted twice.
            outcome, _ = self._create(params, f"{key}-{int(self._now_s())}")
        return outcome

    def billable_from(self, billing_customer: str) -> Billability:
        """The current period's start, or an older one's whose invoice is still a draft.

        Kept for as long as it must be true, at most an hour, or a minute while a draft could be
        finalised by hand.
        """
        now_s = self._now_s()
        cached = self._billable.get(billing_customer)
        if cached is not None and cached.until_s > now_s:
            return cached.value
        try:
            fresh = self._read_billable(billing_customer, now_s)
        except stripe.StripeError as error:
            match _read_error(error):
                case Refused(code, message):
                    fresh = _Cached(NotBilled(code, message), now_s + _SHORT_CACHE_S)
                case NotApplied(reason, retry_after_s):
                    return Unavailable(reason, retry_after_s)
                case Sent() | Unknown():
                    return Unavailable(type(error).__name__)
        if len(self._billable) >= _MAX_CACHED:
            self._billable.clear()
        self._billable[billing_customer] = fresh
        return fresh.value

    def _create(self, params: MeterEventCreateParams, key: str) -> tuple[SendOutcome, bool]:
        """The outcome, and whether it only repeats what was stored for the key before."""
        try:
            self._stripe.open().v1.billing.meter_events.create(params, {"idempotency_key": key})
        except stripe.IdempotencyError as error:
            if error.http_status == 409:
                return NotApplied("a call with this idempotency key is under way"), False
            return Refused(RefusalCode.BAD_REQUEST, _message(error)), True
        except stripe.StripeError as error:
            outcome = _read_error(error)
            return outcome, not isinstance(outcome, Sent) and _is_replayed(error)
        return Sent(), False

    def _read_billable(self, billing_customer: str, now_s: float) -> _Cached:
        client = self._stripe.open()
        by_customer: SubscriptionListParams = {"customer": billing_customer, "limit": 100}
        found = [
            (subscription, _metered_items(client, subscription))
            for subscription in client.v1.subscriptions.list(by_customer).auto_paging_iter()
        ]
        subscriptions = [subscription for subscription, metered in found if metered]
        items = [item for _, metered in found for item in metered]
        drafts: InvoiceListParams = {
            "customer": billing_customer,
            "status": "draft",
            "limit": 100,
        }
        invoices = [
            invoice
            for invoice in client.v1.invoices.list(drafts).auto_paging_iter()
            if invoice.parent is not None and invoice.parent.type == "subscription_details"
        ]
        prices = {item.price.id for item in items}
        starts = [item.current_period_start for item in items]
        since_s = min((item.created for item in items), default=0)
        starts += [
            start for invoice in invoices for start in _metered_starts(invoice, prices, since_s)
        ]
        if not starts:
            return _Cached(self._read_ended(billing_customer), now_s + _SHORT_CACHE_S)
        ends = [float(item.current_period_end) for item in items]
        for invoice in invoices:
            at_s = invoice.automatically_finalizes_at
            ends.append(min(at_s or now_s + _SHORT_CACHE_S, now_s + _SHORT_CACHE_S))
        until_s = min(ends)
        if until_s <= now_s:
            # Stripe turns the period in a moment (a test clock, when it is moved). Until then the
            # old start is the safe one: the old period's invoice is a draft for an hour at least.
            until_s = now_s + _SHORT_CACHE_S
        lasts = [each.cancel_at for each in subscriptions] or [each.period_end for each in invoices]
        known = [at_s for at_s in lasts if at_s is not None]
        billable = BillableFrom(min(starts), max(known) if len(known) == len(lasts) else None)
        return _Cached(billable, min(until_s, now_s + _LONG_CACHE_S))

    def _read_ended(self, billing_customer: str) -> BillableFrom | NotBilled:
        """Where nothing is billed any more: what was used before the end came too late for the
        last invoice, and what came after it is on none."""
        listing: SubscriptionListParams = {
            "customer": billing_customer,
            "status": "ended",
            "limit": 100,
        }
        client = self._stripe.open()
        ends = [
            subscription.ended_at
            for subscription in client.v1.subscriptions.list(listing).auto_paging_iter()
            if subscription.ended_at is not None and _metered_items(client, subscription)
        ]
        if not ends:
            return NotBilled(RefusalCode.NO_SUBSCRIPTION, "no subscription with a metered item")
        return BillableFrom(max(ends), max(ends))


def _make_session(pool_size: int) -> requests.Session:
    """A session that threads may share: connections are pooled, and no cookie is kept."""
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    # Neither proxies nor .netrc are looked up for each request.
    session.trust_env = False
    adapter = HTTPAdapter(pool_connections=2, pool_maxsize=pool_size, max_retries=0)
    session.mount("https://", adapter)
    session.mount("http://", adapter)
    return session


def _idempotency_key(usage: BillableUsage) -> str:
    """Deterministic in all that is sent: a key that comes with another body is an error."""
    content = f"{usage.event_name}\x1f{usage.billing_customer}\x1f{usage.at_s}\x1f{usage.sub_units}"
    return f"{usage.identifier}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _read_error(error: stripe.StripeError) -> SendOutcome:
    """What an error says about a request: not applied, unknown, refused, or there already."""
    status = error.http_status
    if isinstance(error, stripe.APIConnectionError):
        if _never_left(error):
            return NotApplied("no connection")
        return Unknown("no answer")
    if status is None or status < 400 or status >= 500 or status == 408:
        # An unreadable 2xx body is no answer either.
        return Unknown(f"HTTP {status}")
    if status in (409, 429) or isinstance(error, stripe.RateLimitError):
        return NotApplied(f"HTTP {status}", _retry_after_s(error))
    if status in (401, 403):
        # Ours to mend, and then all goes on: nothing is wrong with the event.
        return NotApplied("the API key was refused", _UNAUTHORIZED_RETRY_S)
    message = _message(error)
    if _REPEATED in message.lower() or error.code == _REPEATED_CODE:
        return Sent(repeated=True)
    return Refused(_refusal_code(error, message), message)


def _refusal_code(error: stripe.StripeError, message: str) -> RefusalCode:
    code = error.code or ""
    if code in _CODES:
        return _CODES[code]
    param = str(getattr(error, "param", None) or "")
    if code == "resource_missing" or message.lower().startswith("no such customer"):
        is_meter = "meter" in message.lower() and "customer" not in message.lower()
        return RefusalCode.UNKNOWN_METER if is_meter else RefusalCode.UNKNOWN_CUSTOMER
    if param.startswith("payload"):
        return RefusalCode.BAD_VALUE
    return RefusalCode.BAD_REQUEST


def _message(error: stripe.StripeError) -> str:
    return str(error.user_message or "")[:500]


def _retry_after_s(error: stripe.StripeError) -> float | None:
    told = _header(error, "retry-after")
    return float(told) if told is not None and told.isascii() and told.isdigit() else None


def _is_replayed(error: stripe.StripeError) -> bool:
    return _header(error, "idempotent-replayed") == "true"


def _header(error: stripe.StripeError, name: str) -> str | None:
    for key, value in (error.headers or {}).items():
        if key.lower() == name:
            return str(value)
    return None


def _never_left(error: stripe.APIConnectionError) -> bool:
    """Whether the connection failed before any of the request was sent."""
    for cause in _causes(error):
        if isinstance(
            cause,
            requests.exceptions.ConnectTimeout
            | urllib3.exceptions.NewConnectionError
            | urllib3.exceptions.ConnectTimeoutError
            | urllib3.exceptions.NameResolutionError,
        ):
            return True
    return False


def _causes(error: BaseException) -> Iterable[BaseException]:
    """The error and what it came from, MaxRetryError's `reason` included."""
    open_errors: list[BaseException] = [error]
    seen: set[int] = set()
    while open_errors:
        cause = open_errors.pop()
        if id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        nexts = (cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args)
        open_errors += [next_ for next_ in nexts if isinstance(next_, BaseException)]


def _metered_items(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> list[stripe.SubscriptionItem]:
    """None of a subscription whose first payment never came: it is listed with those that are not
    cancelled, and bills nothing any more (API reference, subscriptions)."""
    if subscription.status == "incomplete_expired":
        return []
    return [
        item
        for item in list_items(client, subscription)
        if item.price.recurring is not None and item.price.recurring.usage_type == "metered"
    ]


def _metered_starts(invoice: stripe.Invoice, prices: set[str], since_s: int) -> Iterable[int]:
    """From when the usage on a draft counts: its metered lines look back one period.

    Invoice items, as of a plan that was left, take no more usage; and where all metered items are
    as new as `since_s`, none of them bills a period that ended before.
    """
    is_cycle = invoice.billing_reason == "subscription_cycle"
    looking_back = []
    # An invoice comes with its first ten lines (API reference, an invoice's line items).
    for line in invoice.lines.auto_paging_iter():
        if line.parent is None or line.parent.type != "subscription_item_details":
            continue
        # A line without a price, such as an item of an amount, has no such details at all.
        details = getattr(line.pricing, "price_details", None)
        is_metered = details is not None and _id(details.price) in prices
        if is_metered or (is_cycle and line.period.end <= invoice.period_end):
            looking_back.append(line.period.start)
    if is_cycle and not looking_back and since_s < invoice.period_end:
        looking_back.append(invoice.period_start)
    return looking_back


def _id(price: str | stripe.Price) -> str:
    return price if isinstance(price, str) else price.id
