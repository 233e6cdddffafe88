"""Create, change, show and list the accounts that are billed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from meterline.domain.customers import Account, Customer, User
from meterline.domain.subscriptions import Subscription
from meterline.errors import (
    BillingCustomerTakenError,
    BillingUnavailableError,
    InvalidRequestError,
    NotFoundError,
)
from meterline.ports import CustomerAccounts, Plans, SubscriptionRecords
from meterline.schemas.customers import CustomerInput


@dataclass(frozen=True, slots=True)
class CustomerPage:
    """Some customers by id, and behind which one the next page begins (None: there is none)."""

    customers: Sequence[Customer]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class CustomerPut:
    """The account as it is now, and why its subscription could not be asked for, if so."""

    account: Account
    sync_failure: str | None = None


class ManageCustomers:
    """The job of `/v1/customers`."""

    def __init__(
        self,
        accounts: CustomerAccounts,
        records: SubscriptionRecords,
        sync: Callable[[str, datetime], Subscription | None],
        plans: Plans,
    ) -> None:
        self._accounts = accounts
        self._records = records
        self._sync = sync
        self._plans = plans

    def put(self, customer: str, told: CustomerInput, now: datetime) -> CustomerPut:
        """Create the customer, or make it what the call says; the same call again is harmless.

        A subscription that we have not heard of is asked for. The billing layer's silence does
        not undo the call: the next call, a webhook or the operator's command ask again.
        """
        if told.plan not in self._plans.at(now):
            raise InvalidRequestError("unknown_plan", f"There is no plan {told.plan}.", status=422)
        changes = told.model_dump(exclude={"users"})
        try:
            changed = self._accounts.put_customer(customer, changes, now)
        except BillingCustomerTakenError as error:
            raise InvalidRequestError("billing_customer_taken", f"{error}.", status=409) from error
        if told.users is None:
            users = self._accounts.list_users(customer)
        else:
            users = [User(user.id, user.name, user.email, user.role) for user in told.users]
            self._accounts.put_users(customer, users)
            users.sort(key=lambda user: user.id.encode())
        subscription = self._records.get_subscription(customer)
        failure = None
        if subscription is None and changed.billing_customer is not None:
            try:
                subscription = self._sync(customer, now)
            except BillingUnavailableError as error:
                failure = str(error)
        return CustomerPut(Account(changed, tuple(users), subscription), failure)

    def get(self, customer: str) -> Account:
        """The customer as it is now, with its users and its subscription as last heard."""
        found = self._accounts.get_customer(customer)
        if found is None:
            raise NotFoundError(f"There is no customer {customer}.")
        return Account(
            found,
            tuple(self._accounts.list_users(customer)),
            self._records.get_subscription(customer),
        )

    def list(self, limit: int, after: str | None) -> CustomerPage:
        """Up to `limit` customers in the order of their ids, which never changes."""
        found = self._accounts.list_customers(limit + 1, after)
        more = len(found) > limit
        return CustomerPage(found[:limit], found[limit - 1].id if more else None)
