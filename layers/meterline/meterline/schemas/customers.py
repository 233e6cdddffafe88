"""Customers as they cross the border."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
)

from meterline.domain.customers import MAX_USERS, Account, Customer, Role, User
from meterline.domain.subscriptions import Subscription
from meterline.domain.times import format_time
from meterline.errors import InvalidRequestError
from meterline.schemas.names import CUSTOMER_ID, Label
from meterline.schemas.periods import write_period

DEFAULT_LIMIT = 50
MAX_LIMIT = 100
"""Customers on one page of the list."""
_CURSOR_MARK = b"customer:"

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
_Email = Annotated[str, Field(max_length=254, pattern=r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+$")]


def _read_role(told: object) -> object:
    # A strict model takes no text for an enum; its values are the contract's words.
    return Role(told) if isinstance(told, str) and told in tuple(Role) else told


class UserInput(BaseModel):
    """A person (seat) of the customer; `id` is what `data.user` of an event names."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: Label
    name: _Name | None = None
    email: _Email | None = None
    role: Annotated[Role, BeforeValidator(_read_role)] = Role.MEMBER


def _refuse_repeats(users: list[UserInput] | None) -> list[UserInput] | None:
    if users is not None and len({user.id for user in users}) < len(users):
        raise ValueError("every user's id must be another")
    return users


class CustomerInput(BaseModel):
    """The body of `PUT /v1/customers/{id}`. A field that is null or left out is taken away, but
    for `users`: left out they stay as they are, so that a new address need not bring them all."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: _Name
    plan: Label
    email: _Email | None = None
    billing_customer: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")] | None = None
    """The customer's id at the billing layer, at Stripe `cus_…`."""
    users: Annotated[
        list[UserInput] | None, Field(max_length=MAX_USERS), AfterValidator(_refuse_repeats)
    ] = None


def read_limit(told: str | None) -> int:
    """How many customers a page is to hold; raises `InvalidRequestError`."""
    if told is None:
        return DEFAULT_LIMIT
    if not (told.isascii() and told.isdigit() and len(told) <= 3 and 1 <= int(told) <= MAX_LIMIT):
        raise InvalidRequestError("invalid_limit", f"limit must be from 1 to {MAX_LIMIT}.")
    return int(told)


def read_cursor(told: str | None) -> str | None:
    """Behind which customer a page begins; raises `InvalidRequestError`."""
    if told is None:
        return None
    try:
        mark, _, customer = base64.b64decode(told, altchars=b"-_", validate=True).partition(b":")
        if mark + b":" == _CURSOR_MARK:
            return CUSTOMER_ID.validate_python(customer.decode("ascii"))
    except (binascii.Error, ValueError):
        pass  # Whatever is wrong with it, there is one thing to say.
    raise InvalidRequestError("invalid_cursor", "cursor must be next_cursor of the page before.")


def write_cursor(after: str | None) -> str | None:
    """The cursor of the page that begins behind `after`; opaque to callers."""
    if after is None:
        return None
    return base64.urlsafe_b64encode(_CURSOR_MARK + after.encode()).decode()


def write_customer(customer: Customer) -> dict[str, Any]:
    """A customer as a list shows it."""
    return {
        "id": customer.id,
        "name": customer.name,
        "email": customer.email,
        "plan": customer.plan,
        "billing_customer": customer.billing_customer,
        "created_at": format_time(customer.created_at),
        "updated_at": format_time(customer.updated_at),
    }


def write_account(account: Account) -> dict[str, Any]:
    """A customer as it is shown by itself: with its users and its subscription."""
    subscription = account.subscription
    return {
        **write_customer(account.customer),
        "users": [_write_user(user) for user in account.users],
        "subscription": _write_subscription(subscription) if subscription is not None else None,
    }


def _write_user(user: User) -> dict[str, Any]:
    return {"id": user.id, "name": user.name, "email": user.email, "role": user.role}


def _write_subscription(subscription: Subscription) -> dict[str, Any]:
    ends_at, trial_end = subscription.ends_at, subscription.trial_end
    return {
        "id": subscription.id,
        "status": subscription.status,
        "plan": subscription.plan,
        "meter": subscription.meter,
        "currency": subscription.currency,
        "current_period": write_period(subscription.current),
        "ends_at": format_time(ends_at) if ends_at is not None else None,
        "trial_end": format_time(trial_end) if trial_end is not None else None,
        "synced_at": format_time(subscription.synced_at),
    }
