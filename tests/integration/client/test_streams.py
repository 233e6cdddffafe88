"""A watched stream costs its connection and its memory no longer than a bare one does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meterline_client import unmetered
from tests.integration.client.provider_server import (
    CHAT_USAGE,
    Stream,
    completion_chunks,
    message_events,
)
from tests.integration.client.situations import CHAT, MESSAGES, Api
from tests.integration.client.world import World

pytestmark = pytest.mark.usefixtures("acme")


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def read_all(stream: Any) -> None:
    for _ in stream:
        pass


def read_one(stream: Any) -> None:
    next(stream)


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=["openai", "anthropic"])
@pytest.mark.parametrize("read", [read_all, read_one], ids=["read", "dropped"])
def test_a_stream_is_gone_as_soon_as_it_is_when_it_is_not_metered(
    world: World, api: Api, read: Callable[[Any], None]
) -> None:
    client = api.make(world)

    def is_gone() -> bool:
        stream = api.stream(client)
        response = weakref.ref(stream.response)
        read(stream)
        del stream
        return response() is None

    is_gone()
    with unmetered("to compare"):
        bare = is_gone()
    assert is_gone() is bare
    # OpenAI's own stream and its iterator refer to each other until the stream is read.
    assert bare is not (api is CHAT and read is read_one)


@pytest.mark.parametrize(
    ("api", "events"),
    [(CHAT, completion_chunks()), (MESSAGES, message_events())],
    ids=["openai", "anthropic"],
)
def test_the_app_sees_the_very_events_that_the_provider_sent(
    world: World, api: Api, events: tuple[dict[str, Any], ...]
) -> None:
    world.provider.script(Stream(events, done=api.done))
    seen = [event.to_dict() for event in api.stream(api.make(world))]
    shown = [event for event in events if event.get("choices") != []]
    assert len(seen) == len(shown)
    for found, sent in zip(seen, shown, strict=True):
        assert {name: found.get(name) for name in ("type", "id", "index", "delta")} == {
            name: sent.get(name) for name in ("type", "id", "index", "delta")
        }


@pytest.mark.parametrize("api", [CHAT, MESSAGES], ids=["openai", "anthropic"])
def test_a_stream_may_be_read_in_several_loops(world: World, api: Api) -> None:
    stream = api.stream(api.make(world))
    for _ in stream:
        break
    next(stream)
    assert world.settle() == []
    read_all(stream)
    assert world.settle() == ["acme: in 120, out 35"]


*_CHUNKS, _LAST_CHUNK = completion_chunks(usage=None)


@pytest.mark.parametrize(
    ("api", "events"),
    # As some gateways do: usage comes with a chunk that the app sees.
    [(CHAT, (*_CHUNKS, _LAST_CHUNK | {"usage": CHAT_USAGE})), (MESSAGES, message_events())],
    ids=["openai", "anthropic"],
)
def test_names_that_the_app_puts_into_what_it_passes_on_are_not_billed(
    world: World, api: Api, events: tuple[dict[str, Any], ...]
) -> None:
    world.provider.script(Stream(events, done=api.done))
    for event in api.stream(api.make(world)):
        part: Any
        for part in (event, getattr(event, "message", None)):
            if hasattr(part, "model"):
                part.model = "own-name"
                part.id = "own-id"
    world.settle()
    [event] = world.ledger.read_events()
    assert event["data"]["model"] in ("gpt-5-mini", "claude-sonnet-5-5")
    assert event["data"]["response_id"] in ("chatcmpl_01", "msg_01")
