"""Invoice day: drafts that agree go, others are held; what comes late is billed once, or waived."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from infra.cli.billing_setup import base_lookup_key, usage_lookup_key
from meterline.adapters.dynamodb_emissions import DynamoEmissions
from meterline.adapters.stripe_invoices import LATE_KEY
from meterline.domain.emission import HourDue, Lapse, Problem
from meterline.domain.invoice_checks import CheckState, HoldReason, InvoiceCheck, write_event_line
from meterline.domain.pricing import price_usage, total_minor
from meterline.domain.sending import HourSending, hour_identifier
from meterline.domain.usage import EventKey, LedgerEntry
from meterline.errors import NotFoundError
from meterline.services.recheck_invoices import RecheckInvoices
from meterline.services.settle_invoices import LatePolicy
from tests.faults.invoiced import PRO, Office
from tests.faults.whole_path import Crash, Surroundings, World

START = datetime.now(UTC).replace(minute=20, second=0, microsecond=0)
_serial = itertools.count()


@pytest.fixture
def office(planned: Surroundings) -> Office:
    return Office(World(planned, START))


def use(world: World, *quantities: str, at: datetime | None = None, sent: bool = True) -> None:
    """Report events, counted and, where `sent`, billed."""
    names = [f"invoiced-{next(_serial)}" for _ in quantities]
    for name, quantity in zip(names, quantities, strict=True):
        world.make_event(name, "credits", quantity, at=at or world.clock.now())
    world.report([world.sent[name] for name in names])
    if sent:
        world.drain()
    else:
        while world.deliver_records():
            continue


def price(quantity: str) -> int:
    return total_minor(price_usage(Decimal(quantity), PRO))


def test_a_draft_that_equals_the_ledger_is_left_to_go(office: Office) -> None:
    use(office.world, "1500", "0.5")
    draft = office.go_to_renewal()
    settled = office.look(draft.id)
    assert settled.check.state is CheckState.AGREED
    [span] = settled.check.spans
    assert span.ledger_sub_units == span.billed_sub_units == 1_500_500
    assert span.events == 2
    assert office.get(draft.id).auto_advance
    office.world.clock.move(2 * 3600)
    assert office.get(draft.id).status in ("open", "paid")
    assert office.look(draft.id).check.state is CheckState.FINAL


@pytest.fixture(params=[False, True], ids=["still", "following"])
def office_of_drafts(planned: Surroundings, request: pytest.FixtureRequest) -> Iterator[Office]:
    """At a Stripe whose drafts show what was counted when they were made, or what is by now."""
    planned.local.configure(drafts_follow=request.param)
    yield Office(World(planned, START))
    planned.local.configure(drafts_follow=False)


def test_a_draft_that_differs_is_held_until_what_was_missing_has_arrived(
    office_of_drafts: Office,
) -> None:
    office = office_of_drafts
    use(office.world, "1500")
    use(office.world, "300", sent=False)
    draft = office.go_to_renewal()
    assert office.look(draft.id).check.state is CheckState.HELD
    held = office.get(draft.id)
    assert held.auto_advance is False
    assert held.metadata is not None
    assert HoldReason.DIFFERENCE in held.metadata.to_dict()
    # Stripe's hour goes by: the invoice stays.
    office.world.clock.move(3 * 3600)
    assert office.get(draft.id).status == "draft"
    assert [check.invoice for check in office.checks.list_open()].count(draft.id) == 1
    office.world.drain()
    assert office.recheck().settled[-1].check is not None
    released = office.get(draft.id)
    assert released.auto_advance
    assert released.metadata is None or HoldReason.DIFFERENCE not in released.metadata.to_dict()
    office.world.clock.move(2 * 3600)
    final = office.get(draft.id)
    assert final.status in ("open", "paid")
    assert final.total == price("1800") + PRO.base_fee_minor


@pytest.mark.parametrize("second", [0, 7])
def test_a_draft_that_was_made_too_early_goes_once_the_rest_is_counted(
    planned: Surroundings, second: int
) -> None:
    office = Office(World(planned, START + timedelta(seconds=second)))
    world = office.world
    use(world, "1500")
    use(world, "300", sent=False)
    draft = office.go_to_renewal()
    assert office.look(draft.id).check.state is CheckState.HELD
    # In the minute in which the old period ends, but of the new one.
    use(world, "40", at=world.clock.now() - timedelta(seconds=50))
    world.drain()
    [line] = office.invoices.get(draft.id).usage
    assert line.quantity_sub_units == 1_500_000, "it still says what it said"
    assert office.look(draft.id).check.state is CheckState.AGREED
    assert office.get(draft.id).auto_advance
    world.clock.move(2 * 3600)
    assert office.get(draft.id).total == price("1800") + PRO.base_fee_minor
    assert office.look(draft.id).check.state is CheckState.FINAL
    assert office.items() == []


def test_what_was_too_late_for_the_period_before_holds_no_draft_of_the_next(
    planned: Surroundings,
) -> None:
    office = Office(World(planned, START + timedelta(seconds=7)))
    finish(office, "1000")
    [period] = {line.period for line in office.invoices.get(office.list_invoices()[-1].id).usage}
    # In the very minute in which the next period begins, and never sent.
    use(office.world, "20", at=period.end - timedelta(seconds=3))
    office.recheck()
    assert [item.amount for item in office.items()] == [price("1020") - price("1000")]
    use(office.world, "1500")
    use(office.world, "300", sent=False)
    draft = office.go_to_renewal()
    assert office.look(draft.id).check.state is CheckState.HELD
    office.world.drain()
    office.world.clock.move(60)
    assert office.look(draft.id).check.state is CheckState.AGREED
    office.world.clock.move(2 * 3600)
    settled = office.look(draft.id)
    assert settled.check.state is CheckState.FINAL
    assert not settled.late


def test_a_draft_stays_held_while_its_last_minute_goes_on(planned: Surroundings) -> None:
    office = Office(World(planned, START + timedelta(seconds=50)))
    use(office.world, "1500", sent=False)
    draft = office.go_to_renewal()
    office.world.drain()
    early = datetime.fromtimestamp(draft.period_end, UTC) + timedelta(seconds=5)
    looked = office.settlement()(draft.id, early)
    assert looked is not None
    assert looked.check is not None
    assert looked.check.state is CheckState.HELD
    assert office.look(draft.id).check.state is CheckState.AGREED


def test_the_same_event_of_a_draft_again_holds_nothing_twice(office: Office) -> None:
    use(office.world, "10", sent=False)
    draft = office.go_to_renewal()
    for _ in range(3):
        assert office.look(draft.id).check.state is CheckState.HELD
    office.world.drain()
    for _ in range(3):
        assert office.look(draft.id).check.state is CheckState.AGREED
    assert office.get(draft.id).auto_advance


def test_counts_that_agree_do_not_end_a_hold_for_its_size(office: Office) -> None:
    use(office.world, "10", sent=False)
    draft = office.go_to_renewal()
    office.invoices.hold(draft.id, HoldReason.SPIKE, "185% of the last one")
    assert office.look(draft.id).check.state is CheckState.HELD
    assert office.invoices.get(draft.id).holds.keys() == {HoldReason.DIFFERENCE, HoldReason.SPIKE}
    office.world.drain()
    assert office.look(draft.id).check.state is CheckState.AGREED
    assert office.invoices.get(draft.id).holds.keys() == {HoldReason.SPIKE}
    now = office.world.clock.now()
    with pytest.raises(NotFoundError):
        office.settlement().release(
            draft.id, HoldReason.DIFFERENCE, actor="ann", reason="why", now=now
        )
    left = office.settlement().release(
        draft.id, HoldReason.SPIKE, actor="ann", reason="a big month", now=now
    )
    assert not left
    assert office.get(draft.id).auto_advance
    check = office.checks.get(draft.id)
    assert check is not None
    assert check.state is CheckState.AGREED, "its counts are still watched"


def test_a_hold_that_is_not_ours_is_not_ours_to_end(office: Office) -> None:
    use(office.world, "10")
    draft = office.go_to_renewal()
    office.stripe.v1.invoices.update(draft.id, {"auto_advance": False})
    assert office.look(draft.id).check.state is CheckState.AGREED
    assert office.get(draft.id).auto_advance is False


def test_a_person_can_let_a_held_draft_go_and_the_reason_is_kept(office: Office) -> None:
    use(office.world, "10", sent=False)
    draft = office.go_to_renewal()
    office.look(draft.id)
    now = office.world.clock.now()
    office.settlement().release(
        draft.id, HoldReason.DIFFERENCE, actor="ann", reason="agreed with them", now=now
    )
    assert office.get(draft.id).auto_advance
    assert office.look(draft.id).check.state is CheckState.RELEASED
    assert office.get(draft.id).auto_advance, "it is not held again"
    check = office.checks.get(draft.id)
    assert check is not None
    assert check.note == "ann: agreed with them"


def finish(office: Office, *quantities: str) -> str:
    """A period with this usage, whose invoice is final and checked."""
    use(office.world, *quantities)
    draft = office.go_to_renewal()
    office.look(draft.id)
    office.world.clock.move(2 * 3600)
    assert office.get(draft.id).status in ("open", "paid")
    assert office.look(draft.id).check.state is CheckState.FINAL
    return str(draft.id)


def test_late_usage_becomes_an_item_on_the_next_invoice_at_the_price_it_would_have_had(
    office: Office,
) -> None:
    finish(office, "900")
    use(office.world, "300", at=START)
    [settled] = [each for each in office.recheck().settled if each.late]
    # 100 more were still included; 200 are overage.
    assert [each.amount_minor for each in settled.late] == [price("1200") - price("900")]
    for _ in range(3):
        office.recheck()
    [item] = office.items()
    assert item.amount == 100
    office.world.clock.move(86_400)
    second = office.go_to_renewal()
    assert office.look(second.id).check.state is CheckState.AGREED
    assert office.get(second.id).total == PRO.base_fee_minor + item.amount


def test_late_usage_that_keeps_coming_is_billed_part_by_part(office: Office) -> None:
    invoice = finish(office, "1000")
    for quantity in ("100", "0.001", "250"):
        use(office.world, quantity, at=START)
        office.recheck()
    assert sum(item.amount for item in office.items()) == price("1350.001") - price("1000")
    check = office.checks.get(invoice)
    assert check is not None
    assert check.spans[0].settled_sub_units == 350_001
    assert check.agrees


@pytest.mark.parametrize("crash", ["before", "after"])
def test_a_crash_around_the_item_bills_it_once_whatever_comes_meanwhile(
    office: Office, crash: str
) -> None:
    invoice = finish(office, "1000")
    use(office.world, "100", at=START)

    class Crashing:
        """Stripe's invoices, where the process dies around the item."""

        def __getattr__(self, name: str) -> Any:
            return getattr(office.invoices, name)

        def bill_late(self, *told: Any, **named: Any) -> str:
            if crash == "after":
                office.invoices.bill_late(*told, **named)
            raise Crash("bill_late")

    with pytest.raises(Crash):
        office.settlement(Crashing())(invoice, office.world.clock.now())
    # More of it comes before the next try, and a day goes by: Stripe has forgotten the key.
    use(office.world, "60", at=START)
    office.world.clock.move(25 * 3600)
    for _ in range(3):
        office.look(invoice)
    assert sum(item.amount for item in office.items()) == price("1160") - price("1000")


