"""The client as an app uses it, against the deployed stack: from a model's answer to the bill."""

from __future__ import annotations

import base64
import os
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic import Anthropic
from openai import APIConnectionError, OpenAI

from infra.local.stack import LocalStack
from meterline.adapters.dynamodb_ledger import read_item
from meterline.domain.usage import LedgerEntry
from meterline_client import AuthorizationDeniedError, Meter, MeterSettings, acting_for
from tests.e2e.billed import BilledUsage, await_value, make_customer
from tests.e2e.conftest import Api
from tests.e2e.test_authorizations import set_limits
from tests.integration.client.killed_workers import run_killed_workers
from tests.integration.client.provider_server import (
    ANTHROPIC_USAGE,
    Fail,
    ProviderServer,
    Stream,
    completion_chunks,
    message_events,
)

KILLS = int(os.environ.get("METERLINE_E2E_KILLS", "20"))
KILLED_CALLS = int(os.environ.get("METERLINE_E2E_CALLS", "400"))

MESSAGES: list[Any] = [{"role": "user", "content": "Say hello."}]
# The provider's 120 input and 35 output tokens, in thousandths of a credit: claude-sonnet has 1 and
# 5 credits per 1,000 tokens, gpt-5-mini 0.084 and 0.667, which makes 33.425, rounded once.
SONNET_SUB_UNITS = 120 * 1 + 35 * 5
MINI_SUB_UNITS = 33


@pytest.fixture(scope="module")
def provider() -> Iterator[ProviderServer]:
    server = ProviderServer()
    yield server
    server.close()


@pytest.fixture
def meter(api: Api, provider: ProviderServer, tmp_path: Path) -> Iterator[Meter]:
    provider.reset()
    settings = MeterSettings(
        endpoint=api.url,
        api_key=api.usage_key,
        source="e2e/client",
        spool=tmp_path / "spool",
        linger_s=0.01,
        # The first call waits until the emulator has started the function.
        authorize_timeout_s=240,
        handle_sigterm=False,
    )
    with Meter(settings) as made:
        yield made
    assert made.counts.get("event_rejected", 0) == 0


