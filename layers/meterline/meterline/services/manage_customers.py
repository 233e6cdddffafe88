"""Create, change and show the accounts that are billed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from meterline.domain.customers import Customer
from meterline.domain.pricing import Plan
from meterline.errors import InvalidRequestError, NotFoundError
from meterline.ports import CustomerAccounts
from meterline.schemas.customers import CustomerInput


class ManageCustomers:
    """The job of `/v1/customers/{id}`."""

    def __init__(self, accounts: CustomerAccounts, plans: Mapping[str, Plan]) -> None:
        self._accounts = accounts
        self._plans = plans

    def put(self, customer: str, told: CustomerInput, now: datetime) -> Customer:
        """Create the customer, or make it what the call says; the same call again is harmless."""
        if told.plan not in self._plans:
            raise InvalidRequestError("unknown_plan", f"There is no plan {told.plan}.", status=422)
        return self._accounts.put_customer(customer, told.model_dump(), now)

    def get(self, customer: str) -> Customer:
        """The customer as it is now."""
        found = self._accounts.get_customer(customer)
        if found is None:
            raise NotFoundError(f"There is no customer {customer}.")
        return found
