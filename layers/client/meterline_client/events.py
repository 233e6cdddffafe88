"""The event that leaves: one billable unit of work as a CloudEvent (CloudEvents 1.0, JSON)."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quote
from typing import TYPE_CHECKING, NamedTuple

from meterline_client.attribution import Attribution, check_label

if TYPE_CHECKING:
    from decimal import Decimal

MAX_EVENT_BYTES = 16_384
"""The longest line kept; an event holds names and numbers, so a longer one is a mistake."""
MAX_COUNT = 10**12
"""The most of one usage kind that the contract takes in one event."""
MAX_KIND_CHARACTERS = 64


class _IdMaker:
    """Makes ids that differ between processes, forks and restored snapshots, and within each.

    80 random bits of the process alone would repeat in two machines restored from one memory
    snapshot (Lambda's SnapStart); the time in ns and a count tell those and fast calls apart.
    Drawing random bits for every id would cost a system call each.
    """

    def __init__(self) -> None:
        self.start_anew()
        os.register_at_fork(after_in_child=self.start_anew)

    def start_anew(self) -> None:
        self._prefix = os.urandom(10).hex()
        self._count = itertools.count()

    def make(self) -> str:
        return f"{self._prefix}-{time.time_ns():x}-{next(self._count):x}"


make_event_id = _IdMaker().make
"""Make an event's id, once per call, before the call."""

_second: tuple[int, str] = (0, "1970-01-01T00:00:00")


def format_time(epoch_s: float) -> str:
    """Write seconds since 1970 as RFC 3339 in UTC, to the microsecond."""
    global _second
    whole_s, fraction_us = divmod(round(epoch_s * 1_000_000), 1_000_000)
    known_s, text = _second
    if known_s != whole_s:
        year, month, day, hour, minute, second, *_ = time.gmtime(whole_s)
        text = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
        _second = (whole_s, text)
    return f"{text}.{fraction_us:06}Z"


def format_quantity(quantity: Decimal | int | str) -> str:
    """Write a quantity as the contract's decimal string. Raises TypeError on a float or a bool.

    Raises ValueError on what is no finite number of zero or more.
    """
    from decimal import Decimal, InvalidOperation

    if isinstance(quantity, bool | float):
        raise TypeError("a quantity is a Decimal, an int or a decimal string, never a float")
    try:
        exact = Decimal(quantity)
    except InvalidOperation as error:
        raise ValueError(f"{quantity!r} is no decimal number") from error
    if not exact.is_finite() or exact < 0:
        raise ValueError(f"{quantity!r} is no finite quantity of zero or more")
    return format(exact, "f")


def check_usage(usage: Mapping[str, int]) -> dict[str, int]:
    """Return usage kinds fit for an event. Raises TypeError or ValueError before it is kept."""
    for kind, count in usage.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"usage {kind!r} must be a whole number, not {count!r}")
        if not 0 <= count <= MAX_COUNT:
            raise ValueError(f"usage {kind!r} must be from zero to 10^12, not negative")
        check_label("a usage kind", kind, MAX_KIND_CHARACTERS)
    return dict(usage)


class Work(NamedTuple):
    """What was done, in the provider's own numbers; either `usage` or `quantity` says how much.

    A tuple, as it is made on every call: a frozen dataclass of eight fields takes 3 µs to make.
    """

    meter: str
    usage: Mapping[str, int] | None = None
    quantity: str | None = None
    provider: str | None = None
    model: str | None = None
    tier: str | None = None
    response_id: str | None = None
    status: str | None = None


@lru_cache(maxsize=512)
def _write_who(
    meter: str, user: str | None, action: str | None, provider: str | None, model: str | None
) -> str:
    """What many events of one process have in common."""
    data = f'"meter":{_quote(meter)}'
    if user is not None:
        data += f',"user":{_quote(user)}'
    if action is not None:
        data += f',"action":{_quote(action)}'
    if provider is not None:
        data += f',"provider":{_quote(provider)}'
    if model is not None:
        data += f',"model":{_quote(model)}'
    return data


def encode_event(
    event_id: str, source: str, ended_at_s: float, attribution: Attribution, work: Work
) -> bytes:
    """Encode one event as a line of ASCII JSON that ends with a newline.

    Raises ValueError when the line is longer than MAX_EVENT_BYTES.
    """
    # Written by hand: the strings are escaped by the json module, the rest is whole numbers, and a
    # general encoder would take three times as long on the calling thread.
    data = _write_who(work.meter, attribution.user, attribution.action, work.provider, work.model)
    if work.usage is not None:
        counts = ",".join([f"{_quote(kind)}:{count:d}" for kind, count in work.usage.items()])
        data += f',"usage":{{{counts}}}'
    if work.quantity is not None:
        data += f',"quantity":{_quote(work.quantity)}'
    if work.response_id is not None:
        data += f',"response_id":{_quote(work.response_id)}'
    if work.tier is not None:
        data += f',"tier":{_quote(work.tier)}'
    if work.status is not None:
        data += f',"status":{_quote(work.status)}'
    if attribution.authorization is not None:
        data += f',"authorization":{_quote(attribution.authorization)}'
    line = (
        f'{{"specversion":"1.0","id":{_quote(event_id)},"source":{_quote(source)},'
        f'"type":"meterline.usage","subject":{_quote(attribution.customer)},'
        f'"time":"{format_time(ended_at_s)}","data":{{{data}}}}}\n'
    )
    if len(line) > MAX_EVENT_BYTES:
        raise ValueError(f"event {event_id} is longer than {MAX_EVENT_BYTES} bytes")
    return line.encode("ascii")
