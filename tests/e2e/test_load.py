"""A short load on the deployed stack: what it has no room for comes again, and nothing is lost."""

from __future__ import annotations

import threading

from rich.console import Console

from infra.local.stack import LocalStack
from infra.local.stripe_server import StripeControl
from tests.e2e.billed import make_customer
from tests.e2e.conftest import STRIPE_KEY, Api
from tests.load.phases import Load
from tests.load.traffic import Traffic

RATE = 20.0


def test_ten_times_the_rate_is_partly_refused_sent_again_and_billed_to_the_last_unit(
    api: Api, stack: LocalStack, stripe_url: str
) -> None:
    names = [f"under_load_{number}" for number in range(4)]
    customers = {name: make_customer(api, stripe_url, name) for name in names}
    # A limit between both rates, so that the burst is refused however fast the machine is.
    batch = 5
    address = stack.open_gateway(stack.api_host, rate=3 * RATE / batch)
    traffic = Traffic(address, api.usage_key, names, batch=batch, senders=16)
    load = Load(stack, StripeControl(stripe_url, STRIPE_KEY), customers, traffic)
    stop, console = threading.Event(), Console(quiet=True)
    sustained = load.run_phase("sustained", RATE, 10, stop, 120, console)
    burst = load.run_phase("burst", 10 * RATE, 3, stop, 120, console)
    assert sustained.figures.events == RATE * 10
    assert burst.figures.events == RATE * 30
    assert burst.figures.refused["429"] > 0
    assert load.compare() == {}
