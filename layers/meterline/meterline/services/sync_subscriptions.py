"""Keep what we know of a customer's subscription in step with the billing layer."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from meterline.domain.subscriptions import Subscription, follow
from meterline.errors import NotFoundError, StorageUnavailableError, SupersededError
from meterline.ports import Plans, SubscriptionRecords, Subscriptions

_MAX_TRIES = 5


class SyncSubscriptions:
    """Asks the billing layer what is true now and writes that down.

    It never believes what a message said was true: messages come late, twice and out of order
    (Stripe's documentation, webhooks). Run side by side for one customer, the record of the later
    question stands: whoever finds it changed asks again.
    """

    def __init__(
        self,
        records: SubscriptionRecords,
        subscriptions: Subscriptions,
        plans: Plans,
    ) -> None:
        self._records = records
        self._subscriptions = subscriptions
        self._plans = plans

    def __call__(
        self, customer: str, now: datetime, changed_at: datetime | None = None
    ) -> Subscription | None:
        """The subscription as it is now; None without one, or without an id to ask for.

        `changed_at` is when it was changed, as far as somebody said. Raises `NotFoundError`,
        `BillingUnavailableError` (then the record stays as it was) and `StorageUnavailableError`.
        """
        for _ in range(_MAX_TRIES):
            found = self._records.get_customer(customer)
            if found is None:
                raise NotFoundError(f"There is no customer {customer}.")
            if found.billing_customer is None:
                return None
            before = self._records.get_subscription(customer)
            heard = self._subscriptions.of(found.billing_customer, now)
            after = None
            if heard is not None:
                after = follow(before, self._name_meter(heard), changed_at)
            if before is None and after is None:
                return None
            try:
                self._records.replace_subscription(customer, found.billing_customer, before, after)
            except SupersededError:
                continue
            return after
        raise StorageUnavailableError(f"the subscription of {customer} is being changed")

    def _name_meter(self, heard: Subscription) -> Subscription:
        plan = self._plans.at(heard.current.start).get(heard.plan or "")
        if heard.metered_item is None or heard.meter is not None or plan is None:
            return heard
        return replace(heard, meter=plan.meter)