class Meanwhile:
    """Stripe's invoices, where something happens right behind the first item."""

    def __init__(self, office: Office, happen: Callable[[], None]) -> None:
        self._invoices = office.invoices
        self._happen: Callable[[], None] | None = happen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._invoices, name)

    def bill_late(self, *told: Any, **named: Any) -> str:
        item = self._invoices.bill_late(*told, **named)
        happen, self._happen = self._happen, None
        if happen is not None:
            happen()
        return item


def test_late_usage_that_comes_while_the_rest_is_settled_is_billed_too(office: Office) -> None:
    invoice = finish(office, "1000")
    office.world.clock.move(2 * 3600)
    use(office.world, "100", at=START)
    # Found to be late, and so put into the list, before the list is cleared for the first part.
    meanwhile = Meanwhile(office, lambda: use(office.world, "60", at=START))
    office.settlement(meanwhile)(invoice, office.world.clock.now())
    for _ in range(3):
        office.world.clock.move(3600)
        office.recheck()
    assert sum(item.amount for item in office.items()) == price("1160") - price("1000")
    assert not office.list_late()


def test_late_usage_that_was_settled_before_it_was_listed_does_not_stay_listed(
    office: Office,
) -> None:
    invoice = finish(office, "1000")
    use(office.world, "40", at=START, sent=False)
    office.recheck()
    office.world.drain()
    assert office.list_late()
    for _ in range(3):
        office.world.clock.move(3600)
        office.recheck()
    assert not office.list_late()
    assert invoice not in [check.invoice for check in office.checks.list_open()]
    assert sum(item.amount for item in office.items()) == price("1040") - price("1000")


