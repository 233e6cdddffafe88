"""Situations that a call can be in, and the events that must come out of each: a table.

`python -m tests.integration.client.situations` prints it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import anthropic
import fakeredis
import openai
import pytest
import replicate.exceptions

from meterline_client import (
    AttributedThreadPool,
    ClientUnsupportedError,
    CustomerMissingError,
    MeterClosedError,
    SpoolFullError,
    acting_for,
    carry,
    unmetered,
)
from tests.integration.client.ledger_server import LedgerServer
from tests.integration.client.provider_server import (
    ANTHROPIC_USAGE,
    CHAT_USAGE,
    RESPONSES_USAGE,
    Fail,
    Hang,
    ProviderServer,
    Reset,
    Say,
    Step,
    Stream,
    completion,
    completion_chunks,
    message,
    message_events,
    prediction,
    response,
    response_events,
)
from tests.integration.client.world import World, making_world

ONE = ("acme: in 120, out 35",)
NONE: tuple[str, ...] = ()
ASK: list[Any] = [{"role": "user", "content": "Say hello."}]


@dataclass(frozen=True)
class Situation:
    """What happens, which events must come out, and which signals must be raised."""

    name: str
    expected: tuple[str, ...]
    signals: frozenset[str]
    happen: Callable[[World], Any]
    nobody: bool


SITUATIONS: list[Situation] = []


def situation(
    name: str, *expected: str, signals: tuple[str, ...] = (), nobody: bool = False
) -> Callable[[Callable[[World], Any]], Callable[[World], Any]]:
    """Add a situation to the table."""

    def add(happen: Callable[[World], Any]) -> Callable[[World], Any]:
        found = Situation(name, tuple(sorted(expected)), frozenset(signals), happen, nobody)
        SITUATIONS.append(found)
        return happen

    return add


@dataclass(frozen=True)
class Row:
    """One row of the table: what came out, and whether it is exactly what must."""

    name: str
    expected: tuple[str, ...]
    came_out: tuple[str, ...]
    problem: str

    @property
    def is_right(self) -> bool:
        """Whether exactly the right events came out."""
        return not self.problem and self.expected == self.came_out


def run_situation(found: Situation, provider: ProviderServer, ledger: LedgerServer) -> Row:
    """Let one situation happen in a world of its own."""
    with making_world(provider, ledger) as world:

        def happen() -> None:
            with contextlib.ExitStack() as stack:
                if not found.nobody:
                    stack.enter_context(acting_for("acme", user="u_1", action="test"))
                result = found.happen(world)
                if asyncio.iscoroutine(result):
                    asyncio.run(result)

        problem = ""
        try:
            contextvars.copy_context().run(happen)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - a row of the table
            problem = f"{type(error).__name__}: {error}"
        came_out = tuple(world.settle())
        raised = frozenset(world.signals)
        if not problem and raised != found.signals:
            problem = f"signals {sorted(raised)} instead of {sorted(found.signals)}"
        ids = [event["id"] for event in ledger.read_events()]
        if len(set(ids)) != len(ids):
            problem = problem or "an id was used twice"
        return Row(found.name, found.expected, came_out, problem)


def run_situations() -> list[Row]:
    """Let all of them happen, one after another."""
    provider, ledger = ProviderServer(), LedgerServer()
    try:
        return [run_situation(found, provider, ledger) for found in SITUATIONS]
    finally:
        provider.close()
        ledger.close()


def format_table(rows: list[Row]) -> str:
    """The table as text."""
    lines = [f"{'':4} {'situation':66} events that came out"]
    for number, row in enumerate(rows, 1):
        came = "; ".join(f"{n} x {e}" if n > 1 else e for e, n in _tally(row.came_out)) or "none"
        verdict = "" if row.is_right else f"   WRONG: expected {row.expected} {row.problem}"
        lines.append(f"{number:4} {row.name:66} {came}{verdict}")
    return "\n".join(lines)


def _tally(events: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    for event, group in itertools.groupby(events):
        yield event, len(list(group))


# The three model APIs, each in the same situations


@dataclass(frozen=True)
class Api:
    """One model API: how it is called, and how its server answers."""

    name: str
    call: Callable[[Any], Any]
    stream: Callable[[Any], Any]
    resource: Callable[[Any], Any]
    arguments: Mapping[str, Any]
    make: Callable[..., Any]
    make_async: Callable[..., Any]
    events: tuple[Mapping[str, Any], ...]
    done: bool
    error: type[Exception]
    cut: tuple[str, ...]
    """What comes of a stream that was cut after its first three events."""
    cut_signal: str
    status_error: type[Exception]


MESSAGES = Api(
    name="anthropic",
    call=lambda c: c.messages.create(model="claude-sonnet-5-5", max_tokens=50, messages=ASK),
    stream=lambda c: c.messages.create(
        model="claude-sonnet-5-5", max_tokens=50, messages=ASK, stream=True
    ),
    resource=lambda c: c.messages,
    arguments={"model": "claude-sonnet-5-5", "max_tokens": 50, "messages": ASK},
    make=lambda w, **o: w.anthropic(**o),
    make_async=lambda w, **o: w.anthropic_async(**o),
    events=message_events(),
    done=False,
    error=anthropic.APIError,
    cut=("acme: in 120, out 1 (partial)",),
    cut_signal="usage_partial",
    status_error=anthropic.APIStatusError,
)
CHAT = Api(
    name="openai chat",
    call=lambda c: c.chat.completions.create(model="gpt-5-mini", messages=ASK),
    stream=lambda c: c.chat.completions.create(model="gpt-5-mini", messages=ASK, stream=True),
    resource=lambda c: c.chat.completions,
    arguments={"model": "gpt-5-mini", "messages": ASK},
    make=lambda w, **o: w.openai(**o),
    make_async=lambda w, **o: w.openai_async(**o),
    events=completion_chunks(),
    done=True,
    error=openai.APIError,
    cut=(),
    cut_signal="usage_unknown",
    status_error=openai.APIStatusError,
)
RESPONSES = Api(
    name="openai responses",
    call=lambda c: c.responses.create(model="gpt-5-mini", input="Say hello."),
    stream=lambda c: c.responses.create(model="gpt-5-mini", input="Say hello.", stream=True),
    resource=lambda c: c.responses,
    arguments={"model": "gpt-5-mini", "input": "Say hello."},
    make=lambda w, **o: w.openai(**o),
    make_async=lambda w, **o: w.openai_async(**o),
    events=response_events(),
    done=False,
    error=openai.APIError,
    cut=(),
    cut_signal="usage_unknown",
    status_error=openai.APIStatusError,
)


def add_shared_situations(api: Api) -> None:
    """Put one API into every situation that all of them can be in."""
    name = api.name

    @situation(f"{name}: answered", *ONE)
    def answered(world: World) -> None:
        api.call(api.make(world))

    @situation(f"{name}: first attempt 500, then answered", *ONE)
    def first_fails(world: World) -> None:
        world.provider.script(Fail(500))
        api.call(api.make(world))
        assert len(world.provider.seen) == 2

    @situation(f"{name}: 529, 503, then answered", *ONE)
    def two_fail(world: World) -> None:
        world.provider.script(Fail(529), Fail(503))
        api.call(api.make(world))
        assert len(world.provider.seen) == 3

    @situation(f"{name}: 429 with Retry-After, then answered", *ONE)
    def limited(world: World) -> None:
        world.provider.script(Fail(429, retry_after="1"))
        api.call(api.make(world))
        assert len(world.provider.seen) == 2

    @situation(f"{name}: timeout, then answered", *ONE)
    def times_out(world: World) -> None:
        world.provider.script(Hang())
        api.call(api.make(world, timeout=1))
        assert len(world.provider.seen) == 2

    @situation(f"{name}: connection reset, then answered", *ONE)
    def reset(world: World) -> None:
        world.provider.script(Reset())
        api.call(api.make(world))
        assert len(world.provider.seen) == 2

    @situation(f"{name}: every attempt fails")
    def all_fail(world: World) -> None:
        world.provider.script(Fail(500), Fail(500), Fail(500))
        with pytest.raises(api.status_error):
            api.call(api.make(world))

    @situation(f"{name}: refused as a bad request")
    def refused(world: World) -> None:
        world.provider.script(Fail(400))
        with pytest.raises(api.status_error):
            api.call(api.make(world))

    @situation(f"{name}: failed, and the app calls again", *ONE)
    def app_retries(world: World) -> None:
        client = api.make(world, max_retries=0)
        world.provider.script(Fail(500))
        with pytest.raises(api.status_error):
            api.call(client)
        api.call(client)

    @situation(f"{name}: raw response", *ONE)
    def raw(world: World) -> None:
        found = api.resource(api.make(world)).with_raw_response.create(**api.arguments)
        assert found.parse().id

    @situation(f"{name}: raw response, read as it streams in", *ONE)
    def raw_streamed(world: World) -> None:
        resource = api.resource(api.make(world))
        with resource.with_streaming_response.create(**api.arguments) as found:
            assert found.parse().id

    @situation(f"{name}: raw response, never read", signals=("usage_unknown",))
    def raw_unread(world: World) -> None:
        resource = api.resource(api.make(world))
        with resource.with_streaming_response.create(**api.arguments) as found:
            assert found.status_code == 200

    @situation(f"{name}: stream read to its end", *ONE)
    def streamed(world: World) -> None:
        assert len(list(api.stream(api.make(world)))) >= len(api.events) - 1

    @situation(f"{name}: stream, first attempt 500", *ONE)
    def stream_first_fails(world: World) -> None:
        world.provider.script(Fail(500))
        for _ in api.stream(api.make(world)):
            pass

    @situation(f"{name}: raw stream, its lines read by the app", *ONE)
    def raw_lines(world: World) -> None:
        world.provider.script(Stream(api.events, done=api.done))
        resource = api.resource(api.make(world))
        with resource.with_streaming_response.create(**api.arguments, stream=True) as found:
            assert sum("data:" in line for line in found.iter_lines()) >= len(api.events)

    @situation(f"{name}: raw stream, parsed by the app", *ONE)
    def raw_parsed(world: World) -> None:
        world.provider.script(Stream(api.events, done=api.done))
        resource = api.resource(api.make(world))
        found = resource.with_raw_response.create(**api.arguments, stream=True)
        assert len(list(found.parse())) == len(api.events)

    @situation(f"{name}: compressed stream", *ONE)
    def compressed(world: World) -> None:
        world.provider.script(Stream(api.events, is_compressed=True))
        assert len(list(api.stream(api.make(world)))) >= len(api.events) - 1

    @situation(f"{name}: async raw responses, read at once and as they stream in", *ONE * 2)
    async def raw_async(world: World) -> None:
        async with api.make_async(world) as client:
            resource = api.resource(client)
            await resource.with_raw_response.create(**api.arguments)
            async with resource.with_streaming_response.create(**api.arguments) as found:
                assert await found.read()

    @situation(f"{name}: stream cut by the server", *api.cut, signals=(api.cut_signal,))
    def cut(world: World) -> None:
        world.provider.script(Stream(api.events[:3], then="cut"))
        with pytest.raises((api.error, Exception)):
            for _ in api.stream(api.make(world)):
                pass

    @situation(f"{name}: stream closed early by the app", *api.cut, signals=(api.cut_signal,))
    def closed_early(world: World) -> None:
        world.provider.script(Stream(api.events[:3], then="hold"))
        with api.stream(api.make(world)) as stream:
            for _ in itertools.islice(stream, 3):
                pass

    @situation(f"{name}: stream dropped without closing", *api.cut, signals=(api.cut_signal,))
    def dropped(world: World) -> None:
        world.provider.script(Stream(api.events[:3], then="hold"))
        stream = api.stream(api.make(world))
        next(stream)
        del stream
        gc.collect()

    @situation(f"{name}: stream opened and closed unread", signals=("usage_unknown",))
    def unread(world: World) -> None:
        world.provider.script(Stream(api.events[:3], then="hold"))
        api.stream(api.make(world)).close()

    @situation(f"{name}: app fails while reading", *api.cut, signals=(api.cut_signal,))
    def app_fails_reading(world: World) -> None:
        world.provider.script(Stream(api.events[:3], then="hold"))

        def read() -> None:
            with api.stream(api.make(world)) as stream:
                next(iter(stream))
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            read()

    @situation(f"{name}: app fails after the answer", *ONE)
    def app_fails_after(world: World) -> None:
        def use() -> None:
            api.call(api.make(world))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            use()

    @situation(f"{name}: async, answered after a 500", *ONE)
    async def answered_async(world: World) -> None:
        world.provider.script(Fail(500))
        async with api.make_async(world) as client:
            await api.call(client)

    @situation(f"{name}: async, task cancelled while waiting")
    async def cancelled(world: World) -> None:
        world.provider.script(Hang())
        async with api.make_async(world) as client:
            task = asyncio.create_task(api.call(client))
            while not world.provider.seen:
                await asyncio.sleep(0.002)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    @situation(f"{name}: async stream read to its end", *ONE)
    async def streamed_async(world: World) -> None:
        async with api.make_async(world) as client:
            stream = await api.stream(client)
            assert [event async for event in stream]

    @situation(f"{name}: async stream, task cancelled", *api.cut, signals=(api.cut_signal,))
    async def stream_cancelled(world: World) -> None:
        world.provider.script(Stream(api.events[:3], then="hold"))
        read = asyncio.Event()

        async def consume(client: Any) -> None:
            stream = await api.stream(client)
            async for number, _ in _count_events(stream):
                if number == 3:
                    read.set()

        async with api.make_async(world) as client:
            task = asyncio.create_task(consume(client))
            await read.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    @situation(f"{name}: 12 threads at once", *ONE * 12)
    def threads(world: World) -> None:
        client = api.make(world)
        with AttributedThreadPool(6) as pool:
            list(pool.map(lambda _: api.call(client), range(12)))

    @situation(f"{name}: 12 tasks at once", *ONE * 12)
    async def tasks(world: World) -> None:
        async with api.make_async(world) as client:
            await asyncio.gather(*(api.call(client) for _ in range(12)))


async def _count_events(stream: Any) -> AsyncIterator[tuple[int, Any]]:
    number = 0
    async for event in stream:
        number += 1
        yield number, event


for _api in (MESSAGES, CHAT, RESPONSES):
    add_shared_situations(_api)


# What one provider reports, and another does not


def add_answer(name: str, api: Api, step: Step, *expected: str, **options: Any) -> None:
    """Add a situation in which the provider answers one call with this."""

    @situation(f"{api.name}: {name}", *expected, **options)
    def answered(world: World) -> None:
        world.provider.script(step)
        api.call(api.make(world))


add_answer(
    "tool use",
    MESSAGES,
    Say(
        message(
            content=[{"type": "tool_use", "id": "t1", "name": "search", "input": {"q": "x"}}],
            stop_reason="tool_use",
        )
    ),
    *ONE,
)
add_answer(
    "cached input counted once",
    MESSAGES,
    Say(message({**ANTHROPIC_USAGE, "cache_read_input_tokens": 900})),
    "acme: in 120, read 900, out 35",
)
add_answer(
    "cache written for 5 minutes and for 1 hour",
    MESSAGES,
    Say(
        message(
            {
                **ANTHROPIC_USAGE,
                "cache_creation_input_tokens": 500,
                "cache_creation": {
                    "ephemeral_5m_input_tokens": 200,
                    "ephemeral_1h_input_tokens": 300,
                },
            }
        )
    ),
    "acme: in 120, write1h 300, write 200, out 35",
)
add_answer(
    "priority tier",
    MESSAGES,
    Say(message({**ANTHROPIC_USAGE, "service_tier": "priority"})),
    "acme: in 120, out 35 [priority]",
)
add_answer(
    "no usage in the answer",
    CHAT,
    Say({k: v for k, v in completion().items() if k != "usage"}),
    signals=("usage_unknown",),
)
add_answer(
    "tool calls",
    CHAT,
    Say(
        completion(
            choices=[
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [
                            {
                                "id": "c1",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    },
                    "finish_reason": "tool_calls",
                    "logprobs": None,
                }
            ]
        )
    ),
    *ONE,
)
add_answer(
    "cached input counted once",
    CHAT,
    Say(completion({**CHAT_USAGE, "prompt_tokens_details": {"cached_tokens": 100}})),
    "acme: in 20, read 100, out 35",
)
add_answer(
    "reasoning tokens counted once",
    CHAT,
    Say(completion({**CHAT_USAGE, "completion_tokens_details": {"reasoning_tokens": 30}})),
    *ONE,
)
add_answer(
    "flex tier",
    CHAT,
    Say(completion(service_tier="flex")),
    "acme: in 120, out 35 [flex]",
)
add_answer(
    "cached input counted once",
    RESPONSES,
    Say(response({**RESPONSES_USAGE, "input_tokens_details": {"cached_tokens": 100}})),
    "acme: in 20, read 100, out 35",
)
add_answer(
    "cut at its limit of tokens",
    RESPONSES,
    Say(response(status="incomplete", incomplete_details={"reason": "max_output_tokens"})),
    *ONE,
)
add_answer(
    "failed, with usage reported",
    RESPONSES,
    Say(response(status="failed", error={"code": "server_error", "message": "x"})),
)


@situation("anthropic: stream helper, final message", *ONE)
def anthropic_helper(world: World) -> None:
    client = world.anthropic()
    with client.messages.stream(model="claude-sonnet-5-5", max_tokens=50, messages=ASK) as stream:
        assert stream.get_final_message().usage.output_tokens == 35


@situation(
    "anthropic: stream helper left early",
    "acme: in 120, out 1 (partial)",
    signals=("usage_partial",),
)
def anthropic_helper_left(world: World) -> None:
    world.provider.script(Stream(message_events()[:4], then="hold"))
    client = world.anthropic()
    with client.messages.stream(model="claude-sonnet-5-5", max_tokens=50, messages=ASK) as stream:
        next(iter(stream.text_stream))


@situation(
    "anthropic: cumulative usage in the stream is not added", "acme: in 130, read 900, out 40"
)
def anthropic_cumulative(world: World) -> None:
    end = {"input_tokens": 130, "cache_read_input_tokens": 900, "output_tokens": 40}
    world.provider.script(Stream(message_events(end=end)))
    for _ in MESSAGES.stream(world.anthropic()):
        pass


@situation("anthropic: the provider reports an error in mid-stream")
def anthropic_error_event(world: World) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    world.provider.script(Stream((*message_events()[:3], error)))
    with pytest.raises(anthropic.APIStatusError):
        list(MESSAGES.stream(world.anthropic()))


@situation("anthropic: beta messages", *ONE)
def anthropic_beta(world: World) -> None:
    world.anthropic().beta.messages.create(model="claude-sonnet-5-5", max_tokens=9, messages=ASK)


@situation("anthropic: a tool runner's two calls", *ONE * 2)
def anthropic_tool_runner(world: World) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "find_weather", "input": {"place": "Oslo"}}
    world.provider.script(Say(message(content=[use], stop_reason="tool_use")))

    @anthropic.beta_tool
    def find_weather(place: str) -> str:
        """Find the weather.

        Args:
            place: Where.
        """
        return f"rain in {place}"

    runner = world.anthropic().beta.messages.tool_runner(
        model="claude-sonnet-5-5", max_tokens=50, messages=ASK, tools=[find_weather]
    )
    assert runner.until_done().stop_reason == "end_turn"


@situation("openai responses: compacted", *ONE)
def responses_compact(world: World) -> None:
    world.openai().responses.compact(model="gpt-5-mini", input="hello")


@situation("openai responses: in the background, cancelled")
def responses_cancelled(world: World) -> None:
    client = world.openai()
    world.provider.script(Say(response(None, "queued")), Say(response(None, "cancelled")))
    client.responses.create(model="gpt-5-mini", input="x", background=True)
    client.responses.cancel("resp_01")


@situation("anthropic: counting tokens is free")
def anthropic_counting(world: World) -> None:
    world.anthropic().messages.count_tokens(model="claude-sonnet-5-5", messages=ASK)


@situation("anthropic: a batch's results, read twice", "acme: in 120, out 35 [batch]")
def anthropic_batch(world: World) -> None:
    body = message({**ANTHROPIC_USAGE, "service_tier": "batch"})
    for _ in range(2):
        world.meter.record_response("anthropic", body, id="msgbatch_1/first")
        assert world.meter.flush(60)


@situation("anthropic: a batch's failed result")
def anthropic_batch_failed(world: World) -> None:
    world.meter.record_response("anthropic", {"type": "error", "error": {}}, id="msgbatch_1/2")


@situation("openai chat: a gateway reports an error in mid-stream")
def chat_error_chunk(world: World) -> None:
    error = {"error": {"code": 502, "message": "upstream is down"}, "choices": []}
    world.provider.script(Stream((*completion_chunks()[:3], error), done=True))
    with pytest.raises(openai.APIError):
        list(CHAT.stream(world.openai(provider="openrouter")))


@situation("anthropic: the provider reports an error in a raw stream")
def anthropic_raw_error(world: World) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
    world.provider.script(Stream((*message_events()[:3], error)))
    resource = world.anthropic().messages
    with resource.with_streaming_response.create(**MESSAGES.arguments, stream=True) as found:
        assert b"overloaded" in found.read()


@situation("openai chat: usage asked for by the app is shown to it", *ONE)
def chat_usage_asked(world: World) -> None:
    options: Any = {"include_usage": True}
    chunks = list(
        world.openai().chat.completions.create(
            model="gpt-5-mini", messages=ASK, stream=True, stream_options=options
        )
    )
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 35


@situation("openai chat: usage asked for by the meter is kept from the app", *ONE)
def chat_usage_hidden(world: World) -> None:
    chunks = list(CHAT.stream(world.openai()))
    assert all(chunk.choices for chunk in chunks)
    assert world.provider.seen[0].body["stream_options"] == {"include_usage": True}


@situation("openai chat: a gateway that reports no usage in streams", signals=("usage_unknown",))
def chat_stream_without_usage(world: World) -> None:
    world.provider.script(Stream(completion_chunks(None), done=True))
    list(CHAT.stream(world.openai()))


@situation("openai chat: stream helper", *ONE)
def chat_helper(world: World) -> None:
    with world.openai().chat.completions.stream(model="gpt-5-mini", messages=ASK) as stream:
        stream.until_done()


@situation("openai chat: stream helper left early", signals=("usage_unknown",))
def chat_helper_left(world: World) -> None:
    world.provider.script(Stream(completion_chunks()[:3], then="hold"))
    with world.openai().chat.completions.stream(model="gpt-5-mini", messages=ASK) as stream:
        next(iter(stream))


@situation("openai chat: parse()", *ONE)
def chat_parse(world: World) -> None:
    world.openai().chat.completions.parse(model="gpt-5-mini", messages=ASK)


@situation("openai chat: a copy of the client, with_options()", *ONE)
def chat_copy(world: World) -> None:
    CHAT.call(world.openai().with_options(timeout=60))


@situation("openai chat: a client wrapped twice", *ONE)
def wrapped_twice(world: World) -> None:
    CHAT.call(world.meter.wrap(world.openai()))


@situation("openai: embeddings", "acme: in 120, out 0")
def embeddings(world: World) -> None:
    world.openai().embeddings.create(model="text-embedding-3-small", input="hello")


@situation("openai: a path with usage that is not metered is told", signals=("path_unmetered",))
def path_unmetered(world: World) -> None:
    world.openai().post("/new/thing", cast_to=object, body={})
    found: Any = world.openai().post("/new/thing", cast_to=openai.types.Completion, body={})
    assert found.usage


@situation("openai responses: stream helper", *ONE)
def responses_helper(world: World) -> None:
    with world.openai().responses.stream(model="gpt-5-mini", input="hello") as stream:
        assert stream.get_final_response().usage


@situation("openai responses: stream that ends as failed")
def responses_stream_failed(world: World) -> None:
    world.provider.script(Stream(response_events(end="failed")))
    list(RESPONSES.stream(world.openai()))


@situation("openai responses: stream cut at its limit of tokens", *ONE)
def responses_stream_incomplete(world: World) -> None:
    world.provider.script(Stream(response_events(end="incomplete")))
    list(RESPONSES.stream(world.openai()))


@situation("openai responses: in the background, asked three times", *ONE)
def responses_background(world: World) -> None:
    client = world.openai()
    world.provider.script(Say(response(None, "queued")))
    running = response(None, "in_progress")
    world.provider.show_prediction("resp_01", running, response(), response())
    found = client.responses.create(model="gpt-5-mini", input="x", background=True)
    for _ in range(3):
        found = client.responses.retrieve(found.id)
    assert found.status == "completed"


@situation("openai responses: in the background, failed in the end")
def responses_background_failed(world: World) -> None:
    client = world.openai()
    world.provider.script(Say(response(None, "queued")))
    world.provider.show_prediction("resp_01", response(None, "failed"))
    client.responses.create(model="gpt-5-mini", input="x", background=True)
    client.responses.retrieve("resp_01")


@situation("openai responses: in the background, never asked", signals=("usage_unknown",))
def responses_background_lost(world: World) -> None:
    world.provider.script(Say(response(None, "queued")))
    world.openai().responses.create(model="gpt-5-mini", input="x", background=True)
    world.meter.close()
    assert world.read_notes("unknown")[0]["response_id"] == "resp_01"


for _gateway in ("openrouter", "litellm", "vercel"):

    @situation(f"gateway {_gateway}: answered", *ONE)
    def gateway(world: World, name: str = _gateway) -> None:
        usage = {**CHAT_USAGE, "cost": 0.00014}
        world.provider.script(Say(completion(usage, model="openai/gpt-5-mini")))
        CHAT.call(world.openai(provider=name))
        assert world.meter.flush(60)
        assert world.ledger.read_events()[0]["data"]["provider"] == name

    @situation(f"gateway {_gateway}: streamed", *ONE)
    def gateway_streamed(world: World, name: str = _gateway) -> None:
        world.provider.script(Stream(completion_chunks(), done=True))
        list(CHAT.stream(world.openai(provider=name)))


# Replicate

PAINTED = "acme: predict_time_ms 1250"


@situation("replicate: run", PAINTED)
def replicate_run(world: World) -> None:
    world.replicate().run("acme/painter", input={"prompt": "a cat"})


@situation("replicate: created, then polled by the app", PAINTED)
def replicate_polled(world: World) -> None:
    world.provider.script(Say(prediction("starting")))
    world.provider.show_prediction("pred_01", prediction("processing"), prediction())
    created = world.replicate().predictions.create(version="v1", input={"prompt": "a cat"})
    created.wait()
    created.reload()


@situation("replicate: async", PAINTED)
async def replicate_async(world: World) -> None:
    await world.replicate().async_run("acme/painter", input={"prompt": "a cat"})


@situation("replicate: answered while processing, and never asked again", PAINTED)
def replicate_left_processing(world: World) -> None:
    world.provider.script(Say(prediction("processing", output="x")))
    world.provider.show_prediction("pred_01", prediction())
    world.replicate().run("acme/painter", input={"prompt": "a cat"})
    _wait_until(lambda: bool(world.ledger.read_events()))


@situation("replicate: streamed", PAINTED)
def replicate_streamed(world: World) -> None:
    urls = {"stream": world.provider.url + "/stream/1"}
    world.provider.script(Say(prediction("starting", urls=urls)))
    world.provider.show_prediction("pred_01", prediction())
    words = [str(e) for e in world.replicate().stream("acme/painter", input={"prompt": "x"})]
    assert words[:3] == ["a", "b", "c"]
    _wait_until(lambda: bool(world.ledger.read_events()))


@situation("replicate: failed")
def replicate_failed(world: World) -> None:
    world.provider.script(Say(prediction("failed")))
    with pytest.raises(replicate.exceptions.ModelError):
        world.replicate().run("acme/painter", input={"prompt": "a cat"})


@situation("replicate: cancelled")
def replicate_cancelled(world: World) -> None:
    client = world.replicate()
    world.provider.script(Say(prediction("starting")), Say(prediction("canceled")))
    client.predictions.create(version="v1", input={}).cancel()


@situation("replicate: refused")
def replicate_refused(world: World) -> None:
    world.provider.script(Fail(422))
    with pytest.raises(replicate.exceptions.ReplicateError):
        world.replicate().run("acme/painter", input={"prompt": "a cat"})


@situation("replicate: a language model's tokens", "acme: in 12, out 34")
def replicate_tokens(world: World) -> None:
    metrics = {"predict_time": 1.25, "input_token_count": 12, "output_token_count": 34}
    world.provider.script(Say(prediction(metrics=metrics)))
    world.replicate().run("meta/llama", input={"prompt": "hello"})


@situation("replicate: listing what was run before is free")
def replicate_listing(world: World) -> None:
    world.provider.show_prediction("pred_99", prediction(id="pred_99"))
    world.replicate().predictions.get("pred_99")


# Caches


def _answer_through(world: World, cache: Any, **options: Any) -> Callable[[str], str]:
    client = world.openai()

    @world.meter.cached(cache, key=lambda question: f"answer:{question}", **options)
    def answer(question: str) -> str:
        found: Any = CHAT.call(client)
        return str(found.choices[0].message.content)

    return answer


@situation("cache: a miss, then three hits", *ONE)
def cache_hits(world: World) -> None:
    answer = _answer_through(world, {})
    assert {answer("q") for _ in range(4)} == {"Hello."}
    assert len(world.provider.seen) == 1


@situation("cache: Redis, a miss, then a hit, with a time to live", *ONE)
def cache_redis(world: World) -> None:
    store = fakeredis.FakeRedis()
    answer = _answer_through(world, store, ttl_s=60)
    assert answer("q") == answer("q") == "Hello."
    assert 0 < store.ttl("answer:q") <= 60


@situation("cache: two keys miss once each", *ONE * 2)
def cache_two_keys(world: World) -> None:
    answer = _answer_through(world, {})
    for question in "abab":
        answer(question)


@situation("cache: ten threads want one key at once", *ONE)
def cache_stampede(world: World) -> None:
    answer = _answer_through(world, {})
    barrier = threading.Barrier(10)

    def ask() -> str:
        barrier.wait()
        return answer("q")

    with AttributedThreadPool(10) as pool:
        assert {f.result() for f in [pool.submit(ask) for _ in range(10)]} == {"Hello."}


@situation("cache: ten tasks want one key at once", *ONE)
async def cache_stampede_async(world: World) -> None:
    async with world.openai_async() as client:

        @world.meter.cached(fakeredis.FakeAsyncRedis(), key=lambda: "q")
        async def answer() -> str:
            found = await CHAT.call(client)
            return str(found.choices[0].message.content)

        assert set(await asyncio.gather(*(answer() for _ in range(10)))) == {"Hello."}


@situation("cache: the first of ten fails, the next one answers all", *ONE)
def cache_leader_fails(world: World) -> None:
    client = world.openai(max_retries=0)
    world.provider.script(Fail(500))
    store: dict[str, Any] = {}

    @world.meter.cached(store, key=lambda: "q")
    def answer() -> str:
        return str(CHAT.call(client).choices[0].message.content)

    def ask() -> str:
        try:
            return answer()
        except openai.APIStatusError:
            return "failed"

    with AttributedThreadPool(10) as pool:
        found = sorted(f.result() for f in [pool.submit(ask) for _ in range(10)])
    assert found == ["Hello."] * 9 + ["failed"]


@situation("cache: the first of three tasks is cancelled", *ONE)
async def cache_leader_cancelled(world: World) -> None:
    world.provider.script(Hang())
    async with world.openai_async() as client:

        @world.meter.cached({}, key=lambda: "q")
        async def answer() -> str:
            found = await CHAT.call(client)
            return str(found.choices[0].message.content)

        first, *others = (asyncio.create_task(answer()) for _ in range(3))
        while not world.provider.seen:
            await asyncio.sleep(0.002)
        first.cancel()
        assert await asyncio.gather(*others) == ["Hello."] * 2


@situation(
    "cache: it is down, so each call is made and metered", *ONE * 2, signals=("cache_failed",)
)
def cache_down(world: World) -> None:
    server = fakeredis.FakeServer()
    server.connected = False
    answer = _answer_through(world, fakeredis.FakeRedis(server=server))
    assert answer("q") == answer("q") == "Hello."


@situation("cache: a hit inside a measured block makes it free", "acme: outcomes 1", *ONE)
def cache_in_block(world: World) -> None:
    answer = _answer_through(world, {})
    for _ in range(3):
        with world.meter.measure(meter="outcomes", quantity=1):
            answer("q")


@situation("cache: the billed customer is who missed", *ONE)
def cache_other_customer(world: World) -> None:
    answer = _answer_through(world, {})
    answer("q")
    with acting_for("globex"):
        answer("q")


# Whose call it is


@situation("nobody is acting: the provider is not called", nobody=True)
def nobody(world: World) -> None:
    for call in (MESSAGES, CHAT, RESPONSES):
        with pytest.raises(CustomerMissingError):
            call.call(call.make(world))
    with pytest.raises(CustomerMissingError):
        world.replicate().run("acme/painter", input={})
    assert world.provider.seen == []


@situation("a plain thread has no customer: the provider is not called")
def plain_thread(world: World) -> None:
    client = world.openai()
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(CHAT.call, client).exception()
    assert isinstance(error, CustomerMissingError)
    assert world.provider.seen == []


@situation("a plain thread, carried", *ONE)
def carried_thread(world: World) -> None:
    client = world.openai()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(carry(CHAT.call), client).result()


@situation("asyncio.to_thread keeps the customer", *ONE)
async def to_thread(world: World) -> None:
    await asyncio.to_thread(CHAT.call, world.openai())


@situation(
    "tasks of three customers, interleaved", *(f"c{n}: in 120, out 35" for n in (0, 0, 1, 1, 2, 2))
)
async def three_customers(world: World) -> None:
    async with world.openai_async() as client:

        async def call(number: int) -> None:
            with acting_for(f"c{number % 3}"):
                await asyncio.sleep(0)
                await CHAT.call(client)

        await asyncio.gather(*(call(number) for number in range(6)))


@situation("a stream read in another's context is its opener's", *ONE)
def stream_handed_over(world: World) -> None:
    stream = CHAT.stream(world.openai())
    with acting_for("globex"):
        list(stream)


@situation("the platform pays: unmetered", nobody=True)
def platform_pays(world: World) -> None:
    with unmetered("evaluation of prompts"):
        CHAT.call(world.openai())
    assert len(world.provider.seen) == 1


@situation("an object that is no known client is refused")
def unknown_client(world: World) -> None:
    with pytest.raises(ClientUnsupportedError):
        world.meter.wrap(object())


# Work that the app measures


@situation("measured: four images", "acme: images 4")
def images(world: World) -> None:
    with world.meter.measure(provider="studio", model="draw-2") as work:
        work.use(images=3)
        work.use(images=1)


@situation("measured: the block fails")
def block_fails(world: World) -> None:
    with pytest.raises(ZeroDivisionError), world.meter.measure(quantity=1):
        raise ZeroDivisionError


@situation("measured: the block says nothing", signals=("usage_unknown",))
def block_silent(world: World) -> None:
    with world.meter.measure():
        pass


@situation("measured: retried inside one block", "acme: outcomes 1")
def block_retried(world: World) -> None:
    with world.meter.measure(meter="outcomes", quantity=1):
        for attempt in range(3):
            with contextlib.suppress(ZeroDivisionError):
                1 // (attempt // 2)


@situation("measured: the same id twice is one event", "acme: outcomes 1")
def block_same_id(world: World) -> None:
    for _ in range(2):
        with world.meter.measure(meter="outcomes", quantity=1, id="report-7"):
            pass
        assert world.meter.flush(60)


@situation("measured: async, with GPU time", "acme: predict_time_ms 250")
async def block_async(world: World) -> None:
    async with world.meter.measure(provider="own", model="gpu") as work:
        await asyncio.sleep(0)
        work.use(predict_time_ms=250)


@situation(
    "measured: decorated functions", "acme: outcomes 1", "acme: outcomes 0.5", "acme: images 2"
)
async def decorated(world: World) -> None:
    @world.meter.metered(meter="outcomes", quantity=1, action="report")
    def report() -> str:
        return "done"

    @world.meter.metered(meter="outcomes", quantity="0.5")
    async def draft() -> str:
        return "done"

    @world.meter.metered(usage=lambda result: {"images": len(result)})
    def draw() -> list[str]:
        return ["a", "b"]

    assert (report(), await draft(), len(draw())) == ("done", "done", 2)


@situation("measured: a decorated function that fails")
def decorated_fails(world: World) -> None:
    @world.meter.metered(meter="outcomes", quantity=1)
    def report() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        report()


@situation("measured: floats are refused", signals=())
def floats(world: World) -> None:
    with pytest.raises(TypeError), world.meter.measure() as work:
        work.count(1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        world.meter.measure(quantity=0.1)  # type: ignore[arg-type]


# Delivery


@situation("delivery: Meterline answers 500, 503 and 429 first", *ONE)
def service_fails(world: World) -> None:
    world.ledger.script(500, 503, 429)
    CHAT.call(world.openai())
    _deliver_despite(world, "service_unreachable")


@situation("delivery: the answer is lost after the effect", *ONE)
def answer_lost(world: World) -> None:
    world.ledger.script("lost")
    CHAT.call(world.openai())
    _deliver_despite(world, "service_unreachable")


@situation("delivery: a captive portal answers 200", *ONE)
def captive_portal(world: World) -> None:
    world.ledger.script("page")
    CHAT.call(world.openai())
    _deliver_despite(world, "service_refused")


@situation("delivery: the key was wrong for a while", *ONE)
def key_wrong(world: World) -> None:
    world.ledger.script(401, 403)
    CHAT.call(world.openai())
    _deliver_despite(world, "service_refused")


@situation("delivery: too large a report is halved", *ONE * 8)
def report_halved(world: World) -> None:
    world.meter.close()
    world.meter = world.make_meter(linger_s=60.0)
    client = world.openai()
    for _ in range(8):
        CHAT.call(client)
    world.ledger.script(413, 413)
    assert world.meter.flush(60)
    assert world.ledger.reports[:3] == [8, 4, 2]


@situation(
    "delivery: one customer is unknown, the others are billed", *ONE, signals=("event_rejected",)
)
def one_rejected(world: World) -> None:
    world.ledger.rejects["globex"] = "customer_unknown"
    client = world.openai()
    CHAT.call(client)
    with acting_for("globex"):
        CHAT.call(client)
    assert world.meter.flush(60)
    (note,) = world.read_notes("rejected")
    assert (note["code"], note["event"]["subject"]) == ("customer_unknown", "globex")


@situation("delivery: the process ends before it could send", *ONE)
def next_process(world: World) -> None:
    world.meter.close()
    world.meter = world.make_meter(endpoint="http://127.0.0.1:9", timeout_s=0.2)
    CHAT.call(world.openai())
    assert world.meter.close(0.3) is False
    world.signals.clear()
    world.meter = world.make_meter()


@situation("delivery: a closed meter refuses calls")
def closed(world: World) -> None:
    client = world.openai()
    world.meter.close()
    with pytest.raises(MeterClosedError):
        CHAT.call(client)
    assert world.provider.seen == []


@situation(
    "delivery: the spool is full, so calls are refused",
    *ONE * 3,
    signals=("spool_filling", "spool_full"),
)
def spool_full(world: World) -> None:
    world.meter.close()
    world.meter = world.make_meter(max_spool_bytes=900, linger_s=60.0)
    client = world.openai()
    for _ in range(3):
        CHAT.call(client)
    with pytest.raises(SpoolFullError):
        CHAT.call(client)
    assert len(world.provider.seen) == 3


def _deliver_despite(world: World, signal: str) -> None:
    assert world.meter.flush(60)
    assert world.signals.pop(signal, 0) >= 1


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        pause.wait(0.01)


if __name__ == "__main__":
    _rows = run_situations()
    print(format_table(_rows))
    print(json.dumps({"situations": len(_rows), "right": sum(row.is_right for row in _rows)}))
