"""Streams: what is known after each event, and when it is all there is to know."""

from collections.abc import Iterable
from typing import Any, Protocol

import pytest
from anthropic.types import RawMessageDeltaEvent, RawMessageStartEvent
from openai.types.chat import ChatCompletionChunk

from meterline_client.reading import (
    AnthropicStream,
    OpenAIChatStream,
    OpenAIResponsesStream,
    Usage,
    UsageMalformedError,
    UsageMissingError,
)


class Stream(Protocol):
    def feed(self, event: Any, /) -> None: ...


START: dict[str, Any] = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 25,
            "output_tokens": 1,
            "cache_read_input_tokens": 100,
            "cache_creation_input_tokens": 0,
            "service_tier": "priority",
        },
    },
}
TEXT: dict[str, Any] = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {"type": "text_delta", "text": "hello"},
}


def message_delta(stop_reason: str | None = None, **usage: int | None) -> dict[str, Any]:
    return {
        "type": "message_delta",
        "delta": {"stop_reason": stop_reason, "stop_sequence": None},
        "usage": usage,
    }


def chunk(*finish_reasons: str | None, usage: object = None, **rest: object) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5",
        "choices": [
            {"index": index, "delta": {"content": "x"}, "finish_reason": reason}
            for index, reason in enumerate(finish_reasons)
        ],
        "usage": usage,
        **rest,
    }


