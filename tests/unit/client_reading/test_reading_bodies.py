"""Complete responses: every token in one kind, and what cannot be read refused by name."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from replicate.prediction import Prediction

from meterline_client.reading import (
    MAX_COUNT,
    CallUnsuccessfulError,
    ProviderUnknownError,
    UsageMalformedError,
    UsageMissingError,
    break_down_usage,
    read_usage,
)

MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5-20250929",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {
        "input_tokens": 12,
        "output_tokens": 30,
        "cache_read_input_tokens": 2048,
        "cache_creation_input_tokens": 1500,
        "cache_creation": {"ephemeral_5m_input_tokens": 500, "ephemeral_1h_input_tokens": 1000},
        "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 0},
        "service_tier": "batch",
    },
}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-2025-08-07",
    "service_tier": "priority",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}}
    ],
    "usage": {
        "prompt_tokens": 1000,
        "completion_tokens": 300,
        "total_tokens": 1300,
        "prompt_tokens_details": {"cached_tokens": 600, "cache_write_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 250},
    },
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "model": "gpt-5-2025-08-07",
    "status": "completed",
    "service_tier": "default",
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "metadata": {},
    "output": [],
    "parallel_tool_calls": True,
    "temperature": 1,
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1,
    "usage": {
        "input_tokens": 9703,
        "input_tokens_details": {"cached_tokens": 8576, "cache_write_tokens": 0},
        "output_tokens": 638,
        "output_tokens_details": {"reasoning_tokens": 576},
        "total_tokens": 10341,
    },
}
PREDICTION = {
    "id": "ufawqhfynnddngldkgtslldrkq",
    "model": "black-forest-labs/flux-dev",
    "version": "5c7d5dc6",
    "status": "succeeded",
    "input": {},
    "output": ["https://example.test/out.png"],
    "logs": "",
    "error": None,
    "metrics": {"predict_time": 2.3455},
    "urls": {},
}


def with_usage(body: Mapping[str, Any], **changes: object) -> dict[str, Any]:
    return {**body, "usage": {**body["usage"], **changes}}


def with_metrics(**metrics: object) -> dict[str, Any]:
    return {**PREDICTION, "metrics": metrics}


def test_anthropic_counts_cache_beside_the_input() -> None:
    usage = read_usage("anthropic", MESSAGE)
    assert usage.kinds == {
        "input_tokens": 12,
        "output_tokens": 30,
        "cache_read_tokens": 2048,
        "cache_write_tokens": 500,
        "cache_write_1h_tokens": 1000,
    }
    assert (usage.model, usage.response_id, usage.tier, usage.web_searches) == (
        "claude-sonnet-4-5-20250929",
        "msg_01",
        "batch",
        2,
    )
    assert break_down_usage("anthropic", MESSAGE)["input_tokens"] == 12 + 2048 + 1500


def test_openai_counts_cache_inside_the_input_and_reasoning_inside_the_output() -> None:
    usage = read_usage("openai", CHAT)
    assert usage.kinds == {
        "input_tokens": 300,
        "output_tokens": 300,
        "cache_read_tokens": 600,
        "cache_write_tokens": 100,
    }
    assert usage.tier == "priority"
    assert read_usage("openai", RESPONSE).kinds == {
        "input_tokens": 1127,
        "output_tokens": 638,
        "cache_read_tokens": 8576,
    }
    assert read_usage("openai", RESPONSE).tier is None


@pytest.mark.parametrize(
    ("provider", "body", "sdk_object"),
    [
        ("anthropic", MESSAGE, Message.model_validate(MESSAGE)),
        ("openai", CHAT, ChatCompletion.model_validate(CHAT)),
        ("openai", RESPONSE, Response.model_validate(RESPONSE)),
        ("replicate", PREDICTION, Prediction.parse_obj(PREDICTION)),
        ("openrouter", MESSAGE, Message.model_validate(MESSAGE)),
        ("litellm", RESPONSE, Response.model_validate(RESPONSE)),
    ],
)
def test_an_sdk_object_is_read_as_its_json_is(
    provider: str, body: dict[str, Any], sdk_object: object
) -> None:
    assert read_usage(provider, sdk_object) == read_usage(provider, body)


def test_a_gateways_anthropic_shape_is_not_taken_for_openais_responses() -> None:
    assert read_usage("vercel", MESSAGE).kinds == read_usage("anthropic", MESSAGE).kinds
    with pytest.raises(UsageMissingError, match="unknown shape"):
        read_usage("openai", MESSAGE)
    with pytest.raises(UsageMissingError, match="unknown shape"):
        read_usage("anthropic", RESPONSE)


def test_litellms_two_spellings_of_the_cache_count_once() -> None:
    body = with_usage(
        CHAT,
        prompt_tokens_details={"cached_tokens": 600, "cache_creation_tokens": 100},
        cache_read_input_tokens=600,
        cache_creation_input_tokens=100,
    )
    assert read_usage("litellm", body).kinds == read_usage("openai", CHAT).kinds


def test_reasoning_that_the_total_puts_beside_the_completion_is_added_once() -> None:
    beside = with_usage(
        CHAT,
        completion_tokens=50,
        total_tokens=1300,
        completion_tokens_details={"reasoning_tokens": 250},
    )
    assert read_usage("x-ai", beside).kinds["output_tokens"] == 300
    assert read_usage("openai", CHAT).kinds["output_tokens"] == 300


def test_embeddings_have_no_output_but_a_chat_without_one_is_refused() -> None:
    embedding = {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1]}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    expected = {"input_tokens": 8, "output_tokens": 0}
    assert read_usage("openai", embedding).kinds == expected
    sdk_object = CreateEmbeddingResponse.model_validate(embedding)
    assert read_usage("openai", sdk_object).kinds == expected
    with pytest.raises(UsageMalformedError, match="completion_tokens is missing"):
        read_usage("openai", with_usage(CHAT, completion_tokens=None))


def test_a_compaction_is_added_and_an_advisor_stands_apart_under_its_model() -> None:
    message = with_usage(
        MESSAGE,
        iterations=[
            {"type": "compaction", "input_tokens": 1000, "output_tokens": 70},
            {"type": "message", "input_tokens": 12, "output_tokens": 30},
            {
                "type": "advisor_message",
                "model": "claude-opus-4-7",
                "input_tokens": 40,
                "output_tokens": 9,
                "cache_read_input_tokens": 5,
            },
        ],
    )
    usage = read_usage("anthropic", message)
    assert usage.kinds["input_tokens"] == 12 + 1000
    assert usage.kinds["output_tokens"] == 30 + 70
    (advisor,) = usage.also
    assert advisor.model == "claude-opus-4-7"
    assert advisor.kinds == {"input_tokens": 40, "output_tokens": 9, "cache_read_tokens": 5}


def test_google_counts_tool_prompts_and_thoughts_beside_and_the_cache_inside() -> None:
    body = {
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r1",
        "usageMetadata": {
            "promptTokenCount": 100,
            "cachedContentTokenCount": 60,
            "toolUsePromptTokenCount": 7,
            "candidatesTokenCount": 20,
            "thoughtsTokenCount": 5,
            "totalTokenCount": 132,
            "trafficType": "ON_DEMAND_FLEX",
        },
    }
    usage = read_usage("google", body)
    assert usage.kinds == {"input_tokens": 47, "output_tokens": 25, "cache_read_tokens": 60}
    assert (usage.model, usage.response_id, usage.tier) == ("gemini-2.5-flash", "r1", "flex")


def test_googles_missing_count_is_zero_only_if_the_total_agrees() -> None:
    counts = {"promptTokenCount": 10, "totalTokenCount": 10}
    assert read_usage("google", {"usageMetadata": counts}).kinds["output_tokens"] == 0
    with pytest.raises(UsageMalformedError, match="candidatesTokenCount"):
        read_usage("google", {"usageMetadata": {**counts, "totalTokenCount": 11}})


def test_bedrocks_one_hour_writes_are_their_own_kind() -> None:
    usage = {
        "inputTokens": 3,
        "outputTokens": 61,
        "cacheReadInputTokens": 2074,
        "cacheReadInputTokenCount": 2074,
        "cacheWriteInputTokens": 300,
        "cacheDetails": [{"inputTokens": 100, "ttl": "1h"}, {"inputTokens": 200, "ttl": "5m"}],
    }
    assert read_usage("bedrock", {"usage": usage}).kinds == {
        "input_tokens": 3,
        "output_tokens": 61,
        "cache_read_tokens": 2074,
        "cache_write_tokens": 200,
        "cache_write_1h_tokens": 100,
    }


@pytest.mark.parametrize(
    ("seconds", "milliseconds"), [(2.3455, 2346), (0.0005, 1), (0.00049, 0), (12, 12_000)]
)
def test_replicates_time_is_rounded_half_up_to_milliseconds(
    seconds: float, milliseconds: int
) -> None:
    usage = read_usage("replicate", with_metrics(predict_time=seconds))
    assert usage.kinds == {"predict_time_ms": milliseconds}


def test_replicates_language_models_count_tokens_and_not_their_time_too() -> None:
    metrics = with_metrics(predict_time=1.5, input_token_count=11, output_token_count=22)
    assert read_usage("replicate", metrics).kinds == {"input_tokens": 11, "output_tokens": 22}
    with pytest.raises(UsageMalformedError, match="input_token_count is missing"):
        read_usage("replicate", with_metrics(predict_time=1.5, output_token_count=22))


@pytest.mark.parametrize("status", ["starting", "processing", "failed", "canceled", "", None])
def test_a_prediction_that_did_not_succeed_is_not_read(status: str | None) -> None:
    with pytest.raises(CallUnsuccessfulError):
        read_usage("replicate", {**PREDICTION, "status": status})


@pytest.mark.parametrize("status", ["failed", "cancelled", "in_progress", "queued"])
def test_a_response_that_failed_or_has_not_ended_is_not_read(status: str) -> None:
    with pytest.raises(CallUnsuccessfulError) as refusal:
        read_usage("openai", {**RESPONSE, "status": status})
    assert refusal.value.status == status
    with pytest.raises(CallUnsuccessfulError):
        read_usage("openai", {**RESPONSE, "status": status, "usage": None})


def test_a_response_cut_at_its_limit_is_read() -> None:
    cut = {**RESPONSE, "status": "incomplete"}
    assert read_usage("openai", cut).kinds == read_usage("openai", RESPONSE).kinds


def test_an_error_body_is_not_read() -> None:
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    with pytest.raises(CallUnsuccessfulError):
        read_usage("anthropic", body)


@pytest.mark.parametrize(
    "value", [-1, 1.0, 1.5, True, "12", float("nan"), float("inf"), Decimal(3), [], {}, 10**9 + 1]
)
@pytest.mark.parametrize(
    ("provider", "body", "name"),
    [
        ("anthropic", MESSAGE, "input_tokens"),
        ("anthropic", MESSAGE, "output_tokens"),
        ("anthropic", MESSAGE, "cache_read_input_tokens"),
        ("openai", CHAT, "prompt_tokens"),
        ("openai", CHAT, "completion_tokens"),
        ("openai", RESPONSE, "output_tokens"),
    ],
)
def test_a_count_that_is_no_whole_number_within_bounds_is_refused(
    provider: str, body: dict[str, Any], name: str, value: object
) -> None:
    with pytest.raises(UsageMalformedError):
        read_usage(provider, with_usage(body, **{name: value}))


@pytest.mark.parametrize("value", [-0.1, True, "2.5", float("nan"), float("inf"), 1e30, 10**400])
def test_a_time_that_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(UsageMalformedError):
        read_usage("replicate", with_metrics(predict_time=value))


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("anthropic", with_usage(MESSAGE, cache_creation={"ephemeral_1h_input_tokens": 9999})),
        ("anthropic", with_usage(MESSAGE, output_tokens_details={"thinking_tokens": 31})),
        ("anthropic", with_usage(MESSAGE, cache_creation=[1])),
        ("anthropic", with_usage(MESSAGE, iterations={"type": "compaction"})),
        ("anthropic", with_usage(MESSAGE, iterations=[3])),
        ("anthropic", with_usage(MESSAGE, iterations=[{"type": "advisor_message"}])),
        ("bedrock", {"usage": {"inputTokens": 1, "outputTokens": 1, "cacheDetails": ["1h"]}}),
        ("openai", with_usage(CHAT, prompt_tokens_details={"cached_tokens": 1001})),
        ("openai", with_usage(CHAT, prompt_tokens_details=5)),
        ("openai", with_usage(CHAT, completion_tokens_details={"reasoning_tokens": 301})),
        ("openai", {**CHAT, "usage": [1]}),
        ("openai", {**CHAT, "usage": "many"}),
    ],
)
def test_counts_that_contradict_each_other_are_refused(provider: str, body: object) -> None:
    with pytest.raises(UsageMalformedError):
        read_usage(provider, body)


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("openai", {"id": "x"}),
        ("openai", {"usage": None}),
        ("openai", {"usage": {}}),
        ("openai", {"usage": {"tokens": 5}}),
        ("google", {"usageMetadata": {"totalTokenCount": 5}}),
        ("cohere", {"usage": {"tokens": {"input_tokens": 1, "output_tokens": 2}}}),
        ("replicate", {**PREDICTION, "metrics": None}),
        ("replicate", with_metrics(total_time=3.0)),
        ("anthropic", None),
        ("anthropic", "text"),
    ],
)
def test_an_answer_without_known_usage_is_refused_and_not_read_as_zero(
    provider: str, body: object
) -> None:
    with pytest.raises(UsageMissingError):
        read_usage(provider, body)


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(ProviderUnknownError, match="acme"):
        read_usage("acme", CHAT)


counts = st.integers(0, MAX_COUNT // 5)


@given(fresh=counts, read=counts, write_5m=counts, write_1h=counts, output=counts)
def test_every_token_is_in_one_kind_whichever_way_it_is_reported(
    fresh: int, read: int, write_5m: int, write_1h: int, output: int
) -> None:
    written = write_5m + write_1h
    beside = {
        "input_tokens": fresh,
        "output_tokens": output,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "cache_creation": {
            "ephemeral_5m_input_tokens": write_5m,
            "ephemeral_1h_input_tokens": write_1h,
        },
    }
    inside = {
        "prompt_tokens": fresh + read + written,
        "completion_tokens": output,
        "total_tokens": fresh + read + written + output,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
    }
    ours = read_usage("anthropic", {"usage": beside}).kinds
    assert sum(ours.values()) == fresh + read + written + output
    theirs = read_usage("openai", {"usage": inside}).kinds
    assert sum(theirs.values()) == sum(ours.values())
    assert theirs["input_tokens"] == ours["input_tokens"] == fresh
