"""The Stripe account of `make run`: the local Stripe, or Stripe's test mode with a key of yours.

Customers live on test clocks, in both: their subscriptions begin in the past, so that usage of the
last 30 days lies in periods that Stripe bills.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import stripe

from infra.local.stack import LOCAL, REPOSITORY, StackFailedError

_START_TIMEOUT_S = 30.0
_CLOCK_TIMEOUT_S = 120.0
_LOCAL_KEY = "sk_test_local"


@dataclass(frozen=True, slots=True)
class Subscriber:
    """A customer of the account, with its subscription and the clock that it lives on."""

    billing_customer: str
    subscription: str
    clock: str
    period_end: datetime


@dataclass(frozen=True, slots=True)
class UsageBill:
    """An invoice's period, what it asks for usage of the metered price, and all it asks."""

    name: str
    start: datetime
    end: datetime
    usage_minor: int
    total_minor: int


class StripeAccount:
    """An account at `url` (empty: Stripe itself), set up by the setup command."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        self.objects: dict[str, Any] = {}
        self.client = stripe.StripeClient(
            key, max_network_retries=3, base_addresses={"api": url} if url else {}
        )

    def set_up(self, webhook_url: str = "") -> dict[str, str]:
        """Create meters, product and prices by the setup command, as an operator would.

        With `webhook_url`, webhooks go there; the answer is their signing secrets. Raises
        `StackFailedError` with what the command said.
        """
        command = [sys.executable, "-m", "infra.cli", "setup", "--json"]
        if self.url:
            command += ["--stripe-url", self.url]
        with tempfile.TemporaryDirectory() as directory:
            secrets = Path(directory) / "webhook-secrets.json"
            if webhook_url:
                command += ["--webhook-url", webhook_url, "--secrets-file", str(secrets)]
            self._run_setup(command)
            told: dict[str, str] = json.loads(secrets.read_text()) if secrets.exists() else {}
        return told

    def _run_setup(self, command: list[str]) -> None:
        ended = subprocess.run(  # noqa: S603 - our own command
            command,
            cwd=REPOSITORY,
            env={**os.environ, "STRIPE_API_KEY": self.key},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise StackFailedError(f"setup: {ended.stderr or ended.stdout}")
        self.objects = json.loads(ended.stdout)

    def subscribe(self, customer: str, name: str, start: datetime) -> Subscriber:
        """A customer whose subscription to the base and the metered price began at `start`."""
        v1 = self.client.v1
        clock = v1.test_helpers.test_clocks.create(
            {"frozen_time": int(start.timestamp()), "name": customer}
        )
        billed = v1.customers.create(
            {
                "name": name,
                "test_clock": clock.id,
                "metadata": {"meterline_customer": customer},
                # A card is not needed: invoices are sent, not charged.
            }
        )
        prices = self.prices
        subscription = v1.subscriptions.create(
            {
                "customer": billed.id,
                "items": [{"price": prices["base"]}, {"price": prices["metered"]}],
                "collection_method": "send_invoice",
                "days_until_due": 30,
            }
        )
        end_s = subscription.to_dict()["items"]["data"][0]["current_period_end"]
        return Subscriber(billed.id, subscription.id, clock.id, datetime.fromtimestamp(end_s, UTC))

    def advance(self, subscriber: Subscriber, to: datetime) -> None:
        """Let the customer's time go on; renewals and invoices happen on the way."""
        clocks = self.client.v1.test_helpers.test_clocks
        clock = clocks.retrieve(subscriber.clock)
        if clock.frozen_time >= int(to.timestamp()):
            return
        clocks.advance(subscriber.clock, {"frozen_time": int(to.timestamp())})
        give_up_at_s = time.monotonic() + _CLOCK_TIMEOUT_S
        while (clock := clocks.retrieve(subscriber.clock)).status != "ready":
            if clock.status == "internal_failure" or time.monotonic() > give_up_at_s:
                raise StackFailedError(f"Stripe's test clock {clock.id} is {clock.status}")
            time.sleep(0.2)

    def meter_total(
        self, subscriber: Subscriber, meter: str, start: datetime, end: datetime
    ) -> int:
        """Sub-units that Stripe counts for the customer; both times are whole minutes."""
        summaries = self.client.v1.billing.meters.event_summaries.list(
            self.objects["meters"][meter],
            {
                "customer": subscriber.billing_customer,
                "start_time": int(start.timestamp()),
                "end_time": int(end.timestamp()),
            },
        )
        # Stripe's JSON has a float here, exact for whole numbers up to 2^53.
        return sum(int(summary.aggregated_value) for summary in summaries.auto_paging_iter())

    def bills(self, subscriber: Subscriber) -> list[UsageBill]:
        """Every invoice with usage so far, and the one to come."""
        invoices = self.client.v1.invoices
        made = invoices.list({"subscription": subscriber.subscription, "limit": 100})
        coming = invoices.create_preview({"subscription": subscriber.subscription})
        return [
            bill
            for invoice in [*reversed(list(made.auto_paging_iter())), coming]
            if (bill := self._read_bill(invoice.to_dict())) is not None
        ]

    @property
    def prices(self) -> dict[str, str]:
        """The ids of the plan's prices: `base` and `metered`."""
        prices: dict[str, str] = self.objects["plans"]["pro"]["prices"]
        return prices

    def _read_bill(self, invoice: dict[str, Any]) -> UsageBill | None:
        lines = [
            line
            for line in invoice["lines"]["data"]
            if line["pricing"]["price_details"]["price"] == self.prices["metered"]
        ]
        if not lines:
            return None
        return UsageBill(
            invoice.get("number") or invoice.get("id") or "next invoice",
            datetime.fromtimestamp(min(line["period"]["start"] for line in lines), UTC),
            datetime.fromtimestamp(max(line["period"]["end"] for line in lines), UTC),
            sum(line["amount"] for line in lines),
            invoice["total"],
        )


@contextmanager
def open_account() -> Iterator[StripeAccount]:
    """Stripe's test mode when `STRIPE_API_KEY` is set, else a local Stripe of our own."""
    key = os.environ.get("STRIPE_API_KEY", "")
    if not key:
        with open_local_account() as account:
            yield account
    elif key.startswith(("sk_test_", "rk_test_")):
        yield StripeAccount("", key)
    else:
        raise StackFailedError("STRIPE_API_KEY must be a test key: it begins with sk_test_")


@contextmanager
def open_local_account() -> Iterator[StripeAccount]:
    """A local Stripe of our own."""
    LOCAL.mkdir(exist_ok=True)
    ready = LOCAL / f"stripe-{os.getpid()}.json"
    log = LOCAL / "stripe.log"
    command = [sys.executable, "-m", "infra.local.stripe_server", "--owned", "--port", "0"]
    command += ["--key", _LOCAL_KEY, "--ready-file", str(ready)]
    ready.unlink(missing_ok=True)
    with log.open("wb") as output:
        server = subprocess.Popen(  # noqa: S603 - our own module
            command,
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            # Ctrl-C is for the owner, which ends this one when it is done with it.
            start_new_session=True,
        )
    try:
        yield StripeAccount(_read_url(server, ready, log), _LOCAL_KEY)
    finally:
        server.terminate()
        server.wait(10)
        ready.unlink(missing_ok=True)


def _read_url(server: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    give_up_at_s = time.monotonic() + _START_TIMEOUT_S
    while not ready.exists():
        if server.poll() is not None or time.monotonic() > give_up_at_s:
            raise StackFailedError(f"the local Stripe did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)
    url: str = json.loads(ready.read_text())["url"]
    return url
