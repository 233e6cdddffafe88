"""What a situation happens in: a provider, a ledger and a meter, all real and on this machine."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from anthropic import Anthropic, AsyncAnthropic
from openai import AsyncOpenAI, OpenAI
from replicate.client import Client as ReplicateClient

from meterline_client import Meter, MeterSettings
from tests.integration.client.ledger_server import LedgerServer
from tests.integration.client.provider_server import ProviderServer

SHORT = {
    "input_tokens": "in",
    "output_tokens": "out",
    "cache_read_tokens": "read",
    "cache_write_tokens": "write",
    "cache_write_1h_tokens": "write1h",
}


def describe_event(event: Mapping[str, Any]) -> str:
    """Say what an event bills, in a few words: `acme: in 120, out 35 [batch] (partial)`."""
    data = event["data"]
    if "usage" in data:
        much = ", ".join(
            f"{SHORT.get(kind, kind)} {data['usage'][kind]}"
            for kind in sorted(
                data["usage"], key=lambda kind: (kind not in SHORT, kind != "input_tokens", kind)
            )
        )
    else:
        much = f"{data['meter']} {data['quantity']}"
    tier = f" [{data['tier']}]" if "tier" in data else ""
    status = f" ({data['status']})" if "status" in data else ""
    return f"{event['subject']}: {much}{tier}{status}"


class World:
    """One meter with a spool of its own, and clients that it wraps."""

    def __init__(self, provider: ProviderServer, ledger: LedgerServer, spool: Path) -> None:
        self.provider = provider
        self.ledger = ledger
        self.signals: Counter[str] = Counter()
        self._signal_lock = threading.Lock()
        self.settings = MeterSettings(
            endpoint=ledger.url,
            api_key="test-key",
            source="tests",
            spool=spool,
            linger_s=0.005,
            timeout_s=60.0,
            authorize_timeout_s=60.0,
            handle_sigterm=False,
        )
        self.meter = self.make_meter()
        self._http = httpx2.Client()

    def make_meter(self, **changes: Any) -> Meter:
        """Make a meter on this world's ledger, with other settings where given."""
        return Meter(self.settings._replace(**changes), on_signal=self._count)

    def _count(self, signal: Any) -> None:
        with self._signal_lock:
            self.signals[signal.name] += 1

    def anthropic(self, **options: Any) -> Anthropic:
        """A metered Anthropic client."""
        settings: dict[str, Any] = {
            "api_key": "k",
            "base_url": self.provider.url,
            "http_client": self._http,
        }
        return self.meter.wrap(Anthropic(**(settings | options)))

    def anthropic_async(self, **options: Any) -> AsyncAnthropic:
        """A metered asynchronous Anthropic client."""
        settings: dict[str, Any] = {"api_key": "k", "base_url": self.provider.url}
        return self.meter.wrap(AsyncAnthropic(**(settings | options)))

    def openai(self, provider: str | None = None, **options: Any) -> OpenAI:
        """A metered OpenAI client."""
        settings: dict[str, Any] = {"api_key": "k", "base_url": self.provider.url + "/v1"}
        client = OpenAI(**(settings | {"http_client": self._http} | options))
        return self.meter.wrap(client, provider=provider)

    def openai_async(self, **options: Any) -> AsyncOpenAI:
        """A metered asynchronous OpenAI client."""
        settings: dict[str, Any] = {"api_key": "k", "base_url": self.provider.url + "/v1"}
        return self.meter.wrap(AsyncOpenAI(**(settings | options)))

    def replicate(self) -> ReplicateClient:
        """A metered Replicate client that asks again at once."""
        client = ReplicateClient(api_token="k", base_url=self.provider.url)
        client.poll_interval = 0.001
        return self.meter.wrap(client)

    def settle(self) -> list[str]:
        """Deliver everything, and say what the ledger has."""
        if not self.meter.flush(60):
            raise AssertionError("the events did not reach the ledger in a minute")
        return sorted(describe_event(event) for event in self.ledger.read_events())

    def read_notes(self, name: str) -> list[dict[str, Any]]:
        """The records of one notes file."""
        path = self.settings.spool / f"{name}.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def close(self) -> None:
        """End the meter and the clients' connections."""
        self.meter.close(1)
        if (thread := self.meter._sender._thread) is not None:
            # A call under way would arrive in the next world's ledger.
            thread.join()
        self._http.close()


@contextlib.contextmanager
def making_world(provider: ProviderServer, ledger: LedgerServer) -> Iterator[World]:
    """Make a world on servers that were reset, with a new spool."""
    provider.reset()
    ledger.reset()
    logger = logging.getLogger("meterline_client")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    with tempfile.TemporaryDirectory() as directory:
        world = World(provider, ledger, Path(directory))
        try:
            yield world
        finally:
            world.close()
            logger.setLevel(level)
