"""Applied catalog versions on every store, and events that they rate."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from infra.cli.advise import OperatorCatalog
from meterline.adapters.dynamodb_catalog import DynamoCatalog, DynamoPlans, DynamoRateCards
from meterline.catalog import load_meters, load_plans
from meterline.catalog.versions import Kind, load_bundled, plan_apply, read_version
from meterline.domain.usage import EventKey
from meterline.errors import SupersededError
from meterline.services.report_usage import ReportUsage
from tests.integration.storage.stores import Store

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
SWITCH = NOW + timedelta(hours=1)
DEARER = f"""
version = "2026-11-22"
effective_from = {SWITCH:%Y-%m-%dT%H:%M:%SZ}
tokens = 1000
[[rates]]
provider = "anthropic"
models = ["claude-*"]
input_tokens = "7"
output_tokens = "7"
"""


class AllKnown:
    """Everybody is a customer."""

    def known(self, customers: Iterable[str]) -> set[str]:
        return set(customers)


def test_versions_are_kept_word_for_word_and_never_replaced(store: Store) -> None:
    tables = store.create_tables()
    catalog = DynamoCatalog(store.wire(), tables.accounts)
    assert catalog.list_versions(Kind.RATE_CARD) == []
    assert DynamoPlans(store.wire(), tables.accounts).at(NOW) == load_plans()
    new = read_version(Kind.RATE_CARD, DEARER)
    for version in plan_apply([], new, NOW):
        catalog.add_version(version, NOW)
    found = catalog.list_versions(Kind.RATE_CARD)
    assert [each.content for each in found] == [load_bundled(Kind.RATE_CARD).content, DEARER]
    assert plan_apply(found, new, NOW) == ()
    with pytest.raises(SupersededError):
        catalog.add_version(new, NOW)
    assert catalog.list_versions(Kind.PLANS) == []


def test_the_advisor_reckons_with_what_the_operator_applied(store: Store) -> None:
    tables = store.create_tables()
    catalog = DynamoCatalog(store.wire(), tables.accounts)
    place = (store.wire(), tables.accounts)
    assert OperatorCatalog(NOW, place).find_card(None).version == "2026-11-01"
    for version in plan_apply([], read_version(Kind.RATE_CARD, DEARER), NOW):
        catalog.add_version(version, NOW)
    plans = load_bundled(Kind.PLANS).content.replace("base_fee_minor = 2900", "base_fee_minor = 1")
    plans = plans.replace("2026-11-01T00:00:00Z", f"{SWITCH:%Y-%m-%dT%H:%M:%SZ}")
    for version in plan_apply([], read_version(Kind.PLANS, plans.replace("-01", "-22")), NOW):
        catalog.add_version(version, NOW)
    before, after = OperatorCatalog(NOW, place), OperatorCatalog(SWITCH, place)
    assert before.find_card(None).version == "2026-11-01"
    assert after.find_card(None).version == "2026-11-22"
    assert before.find_plan(None, "pro").base_fee_minor == 2900
    assert after.find_plan(None, "pro").base_fee_minor == 1


def test_each_event_is_rated_by_the_version_of_its_time_and_the_ledger_says_which(
    store: Store, customer: str
) -> None:
    tables = store.create_tables()
    catalog = DynamoCatalog(store.wire(), tables.accounts)
    for version in plan_apply([], read_version(Kind.RATE_CARD, DEARER), NOW):
        catalog.add_version(version, NOW)
    ledger = store.ledger()
    report = ReportUsage(
        ledger, AllKnown(), load_meters(), DynamoRateCards(store.wire(), tables.accounts)
    )
    times = {"before": SWITCH - timedelta(milliseconds=1), "after": SWITCH}
    events = [
        {
            "specversion": "1.0",
            "id": name,
            "source": "test",
            "type": "meterline.usage",
            "subject": customer,
            "time": at.isoformat(),
            "data": {
                "meter": "credits",
                "provider": "anthropic",
                "model": "claude-sonnet-4-5",
                "usage": {"input_tokens": 1_000, "output_tokens": 0},
            },
        }
        for name, at in times.items()
    ]
    # Both are reported after the switch: what counts is when the work was done.
    assert report(events, SWITCH + timedelta(hours=2)).accepted == 2
    held = {name: ledger.find(EventKey(customer, "test", name)) for name in times}
    rated = {name: (each.rate_card, each.quantity) for name, each in held.items() if each}
    assert rated == {
        "before": ("2026-11-01", Decimal("1")),
        "after": ("2026-11-22", Decimal("7")),
    }
