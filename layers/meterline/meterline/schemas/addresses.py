"""Addresses of this API, as its callers see them."""

from __future__ import annotations

from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2


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
