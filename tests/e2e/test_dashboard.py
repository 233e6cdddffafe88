"""The dashboard in a browser, on the deployed stack, next to what the ledger itself says."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from random import Random
from typing import Any

import pytest
from playwright.sync_api import Browser

from infra.local.stack import LocalStack
from infra.local.stripe_account import StripeAccount, Subscriber
from tests.e2e.billed import await_value
from tests.e2e.browser import WIDTHS, Looked, Scheme, look, start_chromium
from tests.e2e.conftest import STRIPE_KEY, Api
from tests.e2e.dashboards import (
    USERS,
    Tally,
    count_events,
    hour_before,
    link,
    make_events,
    open_portal,
    read_period,
    read_usage,
    sign_in,
    spread,
    tally_ledger,
    write_number,
)

BASE_FEE_MINOR = 2900
INCLUDED = Decimal(1000)
RATE_MINOR = Decimal("0.5")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_chromium() as started:
        yield started


@pytest.fixture(scope="module")
def account(stripe_url: str) -> StripeAccount:
    made = StripeAccount(stripe_url, STRIPE_KEY)
    made.set_up()
    return made


@dataclass(frozen=True, slots=True)
class Seeded:
    """A customer with usage, billed by the local Stripe."""

    id: str
    subscriber: Subscriber


def seed(
    api: Api,
    stack: LocalStack,
    account: StripeAccount,
    customer: str,
    name: str,
    count: int,
    seed_of_dice: int,
) -> Seeded:
    """A customer whose second period began some days ago, inside an hour and inside a minute.

    Usage lies before that, right around it, and in the days since.
    """
    dice = Random(seed_of_dice)
    now = datetime.now(UTC)
    start = (now - timedelta(days=40)).replace(hour=9, minute=23, second=41, microsecond=0)
    subscriber = account.subscribe(customer, name, start)
    account.advance(subscriber, now)
    put = api.put_customer(
        customer, name=name, billing_customer=subscriber.billing_customer, users=USERS
    )
    assert put.status == 200, put.body
    # Nobody looks before all of it is counted: a look has the counts compared.
    began = put.told["subscription"]["current_period"]["start"]
    begins = datetime.fromisoformat(began.replace("Z", "+00:00"))
    moments = [
        *spread(now - timedelta(days=25), begins - timedelta(hours=2), 20, dice),
        *spread(begins - timedelta(hours=2), begins, 15, dice),
        begins,
        *spread(begins, begins + timedelta(minutes=36), 15, dice),
        *spread(begins + timedelta(minutes=36), now - timedelta(minutes=1), count, dice),
    ]
    events = make_events(customer, moments, dice, [str(user["id"]) for user in USERS[:2]])
    for first in range(0, len(events), 500):
        answer = api.report(*events[first : first + 500])
        assert answer.told["accepted"] == len(events[first : first + 500]), answer.body
    await_value(lambda: count_events(stack, customer), len(events))
    return Seeded(customer, subscriber)


@pytest.fixture(scope="module")
def acme(api: Api, stack: LocalStack, account: StripeAccount) -> Seeded:
    return seed(api, stack, account, "dash-acme", "Acme Research", 320, 1)


@pytest.fixture(scope="module")
def birch(api: Api, stack: LocalStack, account: StripeAccount) -> Seeded:
    return seed(api, stack, account, "dash-birch", "Birch & <Partners>", 40, 2)


def tally(stack: LocalStack, told: dict[str, Any]) -> Tally:
    return tally_ledger(stack, told["customer"]["id"], *read_period(told))


def overage_minor(quantity: Decimal) -> int:
    beyond = max(quantity - INCLUDED, Decimal(0)) * RATE_MINOR
    return int(beyond.quantize(Decimal(1), rounding=ROUND_HALF_UP))


def dollars(amount_minor: int) -> str:
    return f"${amount_minor // 100:,}.{amount_minor % 100:02d}"


def percent(part: Decimal, whole: Decimal) -> str:
    share = (part / whole).quantize(Decimal("0.0001"))
    return f"{(share * 100).quantize(Decimal('0.1'), rounding=ROUND_HALF_UP)}%"


def test_every_number_on_the_page_is_the_ledgers(
    api: Api, stack: LocalStack, browser: Browser, acme: Seeded
) -> None:
    told = read_usage(api, acme.id)
    ledger = tally(stack, told)
    everything = tally_ledger(
        stack, acme.id, datetime.now(UTC) - timedelta(days=60), datetime.now(UTC)
    )
    assert ledger.events > 300
    with look(browser, link(api, acme.id)) as looked:
        assert looked.number("used") == write_number(ledger.total)
        assert looked.number("included") == write_number(INCLUDED)
        if ledger.total > INCLUDED:
            assert looked.number("overage") == write_number(ledger.total - INCLUDED)
        else:
            assert looked.number("remaining") == write_number(INCLUDED - ledger.total)
        spent = overage_minor(ledger.total)
        assert looked.number("base-fee") == dollars(BASE_FEE_MINOR)
        assert looked.number("cost-overage") == dollars(spent)
        assert looked.number("cost") == dollars(BASE_FEE_MINOR + spent)
        shown = {
            row[0]: row[1:3]
            for row in looked.page.locator("tr[data-day]").evaluate_all(
                "rows => rows.map(row => [row.dataset.day,"
                " ...[...row.querySelectorAll('td')].map(cell => cell.textContent.trim())])"
            )
        }
        assert len(shown) == 30
        for day, (quantity, events) in everything.days.items():
            if str(day) in shown:
                assert shown.pop(str(day)) == [write_number(quantity), f"{events:,}"]
        assert all(cells == ["0", "0"] for cells in shown.values())
        check_shares(looked.rows("actions"), ledger.actions, ledger.total, "No action named", {})
        names = {str(user["id"]): str(user["name"]) for user in USERS}
        check_shares(looked.rows("users"), ledger.users, ledger.total, "No user named", names)


def check_shares(
    rows: list[list[str]],
    expected: Any,
    total: Decimal,
    nameless: str,
    names: dict[str, str],
) -> None:
    assert len(rows) == len(expected)
    for name, quantity in expected.items():
        begins = nameless if name is None else names.get(name, name)
        [row] = [row for row in rows if row[0].startswith(begins)]
        assert row[1:3] == [write_number(quantity), percent(quantity, total)]
    assert sum(Decimal(row[1].replace(",", "")) for row in rows) == total


def test_the_page_says_what_the_json_says(api: Api, browser: Browser, acme: Seeded) -> None:
    told = read_usage(api, acme.id)
    with look(browser, link(api, acme.id)) as looked:
        expected = told["forecast"]["expected"]["total"]["amount_minor"]
        # The forecast moves with the clock: a cent or two between two loads.
        shown = int(re.sub(r"[^0-9]", "", looked.number("forecast")))
        assert abs(shown - expected) <= 5
        assert looked.number("counted-at") == told["counted_at"][11:19]
        text = looked.page.inner_text("main")
        assert "On track for $" in text
        assert re.search(r"\d\d:\d\d:\d\d UTC", looked.page.inner_text("footer"))


def test_two_loads_of_a_period_that_cuts_an_hour_agree(
    api: Api, stack: LocalStack, acme: Seeded
) -> None:
    first, second = read_usage(api, acme.id), read_usage(api, acme.id)
    start, _ = read_period(first)
    assert start.second, "the period is to begin inside a minute"
    for name in ("used", "events", "actions", "users"):
        assert first[name] == second[name]
    items = stack.client("dynamodb").query(
        TableName=stack.outputs["TotalsTable"],
        KeyConditionExpression="pk = :pk AND begins_with(sk, :edge)",
        ExpressionAttributeValues={":pk": {"S": f"{acme.id}#credits"}, ":edge": {"S": "edge#"}},
    )["Items"]
    assert len(items) <= 1, "what lies before the period is read from the ledger once at most"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_is_readable_for_everybody(
    api: Api, browser: Browser, acme: Seeded, width: int, scheme: Scheme
) -> None:
    with look(browser, link(api, acme.id), width=width, scheme=scheme) as looked:
        looked.save(f"usage-{width}-{scheme}")
        check_readable(looked, api, width)


@pytest.mark.parametrize("path", ["/pricing", "/pricing/changelog", "/settings/usage"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_without_a_session_are_readable_too(
    api: Api, browser: Browser, path: str, width: int
) -> None:
    with look(browser, api.url + path, width=width) as looked:
        looked.save(f"{path.strip('/').replace('/', '-')}-nobody-{width}")
        # The browser's console names every answer of 400 and more.
        looked.complaints = [each for each in looked.complaints if "401" not in each]
        check_readable(looked, api, width)


def check_readable(looked: Looked, api: Api, width: int) -> None:
    assert not looked.complaints
    assert looked.origins() == {api.url}
    assert looked.page.locator("script").count() == 0
    assert looked.page.evaluate("document.documentElement.scrollWidth") <= width
    assert looked.page.locator("h1").count() == 1
    assert looked.page.locator("main").count() == 1
    assert looked.find_violations() == []


def test_the_keyboard_reaches_every_control_and_shows_where_it_is(
    api: Api, browser: Browser, birch: Seeded
) -> None:
    with look(browser, link(api, birch.id)) as looked:
        reached = []
        for _ in range(30):
            looked.page.keyboard.press("Tab")
            told = looked.page.evaluate(
                "(() => { const at = document.activeElement; const style = getComputedStyle(at);"
                " return [at.id || at.tagName, style.outlineStyle, style.outlineWidth] })()"
            )
            if told[0] == "BODY":
                break
            assert told[1] != "none", told
            reached.append(told[0])
        assert {"warn_at", "stop_at", "block_overage", "SUMMARY", "BUTTON"} <= set(reached)


def test_limits_that_are_set_on_the_page_are_kept_and_shown(
    api: Api, browser: Browser, birch: Seeded
) -> None:
    with look(browser, link(api, birch.id, user="u_kim")) as looked:
        page = looked.page
        page.fill("#warn_at", "40")
        page.fill("#stop_at", "5000")
        page.select_option("[name=stop_at_in]", "quantity")
        page.click("text=Save limits")
        assert page.locator("[role=status]").inner_text() == "Your limits are saved."
        assert page.url.endswith("?saved=1")
        assert page.input_value("#warn_at") == "40.00"
        assert page.input_value("#stop_at") == "5000"
        assert looked.number("stops-at") == "5,000 credits"
        looked.save("limits-saved")
        kept = api.call("GET", f"/v1/customers/{birch.id}/limits", key=api.admin_key).told
        assert kept["warn_at"] == {"amount_minor": 4000, "currency": "usd"}
        assert kept["stop_at"] == {"quantity": "5000"}
        assert kept["block_overage"] is False
        assert kept["changed_by"] == "user u_kim"
        # $40 is $11 beyond the fee: 2,200 credits beyond the quota, and half a cent more rounds up.
        assert kept["warns_at_quantity"] == "3200.999"
        page.fill("#warn_at", "12")
        page.click("text=Save limits")
        assert "base fee" in page.locator("[role=alert]").inner_text()
        assert page.input_value("#warn_at") == "12", "what was typed is still there"
        assert page.locator("#warn_at").get_attribute("aria-invalid") == "true"
        looked.save("limits-refused")
        page.fill("#warn_at", "")
        page.fill("#stop_at", "")
        page.check("#block_overage")
        page.click("text=Save limits")
        assert looked.number("warns-at") == "no limit"
        assert looked.number("stops-at") == "1,000 credits, the included quota"
    kept = api.call("GET", f"/v1/customers/{birch.id}/limits", key=api.admin_key).told
    assert (kept["warn_at"], kept["stop_at"], kept["block_overage"]) == (None, None, True)


def test_limits_over_the_api_are_on_the_page(api: Api, browser: Browser, birch: Seeded) -> None:
    body = {"stop_at": {"amount_minor": 5000, "currency": "usd"}}
    put = api.call(
        "PUT",
        f"/v1/customers/{birch.id}/limits",
        key=api.admin_key,
        body=json.dumps(body).encode(),
    )
    assert put.status == 200
    with look(browser, link(api, birch.id)) as looked:
        assert looked.page.input_value("#stop_at") == "50.00"
        assert looked.number("stops-at") == "$50.00, 5,200.999 credits"


def test_a_member_sees_the_total_and_their_own_part_and_no_more(
    api: Api, stack: LocalStack, browser: Browser, acme: Seeded
) -> None:
    ledger = tally(stack, read_usage(api, acme.id))
    with look(browser, link(api, acme.id, user="u_noor"), width=375) as looked:
        looked.save("member-375")
        assert looked.number("used") == write_number(ledger.total)
        assert looked.number("own") == write_number(ledger.users["u_noor"])
        text = looked.page.content()
        for secret in ("Kim", "u_kim", "report.generate", "$", "Past invoices", "Save limits"):
            assert secret not in text, secret
        assert looked.find_violations() == []


def test_an_admin_of_the_list_sees_everything(api: Api, browser: Browser, acme: Seeded) -> None:
    with look(browser, link(api, acme.id, user="u_kim")) as looked:
        assert "Noor Haddad" in looked.page.inner_text("main")
        assert looked.page.locator("#warn_at").count() == 1


def test_a_role_that_is_taken_away_is_gone_at_the_next_load(
    api: Api, account: StripeAccount
) -> None:
    customer = "dash-roles"
    assert api.put_customer(customer, users=USERS).status == 200
    cookie = {"Cookie": sign_in(api, customer, user="u_kim")}
    assert "Save limits" in read_page(api, cookie)
    demoted = [{**USERS[0], "role": "member"}]
    assert api.put_customer(customer, users=demoted).status == 200
    assert "Save limits" not in read_page(api, cookie)
    assert api.put_customer(customer, users=[]).status == 200
    assert api.call("GET", "/settings/usage", headers=cookie).status == 403


def read_page(api: Api, headers: dict[str, str]) -> str:
    answer = api.call("GET", "/settings/usage", headers=headers)
    assert answer.status == 200, answer.body
    return answer.body.decode()


def test_nothing_of_one_customer_is_on_the_page_of_another(
    api: Api, browser: Browser, acme: Seeded, birch: Seeded
) -> None:
    acmes = read_usage(api, acme.id)
    with look(browser, link(api, birch.id)) as looked:
        assert "Birch & <Partners>" in looked.page.inner_text("h1")
        html = looked.page.content()
        for secret in (acme.id, "Acme", acmes["used"], acme.subscriber.billing_customer):
            assert secret not in html, secret
    rows = read_csv(api, {"Cookie": sign_in(api, birch.id)}, acmes)
    assert rows
    assert all(row["id"].startswith(birch.id) for row in rows)


def read_csv(api: Api, headers: dict[str, str], told: dict[str, Any]) -> list[dict[str, str]]:
    span = f"from={told['period']['start']}&to={told['period']['end']}"
    answer = api.call("GET", f"/settings/usage/events.csv?{span}", headers=headers)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert "link" not in answer.headers
    return list(csv.DictReader(io.StringIO(answer.body.decode())))


def test_the_csv_has_every_event_of_the_period_and_a_members_only_their_own(
    api: Api, stack: LocalStack, browser: Browser, acme: Seeded
) -> None:
    told = read_usage(api, acme.id)
    ledger = tally(stack, told)
    rows = read_csv(api, {"Cookie": sign_in(api, acme.id)}, told)
    assert len(rows) == ledger.events
    assert sum(Decimal(row["quantity"]) for row in rows) == ledger.total
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)
    own = read_csv(api, {"Cookie": sign_in(api, acme.id, user="u_noor")}, told)
    assert {row["user"] for row in own} == {"u_noor"}
    assert sum(Decimal(row["quantity"]) for row in own) == ledger.users["u_noor"]
    with look(browser, link(api, acme.id)) as looked, looked.page.expect_download() as download:
        looked.page.click("text=Events of this period (CSV)")
    assert download.value.suggested_filename.startswith(f"{acme.id}-")


def test_a_look_has_the_counts_compared_and_invoices_fetched(
    api: Api, stack: LocalStack, browser: Browser, account: StripeAccount, acme: Seeded
) -> None:
    read_usage(api, acme.id)
    await_value(
        lambda: (read_usage(api, acme.id)["billing"] or {}).get("comparison") is None, False
    )
    told = read_usage(api, acme.id)
    compared = told["billing"]["comparison"]
    start, _ = read_period(told)
    until = datetime.fromisoformat(compared["until"].replace("Z", "+00:00"))
    assert start.replace(second=0) == datetime.fromisoformat(
        compared["from"].replace("Z", "+00:00")
    )
    assert hour_before(datetime.now(UTC)) - until <= timedelta(hours=1)
    ours = tally_ledger(stack, acme.id, start.replace(second=0), until)
    assert compared["ours_sub_units"] == int(ours.total * 1000)
    invoices = account.client.v1.invoices.list({"customer": acme.subscriber.billing_customer}).data
    final = [each for each in invoices if each.status != "draft"]
    assert final, "a period has ended, so there is an invoice"
    assert {each["id"] for each in told["billing"]["invoices"]} == {each.id for each in final}
    with look(browser, link(api, acme.id)) as looked:
        rows = looked.rows("invoices")
        assert [row[3] for row in rows] == [dollars(each.total) for each in final]
        looked.save("usage-with-invoices")


def test_a_divergence_is_logged_and_counted(
    api: Api, stack: LocalStack, account: StripeAccount
) -> None:
    customer = "dash-diverged"
    now = datetime.now(UTC)
    start = now.replace(microsecond=0) - timedelta(days=3)
    subscriber = account.subscribe(customer, customer, start)
    account.advance(subscriber, now)
    account.client.v1.billing.meter_events.create(
        {
            "event_name": "meterline_credits",
            "payload": {"stripe_customer_id": subscriber.billing_customer, "value": "70000"},
            "timestamp": int((now - timedelta(hours=5)).timestamp()),
        }
    )
    api.put_customer(customer, billing_customer=subscriber.billing_customer)
    read_usage(api, customer)

    def diverges() -> bool:
        told = (read_usage(api, customer)["billing"] or {}).get("comparison")
        return bool(told and told["diverges"])

    await_value(diverges, True)
    lines = [json.loads(line) for line in stack.read_logs("CompareUsage") if line.startswith("{")]
    [warned] = [
        line
        for line in lines
        if line.get("message") == "counts diverge" and line["customer"] == customer
    ]
    assert (warned["ours_sub_units"], warned["theirs_sub_units"]) == (0, 70_000)
    assert any(line.get("ComparisonsDiverged") == [1] for line in lines)


def test_no_function_that_somebody_waits_for_knows_where_stripe_is(stack: LocalStack) -> None:
    for name in ("ShowUsageFunctionName", "ServeDashboardFunctionName"):
        told = stack.client("lambda").get_function_configuration(FunctionName=stack.outputs[name])
        names = told["Environment"]["Variables"]
        assert "DASHBOARD_SECRET_ID" in names
        assert not [each for each in names if each.startswith("STRIPE")]


def test_every_private_answer_forbids_what_it_does_not_need(api: Api, birch: Seeded) -> None:
    cookie = {"Cookie": sign_in(api, birch.id)}
    told = read_usage(api, birch.id)
    span = f"from={told['period']['start']}&to={told['period']['end']}"
    for path in ("/settings/usage", f"/settings/usage/events.csv?{span}"):
        headers = api.call("GET", path, headers=cookie).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
    linked = api.call("GET", link(api, birch.id).removeprefix(api.url))
    assert linked.headers["location"] == "/settings/usage", "the token leaves the address"
    told_cookie = linked.headers["set-cookie"]
    assert "HttpOnly" in told_cookie
    assert "SameSite=Lax" in told_cookie


def test_a_free_customer_is_stopped_at_its_quota_and_told_so(
    api: Api, stack: LocalStack, browser: Browser
) -> None:
    customer = "dash-free"
    assert api.put_customer(customer, name="Tried & Free", plan="free").status == 200
    with look(browser, link(api, customer)) as looked:
        looked.save("first-look-1440")
        assert looked.number("used") == "0"
        assert looked.complaints == []
        assert looked.find_violations() == []
    [event] = make_events(customer, [datetime.now(UTC)], Random(3), ["u_1"])
    event["data"]["quantity"] = "99.5"
    assert api.report(event).told["accepted"] == 1
    await_value(lambda: count_events(stack, customer), 1)

    def ask(quantity: str) -> dict[str, Any]:
        body = {"customer": customer, "estimate": {"quantity": quantity}}
        sent = json.dumps(body).encode()
        told = api.call("POST", "/v1/authorizations", key=api.usage_key, body=sent).told
        assert isinstance(told, dict)
        return told

    refused = ask("0.501")
    assert (refused["decision"], refused["code"]) == ("deny", "overage_blocked")
    assert "Change your plan to continue" in refused["message"]
    assert ask("0.5")["decision"] == "allow"
    with look(browser, link(api, customer), width=375, scheme="dark") as looked:
        looked.save("free-375-dark")
        assert looked.number("stops-at") == "100 credits, the included quota"
        assert looked.page.is_disabled("#block_overage")
        assert looked.number("cost") == "$0.00"
        check_readable(looked, api, 375)


def test_pricing_has_the_plans_terms_on_one_screen(api: Api, browser: Browser) -> None:
    with look(browser, f"{api.url}/pricing") as looked:
        text = looked.page.inner_text("main")
        for term in ("$29.00", "1,000 credits", "Every further 1,000 credits", "$5.00", "Free"):
            assert term in text
        assert looked.page.evaluate("document.documentElement.scrollHeight") <= 900
    headers = api.call("GET", "/pricing").headers
    assert headers["cache-control"] == "public, max-age=300"
    changelog = api.call("GET", "/pricing/changelog").body.decode()
    assert "1 Nov 2026" in changelog


def test_a_link_names_who_may_follow_it(api: Api, birch: Seeded) -> None:
    for told in ({}, {"user": "u_kim"}, {"user": "stranger"}, {"user": "x", "role": "admin"}):
        assert open_portal(api, birch.id, **told).status == 201
    stranger = {"Cookie": sign_in(api, birch.id, user="stranger")}
    assert "Save limits" not in read_page(api, stranger)
    vouched = {"Cookie": sign_in(api, birch.id, user="new-boss", role="admin")}
    assert "Save limits" in read_page(api, vouched)
    # The list is stronger than what a caller says.
    listed = {"Cookie": sign_in(api, birch.id, user="u_noor", role="admin")}
    assert "Save limits" not in read_page(api, listed)
