"""Stripe's form encoding: `items[0][price]=price_1` and `expand[]=customer` into nested values."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl

from infra.local.stripe_server.errors import invalid_request


def _split_key(key: str) -> list[str]:
    bracket = key.find("[")
    if bracket < 0:
        return [key]
    if not key.endswith("]") or bracket == 0:
        raise invalid_request(f"Invalid parameter name: {key}", param=key)
    return [key[:bracket], *key[bracket + 1 : -1].split("][")]


def decode_form(text: str) -> dict[str, Any]:
    """Decode a form or a query string: str, dict and list of str; a[] appends, a[0] is a dict."""
    values: dict[str, Any] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        path = _split_key(key)
        place: Any = values
        for index, part in enumerate(path[:-1]):
            following: Any = [] if path[index + 1] == "" else {}
            if not isinstance(place, dict):
                raise invalid_request(f"Invalid parameter name: {key}", param=path[0])
            place = place.setdefault(part, following)
        last = path[-1]
        if last == "" and isinstance(place, list):
            place.append(value)
        elif isinstance(place, dict) and not isinstance(place.get(last), dict | list):
            place[last] = value
        else:
            raise invalid_request(f"Invalid parameter name: {key}", param=path[0])
    return values
