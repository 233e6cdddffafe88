"""Times as the contract writes them: RFC 3339, kept in UTC and to the millisecond."""

from __future__ import annotations

import re
from datetime import UTC, datetime

_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)\Z", re.ASCII
)


def parse_time(text: str) -> datetime:
    """Read an RFC 3339 time with its offset; anything else is a `ValueError`."""
    if not _RFC_3339.match(text):
        raise ValueError(f"{text!r} is not an RFC 3339 time such as 2026-11-22T06:00:00Z")
    moment = datetime.fromisoformat(text.upper())
    if moment.utcoffset():
        try:
            moment = moment.astimezone(UTC)
        except OverflowError:
            raise ValueError(f"{text!r} is outside of the years 1 to 9999 in UTC") from None
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)


def format_time(moment: datetime) -> str:
    """Write a time in UTC with milliseconds, so that text sorts as time does."""
    return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds')[:23]}Z"
