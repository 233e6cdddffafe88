"""Names that callers give, in paths and bodies, and what may stand in them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from meterline.errors import InvalidRequestError

TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]+$"


def limit_text(max_length: int) -> Any:
    """A field of 1 to `max_length` characters, none of them a control character."""
    return Field(min_length=1, max_length=max_length, pattern=TEXT_PATTERN)


CustomerId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Up to 64 letters, digits, dots, dashes and underscores; letter case counts."""
# Two of 200 characters and a customer stay below DynamoDB's 2,048 bytes of a key in any script.
MAX_ID_LENGTH = 200
SenderText = Annotated[str, limit_text(MAX_ID_LENGTH)]
Label = Annotated[str, limit_text(128)]
CUSTOMER_ID: TypeAdapter[str] = TypeAdapter(CustomerId)


def read_customer_id(told: str) -> str:
    """The customer's id in a path; raises `InvalidRequestError`."""
    try:
        return CUSTOMER_ID.validate_python(told)
    except ValidationError:
        raise InvalidRequestError(
            "invalid_customer_id",
            "A customer's id has up to 64 letters, digits, dots, dashes and underscores.",
        ) from None