def test_a_late_hour_in_which_a_period_begins_is_settled_with_that_period(office: Office) -> None:
    """Meters that are sent as totals list an hour, which may be of two periods."""
    for quantity in ("1000", "2000"):
        invoice = finish(office, quantity)
        office.world.clock.move(2 * 3600)
        office.recheck()
    check = office.checks.get(invoice)
    assert check is not None
    begun = check.spans[0].period.start
    hour = begun.replace(minute=0)
    assert hour < begun
    use(office.world, "40", at=begun + timedelta(minutes=5), sent=False)
    due = HourDue(office.world.customer, "credits", hour)
    name = hour_identifier(office.world.customer, "credits", hour, 0)
    late = Problem(Lapse.LATE, "period_final", "", name, int(hour.timestamp()), 40_000)
    emissions = DynamoEmissions(
        office.world.around.wire, office.world.around.store.tables.emissions
    )
    emissions.save_hour(due, HourSending(), opened=[late], now=office.world.clock.now())
    office.recheck()
    assert sum(item.amount for item in office.items()) == price("2040") - price("2000")
    assert not office.list_late()


def test_an_invoice_in_a_currency_without_a_price_costs_no_other_one_its_turn(
    office: Office,
) -> None:
    invoice = finish(office, "1000")
    in_euro = {"pro": replace(PRO, currency="eur", currency_options={})}
    assert office.settlement(plans=in_euro)(invoice, office.world.clock.now()), "nothing is owed"
    use(office.world, "100", at=START)
    recheck = RecheckInvoices(office.checks, office.records, office.settlement(plans=in_euro))
    for _ in range(2):
        failed = recheck(office.world.clock.now()).failed
        assert failed[invoice].startswith("UnknownCurrencyError")
    assert office.list_late()
    # Once the catalog has its price.
    office.recheck()
    assert sum(item.amount for item in office.items()) == price("1100") - price("1000")


