"""A workload for `make run`: reports of model calls, and what must become of each.

What must come out is reckoned here from the rate card's file alone, with fractions, so that an
error in the service's own arithmetic shows as a difference.
"""

from __future__ import annotations

import csv
import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

SENT_TWICE = 0.10
CACHED = 0.05
BAD = 0.02
BY_TOKENS = 0.10
"""The share of good calls that are also reported to the meter of raw tokens, for its hours."""

_TRACE_HEADER = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"]
_MODELS = (
    ("anthropic", "claude-sonnet-4-5-20250929", 5),
    ("anthropic", "claude-haiku-4-5-20251001", 3),
    ("openai", "gpt-5-2025-08-07", 3),
    ("openai", "gpt-4o-mini-2024-07-18", 2),
    ("google", "gemini-2.5-flash", 1),
)
_ACTIONS = (
    ("chat.answer", 10),
    ("report.generate", 4),
    ("email.draft", 3),
    ("code.review", 2),
    ("research.brief", 1),
)


class TraceError(Exception):
    """A trace file that cannot be replayed; says where and why."""


class Fate(StrEnum):
    """What must become of a report."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    IGNORED = "ignored"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Report:
    """One event to send, in the name of one customer's app."""

    customer: str
    meter: str
    at: datetime
    event: dict[str, Any]
    fate: Fate
    sub_units: int
    """What it must add to the customer's meter."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One call of a model, before anybody reports it."""

    at: datetime
    input_tokens: int
    output_tokens: int


def make_calls(count: int, start: datetime, end: datetime, dice: random.Random) -> list[ModelCall]:
    """Calls over days, most of them by day; sizes log-normal, as in traces of real traffic."""
    calls: list[ModelCall] = []
    span_s = (end - start).total_seconds()
    while len(calls) < count:
        at = start + timedelta(seconds=dice.uniform(0, span_s))
        busy = 1.0 if 7 <= at.hour < 20 else 0.25
        if dice.random() < busy * (0.5 if at.weekday() >= 5 else 1.0):
            calls.append(
                ModelCall(
                    at,
                    max(1, round(dice.lognormvariate(7.0, 1.2))),
                    max(1, round(dice.lognormvariate(4.6, 1.0))),
                )
            )
    # Today must never be empty, whatever the dice say.
    calls += [ModelCall(end - timedelta(minutes=minute), 1_200, 350) for minute in range(20, 0, -1)]
    return sorted(calls, key=lambda call: call.at)


def read_trace(path: Path, end: datetime) -> list[ModelCall]:
    """The calls of a CSV of `TIMESTAMP,ContextTokens,GeneratedTokens`, moved so that they end at
    `end`. Raises `TraceError`."""
    calls: list[ModelCall] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            if next(rows, None) != _TRACE_HEADER:
                raise TraceError(f"{path}: the first line must be {','.join(_TRACE_HEADER)}")
            for number, row in enumerate(rows, 2):
                try:
                    at, context, generated = row
                    calls.append(
                        ModelCall(
                            datetime.fromisoformat(at[:26]).replace(tzinfo=UTC),
                            int(context),
                            int(generated),
                        )
                    )
                except ValueError as error:
                    raise TraceError(f"{path}, line {number}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: {error}") from None
    if not calls:
        raise TraceError(f"{path}: there is no call in it")
    shift = end - max(call.at for call in calls)
    return sorted((replace(call, at=call.at + shift) for call in calls), key=lambda call: call.at)


