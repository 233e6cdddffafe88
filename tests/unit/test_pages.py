"""Pages: how numbers are written, what a policy allows, and that nothing slips through."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.catalog import CATALOG_DIR, InvalidCatalogError, load_meters, load_plans
from meterline.catalog.changelog import load_changelog, read_changelog
from meterline.domain.limits import Limits, MoneyLimit
from meterline.domain.pricing import CurrencyOption
from meterline.errors import InvalidRequestError, UnreadablePageCallError
from meterline.pages import Pages
from meterline.pages.answers import PageAnswers, make_pages_app, read_cookies, read_form
from meterline.pages.charts import draw_days
from meterline.pages.formats import format_money, format_quantity, format_rate
from meterline.services.show_usage import DayUsage, ShowUsage
from tests.dashboard_fakes import (
    FakeComparisons,
    FakeOverviews,
    FakePlans,
    FakeUsage,
    make_entry,
    make_subscription,
)

NOW = datetime(2026, 11, 22, 14, 3, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("amount_minor", "currency", "written"),
    [
        (2900, "usd", "$29.00"),
        (123456789, "usd", "$1,234,567.89"),
        (-5, "eur", "\u2212€0.05"),
        (2900, "jpy", "¥2,900"),
        (2900, "krw", "₩2,900"),
        (2900, "kwd", "KWD\u00a02.900"),
        (290000, "ugx", "UGX\u00a02,900"),
        (0, "chf", "CHF\u00a00.00"),
    ],
)
def test_money_has_its_currencys_decimals(amount_minor: int, currency: str, written: str) -> None:
    assert format_money(amount_minor, currency) == written


def test_a_rate_has_the_decimals_that_it_needs() -> None:
    assert format_rate(Decimal("0.5"), "usd") == "$0.005"
    assert format_rate(Decimal(500), "usd") == "$5.00"
    assert format_rate(Decimal("0.7"), "jpy") == "¥0.7"


@pytest.mark.parametrize(
    ("quantity", "written"),
    [("0", "0"), ("1E+3", "1,000"), ("1234.500", "1,234.5"), ("0.001", "0.001"), ("-2", "\u22122")],
)
def test_a_quantity_is_exact(quantity: str, written: str) -> None:
    assert format_quantity(Decimal(quantity)) == written


def make_days(*quantities: str) -> list[DayUsage]:
    first = date(2026, 11, 1)
    return [
        DayUsage(first + timedelta(days=place), Decimal(quantity), 1)
        for place, quantity in enumerate(quantities)
    ]


def read_bars(svg: str) -> list[float]:
    root = ElementTree.fromstring(svg)
    bars = [each for each in root.iter() if each.get("class") == "bar"]
    return [float(rect.get("height", "0")) for bar in bars for rect in bar if rect.get("height")]


def test_bars_are_as_high_as_their_days() -> None:
    heights = read_bars(draw_days(make_days("0", "5", "10", "2.5"), Decimal(4), "credit"))
    assert heights[0] == 0
    assert heights[1] == pytest.approx(heights[2] / 2)
    assert heights[3] == pytest.approx(heights[2] / 4)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("top", ["0", "0.001", "7", "99999", "12345678.9"])
def test_a_chart_has_nothing_that_a_policy_would_have_to_allow(top: str, narrow: bool) -> None:
    svg = draw_days(make_days("0", top), Decimal("3.3"), "credit", narrow=narrow)
    assert not re.search(r"<script|<style|style=|\son\w+=|href|url\(|id=", svg)
    axis = svg.partition('class="axis y')[2].partition('class="axis x')[0]
    assert axis.count("major guide line") == 1, "the quota's line"


def test_a_chart_without_a_quota_has_no_line() -> None:
    root = ElementTree.fromstring(draw_days(make_days("3", "4"), None, "token"))
    [axis] = [each for each in root.iter() if (each.get("class") or "").startswith("axis y")]
    assert not [each for each in axis.iter() if "major guide" in (each.get("class") or "")]


def event(headers: dict[str, str], cookies: list[str] | None = None) -> APIGatewayProxyEventV2:
    told = {"headers": headers, "requestContext": {"domainName": "api.example"}}
    return APIGatewayProxyEventV2({**told, "cookies": cookies} if cookies is not None else told)


def test_a_page_may_be_framed_by_named_origins_alone() -> None:
    pages = Pages()
    nobody = PageAnswers(pages, []).page("x").headers
    assert "frame-ancestors 'none'" in str(nobody["Content-Security-Policy"])
    assert nobody["X-Frame-Options"] == "DENY"
    framed = PageAnswers(pages, ["https://app.example", "https://b.example"]).page("x").headers
    policy = str(framed["Content-Security-Policy"])
    assert "frame-ancestors https://app.example https://b.example" in policy
    assert "X-Frame-Options" not in framed


@pytest.mark.parametrize(
    ("origins", "scheme", "expected"),
    [
        ([], "https", ["__Host-meterline_session=t", "SameSite=Lax", "Secure", "HttpOnly"]),
        (
            ["https://app.example"],
            "https",
            ["__Host-meterline_session=t", "SameSite=None", "Secure", "HttpOnly", "Partitioned"],
        ),
        (["https://app.example"], "http", ["meterline_session=t", "SameSite=Lax", "HttpOnly"]),
    ],
)
def test_a_session_cookie_goes_where_it_must_and_nowhere_else(
    origins: list[str], scheme: str, expected: list[str]
) -> None:
    answers = PageAnswers(Pages(), origins)
    cookie = str(answers.session_cookie(event({"x-forwarded-proto": scheme}), "t", NOW))
    parts = cookie.split("; ")
    assert set(expected) <= set(parts)
    assert ("Secure" in parts) == (scheme == "https")
    assert ("Partitioned" in parts) == ("Partitioned" in expected)
    assert not any(part.startswith("Domain") for part in parts)


def test_cookies_are_read_from_the_list_and_from_the_header() -> None:
    for found in (event({}, ["a=1", "b=2"]), event({"cookie": 'x="; a=1; b=2; a=3'})):
        cookies = read_cookies(found)
        assert (cookies["a"], cookies["b"]) == ("1", "2")


@pytest.mark.parametrize("body", ["stop_at=%ff", "/w==", "c3RvcF9hdD3/", "c3RvcF9hdD0"])
def test_a_form_whose_bytes_are_no_text_is_refused(body: str) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    call = {**event(headers).raw_event, "body": body, "isBase64Encoded": "%" not in body}
    with pytest.raises(UnreadablePageCallError) as refused:
        read_form(APIGatewayProxyEventV2(call))
    assert refused.value.status == 400


def test_a_dashboard_whose_plan_is_gone_says_so() -> None:
    pages = Pages()
    app = make_pages_app(Logger(), pages, PageAnswers(pages, ()))

    @app.get("/settings/usage")
    def get_usage() -> None:
        raise InvalidRequestError("no_terms", "There is no plan pro.", status=409)

    call = {
        "version": "2.0",
        "rawPath": "/settings/usage",
        "headers": {},
        "requestContext": {"http": {"method": "GET"}, "stage": "$default"},
    }
    answer = app.resolve(call, LambdaContext())
    assert answer["statusCode"] == 409
    assert "There is no plan pro." in answer["body"]


def test_what_customers_and_senders_write_is_escaped() -> None:
    overviews = FakeOverviews()
    start = NOW.replace(microsecond=0) - timedelta(days=3)
    overviews.add("acme", subscription=make_subscription(start, start + timedelta(days=30)))
    attack = '"><script>alert(1)</script>'
    usage = FakeUsage([make_entry(NOW - timedelta(hours=1), action=attack, user=attack)])
    show = ShowUsage(overviews, usage, usage, FakePlans(), load_meters(), FakeComparisons())
    sent = {"stop_at": attack, "warn_at": attack}
    html = Pages().draw_usage(
        show("acme", NOW), form_token="token", out_token="token", notice=attack, form=sent
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 4


@pytest.mark.parametrize(
    ("quantity", "told"), [("1", False), ("70", True), ("100", False), ("100.001", False)]
)
def test_the_free_plan_says_that_it_stops_and_never_that_it_costs(
    quantity: str, told: bool
) -> None:
    overviews = FakeOverviews()
    start = NOW.replace(microsecond=0) - timedelta(days=15)
    subscription = make_subscription(start, start + timedelta(days=30), plan="free")
    overviews.add("acme", subscription=subscription)
    usage = FakeUsage([make_entry(NOW - timedelta(days=1), quantity)])
    show = ShowUsage(overviews, usage, usage, FakePlans(), load_meters(), FakeComparisons())
    html = Pages().draw_usage(show("acme", NOW), form_token="token", out_token="token")
    assert "The Free plan stops at its included quota." in html
    assert "On track for" not in html
    assert ("On track to use it up this period." in html) == told
    assert set(re.findall(r"\$[0-9.]+", html)) == {"$0.00"}
    assert re.search(r'id="block_overage" checked disabled', html)


def test_the_form_never_shows_an_amount_in_a_currency_that_is_not_the_bills() -> None:
    overviews = FakeOverviews()
    start = NOW.replace(microsecond=0) - timedelta(days=3)
    overviews.add("acme", subscription=make_subscription(start, start + timedelta(days=30)))
    usage = FakeUsage([make_entry(NOW - timedelta(hours=1))])
    show = ShowUsage(overviews, usage, usage, FakePlans(), load_meters(), FakeComparisons())
    report = show("acme", NOW)
    # What it was set in, and what the subscription is billed in since.
    pro = load_plans()["pro"]
    both = replace(pro, currency_options={"eur": CurrencyOption(2700, pro.tiers)})
    limited = replace(
        report, plan=both.in_currency("eur"), limits=Limits(stop_at=MoneyLimit(4000, "usd"))
    )
    html = Pages().draw_usage(limited, form_token="token", out_token="token")
    [field] = re.findall(r'name="stop_at" value="([^"]*)"', html)
    [unit] = re.findall(r'name="stop_at_in".*?value="(\w+)" selected', html, re.DOTALL)
    assert (field, unit) == ("3200.999", "quantity")
    assert "$40.00, 3,200.999 credits" in html


@pytest.mark.parametrize(
    ("start", "end", "words"),
    [
        (datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC), "this month"),
        (datetime(2026, 11, 1, 9, tzinfo=UTC), datetime(2026, 12, 1, 9, tzinfo=UTC), "this period"),
        (datetime(2026, 11, 7, tzinfo=UTC), datetime(2026, 12, 7, tzinfo=UTC), "this period"),
        (datetime(2026, 11, 16, tzinfo=UTC), datetime(2026, 11, 23, tzinfo=UTC), "this period"),
        (datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC), "this period"),
    ],
    ids=["calendar month", "not at midnight", "month from the 7th", "week", "year"],
)
def test_the_forecast_is_of_this_month_only_where_the_period_is_one(
    start: datetime, end: datetime, words: str
) -> None:
    overviews = FakeOverviews()
    overviews.add("acme", subscription=make_subscription(start, end))
    usage = FakeUsage([make_entry(NOW - timedelta(days=1), "70")])
    show = ShowUsage(overviews, usage, usage, FakePlans(), load_meters(), FakeComparisons())
    html = Pages().draw_usage(show("acme", NOW), form_token="token", out_token="token")
    [told] = re.findall(r"On track for \$[0-9.,]+ (this \w+),", html)
    assert told == words


def test_the_stylesheet_is_the_one_that_the_policy_names() -> None:
    pages = Pages()
    html = pages.draw_told("Hello", "World")
    inside = html.partition("<style>")[2].partition("</style>")[0]
    assert inside == pages.stylesheet
    assert pages.stylesheet_source.startswith("'sha256-")


def test_pricing_shows_every_plan_of_the_catalog() -> None:
    html = Pages().draw_pricing(list(load_plans().values()), load_meters())
    for plan in load_plans().values():
        assert plan.name in html
        assert format_money(plan.base_fee_minor, plan.currency) in html
        assert format_quantity(plan.included) in html
    assert html.count("Usage stops") == 1


def test_the_changelog_knows_the_day_from_which_the_bundled_prices_count() -> None:
    plans = (CATALOG_DIR / "plans.toml").read_text()
    [since] = re.findall(r'effective_from = "(\d{4}-\d\d-\d\d)', plans)
    assert since in {change.date.isoformat() for change in load_changelog()}


@pytest.mark.parametrize(
    "text",
    [
        "changes = 7\n[",
        '[[changes]]\ndate = 2026-01-01\ntitle = "a"\nreason = "b"\n',
        '[[changes]]\ndate = "2026-01-01"\ntitle = "a"\nreason = "b"\neffect = "c"\n',
        '[[changes]]\ndate = 2026-01-01\ntitle = ""\nreason = "b"\neffect = "c"\n',
        "".join(
            f'[[changes]]\ndate = 2026-01-0{day}\ntitle = "a"\nreason = "b"\neffect = "c"\n'
            for day in (1, 2)
        ),
    ],
)
def test_a_changelog_that_cannot_be_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "changelog.toml"
    path.write_text(text)
    with pytest.raises(InvalidCatalogError):
        read_changelog(path)
