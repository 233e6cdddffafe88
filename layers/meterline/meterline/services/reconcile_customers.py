"""Reconcile every customer that is billed, side by side, for as long as there is time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime

from meterline.domain.meters import Meter
from meterline.ports import CustomerAccounts, MetersInUse, SubscriptionRecords
from meterline.services.reconcile_usage import MeterBooks, ReconcileUsage, spans_of

_PAGE = 100


@dataclass(slots=True)
class Reconciliation:
    """What a run came to."""

    books: list[MeterBooks] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Customers that could not be compared, and why."""
    left: str | None = None
    """Where the next run begins, because time ran out; None when all were looked at."""
    customers: int = 0

    @property
    def divergent(self) -> list[MeterBooks]:
        """Those that differ by more than one per cent."""
        return [each for each in self.books if each.diverges]


class ReconcileCustomers:
    """One run over all customers, or over those that are named."""

    def __init__(
        self,
        accounts: CustomerAccounts,
        subscriptions: SubscriptionRecords,
        in_use: MetersInUse,
        reconcile: ReconcileUsage,
        meters: Mapping[str, Meter],
        *,
        list_after_end: Callable[[str, datetime], object],
        threads: int = 8,
    ) -> None:
        self._accounts = accounts
        self._subscriptions = subscriptions
        self._in_use = in_use
        self._reconcile = reconcile
        self._meters = meters
        self._list_after_end = list_after_end
        self._threads = threads

    def __call__(
        self,
        now: datetime,
        *,
        customers: Sequence[str] = (),
        after: str | None = None,
        repair: bool = True,
        closely: bool = False,
        has_time: Callable[[], bool] = lambda: True,
        progress: Callable[[], object] = lambda: None,
    ) -> Reconciliation:
        """Compare `customers`, or all behind `after`; stops where `has_time` says no, and calls
        `progress` after each one.

        One customer that cannot be compared costs no other one its turn.
        """
        run = Reconciliation()
        unknown = self._reconcile.list_unknown()
        with ThreadPoolExecutor(self._threads, "reconcile") as threads:
            for page in self._pages(customers, after):
                if not has_time():
                    run.left = after
                    return run
                look = [
                    (
                        name,
                        threads.submit(
                            self.look_at, name, now, unknown, repair=repair, closely=closely
                        ),
                    )
                    for name in page
                ]
                for name, future in look:
                    run.customers += 1
                    try:
                        run.books += future.result()
                    except Exception as error:  # noqa: BLE001 - told of, and one customer's alone
                        run.failed[name] = f"{type(error).__name__}: {error}"
                    progress()
                after = page[-1]
        return run

    def look_at(
        self,
        customer: str,
        now: datetime,
        unknown: Mapping[tuple[str, str], Collection[datetime]],
        *,
        repair: bool,
        closely: bool,
    ) -> list[MeterBooks]:
        """Compare all meters that the customer used; none where nobody bills it."""
        found = self._accounts.get_customer(customer)
        subscription = self._subscriptions.get_subscription(customer)
        if found is None or found.billing_customer is None or subscription is None:
            return []
        if repair:
            self._list_after_end(customer, now)
        start, end = spans_of(subscription, now)
        if end <= start:
            return []
        return [
            self._reconcile(
                customer,
                found.billing_customer,
                meter,
                (start, end),
                now,
                repair=repair,
                closely=closely,
                unknown=unknown.get((customer, name), ()),
            )
            for name, meter in self._meters.items()
            if name == subscription.meter or self._in_use.has_usage(customer, name, start, end)
        ]

    def _pages(self, customers: Sequence[str], after: str | None) -> Iterator[Sequence[str]]:
        if customers:
            yield from (
                customers[start : start + _PAGE] for start in range(0, len(customers), _PAGE)
            )
            return
        while page := self._accounts.list_customers(_PAGE, after):
            yield [each.id for each in page]
            after = page[-1].id
