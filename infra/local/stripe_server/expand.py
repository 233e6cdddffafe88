"""`expand[]`: ids in an answer replaced by the objects they name (API reference, expanding)."""

from __future__ import annotations

from infra.local.stripe_server.account import Account, Json
from infra.local.stripe_server.errors import invalid_request

_MAX_DEPTH = 4
_INCLUDABLE = {("price", "tiers"), ("price", "currency_options")}
"""Fields that Stripe leaves out unless they are asked for."""


def expand(account: Account, answer: Json, paths: list[str]) -> Json:
    """Expand each dotted path in place; a path that leads nowhere is a 400."""
    for path in paths:
        parts = path.split(".")
        if len(parts) > _MAX_DEPTH + (parts[0] == "data"):
            raise invalid_request(
                f"You cannot expand more than {_MAX_DEPTH} levels of a property: {path}"
            )
        _expand_path(account, answer, parts, path)
    return answer


def _expand_path(account: Account, value: Json, parts: list[str], path: str) -> None:
    head, rest = parts[0], parts[1:]
    if (value.get("object"), head) in _INCLUDABLE:
        stored = account.store("price").get(value["id"])
        if stored is not None and stored[f"_{head}"] is not None:
            value[head] = _include(value.get(head), stored[f"_{head}"], rest)
        return
    if head not in value:
        raise invalid_request(
            f"This property cannot be expanded ({path}).", param="expand", code=None
        )
    child = value[head]
    if isinstance(child, str):
        shown = account.render_id(child)
        if shown is None:
            if rest or "_" not in child:
                raise invalid_request(f"This property cannot be expanded ({path}).")
            return
        value[head] = child = shown
    if not rest:
        return
    for item in child if isinstance(child, list) else [child]:
        if isinstance(item, dict):
            _expand_path(account, item, rest, path)


def _include(shown: Json | None, stored: Json | list[Json], rest: list[str]) -> Json | list[Json]:
    """Tiers as they are; a currency's own tiers only if the path names them."""
    if isinstance(stored, list):
        return stored
    options = shown or {
        currency: {key: value for key, value in option.items() if key != "tiers"}
        for currency, option in stored.items()
    }
    if len(rest) == 2 and rest[1] == "tiers" and rest[0] in stored:
        options[rest[0]]["tiers"] = stored[rest[0]]["tiers"]
    return options
