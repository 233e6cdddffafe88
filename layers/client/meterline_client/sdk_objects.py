"""What the SDKs' objects say of usage, as plain dicts: reading those costs a third.

Both SDKs build pydantic models; their `to_dict` walks a whole answer, of which little is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OF_ANSWER = ("id", "type", "model", "status", "service_tier", "usage")
_OF_EVENT = ("type", "id", "model", "service_tier", "choices", "usage", "delta")
_ANSWERS_IN_EVENT = ("message", "response")


def summarize_answer(answer: Any) -> Any:
    """What an answer says of usage. Anything that is no SDK's object is returned as it is."""
    if not hasattr(type(answer), "model_dump"):
        return answer
    return _pick(answer, _OF_ANSWER)


def summarize_event(event: Any) -> Any:
    """What an event of a stream says of usage. Anything else is returned as it is."""
    if not hasattr(type(event), "model_dump"):
        return event
    found = _pick(event, _OF_EVENT)
    fields = event.__dict__
    for name in _ANSWERS_IN_EVENT:
        if name in fields:
            found[name] = summarize_answer(fields[name])
    return found


def _pick(source: Any, names: tuple[str, ...]) -> dict[str, Any]:
    fields: Mapping[str, Any] = source.__dict__
    found = {name: fields[name] for name in names if name in fields}
    extra = source.__pydantic_extra__
    if extra:
        found.update({name: extra[name] for name in names if name in extra})
    for name in ("usage", "delta"):
        if hasattr(type(found.get(name)), "model_dump"):
            found[name] = _flatten(found[name])
    return found


def _flatten(part: Any) -> dict[str, Any]:
    """The fields that were set, as `to_dict` would give them, at a tenth of its cost."""
    told = part.model_fields_set
    found = {name: value for name, value in part.__dict__.items() if name in told}
    if part.__pydantic_extra__:
        found.update(part.__pydantic_extra__)
    for name, value in found.items():
        if hasattr(type(value), "model_dump"):
            found[name] = _flatten(value)
        elif type(value) is list:
            found[name] = [
                _flatten(entry) if hasattr(type(entry), "model_dump") else entry for entry in value
            ]
    return found