def test_late_usage_is_waived_where_that_is_the_policy(office: Office) -> None:
    invoice = finish(office, "1000")
    office.policy = LatePolicy.WAIVE
    use(office.world, "100", at=START)
    [settled] = [each for each in office.recheck().settled if each.late]
    assert [(each.sub_units, each.waived) for each in settled.late] == [(100_000, True)]
    assert not office.items()
    assert office.look(invoice).check.agrees
    assert not office.list_late()


@pytest.mark.parametrize("policy", [*LatePolicy])
def test_what_was_billed_too_much_is_given_back_under_either_policy(
    office: Office, policy: LatePolicy
) -> None:
    invoice = finish(office, "1000", "200")
    office.policy = policy
    reverse(office.world, Decimal(-150))
    office.look(invoice)
    [item] = office.items()
    assert item.amount == price("1050") - price("1200")
    office.look(invoice)
    assert len(office.items()) == 1


def reverse(world: World, quantity: Decimal) -> None:
    """A correction: an entry of its own that takes something back."""
    key = EventKey(world.customer, "correction", f"reversal-{next(_serial)}")
    entry = LedgerEntry(key, START, "credits", quantity, b"0" * 32, world.clock.now())
    world.around.store.ledger(world.around.wire).record([entry])
    world.drain()


def test_usage_sent_at_the_moment_of_finalisation_is_not_lost(office: Office) -> None:
    invoice = finish(office, "1000")
    # Taken by Stripe for a period whose invoice is final: on no invoice at all.
    use(office.world, "40", at=START, sent=False)
    office.recheck()
    assert sum(item.amount for item in office.items()) == price("1040") - price("1000")
    assert office.look(invoice).check.agrees