def chat_usage(completion: int) -> dict[str, Any]:
    return {
        "prompt_tokens": 10,
        "completion_tokens": completion,
        "total_tokens": 10 + completion,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def feed_all(stream: Stream, events: Iterable[object]) -> None:
    for event in events:
        stream.feed(event)


def kinds_of(usage: Usage | None) -> dict[str, int]:
    assert usage is not None
    return dict(usage.kinds)


def test_anthropics_cumulative_counts_replace_and_are_never_added() -> None:
    stream = AnthropicStream()
    assert (stream.usage(), stream.complete) == (None, False)
    feed_all(stream, [START, {"type": "ping"}, TEXT, message_delta(output_tokens=40)])
    assert not stream.complete
    stream.feed(message_delta("end_turn", output_tokens=90, input_tokens=None))
    stream.feed({"type": "message_stop"})
    usage = stream.usage()
    assert kinds_of(usage) == {"input_tokens": 25, "output_tokens": 90, "cache_read_tokens": 100}
    assert usage is not None
    assert (usage.model, usage.response_id, usage.tier) == (
        "claude-sonnet-4-5",
        "msg_1",
        "priority",
    )
    assert stream.complete


def test_anthropics_delta_may_raise_the_input_too() -> None:
    """Server tools read their results as input, which only the last event knows."""
    stream = AnthropicStream()
    stream.feed(START)
    stream.feed(
        message_delta("end_turn", input_tokens=900, cache_read_input_tokens=300, output_tokens=90)
    )
    assert kinds_of(stream.usage()) == {
        "input_tokens": 900,
        "output_tokens": 90,
        "cache_read_tokens": 300,
    }


def test_an_anthropic_stream_that_is_cut_knows_what_came_before_and_is_not_complete() -> None:
    stream = AnthropicStream()
    feed_all(stream, [START, TEXT])
    assert kinds_of(stream.usage())["output_tokens"] == 1
    assert not stream.complete
    stream.feed({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    assert stream.failed
    assert not stream.complete


def test_an_anthropic_stop_without_counts_is_not_complete() -> None:
    stream = AnthropicStream()
    feed_all(stream, [START, message_delta("end_turn"), {"type": "message_stop"}])
    assert not stream.complete


def test_an_anthropic_stream_joined_after_its_start_is_refused_and_not_read_as_zero() -> None:
    stream = AnthropicStream()
    stream.feed(message_delta("end_turn", output_tokens=90))
    with pytest.raises(UsageMalformedError, match="input_tokens is missing"):
        stream.usage()


def test_anthropics_sdk_events_are_read_as_their_json_is() -> None:
    delta = message_delta("end_turn", output_tokens=90)
    of_json, of_sdk = AnthropicStream(), AnthropicStream()
    feed_all(of_json, [START, delta])
    feed_all(
        of_sdk,
        [RawMessageStartEvent.model_validate(START), RawMessageDeltaEvent.model_validate(delta)],
    )
    assert of_sdk.usage() == of_json.usage()
    assert of_sdk.complete


def test_openais_last_chunk_with_empty_choices_holds_the_usage() -> None:
    stream = OpenAIChatStream()
    feed_all(stream, [chunk(None), chunk("stop")])
    assert (stream.usage(), stream.complete) == (None, False)
    stream.feed(chunk(usage=chat_usage(7), service_tier="flex"))
    usage = stream.usage()
    assert kinds_of(usage) == {"input_tokens": 6, "output_tokens": 7, "cache_read_tokens": 4}
    assert usage is not None
    assert (usage.model, usage.response_id, usage.tier) == ("gpt-5", "chatcmpl-1", "flex")
    assert stream.complete


def test_a_running_total_on_every_chunk_is_replaced_and_complete_only_at_the_end() -> None:
    stream = OpenAIChatStream()
    stream.feed(chunk(None, usage=chat_usage(1)))
    stream.feed(chunk(None, usage=chat_usage(2)))
    assert not stream.complete
    stream.feed(chunk("stop", usage=chat_usage(3)))
    assert stream.complete
    assert kinds_of(stream.usage())["output_tokens"] == 3


def test_a_running_total_is_not_complete_while_one_choice_still_runs() -> None:
    stream = OpenAIChatStream()
    stream.feed(chunk(None, None, usage=chat_usage(2)))
    stream.feed(chunk("stop", None, usage=chat_usage(3)))
    assert not stream.complete
    stream.feed({**chunk(usage=chat_usage(4)), "choices": [{"index": 1, "finish_reason": "stop"}]})
    assert stream.complete


def test_a_gateways_error_in_place_of_a_finish_reason_is_a_failure() -> None:
    stream = OpenAIChatStream()
    feed_all(stream, [chunk(None), chunk("error", usage=chat_usage(3))])
    assert stream.failed
    assert not stream.complete


def test_azures_first_chunk_without_choices_or_usage_says_nothing() -> None:
    stream = OpenAIChatStream()
    stream.feed(chunk(prompt_filter_results=[]))
    assert (stream.usage(), stream.complete) == (None, False)


def test_openais_sdk_chunks_are_read_as_their_json_is() -> None:
    chunks = [chunk(None), chunk("stop"), chunk(usage=chat_usage(7), service_tier="priority")]
    of_json, of_sdk = OpenAIChatStream(), OpenAIChatStream()
    feed_all(of_json, chunks)
    feed_all(of_sdk, [ChatCompletionChunk.model_validate(each) for each in chunks])
    assert of_sdk.usage() == of_json.usage()
    assert of_sdk.complete


def test_a_chat_streams_usage_in_an_unknown_shape_is_refused() -> None:
    stream = OpenAIChatStream()
    stream.feed(chunk(usage={"tokens": 3}))
    with pytest.raises(UsageMissingError):
        stream.usage()


@pytest.mark.parametrize(
    ("kind", "complete", "failed"),
    [
        ("response.completed", True, False),
        ("response.incomplete", True, False),
        ("response.failed", False, True),
    ],
)
def test_the_last_event_of_a_response_holds_its_usage(
    kind: str, complete: bool, failed: bool
) -> None:
    usage = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 5},
    }
    stream = OpenAIResponsesStream()
    created = {"id": "resp_1", "model": "gpt-5", "status": "in_progress", "usage": None}
    stream.feed({"type": "response.created", "response": created})
    stream.feed({"type": "response.output_text.delta", "delta": "x"})
    assert (stream.usage(), stream.complete) == (None, False)
    ended = {**created, "status": kind.removeprefix("response."), "usage": usage}
    stream.feed({"type": kind, "response": ended})
    read = stream.usage()
    assert kinds_of(read) == {"input_tokens": 6, "output_tokens": 7, "cache_read_tokens": 4}
    assert read is not None
    assert read.response_id == "resp_1"
    assert (stream.complete, stream.failed) == (complete, failed)


def test_a_response_that_failed_without_usage_reports_none() -> None:
    stream = OpenAIResponsesStream()
    stream.feed({"type": "response.failed", "response": {"id": "resp_1", "usage": None}})
    assert (stream.usage(), stream.complete, stream.failed) == (None, False, True)
