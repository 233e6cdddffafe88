"""Products and prices: what a graduated price may be, and how it is found again."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import stripe

from tests.contract.conftest import StripeUnderTest

Refused = Callable[[Callable[[], object]], stripe.StripeError]


def _graduated(account: StripeUnderTest, **more: Any) -> Any:
    params: dict[str, Any] = {
        "product_data": {"name": account.unique("Contract suite")},
        "currency": "usd",
        "billing_scheme": "tiered",
        "tiers_mode": "graduated",
        "recurring": {
            "interval": "month",
            "usage_type": "metered",
            "meter": account.make_meter().id,
        },
        "tiers": [
            {"up_to": 1000, "unit_amount_decimal": Decimal(0)},
            {"up_to": "inf", "unit_amount_decimal": Decimal("0.000000000001")},
        ],
        **more,
    }
    params = {key: value for key, value in params.items() if value is not None}
    return account.client.v1.prices.create(params)  # type: ignore[arg-type]  # built up on purpose


def test_a_graduated_price_takes_twelve_decimals_and_shows_tiers_only_when_asked(
    account: StripeUnderTest,
) -> None:
    price = _graduated(account)
    assert "tiers" not in price.to_dict()
    shown = account.client.v1.prices.retrieve(price.id, {"expand": ["tiers"]})
    assert shown.tiers is not None
    assert [tier.up_to for tier in shown.tiers] == [1000, None]
    assert shown.tiers[1].unit_amount_decimal == Decimal("0.000000000001")
    assert shown.tiers[1].unit_amount is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"transform_quantity": {"divide_by": 1000, "round": "up"}}, "tiers and packages"),
        ({"tiers": [{"up_to": 1000, "unit_amount": 0}]}, "no last tier"),
        (
            {"tiers": [{"up_to": "inf", "unit_amount_decimal": Decimal("0.0000000000001")}]},
            "13 decimals",
        ),
        ({"tiers_mode": None}, "no mode"),
        ({"recurring": {"interval": "month", "usage_type": "metered"}}, "no meter"),
        ({"unit_amount": 5}, "tiers and an amount"),
    ],
)
def test_a_price_that_makes_no_sense_is_refused(
    account: StripeUnderTest, refused: Refused, change: dict[str, Any], what: str
) -> None:
    error = refused(lambda: _graduated(account, **change))
    assert isinstance(error, stripe.InvalidRequestError), what
    assert error.http_status == 400, what


def test_a_lookup_key_is_one_prices_until_it_is_transferred(
    account: StripeUnderTest, refused: Refused
) -> None:
    key, prices = account.unique("lookup"), account.client.v1.prices
    product = account.client.v1.products.create({"name": account.unique("Contract suite")})
    old = prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 100, "lookup_key": key}
    )
    error = refused(
        lambda: prices.create(
            {"product": product.id, "currency": "usd", "unit_amount": 200, "lookup_key": key}
        )
    )
    assert error.http_status == 400
    new = prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 200,
            "lookup_key": key,
            "transfer_lookup_key": True,
        }
    )
    assert [row.id for row in prices.list({"lookup_keys": [key]}).data] == [new.id]
    assert prices.retrieve(old.id).lookup_key is None


def test_a_price_has_amounts_in_other_currencies(account: StripeUnderTest) -> None:
    price = _graduated(
        account,
        currency_options={
            "eur": {
                "tiers": [
                    {"up_to": 1000, "unit_amount_decimal": Decimal(0)},
                    {"up_to": "inf", "unit_amount_decimal": Decimal("0.4")},
                ]
            }
        },
    )
    shown = account.client.v1.prices.retrieve(
        price.id, {"expand": ["currency_options.eur.tiers"]}
    ).to_dict()
    rates = [tier["unit_amount_decimal"] for tier in shown["currency_options"]["eur"]["tiers"]]
    assert [Decimal(rate) for rate in rates] == [Decimal(0), Decimal("0.4")]


def test_an_archived_price_takes_no_new_subscriptions(
    account: StripeUnderTest, refused: Refused
) -> None:
    price = _graduated(account)
    assert account.client.v1.prices.update(price.id, {"active": False}).active is False
    customer = account.make_customer()
    error = refused(
        lambda: account.client.v1.subscriptions.create(
            {"customer": customer, "items": [{"price": price.id}]}
        )
    )
    assert error.http_status == 400


def test_a_product_can_have_an_id_of_our_own(account: StripeUnderTest, refused: Refused) -> None:
    name = account.unique("contract")
    product = account.client.v1.products.create({"id": name, "name": "Contract suite"})
    assert product.id == name
    assert refused(
        lambda: account.client.v1.products.create({"id": name, "name": "Again"})
    ).code in ("resource_already_exists", None)
    account.client.v1.products.delete(name)