def test_an_invoice_that_was_final_before_we_heard_of_it_is_settled(office: Office) -> None:
    use(office.world, "1000")
    use(office.world, "500", sent=False)
    draft = office.go_to_renewal()
    office.world.clock.move(2 * 3600)
    assert office.get(draft.id).status in ("open", "paid")
    settled = office.look(draft.id)
    assert [each.sub_units for each in settled.late] == [500_000]
    assert settled.check.state is CheckState.FINAL
    [item] = office.items()
    assert item.amount == price("1500") - price("1000")


def change_plan(office: Office, plan: str) -> None:
    """Another plan from this moment on, in mid-period."""
    v1 = office.stripe.v1
    [subscription] = v1.subscriptions.list({"customer": str(office.world.billing_customer)}).data
    keys = {"base": base_lookup_key(plan), "usage": usage_lookup_key(plan)}
    prices = {
        str(price.lookup_key): price.id
        for price in v1.prices.list({"lookup_keys": list(keys.values())}).data
    }
    v1.subscriptions.update(
        subscription.id,
        {
            "items": [
                {
                    "id": item["id"],
                    "price": prices[keys[item["price"]["metadata"]["meterline_part"]]],
                }
                for item in subscription.to_dict()["items"]["data"]
            ]
        },
    )


@pytest.mark.parametrize("early", [["1200"], []])
def test_usage_of_the_plan_before_that_comes_after_the_change_is_billed_by_that_plan(
    office: Office, early: list[str]
) -> None:
    use(office.world, *early)
    before = sum(Decimal(quantity) for quantity in early)
    office.world.clock.move(5 * 86_400)
    change_plan(office, "team")
    office.world.clock.move(86_400)
    use(office.world, "10500")
    # Stripe takes these: the period is open. But what it billed at the change stays as it was.
    use(office.world, "1500", "7", at=START + timedelta(days=1))
    draft = office.go_to_renewal()
    settled = office.look(draft.id)
    assert settled.check.state is CheckState.AGREED
    assert office.get(draft.id).auto_advance, "what cannot change is no reason to hold it"
    late = price(str(before + 1507)) - price(str(before))
    assert [each.amount_minor for each in settled.late] == [late]
    assert [item.amount for item in late_items(office)] == [late]
    spans = {span.plan: span for span in settled.check.spans}
    assert spans["team"].billed_sub_units == 10_500_000
    office.look(draft.id)
    use(office.world, "20", at=START + timedelta(days=2))
    office.world.clock.move(2 * 3600)
    office.look(draft.id)
    assert sum(item.amount for item in late_items(office)) == late + 10
    assert office.look(draft.id).check.agrees


def late_items(office: Office) -> list[Any]:
    """What was billed late; not what Stripe itself billed when the plan changed."""
    return [item for item in office.items() if LATE_KEY in (item.metadata or {})]


def test_usage_of_the_last_period_that_comes_after_the_end_is_billed(office: Office) -> None:
    use(office.world, "1000")
    [subscription] = office.stripe.v1.subscriptions.list(
        {"customer": str(office.world.billing_customer)}
    ).data
    office.world.clock.move(86_400)
    office.stripe.v1.subscriptions.cancel(subscription.id, {"invoice_now": True})
    [draft] = [each for each in office.list_invoices() if each.status == "draft"]
    assert office.look(draft.id).check.state is CheckState.AGREED
    # The draft takes what was used before the end, and nothing of after it.
    office.world.clock.move(1800)
    use(office.world, "30", at=START + timedelta(hours=1))
    use(office.world, "500", at=START + timedelta(hours=24, minutes=20))
    office.world.clock.move(2 * 3600)
    assert office.look(draft.id).check.state is CheckState.FINAL
    assert office.get(draft.id).total == price("1030")
    use(office.world, "70", at=START + timedelta(hours=2))
    use(office.world, "600", at=START + timedelta(hours=25))
    office.recheck()
    assert sum(item.amount for item in office.items()) == price("1100") - price("1030")
    codes = Counter(kind for kind, _sub_units in office.world.read_problems().values())
    assert codes == {"refused": 2}, "the rest is listed: there was no subscription"


