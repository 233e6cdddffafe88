"""Usage read from recorded responses equals what another reader extracted from them.

The recordings (sample traces beside the checkout) are pydantic/genai-prices' own test data.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from meterline_client.reading import UsageUnreadableError, break_down_usage, read_usage

RECORDED = Path(__file__).parents[3].parent / "shared" / "data" / "recorded_usages.json"


def name_sender(body: Mapping[str, Any]) -> tuple[str, str]:
    """Who sent this body, as far as it tells: our provider, and the recording's flavour.

    The recording lists each body under every provider whose fields would parse; only the one
    that sent it is right (xAI's rule, say, adds reasoning to OpenAI's completion once more).
    """
    if "usageMetadata" in body:
        return "google", "google/default"
    usage, model = body["usage"], body.get("model") or ""
    if "inputTokens" in usage:
        return "bedrock", "aws/default"
    if "billed_units" in usage:
        return "cohere", "cohere/default"
    if "prompt_tokens" in usage:
        if "queue_time" in usage:
            return "groq", "groq/default"
        if model.startswith("mistral"):
            return "mistral", "mistral/default"
        if model.startswith(("zai-glm", "llama-3.3")):
            return "cerebras", "cerebras/chat"
        if "/" in model:
            return "openrouter", "openrouter/chat"
        if model.startswith("gemini"):
            return "google", "google/chat"
        return "openai", "openai/chat"
    if model.startswith("claude"):
        return "anthropic", "anthropic/default"
    return "openai", "openai/responses"


@pytest.fixture(scope="module")
def recorded() -> list[dict[str, Any]]:
    if not RECORDED.exists():
        pytest.skip("the sample traces are not beside the checkout")
    bodies: list[dict[str, Any]] = json.loads(RECORDED.read_text())
    return bodies


def extracted_by(record: Mapping[str, Any], flavour: str) -> dict[str, int]:
    found = [
        extraction["usage"]
        for extraction in record["extracted"]
        for extractor in extraction["extractors"]
        if f"{extractor['provider_id']}/{extractor['api_flavor']}" == flavour
    ]
    assert len(found) == 1, f"{flavour}: {len(found)} extractions"
    usage: dict[str, int] = found[0]
    return usage


def test_every_recorded_body_is_read_as_it_was_extracted(
    recorded: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    read: Counter[tuple[str, str]] = Counter()
    equal: Counter[tuple[str, str]] = Counter()
    different = []
    for index, record in enumerate(recorded):
        provider, flavour = name_sender(record["body"])
        expected = extracted_by(record, flavour)
        breakdown = break_down_usage(provider, record["body"])
        read[provider, flavour] += 1
        if breakdown == expected:
            equal[provider, flavour] += 1
        else:
            different.append((index, provider, breakdown, expected))

    table = Table("provider", "recorded as", "read", "equal", "out of scope", title="Recordings")
    for (provider, flavour), count in sorted(read.items()):
        table.add_row(provider, flavour, str(count), str(equal[provider, flavour]), "0")
    table.add_row("all", "", str(read.total()), str(equal.total()), "0")
    with capsys.disabled():
        Console(width=100).print("\n", table)

    assert different == []
    assert read.total() == equal.total() == len(recorded) == 256


def test_the_kinds_to_bill_add_up_to_the_recorded_totals(recorded: list[dict[str, Any]]) -> None:
    for record in recorded:
        provider, flavour = name_sender(record["body"])
        expected = extracted_by(record, flavour)
        kinds = dict(read_usage(provider, record["body"]).kinds)
        assert kinds.pop("output_tokens") == expected.get("output_tokens", 0)
        assert kinds.get("cache_read_tokens", 0) == expected.get("cache_read_tokens", 0)
        written = kinds.get("cache_write_tokens", 0) + kinds.get("cache_write_1h_tokens", 0)
        assert written == expected.get("cache_write_tokens", 0)
        assert sum(kinds.values()) == expected["input_tokens"]


def test_a_recorded_body_is_not_read_as_another_providers(recorded: list[dict[str, Any]]) -> None:
    """A wrong name on the call is refused, unless the two shapes give the same numbers."""
    refused = 0
    for record in recorded:
        sender, _ = name_sender(record["body"])
        right = read_usage(sender, record["body"]).kinds
        for provider in ("anthropic", "openai", "google", "cohere", "bedrock"):
            try:
                assert read_usage(provider, record["body"]).kinds == right
            except UsageUnreadableError:
                refused += 1
    assert refused > 256
