"""Past usage for the operator's questions: from the ledger, or from a CSV file.

A CSV has a header. `customer`, `time`, `provider`, `model`, and one column for each kind of
tokens; `action` may be there. A request log with `TIMESTAMP,ContextTokens,GeneratedTokens`, as
some clouds publish them, is read too, with provider, model and customer given for all rows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from infra.cli.stack_access import choose_customers, open_stack
from meterline.adapters.dynamodb_accounts import DynamoAccounts
from meterline.adapters.dynamodb_ledger import DynamoLedger
from meterline.domain.rating import TOKEN_KINDS
from meterline.domain.usage import LedgerEntry

_TRACE = {"ContextTokens": "input_tokens", "GeneratedTokens": "output_tokens"}


class PastEvent(NamedTuple):
    """One event of the past, as far as it can be priced in another way."""

    customer: str
    at: datetime
    action: str | None
    provider: str | None
    model: str | None
    usage: Mapping[str, int] | None
    """Tokens by kind; None where only a quantity was reported."""
    tier: str | None = None
    meter: str | None = None
    quantity: Decimal | None = None
    """In the unit of `meter`, as it was rated then."""


@dataclass
class Gaps:
    """What could not be evaluated: why, how many events, and how many tokens they hold."""

    events: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def add(self, why: str, event: PastEvent | None = None) -> None:
        """Set an event aside."""
        self.events[why] = self.events.get(why, 0) + 1
        tokens = sum(event.usage.values()) if event is not None and event.usage else 0
        self.tokens[why] = self.tokens.get(why, 0) + tokens


@dataclass(frozen=True, slots=True)
class CsvDefaults:
    """What a CSV without these columns is about."""

    customer: str = "all"
    provider: str | None = None
    model: str | None = None


def _read_entries(entries: Iterable[LedgerEntry]) -> Iterator[PastEvent]:
    """The ledger's entries as past events."""
    for entry in entries:
        yield PastEvent(
            entry.key.customer,
            entry.at,
            entry.action,
            entry.provider,
            entry.model,
            entry.usage,
            entry.tier,
            entry.meter,
            entry.quantity,
        )


def read_ledger(stack_name: str, customers: Sequence[str], days: int) -> Iterator[PastEvent]:
    """What a stack's ledger holds of the last `days` of `customers`, or of all without any."""
    stack = open_stack(stack_name)
    wire = stack.wire()
    ledger = DynamoLedger(wire, stack.table("Events"))
    end = datetime.now(UTC)
    wanted = choose_customers(DynamoAccounts(wire, stack.table("Accounts")), customers)
    for customer in track(wanted, "customers", console=Console(stderr=True), transient=True):
        yield from _read_entries(ledger.events_between(customer, end - timedelta(days=days), end))


def read_csv(path: Path, defaults: CsvDefaults, gaps: Gaps) -> Iterator[PastEvent]:
    """The rows of a file; one that cannot be read is set aside with its reason."""
    # A byte that is not UTF-8 spoils its own row alone.
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        for row in csv.DictReader(file):
            try:
                yield _read_row(row, defaults)
            except (ValueError, TypeError) as error:
                gaps.add(f"unreadable row: {str(error)[:80]}")


def _read_row(row: Mapping[str, str], defaults: CsvDefaults) -> PastEvent:
    told = row.get("time") or row.get("TIMESTAMP")
    if not told:
        raise ValueError("no time")
    # Clouds write seven decimals of a second, Python reads six.
    head, dot, fraction = told.strip().partition(".")
    at = datetime.fromisoformat(
        head + (dot + fraction[:6] if fraction.isdigit() else dot + fraction)
    )
    usage = {}
    for column, kind in [*((kind, kind) for kind in TOKEN_KINDS), *_TRACE.items()]:
        count = int(row.get(column) or 0)
        if count < 0:
            raise ValueError(f"{column} is negative")
        if count:
            usage[kind] = count
    return PastEvent(
        row.get("customer") or defaults.customer,
        at if at.tzinfo else at.replace(tzinfo=UTC),
        row.get("action") or None,
        row.get("provider") or defaults.provider,
        row.get("model") or defaults.model,
        usage,
        row.get("tier") or None,
    )
