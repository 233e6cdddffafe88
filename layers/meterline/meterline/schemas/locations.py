"""Where something is in a document, as an answer says it."""

from __future__ import annotations

from collections.abc import Iterable

_MAX_NAME_LENGTH = 64
"""Characters of a name of the sender's that an answer repeats."""


def write_location(parts: Iterable[str | int]) -> str:
    """Where something is in a document: `data.usage.input_tokens`.

    Names may be the sender's own: an answer must not grow with them, and must be UTF-8.
    """
    return ".".join(
        part if len(part) <= _MAX_NAME_LENGTH else f"{part[:_MAX_NAME_LENGTH]}…"
        for part in (str(part).encode(errors="replace").decode() for part in parts)
    )