def test_a_subscription_that_ends_in_the_second_in_which_it_began_bills_nothing(
    office: Office,
) -> None:
    v1 = office.stripe.v1
    change = {"billing_cycle_anchor": {"type": "now"}}
    [subscription] = v1.subscriptions.list({"customer": str(office.world.billing_customer)}).data
    changed = v1.subscriptions.update(subscription.id, change)  # type: ignore[arg-type]  # a literal
    v1.subscriptions.cancel(changed.id, {"invoice_now": True})
    looked = [office.look(invoice.id).check for invoice in office.list_invoices()]
    compared = [check for check in looked if check is not None]
    assert compared
    assert all(check.agrees for check in compared)


def test_an_invoice_that_is_void_asks_for_nothing_late(office: Office) -> None:
    invoice = finish(office, "2000")
    office.stripe.v1.invoices.void_invoice(invoice)
    use(office.world, "10", at=START)
    assert office.look(invoice).check.state is CheckState.FINAL_DIFFERS
    assert not office.items()


def test_what_no_look_can_bill_waits_until_a_person_waives_it_and_no_more_than_that(
    office: Office,
) -> None:
    invoice = finish(office, "2000")
    use(office.world, "5", at=START)

    def waive() -> InvoiceCheck:
        return office.settlement().waive(
            invoice, actor="ann", reason="billed by hand", now=office.world.clock.now()
        )

    with pytest.raises(NotFoundError, match="waits for a decision"):
        waive()
    [item] = office.items()
    office.stripe.v1.invoices.void_invoice(invoice)
    use(office.world, "10", at=START)
    for _ in range(2):
        office.recheck()
    assert office.list_late()
    assert invoice in [check.invoice for check in office.checks.list_open()]
    check = waive()
    assert (check.agrees, check.note) == (True, "ann: billed by hand")
    assert not office.list_late()
    office.world.clock.move(2 * 3600)
    office.recheck()
    assert invoice not in [check.invoice for check in office.checks.list_open()]
    assert [each.id for each in office.items()] == [item.id]
    # What comes after the decision is another matter.
    use(office.world, "1", at=START)
    office.recheck()
    assert office.list_late()
    [span] = office.look(invoice).check.spans
    assert span.owed_sub_units == 1000


def test_a_draft_is_released_and_not_waived(office: Office) -> None:
    use(office.world, "10", sent=False)
    draft = office.go_to_renewal()
    with pytest.raises(NotFoundError, match="release"):
        office.settlement().waive(draft.id, actor="ann", reason="why", now=office.world.clock.now())


def test_somebody_elses_invoice_is_none_of_ours(office: Office) -> None:
    other = office.stripe.v1.customers.create({"name": "other"})
    office.stripe.v1.invoice_items.create({"customer": other.id, "amount": 500, "currency": "usd"})
    invoice = office.stripe.v1.invoices.create({"customer": other.id})
    assert office.look(invoice.id) is None


def test_observers_see_every_draft(office: Office) -> None:
    seen: list[tuple[str, str]] = []
    office.observers = (lambda invoice, customer, _now: seen.append((invoice.id, customer)),)
    use(office.world, "10")
    draft = office.go_to_renewal()
    office.look(draft.id)
    assert seen == [(draft.id, office.world.customer)]


def test_whoever_has_the_list_of_events_can_compute_its_digest(office: Office) -> None:
    use(office.world, "12.5", "3", "0.125")
    draft = office.go_to_renewal()
    [span] = office.look(draft.id).check.spans
    ledger = office.world.around.store.ledger(office.world.around.wire)
    entries = ledger.events_between(office.world.customer, span.period.start, span.period.end)
    listed = [write_event_line(entry) for entry in entries]
    assert len(listed) == span.events == 3
    assert {line.split("\t")[4] for line in listed} == {"12.5", "3", "0.125"}
    whole = "".join(line + "\n" for line in sorted(listed))
    assert hashlib.sha256(whole.encode()).hexdigest() == span.digest
    changed = whole.replace("12.5", "12.4")
    assert hashlib.sha256(changed.encode()).hexdigest() != span.digest


def test_an_event_leads_to_its_invoice_and_no_other(office: Office) -> None:
    invoice = finish(office, "5")
    at = START + timedelta(seconds=1)
    assert office.checks.invoice_of(office.world.customer, "credits", at) == invoice
    later = office.world.clock.now()
    assert office.checks.invoice_of(office.world.customer, "credits", later) is None
