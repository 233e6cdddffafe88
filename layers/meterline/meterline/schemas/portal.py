"""Portal sessions as they cross the border."""

from __future__ import annotations

from typing import Annotated

from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from pydantic import BaseModel, BeforeValidator, ConfigDict

from meterline.domain.customers import Role
from meterline.schemas.events import CustomerId, Label


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


def find_origin(event: APIGatewayProxyEventV2) -> str:
    """Where the caller sees this API: `https://` and its host.

    A proxy in front of it says so in `X-Forwarded-Host`. That is the caller's own word, so it
    decides only where a link that goes to this caller leads to.
    """
    headers = event.headers
    host = headers.get("x-forwarded-host") or event.request_context.domain_name
    scheme = headers.get("x-forwarded-proto") or "https"
    return f"{scheme}://{host}"


def find_page(event: APIGatewayProxyEventV2) -> str:
    """The address of the dashboard's page."""
    return f"{find_origin(event)}/settings/usage"