def make_reports(
    calls: Sequence[ModelCall], customers: Sequence[str], rate_card: Path, dice: random.Random
) -> Iterator[Report]:
    """Report every call for some customer: some twice, some as cache hits, some badly.

    The first customer is the busiest. Reports come in the order of their calls, except that a
    report that is sent again comes later, as a retry does.
    """
    rates = _read_rates(rate_card)
    weights = [1 / (place + 1) for place in range(len(customers))]
    again: list[tuple[int, Report]] = []
    for number, call in enumerate(calls):
        while again and again[0][0] <= number:
            yield again.pop(0)[1]
        customer = dice.choices(customers, weights)[0]
        report = _report(customer, number, call, rates, dice)
        luck = dice.random()
        if luck < BAD:
            yield _spoil(report, dice)
        elif luck < BAD + CACHED:
            event = {**report.event, "data": {**report.event["data"], "cached": True}}
            yield replace(report, event=event, fate=Fate.IGNORED, sub_units=0)
        else:
            yield report
            if dice.random() < SENT_TWICE:
                yield_at = number + dice.randrange(1, 400)
                again.append((yield_at, _send_again(report, dice)))
                again.sort(key=lambda each: each[0])
            if dice.random() < BY_TOKENS:
                yield _by_tokens(report, call)
    for _, report in again:
        yield report


def _report(
    customer: str, number: int, call: ModelCall, rates: list[dict[str, Any]], dice: random.Random
) -> Report:
    provider, model, _ = dice.choices(_MODELS, [weight for *_, weight in _MODELS])[0]
    action = dice.choices(_ACTIONS, [weight for _, weight in _ACTIONS])[0][0]
    cached = round(call.input_tokens * 0.6) if dice.random() < 0.2 else 0
    usage = {
        "input_tokens": call.input_tokens - cached,
        "output_tokens": call.output_tokens,
        "cache_read_tokens": cached,
    }
    event = {
        "specversion": "1.0",
        "id": f"call_{number:06d}",
        "source": "demo/backend",
        "type": "meterline.usage",
        "subject": customer,
        "time": f"{call.at:%Y-%m-%dT%H:%M:%S}.{call.at.microsecond // 1000:03d}Z",
        "data": {
            "meter": "credits",
            "user": f"u_{dice.randrange(1, 13)}",
            "action": action,
            "provider": provider,
            "model": model,
            "usage": usage,
        },
    }
    sub_units = _sub_units(rates, provider, model, usage)
    return Report(customer, "credits", call.at, event, Fate.ACCEPTED, sub_units)


def _send_again(report: Report, dice: random.Random) -> Report:
    """The same event once more, half of the time stamped anew, as some senders do on a retry."""
    event = dict(report.event)
    if dice.random() < 0.5:
        del event["time"]
    return replace(report, event=event, fate=Fate.DUPLICATE, sub_units=0)


def _by_tokens(report: Report, call: ModelCall) -> Report:
    data = {**report.event["data"], "meter": "tokens"}
    event = {**report.event, "id": report.event["id"] + "/tokens", "data": data}
    tokens = call.input_tokens + call.output_tokens
    return replace(report, meter="tokens", event=event, sub_units=tokens)


def _spoil(report: Report, dice: random.Random) -> Report:
    """A report with one of the mistakes that senders make."""
    event = {**report.event, "data": dict(report.event["data"])}
    mistake = dice.randrange(6)
    if mistake == 0:
        event["data"]["model"] = "a-model-nobody-priced"
    elif mistake == 1:
        event["subject"] = "nobody"
    elif mistake == 2:
        event["data"]["meter"] = "bananas"
    elif mistake == 3:
        event["data"]["usage"] = {"input_tokens": -5}
    elif mistake == 4:
        event["time"] = "yesterday"
    else:
        del event["id"]
    return replace(report, event=event, fate=Fate.REJECTED, sub_units=0)


def _read_rates(rate_card: Path) -> list[dict[str, Any]]:
    document = tomllib.loads(rate_card.read_text("utf-8"))
    return [{**rate, "tokens": document["tokens"]} for rate in document["rates"]]


def _sub_units(
    rates: list[dict[str, Any]], provider: str, model: str, usage: dict[str, int]
) -> int:
    """Thousandths of a credit, half up, reckoned apart from the service."""
    rate: dict[str, Any] = next(
        rate
        for rate in rates
        if rate["provider"] == provider
        and any(fnmatchcase(model, pattern) for pattern in rate["models"])
    )
    credits_used = sum(
        (Fraction(rate[kind]) * count for kind, count in usage.items() if count), Fraction(0)
    )
    exact = credits_used / int(rate["tokens"]) * 1000
    return floor(exact + Fraction(1, 2))
