"""The table of endpoints: method, path, handler and the `stripe.params` type of its request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from infra.local.stripe_server.account import Account, Json

Params = dict[str, Any]
Handler = Callable[..., Json]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint. `handler(account, params, *ids)` gives the JSON to answer."""

    method: str
    path: str
    params: str
    handler: Handler


_exact: dict[tuple[str, str], Route] = {}
_patterns: dict[tuple[str, int], list[tuple[list[str], Route]]] = {}


def route(method: str, path: str, params: str) -> Callable[[Handler], Handler]:
    """Register a handler; `{}` in the path stands for an id that is handed to it."""

    def register(handler: Handler) -> Handler:
        entry = Route(method, path, params, handler)
        if "{}" in path:
            parts = path.split("/")
            _patterns.setdefault((method, len(parts)), []).append((parts, entry))
        else:
            _exact[method, path] = entry
        return handler

    return register


def find_route(method: str, path: str) -> tuple[Route, tuple[str, ...]] | None:
    """The endpoint and the ids in its path."""
    exact = _exact.get((method, path))
    if exact is not None:
        return exact, ()
    parts = path.split("/")
    for pattern, entry in _patterns.get((method, len(parts)), ()):
        if all(want in ("{}", have) for want, have in zip(pattern, parts, strict=True)):
            return entry, tuple(
                have for want, have in zip(pattern, parts, strict=True) if want == "{}"
            )
    return None


def all_routes() -> list[Route]:
    """Every endpoint that the server speaks."""
    return [*_exact.values(), *(entry for rows in _patterns.values() for _, entry in rows)]


def call(entry: Route, account: Account, params: Params, ids: tuple[str, ...]) -> Json:
    """Run an endpoint."""
    return entry.handler(account, params, *ids)
