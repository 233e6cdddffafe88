"""Whatever a delivery of the stream waits for when it is watched, it does not wait long."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from meterline.adapters.dynamodb_wire import TimedWire
from meterline.adapters.eventbridge_bus import EventBridgeBus
from meterline.errors import StorageUnavailableError
from meterline.ports import NotPublishedError
from tests.guardrail_fakes import NOW, Guarded
from tests.integration.storage.stores import make_session


@pytest.fixture
def silent_url() -> Iterator[str]:
    """A server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_calls_of_one_wire_share_the_time_that_they_are_given(silent_url: str) -> None:
    wire = TimedWire(
        make_session(), endpoint_url=silent_url, timeout_s=0.2, attempts=1000, deadline_s=100.0
    )
    with pytest.raises(StorageUnavailableError, match="the time for it is up"):
        wire.call("ListTables", {})
    wire.begin(0.5)
    began_s = time.monotonic()
    while wire.has_time():
        with pytest.raises(StorageUnavailableError):
            wire.call("ListTables", {})
    # What began within the time may take one timeout longer, and not as long as any other call.
    assert time.monotonic() - began_s < 50


def test_a_bus_that_never_answers_is_given_up_within_seconds(
    silent_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_EVENTBRIDGE", silent_url)
    guarded = Guarded()
    guarded.make("runaway")
    guarded.use("runaway", "1000")
    guarded.watch_usage([("runaway", "credits")], NOW)
    told, *_ = guarded.bus.published
    bus = EventBridgeBus("bus")
    bus._open()  # Loading the client is no part of the wait.
    began_s = time.monotonic()
    with pytest.raises(NotPublishedError):
        bus.publish(told)
    # Without bounds of its own a client waits for five minutes.
    assert time.monotonic() - began_s < 30
