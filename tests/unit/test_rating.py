"""Rating: what a provider reports becomes credits, exactly, or is refused."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from math import floor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.catalog import CATALOG_DIR, InvalidCatalogError, load_meters
from meterline.catalog.rate_cards import load_rate_card, read_rate_card
from meterline.domain.quantities import MAX_SUB_UNITS
from meterline.domain.rating import TOKEN_KINDS, Rate, RateCard, count_tokens
from meterline.errors import RejectedEventError

CREDITS = load_meters()["credits"]
TOKENS = load_meters()["tokens"]
CARD = load_rate_card()
FILE: dict[str, Any] = tomllib.loads((CATALOG_DIR / "rate_card.toml").read_text())
MODELS = sorted(
    (rate["provider"], pattern.replace("*", suffix))
    for rate in FILE["rates"]
    for pattern in rate["models"]
    for suffix in ("", "-20251001")
)
COUNTS = st.integers(0, 10**12) | st.integers(0, 5_000)


def reckon(provider: str, model: str, usage: dict[str, int]) -> int | None:
    """Sub-units by the file's own words, in fractions; None where it has no rate."""
    for rate in FILE["rates"]:
        if rate["provider"] == provider and any(
            fnmatchcase(model, each) for each in rate["models"]
        ):
            exact = Fraction(0)
            for kind, count in usage.items():
                if count and kind not in rate:
                    return None
                exact += Fraction(rate.get(kind, 0)) * count / FILE["tokens"]
            return floor(exact * CREDITS.sub_units + Fraction(1, 2))
    return None


@given(st.sampled_from(MODELS), st.dictionaries(st.sampled_from(TOKEN_KINDS), COUNTS))
def test_credits_are_what_the_rate_card_says_to_the_last_sub_unit(
    model: tuple[str, str], usage: dict[str, int]
) -> None:
    expected = reckon(*model, usage)
    if expected is None or expected > MAX_SUB_UNITS:
        with pytest.raises(RejectedEventError) as refused:
            CARD.credits(*model, usage, CREDITS)
        assert refused.value.code in ("unknown_usage_kind", "quantity_too_large")
    else:
        assert CREDITS.to_sub_units(CARD.credits(*model, usage, CREDITS)) == expected


@given(
    st.dictionaries(st.sampled_from(TOKEN_KINDS), st.integers(1, 10**12), min_size=2),
    st.lists(
        st.builds(
            lambda digits, exponent: Decimal(digits).scaleb(exponent),
            st.integers(1, 10**12 - 1),
            st.integers(-24, 0),
        ),
        min_size=len(TOKEN_KINDS),
        max_size=len(TOKEN_KINDS),
    ),
)
def test_no_rate_that_a_card_may_hold_is_rounded_on_the_way(
    usage: dict[str, int], rates: list[Decimal]
) -> None:
    by_kind = dict(zip(TOKEN_KINDS, rates, strict=True))
    card = RateCard("v", [Rate("p", ("m",), by_kind)])
    exact = sum(Fraction(by_kind[kind]) * count for kind, count in usage.items())
    expected = floor(exact * CREDITS.sub_units + Fraction(1, 2))
    if expected > MAX_SUB_UNITS:
        with pytest.raises(RejectedEventError):
            card.credits("p", "m", usage, CREDITS)
    else:
        assert CREDITS.to_sub_units(card.credits("p", "m", usage, CREDITS)) == expected


def test_the_design_example_costs_what_it_should() -> None:
    usage = {"input_tokens": 1200, "output_tokens": 350}
    assert CARD.credits("anthropic", "claude-sonnet-4-5", usage, CREDITS) == Decimal("2.95")


