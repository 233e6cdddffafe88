"""Customers as they cross the border."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from meterline.domain.customers import Customer
from meterline.domain.times import format_time
from meterline.errors import InvalidRequestError
from meterline.schemas.events import CustomerId, Label

_CUSTOMER_ID: TypeAdapter[str] = TypeAdapter(CustomerId)


class CustomerInput(BaseModel):
    """The body of `PUT /v1/customers/{id}`. A field that is null or left out is taken away."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    plan: Label
    email: (
        Annotated[str, Field(max_length=254, pattern=r"^[^@\s\x00-\x1f]+@[^@\s\x00-\x1f]+$")] | None
    ) = None
    billing_customer: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")] | None = None
    """The customer's id at the billing layer, at Stripe `cus_…`."""


def read_customer_id(told: str) -> str:
    """The customer's id in a path; raises `InvalidRequestError`."""
    try:
        return _CUSTOMER_ID.validate_python(told)
    except ValidationError:
        raise InvalidRequestError(
            "invalid_customer_id",
            "A customer's id has up to 64 letters, digits, dots, dashes and underscores.",
        ) from None


def write_customer(customer: Customer) -> dict[str, Any]:
    """A customer as the contract shows it."""
    return {
        "id": customer.id,
        "name": customer.name,
        "email": customer.email,
        "plan": customer.plan,
        "billing_customer": customer.billing_customer,
        "created_at": format_time(customer.created_at),
        "updated_at": format_time(customer.updated_at),
    }