class App:
    """An app of one customer, with both official SDKs metered."""

    def __init__(self, meter: Meter, provider: ProviderServer) -> None:
        http = httpx2.Client()
        self.meter = meter
        self.anthropic = meter.wrap(Anthropic(api_key="k", base_url=provider.url, http_client=http))
        self.openai = meter.wrap(
            OpenAI(api_key="k", base_url=provider.url + "/v1", http_client=http)
        )

    def ask_anthropic(self) -> str:
        """One message."""
        answer = self.anthropic.messages.create(
            model="claude-sonnet-5-5", max_tokens=50, messages=MESSAGES
        )
        return answer.content[0].text  # type: ignore[union-attr]

    def ask_openai(self) -> str:
        """One chat completion."""
        answer = self.openai.chat.completions.create(model="gpt-5-mini", messages=MESSAGES)
        return answer.choices[0].message.content or ""

    def stream_anthropic(self) -> str:
        """One message as it is written."""
        with self.anthropic.messages.stream(
            model="claude-sonnet-5-5", max_tokens=50, messages=MESSAGES
        ) as stream:
            return "".join(stream.text_stream)

    def stream_chat(self) -> str:
        """One chat completion as it is written; the app does not ask for usage."""
        stream = self.openai.chat.completions.create(
            model="gpt-5-mini", messages=MESSAGES, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    def stream_response(self) -> str:
        """One response as it is written."""
        stream = self.openai.responses.create(model="gpt-5-mini", input="Say hello.", stream=True)
        return "".join(e.delta for e in stream if e.type == "response.output_text.delta")


@pytest.fixture
def app(meter: Meter, provider: ProviderServer) -> App:
    return App(meter, provider)


def read_ledger(stack: LocalStack, customer: str) -> list[LedgerEntry]:
    """All that the ledger's table holds of one customer, in order of time."""
    pages = stack.client("dynamodb").get_paginator("scan")
    found = []
    for page in pages.paginate(TableName=stack.outputs["EventsTable"], ConsistentRead=True):
        for item in page["Items"]:
            if item["k"]["S"].startswith(f"{customer}\x1f"):
                # boto3 gives bytes where DynamoDB's own JSON has base64.
                item["x"] = {"B": base64.b64encode(item["x"]["B"]).decode()}
                found.append(read_item(item))
    return sorted(found, key=lambda entry: entry.at)


def deliver(meter: Meter) -> None:
    assert meter.flush(240), "the stack did not take the events"


@pytest.mark.parametrize(
    ("ask", "sub_units"),
    [(App.ask_anthropic, SONNET_SUB_UNITS), (App.ask_openai, MINI_SUB_UNITS)],
    ids=["anthropic", "openai"],
)
def test_a_call_whose_first_attempt_fails_is_one_event_and_one_meter_event(
    stack: LocalStack,
    api: Api,
    stripe_url: str,
    app: App,
    provider: ProviderServer,
    ask: Callable[[App], str],
    sub_units: int,
) -> None:
    customer = f"first-fails-{sub_units}"
    billed = BilledUsage(stripe_url, make_customer(api, stripe_url, customer), "meterline_credits")
    provider.script(Fail(500))
    with acting_for(customer, user="u_9", action="report.generate"):
        assert ask(app) == "Hello."
    assert len(provider.seen) == 2, "the SDK tried again by itself"
    deliver(app.meter)

    [entry] = read_ledger(stack, customer)
    assert entry.usage == {"input_tokens": 120, "output_tokens": 35}
    assert (entry.user, entry.action) == ("u_9", "report.generate")
    assert entry.quantity * 1000 == sub_units
    await_value(billed.total, sub_units)
    # One customer's usage is sent in order: once this one has come, nothing is behind it.
    with acting_for(customer), app.meter.measure(quantity=1):
        pass
    deliver(app.meter)
    await_value(billed.total, sub_units + 1000)
    first, _last = billed.calls()
    assert (first["value"], first["outcome"]) == (sub_units, "accepted")
    assert first["timestamp"] == int(entry.at.timestamp())


def test_a_cache_hit_is_no_event(
    stack: LocalStack, api: Api, stripe_url: str, app: App, provider: ProviderServer
) -> None:
    customer = "cache-hit"
    billed = BilledUsage(stripe_url, make_customer(api, stripe_url, customer), "meterline_credits")
    answers: dict[str, Any] = {}

    @app.meter.cached(answers, key=str)
    def ask(_question: str) -> str:
        return app.ask_anthropic()

    with acting_for(customer, user="u_9", action="ask"):
        assert [ask("What is a meter?") for _ in range(5)] == ["Hello."] * 5
        deliver(app.meter)
        [miss] = read_ledger(stack, customer)
        await_value(billed.total, SONNET_SUB_UNITS)
        with app.meter.measure(quantity=1):
            pass
    deliver(app.meter)
    await_value(billed.total, SONNET_SUB_UNITS + 1000)
    assert len(provider.seen) == 1
    assert [call["value"] for call in billed.calls()] == [SONNET_SUB_UNITS, 1000]
    assert [e.key == miss.key for e in read_ledger(stack, customer)] == [True, False]


@pytest.mark.parametrize(
    ("read", "sub_units"),
    [
        (App.stream_anthropic, SONNET_SUB_UNITS),
        (App.stream_chat, MINI_SUB_UNITS),
        (App.stream_response, MINI_SUB_UNITS),
    ],
    ids=["anthropic", "openai chat", "openai responses"],
)
def test_a_stream_is_one_event_once_it_has_ended(
    stack: LocalStack,
    api: Api,
    stripe_url: str,
    app: App,
    read: Callable[[App], str],
    sub_units: int,
) -> None:
    customer = read.__name__
    billed = BilledUsage(stripe_url, make_customer(api, stripe_url, customer), "meterline_credits")
    with acting_for(customer):
        assert read(app) == "Hello."
    deliver(app.meter)
    [entry] = read_ledger(stack, customer)
    assert (entry.usage, entry.status) == ({"input_tokens": 120, "output_tokens": 35}, None)
    await_value(billed.total, sub_units)


def test_a_stream_that_is_cut_is_billed_for_what_was_reported_and_says_so(
    stack: LocalStack, api: Api, stripe_url: str, app: App, provider: ProviderServer
) -> None:
    customer = "cut"
    billed = BilledUsage(stripe_url, make_customer(api, stripe_url, customer), "meterline_credits")
    provider.script(Stream(message_events(ANTHROPIC_USAGE)[:4], then="cut"))
    with acting_for(customer):
        with pytest.raises(httpx2.RemoteProtocolError):
            app.stream_anthropic()
        # Nothing is reported when this one is cut: it is signalled, and never guessed.
        provider.script(Stream(completion_chunks()[:3], then="cut"))
        with pytest.raises(APIConnectionError):
            app.stream_chat()
    deliver(app.meter)
    [entry] = read_ledger(stack, customer)
    assert (entry.usage, entry.status) == ({"input_tokens": 120, "output_tokens": 1}, "partial")
    assert app.meter.counts["usage_unknown"] == 1
    await_value(billed.total, 120 + 5)


def test_leave_is_asked_for_settled_by_the_event_refused_and_given_back(
    stack: LocalStack, api: Api, stripe_url: str, app: App, provider: ProviderServer
) -> None:
    customer = "asks-first"
    make_customer(api, stripe_url, customer)
    set_limits(api, customer, stop_at={"quantity": "1"})

    def is_allowed(quantity: str) -> bool:
        """Ask, do nothing, and give it back."""
        try:
            with app.meter.authorized(quantity=quantity):
                return True
        except AuthorizationDeniedError:
            return False

    with acting_for(customer, user="u_9", action="report.generate"):
        with app.meter.authorized(quantity="0.6") as leave:
            assert leave.authorization is not None
            assert leave.remaining == "0.4"
            with (
                pytest.raises(AuthorizationDeniedError) as denial,
                app.meter.authorized(quantity="0.401"),
            ):
                app.ask_anthropic()
            assert provider.seen == []
            assert denial.value.code == "hard_limit"
            assert denial.value.message == (
                "You've hit your set limit of 1 credits. Raise it in settings to continue, "
                "or wait until next period."
            )
            app.ask_anthropic()
        deliver(app.meter)
        [entry] = read_ledger(stack, customer)
        assert entry.authorization == leave.authorization
        # Of the 0.6 that were held 0.295 were used: exactly the rest can be had, ...
        await_value(lambda: is_allowed("0.705"), expected=True)
        # ... again and again, as what was not used is given back, ...
        await_value(lambda: is_allowed("0.705"), expected=True)
        # ... and not a thousandth more.
        assert not is_allowed("0.706")
    assert app.meter.counts.get("authorization_unavailable", 0) == 0


def test_a_lease_is_drawn_down_by_every_call_inside(
    stack: LocalStack, api: Api, stripe_url: str, app: App
) -> None:
    customer = "leases"
    billed = BilledUsage(stripe_url, make_customer(api, stripe_url, customer), "meterline_credits")
    set_limits(api, customer, stop_at={"quantity": "1"})
    with acting_for(customer):
        with app.meter.authorized(lease=True, expires_in_s=600, quantity="0.9") as leave:
            for _ in range(3):
                app.ask_anthropic()
        deliver(app.meter)
        entries = read_ledger(stack, customer)
        assert {entry.authorization for entry in entries} == {leave.authorization}
        assert sum(entry.quantity for entry in entries) == Decimal("0.885")

        # With the last of its events the rest of the lease goes back: exactly so much is left.
        await_value(billed.total, 885)

        def read_remaining() -> str:
            with app.meter.authorized(quantity="0.001") as asked:
                return str(asked.remaining)

        await_value(read_remaining, "0.114")


def test_every_call_of_killed_workers_is_in_the_ledgers_table_exactly_once(
    stack: LocalStack,
    api: Api,
    stripe_url: str,
    provider: ProviderServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    customer = "killed"
    billed = BilledUsage(stripe_url, make_customer(api, stripe_url, customer), "meterline_credits")
    provider.reset()
    outcome = run_killed_workers(
        api.url,
        api.usage_key,
        provider.url,
        tmp_path,
        customer=customer,
        calls=KILLED_CALLS,
        kills=KILLS,
    )
    entries = read_ledger(stack, customer)
    in_ledger = Counter(entry.user for entry in entries)
    handed_back = Counter(outcome.handed_back)
    answered = sum(1 for seen in provider.seen if seen.method == "POST")
    with capsys.disabled():
        print(
            f"\nkill -9 on the stack: {outcome.kills} kills ({outcome.kills_at_work} of workers "
            f"with calls behind them), {answered} calls answered by the provider, "
            f"{len(handed_back)} handed back, {len(entries)} events in the ledger's table, "
            f"{outcome.seconds:.0f} s"
        )
    assert outcome.kills == KILLS
    assert len(handed_back) == KILLED_CALLS
    assert {user for user, times in handed_back.items() if times != 1} == set()
    assert {user for user, times in in_ledger.items() if times != 1} == set()
    assert set(handed_back) - set(in_ledger) == set()
    # What is there beside them was answered too, and cut between the spool and the app.
    assert len(entries) <= answered
    assert {entry.quantity for entry in entries} == {Decimal(MINI_SUB_UNITS) / 1000}
    assert list((tmp_path / "spool").glob("events-*")) == []
    assert not (tmp_path / "spool" / "rejected.jsonl").exists()
    await_value(billed.total, MINI_SUB_UNITS * len(entries))
