"""Faults that a test switches on: latency, refusals, server errors and lost answers.

A rule says what happens (`kind`), to which requests (`method`, `path` as a regular expression),
and how often (`count` times, then it is spent; with `probability`, from its own `seed`).

| kind | before: nothing was done | after: the effect is there, the answer is not |
| --- | --- | --- |
| latency | the request waits `latency_ms` | the answer waits |
| error | `status` 429, 409 or 5xx | the same, although it was done |
| drop | the connection is cut | the connection is cut |
| timeout | nothing is ever answered | nothing is ever answered |

An error with `saved` true is kept under the request's Idempotency-Key, and comes again for 24
hours, as Stripe documents for a 500 once an endpoint began to execute; without it a retry under
the same key is executed (before) or answered with the true result (after).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["latency", "error", "drop", "timeout"]
When = Literal["before", "after"]
KINDS = ("latency", "error", "drop", "timeout")


class InvalidFaultError(ValueError):
    """A rule that cannot be: which field, and why."""


@dataclass(slots=True)
class Fault:
    """One rule; `count` None means until it is taken away."""

    kind: Kind
    when: When = "before"
    method: str = "POST"
    path: str = ".*"
    status: int = 500
    latency_ms: float = 0.0
    count: int | None = None
    probability: float = 1.0
    seed: int = 0
    saved: bool = False
    hits: int = 0
    _pattern: re.Pattern[str] = field(init=False, repr=False)
    _random: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidFaultError(f"kind: one of {', '.join(KINDS)}")
        if self.when not in ("before", "after"):
            raise InvalidFaultError("when: before or after")
        if self.kind == "error" and self.status not in (409, 429) and not 500 <= self.status < 600:
            raise InvalidFaultError("status: 409, 429 or 5xx")
        if not 0 <= self.probability <= 1:
            raise InvalidFaultError("probability: 0 to 1")
        self._pattern = re.compile(self.path)
        self._random = random.Random(self.seed)  # noqa: S311 - a repeatable test, not a secret

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts it if so."""
        if self.count is not None and self.hits >= self.count:
            return False
        if self.method not in ("*", method) or not self._pattern.fullmatch(path):
            return False
        if self._random.random() >= self.probability:
            return False
        self.hits += 1
        return True

    def as_json(self) -> dict[str, Any]:
        """For the control API."""
        return {
            key: getattr(self, key) for key in self.__dataclass_fields__ if not key.startswith("_")
        }


class FaultPlan:
    """The rules in force, in the order they were added; the first that strikes wins."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []

    def pick(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets, if any."""
        for rule in self.rules:
            if rule.strikes(method, path):
                return rule
        return None
