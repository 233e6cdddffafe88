"""Applied catalog versions in the `accounts` table: pk `catalog#<kind>`, sk `version#<version>`.

They are few, never change and are read by every function that rates or prices, so each process
keeps them for `CACHE_S` seconds. Where none was ever applied, the bundled file counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from meterline.adapters.dynamodb_wire import DynamoWire, query_pages
from meterline.catalog import load_plans
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.pricing import Plan
from meterline.domain.rating import RateCard
from meterline.domain.times import format_time, parse_time
from meterline.errors import StorageError, StorageUnavailableError, SupersededError

if TYPE_CHECKING:
    from meterline.catalog.versions import CatalogVersion, Effective, Kind

CACHE_S = 60.0
RETRY_S = 5.0
STALE_S = 600.0
"""How long what was read may still count while the table does not answer: less than the notice
that a new version needs."""
T = TypeVar("T")


class DynamoCatalog:
    """Reads and adds versions; nothing of them can be changed or taken away."""

    def __init__(self, wire: DynamoWire, table: str) -> None:
        self._wire = wire
        self._table = table

    def list_versions(self, kind: Kind | str) -> Sequence[CatalogVersion]:
        """All applied versions of a kind, the oldest first; none on a fresh stack."""
        items = self.read_items(kind)
        if not items:
            return []
        # What only a stack with applied versions needs, a fresh one does not load.
        from meterline.catalog.versions import CatalogVersion, Kind

        versions = [
            CatalogVersion(
                Kind(kind),
                item["version"]["S"],
                parse_time(item["effective_from"]["S"]),
                item["content"]["S"],
                parse_time(item["applied_at"]["S"]),
            )
            for item in items
        ]
        return sorted(versions, key=lambda version: version.effective_from)

    def read_items(self, kind: Kind | str) -> list[Mapping[str, Any]]:
        """The items of a kind, read strongly consistently."""
        request: dict[str, Any] = {
            "TableName": self._table,
            "KeyConditionExpression": "pk = :pk",
            "ExpressionAttributeValues": {":pk": {"S": f"catalog#{kind}"}},
            "ConsistentRead": True,
        }
        return list(query_pages(self._wire, request))

    def add_version(self, version: CatalogVersion, now: datetime) -> None:
        """Write a version that is not there yet; `SupersededError` if it is."""
        item = {
            "pk": {"S": f"catalog#{version.kind}"},
            "sk": {"S": f"version#{version.version}"},
            "version": {"S": version.version},
            "effective_from": {"S": format_time(version.effective_from)},
            "content": {"S": version.content},
            "applied_at": {"S": format_time(now)},
        }
        try:
            self._wire.call(
                "PutItem",
                {
                    "TableName": self._table,
                    "Item": item,
                    "ConditionExpression": "attribute_not_exists(pk)",
                },
            )
        except StorageError as error:
            if error.code != "ConditionalCheckFailedException":
                raise
            raise SupersededError(f"{version.kind} {version.version} was applied before") from None


class _Kept(Generic[T]):
    """What was read of one kind, for as long as it may count."""

    def __init__(
        self,
        catalog: DynamoCatalog,
        kind: str,
        bundled: Callable[[], T],
        read: Callable[[Sequence[CatalogVersion]], Effective[T]],
        monotonic: Callable[[], float],
    ) -> None:
        self._catalog = catalog
        self._kind = kind
        self._bundled = bundled
        self._read = read
        self._monotonic = monotonic
        self._read_at_s = self._try_at_s = float("-inf")
        self._only: T | None = None
        self._effective: Effective[T] | None = None

    def at(self, moment: datetime) -> T:
        """The one that counts at that moment; raises `StorageUnavailableError`."""
        if self._monotonic() >= self._try_at_s:
            self._refresh()
        if self._effective is not None:
            return self._effective.at(moment)
        assert self._only is not None
        return self._only

    def _refresh(self) -> None:
        now_s = self._monotonic()
        try:
            versions = self._catalog.list_versions(self._kind)
        except StorageUnavailableError:
            if now_s - self._read_at_s > STALE_S:
                raise
            # Not again for every event of the call.
            self._try_at_s = now_s + RETRY_S
            return
        if versions:
            self._effective = self._read(versions)
        else:
            self._only = self._bundled()
        self._read_at_s, self._try_at_s = now_s, now_s + CACHE_S


class DynamoRateCards(_Kept[RateCard]):
    """Keeps `meterline.ports.RateCards`."""

    def __init__(
        self,
        wire: DynamoWire,
        table: str,
        *,
        bundled: Callable[[], RateCard] = load_rate_card,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            DynamoCatalog(wire, table), "rate_card", bundled, _read_rate_cards, monotonic
        )


class DynamoPlans(_Kept[Mapping[str, Plan]]):
    """Keeps `meterline.ports.Plans`."""

    def __init__(
        self,
        wire: DynamoWire,
        table: str,
        *,
        bundled: Callable[[], Mapping[str, Plan]] = load_plans,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(DynamoCatalog(wire, table), "plans", bundled, _read_plan_books, monotonic)


def _read_rate_cards(versions: Sequence[CatalogVersion]) -> Effective[RateCard]:
    from meterline.catalog.versions import read_rate_cards

    return read_rate_cards(versions)


def _read_plan_books(versions: Sequence[CatalogVersion]) -> Effective[Mapping[str, Plan]]:
    from meterline.catalog.versions import read_plan_books

    return read_plan_books(versions)
