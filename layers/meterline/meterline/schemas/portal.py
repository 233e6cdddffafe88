"""Portal sessions as they cross the border."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from meterline.domain.customers import Role
from meterline.schemas.names import CustomerId, Label


def _read_role(told: object) -> object:
    # A strict model takes no text for an enum; its values are the contract's words.
    return Role(told) if isinstance(told, str) and told in tuple(Role) else told


class PortalSessionInput(BaseModel):
    """The body of `POST /v1/portal-sessions`: whose dashboard, and who is to see it.

    Without a `user` it is the account's own, and sees everything. A user of the customer's list
    has the role that stands there; `role` is for one who is not on it, and `member` if left out.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    customer: CustomerId
    user: Label | None = None
    role: Annotated[Role | None, BeforeValidator(_read_role)] = None