def test_cached_input_tokens_cost_their_own_rate_and_only_that() -> None:
    uncached = CARD.credits("anthropic", "claude-sonnet-4-5", {"input_tokens": 1000}, CREDITS)
    cached = CARD.credits("anthropic", "claude-sonnet-4-5", {"cache_read_tokens": 1000}, CREDITS)
    assert (uncached, cached) == (Decimal(1), Decimal("0.1"))


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("anthropic", "claude-9"),
        ("anthropic", "CLAUDE-SONNET-4-5"),
        ("anthropic", "gpt-5"),
        ("openai", "claude-sonnet-4-5"),
        ("Anthropic", "claude-sonnet-4-5"),
        ("openai", "gpt-5-pro"),
        ("openai", "*"),
        ("", ""),
    ],
)
def test_a_model_without_a_rate_is_refused_the_second_time_too(provider: str, model: str) -> None:
    for _ in range(2):
        with pytest.raises(RejectedEventError) as refused:
            CARD.credits(provider, model, {"input_tokens": 1}, CREDITS)
        assert refused.value.code == "unknown_model"


def test_the_first_rate_that_covers_a_model_counts() -> None:
    first, second = (
        Rate("p", (pattern,), {"input_tokens": Decimal(rate)})
        for pattern, rate in (("m-*", 1), ("m*", 2))
    )
    card = RateCard("v", [first, second])
    assert card.rate_for("p", "m-1") is first
    assert card.rate_for("p", "m1") is second


def test_a_kind_without_a_rate_is_refused_unless_there_is_none_of_it() -> None:
    with pytest.raises(RejectedEventError) as refused:
        CARD.credits("openai", "gpt-5", {"input_tokens": 1, "cache_write_tokens": 1}, CREDITS)
    assert refused.value.code == "unknown_usage_kind"
    usage = {"input_tokens": 1000, "cache_write_tokens": 0}
    assert CARD.credits("openai", "gpt-5", usage, CREDITS) == Decimal("0.417")


_DRAWINGS = """
version = "1"
tokens = 1000
[[rates]]
provider = "studio"
models = ["draw-*"]
images = "4"
predict_time_ms = "0.25"
"""


def test_images_are_rated_by_the_image_and_machines_by_the_second() -> None:
    card = read_rate_card(_DRAWINGS)
    usage = {"images": 3, "predict_time_ms": 1250}
    assert card.credits("studio", "draw-2", usage, CREDITS) == Decimal("12.313")
    with pytest.raises(RejectedEventError) as refused:
        card.credits("studio", "draw-2", {"input_tokens": 1}, CREDITS)
    assert refused.value.code == "unknown_usage_kind"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "rates of tokens, images or predict_time_ms are needed"),
        ('images = "-1"', "images must be a decimal string, not negative"),
        ("images = 4", "images must be a decimal string, not negative"),
        ('images = "4"\ninput_tokens = "1"', "input_tokens and output_tokens are needed"),
        ('pictures = "4"', "unknown key pictures"),
    ],
)
def test_a_rate_that_is_not_of_tokens_has_to_be_clear_too(line: str, message: str) -> None:
    head, _, _ = _DRAWINGS.partition("images =")
    with pytest.raises(InvalidCatalogError, match=message):
        read_rate_card(head + line)


def test_many_unknown_models_do_not_fill_the_memory() -> None:
    card = RateCard("v", [Rate("p", ("m",), {"input_tokens": Decimal(1)})])
    for number in range(3_000):
        with pytest.raises(RejectedEventError):
            card.rate_for("p", f"unknown-{number}")
    assert len(card._found) <= 1_000


@given(st.dictionaries(st.sampled_from(TOKEN_KINDS), st.integers(0, 10**12)))
def test_raw_tokens_are_all_kinds_added(usage: dict[str, int]) -> None:
    assert count_tokens(usage, TOKENS) == sum(usage.values())


def test_a_kind_that_is_no_token_is_not_added_to_tokens() -> None:
    with pytest.raises(RejectedEventError) as refused:
        count_tokens({"input_tokens": 1, "web_searches": 1}, TOKENS)
    assert refused.value.code == "unknown_usage_kind"
