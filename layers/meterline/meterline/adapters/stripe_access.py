"""The way to Stripe that its adapters share: one client for as long as the key stays the same.

`stripe` is imported with the first question: it takes 130 to 290 ms, and most calls of some
functions ask nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from meterline.errors import BillingUnavailableError

if TYPE_CHECKING:
    import stripe


class StripeAccess:
    """Opens Stripe's client. Safe to share between threads.

    `api_key` is asked before each question, so that a rotated key needs no restart.
    """

    def __init__(
        self,
        api_key: Callable[[], str],
        *,
        api_base: str | None = None,
        timeout_s: float = 10.0,
        retries: int = 2,
        http_client: stripe.HTTPClient | None = None,
    ) -> None:
        self._api_key = api_key
        self._api_base = api_base
        self._timeout_s = timeout_s
        self._retries = retries
        self._http_client = http_client
        self._client: tuple[str, stripe.StripeClient] | None = None

    def open(self) -> stripe.StripeClient:
        """The client; it keeps its connections from one question to the next."""
        import stripe

        key = self._api_key()
        if self._client is None or self._client[0] != key:
            client = stripe.StripeClient(
                key,
                base_addresses={"api": self._api_base} if self._api_base else {},
                http_client=self._http_client or stripe.RequestsClient(timeout=self._timeout_s),
                max_network_retries=self._retries,
            )
            self._client = (key, client)
        return self._client[1]


def list_items(
    client: stripe.StripeClient, subscription: stripe.Subscription
) -> list[stripe.SubscriptionItem]:
    """All items of a subscription, which brings the first of them along."""
    if not subscription.items.has_more:
        return subscription.items.data
    listed = client.v1.subscription_items.list({"subscription": subscription.id, "limit": 100})
    return list(listed.auto_paging_iter())


@contextmanager
def translate_errors() -> Iterator[None]:
    """Stripe's errors as `BillingUnavailableError`."""
    import stripe

    try:
        yield
    except stripe.StripeError as error:
        told = (type(error).__name__, error.http_status, error.code, error.user_message)
        words = " ".join(str(part) for part in told if part)
        # Of a lost connection Stripe's library tells in a paragraph.
        raise BillingUnavailableError(" ".join(words.split())) from error


def read_refusal(error: BillingUnavailableError) -> str | None:
    """Stripe's code where it refused what was asked ("" if it gave none); None for all else."""
    import stripe

    cause = error.__cause__
    return cause.code or "" if isinstance(cause, stripe.InvalidRequestError) else None
