"""Credits are exact, whatever rates a card may hold: rounded once, half up, at the event."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meterline.catalog import InvalidCatalogError, load_meters
from meterline.catalog.rate_cards import read_rate_card
from meterline.domain.rating import TOKEN_KINDS
from meterline.errors import RejectedEventError
from meterline.schemas.events import MAX_TOKENS

CREDITS = load_meters()["credits"]
RATES = st.one_of(
    st.integers(0, 999_999).map(str),
    st.tuples(st.integers(0, 999), st.integers(0, 999_999_999)).map(lambda r: f"{r[0]}.{r[1]:09d}"),
    st.integers(0, 999_999_999_999).map(lambda r: f"0.{r:015d}"),
)


def card_text(tokens: int, rates: dict[str, str]) -> str:
    lines = "\n".join(f'{kind} = "{rate}"' for kind, rate in rates.items())
    return f'version = "1"\ntokens = {tokens}\n[[rates]]\nprovider = "p"\nmodels = ["m"]\n{lines}\n'


@given(
    st.sampled_from([1, 1_000, 1_000_000]),
    st.fixed_dictionaries(dict.fromkeys(TOKEN_KINDS, RATES)),
    st.fixed_dictionaries(dict.fromkeys(TOKEN_KINDS, st.integers(0, MAX_TOKENS))),
)
@settings(max_examples=500)
def test_credits_equal_a_reckoning_in_fractions(
    tokens: int, rates: dict[str, str], usage: dict[str, int]
) -> None:
    card = read_rate_card(card_text(tokens, rates))
    exact = sum(Fraction(rates[kind]) / tokens * usage[kind] for kind in TOKEN_KINDS)
    sub_units = int(exact * CREDITS.sub_units + Fraction(1, 2))
    if sub_units > 10**15 - 1:
        with pytest.raises(RejectedEventError) as refused:
            card.credits("p", "m", usage, CREDITS)
        assert refused.value.code == "quantity_too_large"
    else:
        assert CREDITS.to_sub_units(card.credits("p", "m", usage, CREDITS)) == sub_units


@pytest.mark.parametrize(
    "rate", ["1000000", "1e6", "1e30", "1e-16", "0.0000000000000001", "-1", "NaN", "Infinity", "x"]
)
def test_a_rate_that_could_not_be_summed_exactly_is_refused(rate: str) -> None:
    rates = {"input_tokens": rate, "output_tokens": "1"}
    with pytest.raises(InvalidCatalogError, match="input_tokens"):
        read_rate_card(card_text(1_000, rates))
