"""The advisor: three metrics made comparable, and one of them recommended for reasons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from infra.cli.__main__ import main
from infra.cli.advisor import (
    Advice,
    Metric,
    TooLittleDataError,
    advise,
    convert_plan,
    find_quota,
)
from infra.cli.past_usage import CsvDefaults, Gaps, PastEvent, read_csv
from infra.cli.provider_costs import NoPriceError, ProviderCosts
from meterline.catalog import CATALOG_DIR, load_meters, load_plans
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.pricing import price_usage, total_minor

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
SONNET = ("anthropic", "claude-sonnet-4-5")
TRACE = Path(__file__).resolve().parents[3] / "shared" / "data" / "azure_llm_trace_code.csv"


def event(customer: str = "acme", **told: Any) -> PastEvent:
    usage = {kind: told.pop(kind) for kind in list(told) if kind.endswith("_tokens")}
    provider, model = told.pop("of", SONNET)
    fields = {"action": "report", "usage": usage or None, **told}
    return PastEvent(customer, AT, provider=provider, model=model, **fields)


def judge(events: Iterable[PastEvent], cost_of: Any = None, **options: Any) -> Advice:
    return advise(
        events,
        cost_of or ProviderCosts().of,
        load_rate_card(),
        load_meters(),
        load_plans()["pro"],
        Gaps(),
        **options,
    )


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        ({"input_tokens": 1_000_000}, "3"),
        ({"output_tokens": 1_000_000}, "15"),
        ({"cache_read_tokens": 100_000}, "0.03"),
        ({"cache_write_tokens": 100_000}, "0.375"),
        ({"cache_write_1h_tokens": 100_000}, "0.6"),
        ({"input_tokens": 600, "cache_read_tokens": 400, "output_tokens": 100}, "0.00342"),
    ],
)
def test_each_kind_of_tokens_costs_its_own_price_once(usage: dict[str, int], dollars: str) -> None:
    # A list price depends on the length of the prompt: one above 200,000 tokens is dearer.
    small = all(count <= 200_000 for count in usage.values())
    scale = 1 if small else 10
    parts: dict[str, Any] = {kind: count // scale for kind, count in usage.items()}
    assert ProviderCosts().of(event(**parts)) * scale == Decimal(dollars)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"of": ("anthropic", "claude-99"), "input_tokens": 5}, "no price for anthropic claude-99"),
        ({"of": ("replicate", "meta/llama"), "input_tokens": 5}, "no price for replicate"),
        ({"of": (None, None), "input_tokens": 5}, "no provider or model"),
        ({}, "no token counts"),
    ],
)
def test_what_the_price_list_does_not_know_is_set_aside_and_never_free(
    told: dict[str, Any], why: str
) -> None:
    costs = ProviderCosts()
    for _ in range(2):
        with pytest.raises(NoPriceError, match=why):
            costs.of(event(**told))


def test_a_tier_has_its_own_price_or_none() -> None:
    costs = ProviderCosts()
    standard = costs.of(event(of=("openai", "gpt-5"), input_tokens=1_000))
    assert costs.of(event(of=("openai", "gpt-5"), input_tokens=1_000, tier="default")) == standard
    assert costs.of(event(of=("openai", "gpt-5"), input_tokens=1_000, tier="flex")) < standard
    assert costs.of(event(of=("openai", "gpt-5"), input_tokens=1_000, tier="priority")) > standard
    with pytest.raises(NoPriceError, match="batch tier of openai gpt-5"):
        costs.of(event(of=("openai", "gpt-5"), input_tokens=1_000, tier="batch"))
    assert costs.of(event(of=("openai", "gpt-5"), input_tokens=1_000)) == standard


def test_what_was_set_aside_is_listed_with_its_tokens() -> None:
    advice = judge(
        [
            event(input_tokens=1_000),
            event(of=("anthropic", "claude-99"), input_tokens=70),
            event(of=("anthropic", "claude-99"), output_tokens=7),
        ]
    )
    assert advice.gaps.events == {"no price for anthropic claude-99": 2}
    assert advice.gaps.tokens == {"no price for anthropic claude-99": 77}


def by_size(_small: int, _large: int) -> list[PastEvent]:
    return [
        event(f"c{place % 5}", input_tokens=_small if place % 2 else _large, output_tokens=100)
        for place in range(50)
    ]


def test_outcomes_of_very_different_size_are_no_fair_unit() -> None:
    advice = judge(by_size(200, 200_000))
    assert advice.recommended is Metric.CREDITS
    assert advice.reports[Metric.OUTCOMES].variation > Decimal("0.9")
    assert any("outcome's cost varies" in reason for reason in advice.reasons)


def test_outcomes_that_all_cost_about_the_same_are_recommended() -> None:
    advice = judge(by_size(1_000, 1_100))
    assert advice.recommended is Metric.OUTCOMES
    assert advice.reports[Metric.OUTCOMES].quantity == 50


def test_outcomes_that_leave_calls_without_a_name_are_not() -> None:
    calls = [
        event(input_tokens=1_000, action="report" if place % 2 else None) for place in range(9)
    ]
    advice = judge(calls)
    assert advice.recommended is Metric.CREDITS
    assert any("no action to bill" in reason for reason in advice.reasons)


def test_outcomes_that_were_reported_count_instead_of_calls() -> None:
    calls = [event(input_tokens=1_000) for _ in range(6)]
    reported = [event(meter="outcomes", quantity=Decimal(2), of=(None, None))]
    advice = judge([*calls, *reported])
    report = advice.reports[Metric.OUTCOMES]
    assert (report.quantity, report.events) == (Decimal(2), 1)
    assert report.cost_per_unit == Decimal("0.009")
    assert not advice.gaps.events


def test_credits_follow_cost_over_models_where_tokens_do_not() -> None:
    models = [SONNET, ("anthropic", "claude-haiku-4-5"), ("openai", "gpt-5-mini")]
    mixed = [
        event(f"c{place % 4}", of=models[place % 3], input_tokens=9_000, action=None)
        for place in range(60)
    ]
    advice = judge(mixed)
    assert advice.recommended is Metric.CREDITS
    varies = {report.metric: report.variation for report in advice.reports.values()}
    assert varies[Metric.CREDITS] < Decimal("0.02")
    assert varies[Metric.TOKENS] > Decimal("0.5")


def test_a_rate_card_with_holes_speaks_for_tokens() -> None:
    unrated = [event(of=("openai", "gpt-3.5-turbo"), input_tokens=9_000, action=None)] * 9
    advice = judge([*unrated, event(input_tokens=100, action=None)])
    assert advice.recommended is Metric.TOKENS
    assert any("no rate for openai gpt-3.5-turbo" in why for why in advice.gaps.events)


def test_nothing_to_judge_by_is_said() -> None:
    for events in ([], [event()], [event(of=("anthropic", "claude-99"), input_tokens=5)]):
        with pytest.raises(TooLittleDataError):
            judge(events)


def test_the_price_that_leaves_a_margin_is_proposed() -> None:
    advice = judge([event(input_tokens=100_000, action=None)] * 3, target_margin=Decimal("0.5"))
    # 100,000 input tokens are 100 credits and cost $0.30.
    assert advice.proposal.tokens_per_unit == 1_000
    assert advice.proposal.min_unit_price == Decimal("0.006")
    assert advice.proposal.unit_price == Decimal("0.005")
    assert round(advice.proposal.markup, 4) == Decimal("1.6667")


def test_a_unit_too_small_to_talk_of_is_scaled_by_tens() -> None:
    assert judge([event(input_tokens=10, action=None)]).proposal.unit_factor == 100
    assert judge([event(input_tokens=190_000, action=None)]).proposal.unit_factor == Decimal("0.1")


def test_bills_are_those_of_the_plan_month_by_month() -> None:
    def cost(_event: PastEvent) -> Decimal:
        return Decimal("2.5")

    november = [event(input_tokens=1_500_000)]
    december = [each._replace(at=datetime(2026, 12, 1, tzinfo=UTC)) for each in november]
    advice = judge([*november, *december], cost)
    [bill] = advice.reports[Metric.CREDITS].bills
    assert bill.quantity == 3_000
    # Twice $29 and 500 credits over the 1,000 included.
    assert (bill.bill, bill.cost) == (Decimal("63.00"), Decimal("5.0"))
    assert bill.margin == Decimal("58") / 63


@given(st.integers(1, 10**6), st.integers(1, 10**4))
def test_a_converted_plan_asks_the_same_for_the_average_unit(quantity: int, factor: int) -> None:
    plan = load_plans()["pro"]
    converted = convert_plan(plan, load_meters()["tokens"], Decimal(factor))
    ours = total_minor(price_usage(Decimal(quantity), plan))
    theirs = total_minor(price_usage(Decimal(quantity) * factor, converted))
    assert abs(ours - theirs) <= 1


@pytest.mark.parametrize(
    ("highest", "percentile", "quantity", "above"),
    [
        (range(1, 101), 95, 95, 5),
        (range(1, 21), 95, 19, 1),
        (range(1, 11), 95, 10, 0),
        ([5], 95, 5, 0),
        ([7, 7, 7, 9], 50, 7, 1),
        (range(1, 101), 100, 100, 0),
        (range(1, 101), 1, 1, 99),
    ],
)
def test_a_quota_is_the_least_that_covers_the_share(
    highest: Iterable[int], percentile: int, quantity: int, above: int
) -> None:
    found = find_quota([Decimal(each) for each in highest], percentile)
    assert (found.quantity, found.above) == (Decimal(quantity), above)
    assert (found.customers - found.above) * 100 >= percentile * found.customers


def test_a_quota_of_nobody_is_refused() -> None:
    with pytest.raises(TooLittleDataError):
        find_quota([], 95)


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "usage.csv"
        path.write_text(text)
        return path

    return write


HEADER = "customer,time,action,provider,model,input_tokens,output_tokens\n"
DEARER_CARD = """
version = "mine"
effective_from = 2026-11-22T00:00:00Z
tokens = 1000
[[rates]]
provider = "anthropic"
models = ["claude-*"]
input_tokens = "7"
output_tokens = "7"
"""


def test_a_row_that_cannot_be_read_costs_only_itself(write_csv: Callable[[str], Path]) -> None:
    path = write_csv(
        HEADER
        + "acme,2026-11-20T12:00:00Z,report,anthropic,claude-sonnet-4-5,10,20\n"
        + "acme,yesterday,report,anthropic,claude-sonnet-4-5,10,20\n"
        + "acme,2026-11-20T12:00:00Z,report,anthropic,claude-sonnet-4-5,ten,20\n"
        + "acme,2026-11-20T12:00:00Z,report,anthropic,claude-sonnet-4-5,-1,20\n"
        + "acme,,report,anthropic,claude-sonnet-4-5,1,20\n"
        + "acme,2026-11-20 12:00:00.1234567,,anthropic,claude-sonnet-4-5,1,\n"
    )
    gaps = Gaps()
    found = list(read_csv(path, CsvDefaults(), gaps))
    assert [each.usage for each in found] == [
        {"input_tokens": 10, "output_tokens": 20},
        {"input_tokens": 1},
    ]
    assert found[1].at == datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
    assert sum(gaps.events.values()) == 4


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["advise", *arguments])


def test_the_command_judges_a_csv(write_csv: Callable[[str], Path]) -> None:
    rows = [
        f"c{place % 3},2026-11-20T12Z,report,anthropic,claude-sonnet-4-5,{9 ** (place % 6)},9\n"
        for place in range(30)
    ]
    path = write_csv(HEADER + "".join(rows) + "c1,2026-11-20T12:00:00Z,x,replicate,llama,5,5\n")
    answered = run("metric", "--csv", str(path), "--json")
    assert answered.exit_code == 0, answered.output
    told = json.loads(answered.stdout)
    assert told["recommended"] == "credits"
    assert set(told["metrics"]["credits"]["customers"]) == {"c0", "c1", "c2"}
    assert told["gaps"] == {"no price for replicate llama": {"events": 1, "tokens": 10}}
    shown = run("metric", "--csv", str(path))
    assert shown.exit_code == 0
    assert "Bill credits." in shown.output
    assert "no price for replicate llama" in shown.output


def test_the_operators_rate_card_is_the_one_that_counts(
    write_csv: Callable[[str], Path], tmp_path: Path
) -> None:
    row = "acme,2026-11-{:02d}T12:00:00Z,report,anthropic,claude-sonnet-4-5,1000,0\n"
    path = write_csv(HEADER + "".join(row.format(day) for day in range(1, 29)))
    card = tmp_path / "rate_card.toml"
    card.write_text(DEARER_CARD)
    for options, quantity in (((), 28), (("--rate-card", str(card)), 28 * 7)):
        told = json.loads(run("metric", "--csv", str(path), "--json", *options).stdout)
        assert Decimal(told["metrics"]["credits"]["quantity"]) == quantity
    card.write_text("version = 1")
    refused = run("metric", "--csv", str(path), "--rate-card", str(card))
    assert refused.exit_code == 1
    assert "rate_card.toml" in refused.output


def test_a_switch_shows_both_bills_side_by_side(
    write_csv: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_csv(
        HEADER
        + "acme,2026-11-20T12:00:00Z,report,anthropic,claude-sonnet-4-5,1500000,0\n"
        + "acme,2026-11-20T12:00:00Z,report,anthropic,claude-99,7,0\n"
    )
    new = tmp_path / "plans.toml"
    text = (CATALOG_DIR / "plans.toml").read_text("utf-8").replace('"credits"', '"tokens"')
    text = text.replace("up_to = 1000", "up_to = 1_000_000").replace("= 0.5", "= 0.0006")
    new.write_text(text)
    answered = run("switch", "--csv", str(path), "--new-plans", str(new), "--json")
    assert answered.exit_code == 0, answered.output
    told = json.loads(answered.stdout)
    assert told["bills"] == [
        {
            "customer": "acme",
            "month": "2026-11",
            "old_quantity": "1500",
            "new_quantity": "1500007",
            "old_minor": 2900 + 250,
            "new_minor": 2900 + 300,
        }
    ]
    assert told["gaps"] == {"credits cannot count anthropic claude-99": 1}
    shown = run("switch", "--csv", str(path), "--new-plans", str(new))
    assert "32.00" in shown.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("metric", "--csv", "nowhere.csv"),
        ("metric", "--csv", str(CATALOG_DIR / "plans.toml"), "--plan", "gold"),
        ("metric", "--csv", str(CATALOG_DIR / "plans.toml"), "--margin", "1"),
        ("metric", "--csv", str(CATALOG_DIR / "plans.toml"), "--margin", "NaN"),
        ("metric", "--csv", str(CATALOG_DIR / "plans.toml")),
        ("switch",),
        ("quota", "--percentile", "0"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(arguments: tuple[str, ...]) -> None:
    answered = run(*arguments)
    assert answered.exit_code in (1, 2)
    assert "Traceback" not in answered.output


def test_a_request_log_of_a_cloud_is_read() -> None:
    if not TRACE.exists():
        pytest.skip("no sample traces lie beside the checkout")
    answered = run(
        "metric", "--csv", str(TRACE), "--provider", "openai", "--model", "gpt-5", "--json"
    )
    assert answered.exit_code == 0, answered.output
    told = json.loads(answered.stdout)
    assert told["recommended"] == "credits"
