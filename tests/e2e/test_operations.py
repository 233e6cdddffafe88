"""An operator's commands on the deployed stack: dead letters, corrections, traces, the trail."""

from __future__ import annotations

import hashlib
import io
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest

from infra.local.stripe_account import StripeAccount
from infra.local.stripe_server import StripeControl
from infra.recompute_digest import recompute_digests
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import STRIPE_KEY, WHY, Answer, Api, Run
from tests.e2e.dashboards import sign_in
from tests.e2e.described import check_described
from tests.e2e.test_books import make_event


def test_what_was_refused_is_listed_with_its_reason_and_billed_after_a_redrive(
    run: Run, api: Api, stripe_url: str
) -> None:
    customer = "operations_refused"
    billing_customer = make_customer(api, stripe_url, customer)
    meters = StripeAccount(stripe_url, STRIPE_KEY).client.v1.billing.meters
    [meter] = [each.id for each in meters.list().data if each.event_name == "meterline_outcomes"]
    meters.deactivate(meter)
    event = make_event("refused", customer, "2", datetime.now(UTC) - timedelta(minutes=5))
    event["data"]["meter"] = "outcomes"
    assert api.report(event).status == 202

    def listed() -> bool:
        lines = run("dead-letters", "list").stdout.splitlines()
        return any(f"{customer}#outcomes\trefused" in line for line in lines)

    await_value(listed, True)
    meters.reactivate(meter)
    told = run("dead-letters", "redrive", "--group", f"{customer}#outcomes", *WHY).stdout
    assert told == "1 moved, 0 left\n"
    billed = BilledUsage(stripe_url, billing_customer, "meterline_outcomes")
    await_value(billed.total, 2)
    assert not listed()
    trail = run("books", "audit").stdout
    assert f"ann\tredrive\t{customer}#outcomes\t1 moved, 0 left\ta test" in trail


def test_an_event_is_taken_back_once_and_the_bill_follows(
    run: Run, api: Api, stripe_url: str
) -> None:
    customer = "operations_reversed"
    billing_customer = make_customer(api, stripe_url, customer)
    at = datetime.now(UTC) - timedelta(minutes=5)
    api.report(make_event("right", customer, "3", at), make_event("wrong", customer, "40", at))
    billed = BilledUsage(stripe_url, billing_customer, "meterline_credits")
    await_value(billed.total, 43_000)
    assert run("events", "reverse", customer, "books", "wrong", *WHY).stdout.startswith("-40 ")
    await_value(billed.total, 3000)
    again = run("events", "reverse", customer, "books", "wrong", *WHY, ok=False)
    assert "taken back before" in again.stderr
    nothing = run("events", "reverse", customer, "books", "never", *WHY, ok=False)
    assert "no event" in nothing.stderr
    trail = run("books", "audit").stdout
    assert f"reverse\t{customer}/books/wrong\t-40 credits" in trail


def test_an_event_leads_to_its_batch_and_a_replay_bills_nothing_twice(
    run: Run, api: Api, stripe_url: str
) -> None:
    customer = "operations_traced"
    billing_customer = make_customer(api, stripe_url, customer)
    at = datetime.now(UTC) - timedelta(minutes=5)
    api.report(make_event("traced", customer, "1.25", at))
    billed = BilledUsage(stripe_url, billing_customer, "meterline_credits")
    await_value(billed.total, 1250)
    await_value(
        lambda: "\tsent" in run("events", "trace", customer, "books", "traced").stdout, True
    )
    told = run("events", "trace", customer, "books", "traced").stdout
    assert "credits\t1.25" in told
    assert "invoice\tnone so far" in told
    since = f"{at - timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
    run("events", "replay", customer, "credits", "--since", since, *WHY)
    options = ("--stripe-url", stripe_url)
    assert "1 of 1 agree" in run("books", "reconcile", customer, *options).stdout
    assert billed.total() == 1250


def test_an_operator_freezes_and_unfreezes_with_a_reason_that_is_kept(run: Run, api: Api) -> None:
    customer = "operations_frozen"
    assert api.put_customer(customer).status == 200

    def ask() -> str:
        body = json.dumps({"customer": customer, "estimate": {"quantity": "1"}}).encode()
        code: str = api.call("POST", "/v1/authorizations", key=api.usage_key, body=body).told[
            "code"
        ]
        return code

    assert ask() == "allowed"
    run("breaker", "freeze", customer, "--actor", "ann", "--reason", "a stolen key")
    assert ask() == "customer_frozen"
    again = run("breaker", "freeze", customer, *WHY, ok=False)
    assert "frozen already" in again.stderr
    run("breaker", "unfreeze", customer, "--actor", "bob", "--reason", "a new key")
    assert ask() == "allowed"
    assert "not frozen" in run("breaker", "unfreeze", customer, *WHY, ok=False).stderr
    assert "no customer" in run("breaker", "freeze", "nobody-here", *WHY, ok=False).stderr
    rows = [line.split("\t")[1:] for line in run("breaker", "audit", customer).stdout.splitlines()]
    assert rows == [
        ["frozen", "operator ann", "a stolen key"],
        ["unfrozen", "operator bob", "a new key"],
    ]
    trail = run("books", "audit").stdout
    assert f"ann\tfreeze\t{customer}\tfrozen\ta stolen key" in trail
    told = api.call("GET", f"/v1/customers/{customer}/notifications", key=api.admin_key).told
    assert {each["type"] for each in told["notifications"]} == {
        "CustomerFrozenByOperator",
        "CustomerUnfrozen",
    }


