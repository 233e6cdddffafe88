"""Scan all budgets for what a crash or an outage left out after the stream's deliveries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice, product

from meterline.domain.meters import Meter
from meterline.ports import Budgets, CustomerAccounts, Guardrails
from meterline.services.watch_usage import Pair, Watch, WatchUsage

_PAGE = 100
PATIENCE = timedelta(seconds=30)
"""A notification that is younger is perhaps being published this moment."""


@dataclass(slots=True)
class Scan:
    """What a scan came to."""

    budgets: int = 0
    expired: int = 0
    """Holds that were given back because their time was over."""
    published: int = 0
    """Notifications that were left open."""
    is_complete: bool = True
    """Whether there was time for all customers."""
    watch: Watch = field(default_factory=Watch)


class WatchBreakers:
    """The job of the schedule: cost grows with the number of customers, not with their usage."""

    def __init__(
        self,
        customers: CustomerAccounts,
        budgets: Budgets,
        guardrails: Guardrails,
        watch_usage: WatchUsage,
        meters: Mapping[str, Meter],
    ) -> None:
        self._customers = customers
        self._budgets = budgets
        self._guardrails = guardrails
        self._watch_usage = watch_usage
        self._meters = meters

    def __call__(self, now: datetime, has_time: Callable[[], bool]) -> Scan:
        """Look at every budget that was ever counted into, and publish what is open."""
        scan = Scan()
        for notification in self._guardrails.list_open():
            if notification.at <= now - PATIENCE:
                before = scan.watch.unpublished
                self._watch_usage.publish(notification, now, scan.watch)
                scan.published += scan.watch.unpublished == before
        for pairs in self._list_pairs():
            if not has_time():
                scan.is_complete = False
                break
            for pair, budget in self._budgets.get_many(pairs).items():
                if not budget.revision and not budget.holds:
                    continue
                scan.budgets += 1
                self._watch_usage.look(*pair, budget, now, scan.watch)
                expired = budget.expired(now)
                if expired and self._budgets.give_back(*pair, expired):
                    scan.expired += len(expired)
        return scan

    def _list_pairs(self) -> Iterator[Sequence[Pair]]:
        after: str | None = None
        while True:
            page = self._customers.list_customers(_PAGE, after)
            pairs = product((customer.id for customer in page), self._meters)
            while part := list(islice(pairs, _PAGE)):
                yield part
            if len(page) < _PAGE:
                return
            after = page[-1].id