@pytest.fixture(scope="module")
def invoiced(run: Run, api: Api, stripe_url: str) -> tuple[str, str, str]:
    """A customer with two events on an invoice: the customer, the invoice, the comparison."""
    customer = "operations_invoiced"
    assert api.put_customer("operations_other").status == 200
    account = StripeAccount(stripe_url, STRIPE_KEY)
    account.set_up()
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    start = now - timedelta(days=33)
    subscriber = account.subscribe(customer, customer, start)
    account.advance(subscriber, start + timedelta(days=20))
    assert api.put_customer(customer, billing_customer=subscriber.billing_customer).status == 200
    at = start + timedelta(days=19)
    tokens = make_event("of the hour", customer, "1200", at)
    tokens["data"]["meter"] = "tokens"
    first, second = (
        make_event("first", customer, "7", at),
        make_event("second/ä", customer, "0.5", at),
    )
    assert api.report(first, second, tokens).told["accepted"] == 3
    billed = BilledUsage(stripe_url, subscriber.billing_customer, "meterline_credits")
    await_value(billed.total, 7500)
    account.advance(subscriber, subscriber.period_end + timedelta(minutes=1))
    client = StripeControl(stripe_url, STRIPE_KEY).client()
    [draft] = [
        each
        for each in client.v1.invoices.list({"subscription": subscriber.subscription}).data
        if each.status == "draft"
    ]
    checked = run("books", "check", draft.id, "--stripe-url", stripe_url, *WHY).stdout
    assert "agreed" in checked
    return customer, draft.id, checked


def test_an_invoice_leads_to_its_events_and_their_digest_can_be_computed_by_anybody(
    run: Run, invoiced: tuple[str, str, str]
) -> None:
    customer, invoice, checked = invoiced
    lines = run("events", "of-invoice", invoice, "--format", "lines").stdout
    digest = hashlib.sha256(
        "".join(f"{line}\n" for line in sorted(lines.splitlines())).encode()
    ).hexdigest()
    assert f"2 events, digest {digest}" in checked
    rows = run("events", "of-invoice", invoice).stdout
    assert list(recompute_digests([io.StringIO(rows)])) == [("credits", 2, digest)]
    traced = run("events", "trace", customer, "books", "first").stdout
    assert f"invoice\t{invoice}" in traced


def test_the_api_leads_from_an_invoice_to_its_events_and_back(
    api: Api, invoiced: tuple[str, str, str]
) -> None:
    customer, invoice, checked = invoiced
    root = f"/v1/customers/{customer}"

    def get(path: str, described: str, **headers: str) -> Answer:
        answer = api.call("GET", f"{root}/{path}", key=api.admin_key, headers=headers)
        assert answer.status == 200, answer.body
        if "csv" not in answer.headers["content-type"]:
            check_described(api, "GET", f"/v1/customers/{{id}}/{described}", answer)
        return answer

    [told] = get("invoices", "invoices").told["invoices"]
    [line] = told["lines"]
    assert (told["id"], told["state"], line["quantity"]) == (invoice, "agreed", "7.5")
    assert line["digest"] in checked

    # Page by page, as JSON and as CSV: both are the list that the digest is made from.
    events, cursor, described = [], "", "invoices/{invoice}/events"
    while cursor is not None:
        page = get(f"invoices/{invoice}/events?limit=1{cursor and '&cursor=' + cursor}", described)
        events += page.told["events"]
        cursor = page.told["next_cursor"]
    assert [(each["id"], each["quantity"]) for each in events] == [
        ("first", "7"),
        ("second/ä", "0.5"),
    ]
    pages = []
    following: str | None = f"invoices/{invoice}/events?limit=1"
    while following is not None:
        page = get(following, described, Accept="text/csv")
        pages.append(io.StringIO(page.body.decode(), newline=""))
        link = page.headers.get("link")
        following = link[1:].partition(">")[0].removeprefix(f"{root}/") if link else None
    assert len(pages) == 2
    assert list(recompute_digests(pages)) == [("credits", 2, line["digest"])]

    for each in events:
        asked = urlencode({"source": each["source"], "id": each["id"]})
        back = get(f"events?{asked}", "events").told
        assert (back["event"], back["invoice"], back["line"]) == (each, invoice, line)
        assert back["billing"]["state"] == "sent"
        assert back["billing"]["identifier"].startswith("ml_")

    # Of another meter, told to Stripe as its hour's total, and on no invoice of this plan.
    other = get(f"events?{urlencode({'source': 'books', 'id': 'of the hour'})}", "events").told
    assert (other["billing"]["mode"], other["event"]["quantity"]) == ("hourly", "1200")
    assert other["billing"]["identifier"].startswith("mlh_")
    assert (other["invoice"], other["line"]) == (None, None)


def test_admins_of_a_customer_take_the_list_behind_an_invoice_from_their_page(
    api: Api, invoiced: tuple[str, str, str]
) -> None:
    customer, invoice, checked = invoiced
    users = [{"id": "boss", "role": "admin"}, {"id": "guest", "role": "member"}]
    shown = api.call("GET", f"/v1/customers/{customer}", key=api.admin_key).told
    put = api.put_customer(customer, billing_customer=shown["billing_customer"], users=users)
    assert put.status == 200
    page = "/settings/usage/invoice-events.csv"

    def get(query: str, of: str = customer, **told: str) -> Answer:
        cookie = {"Cookie": sign_in(api, of, **told)}
        return api.call("GET", f"{page}?{query}", headers=cookie)

    answer = get(f"invoice={invoice}", user="boss")
    assert answer.status == 200, answer.body
    [(_, events, digest)] = recompute_digests([io.StringIO(answer.body.decode(), newline="")])
    assert f"{events} events, digest {digest}" in checked
    assert get(f"invoice={invoice}", user="guest").status == 403
    assert get(f"invoice={invoice}", of="operations_other").status == 404
    assert get("").status == 404
    assert get(f"invoice={invoice}&cursor=x").status == 400
    assert api.call("GET", f"{page}?invoice={invoice}").status == 401


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/customers/nobody-here/invoices", 404, "not_found"),
        ("/v1/customers/a%20b/invoices", 400, "invalid_customer_id"),
        ("/v1/customers/{c}/invoices/in_none/events", 404, "not_found"),
        # Another customer's invoice is not there, whoever asks.
        ("/v1/customers/operations_other/invoices/{i}/events", 404, "not_found"),
        ("/v1/customers/{c}/invoices/{i}/events?limit=0", 400, "invalid_limit"),
        ("/v1/customers/{c}/invoices/{i}/events?limit=5001", 400, "invalid_limit"),
        ("/v1/customers/{c}/invoices/{i}/events?limit=%D9%A1", 400, "invalid_limit"),
        ("/v1/customers/{c}/invoices/{i}/events?cursor=x", 400, "invalid_cursor"),
        ("/v1/customers/{c}/invoices/{i}/events?cursor=", 400, "invalid_cursor"),
        ("/v1/customers/{c}/events", 400, "invalid_event_name"),
        ("/v1/customers/{c}/events?source=books", 400, "invalid_event_name"),
        ("/v1/customers/{c}/events?source=books&id=", 400, "invalid_event_name"),
        ("/v1/customers/{c}/events?source=books&id=a%00b", 400, "invalid_event_name"),
        ("/v1/customers/{c}/events?source=books&id=never", 404, "not_found"),
        ("/v1/customers/{c}/events?source=elsewhere&id=first", 404, "not_found"),
    ],
)
def test_what_cannot_be_traced_is_told_why(
    api: Api, invoiced: tuple[str, str, str], path: str, status: int, code: str
) -> None:
    asked = path.replace("{c}", invoiced[0]).replace("{i}", invoiced[1])
    answer = api.call("GET", asked, key=api.admin_key)
    assert (answer.status, answer.told["code"]) == (status, code)
    turned_away = api.call("GET", asked, key=api.usage_key)
    assert (turned_away.status, turned_away.told["code"]) == (403, "forbidden")
    assert api.call("GET", asked).status == 401


@pytest.mark.parametrize(
    "words",
    [
        ("books", "recount", "nobody", "--from", "2026-11-01", "--reason", "a test"),
        ("breaker", "replay", "nobody"),
        ("breaker", "audit", "nobody"),
        ("events", "replay", "nobody", "credits", "--since", "2026-11-01", "--reason", "a test"),
        ("advise", "metric", "--customer", "nobody"),
    ],
)
def test_a_customer_that_is_not_there_is_a_wrong_word_and_no_clean_answer(
    run: Run, words: tuple[str, ...]
) -> None:
    told = run(*words, ok=False)
    assert told.returncode == 2, told.stdout + told.stderr
    assert "there is no customer 'nobody'" in told.stderr
