"""What holds for every request: keys, errors, idempotency, lists, expansion, metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import stripe

from tests.contract.conftest import StripeUnderTest

Refused = Callable[[Callable[[], object]], stripe.StripeError]


def _raw(account: StripeUnderTest, method: str, path: str, **params: Any) -> Any:
    response = account.client.raw_request(method, path, **params)
    return account.client.deserialize(response, api_mode="V1")


def test_a_wrong_key_is_a_401(account: StripeUnderTest, refused: Refused) -> None:
    error = refused(lambda: account.client.v1.customers.list({}, {"api_key": "sk_test_wrong"}))
    assert isinstance(error, stripe.AuthenticationError)
    assert error.http_status == 401


def test_an_unknown_parameter_is_refused_by_name(
    account: StripeUnderTest, refused: Refused
) -> None:
    error = refused(lambda: _raw(account, "post", "/v1/customers", colour="blue"))
    assert isinstance(error, stripe.InvalidRequestError)
    assert (error.http_status, error.code, error.param) == (400, "parameter_unknown", "colour")


def test_a_missing_parameter_is_refused_by_name(account: StripeUnderTest, refused: Refused) -> None:
    error = refused(lambda: _raw(account, "post", "/v1/products"))
    assert isinstance(error, stripe.InvalidRequestError)
    assert (error.http_status, error.code, error.param) == (400, "parameter_missing", "name")


def test_a_wrong_type_is_refused(account: StripeUnderTest, refused: Refused) -> None:
    error = refused(lambda: _raw(account, "get", "/v1/customers", limit="many"))
    assert isinstance(error, stripe.InvalidRequestError)
    assert error.http_status == 400
    assert error.code == "parameter_invalid_integer"


def test_a_value_outside_an_enum_is_refused(account: StripeUnderTest, refused: Refused) -> None:
    error = refused(
        lambda: _raw(
            account,
            "post",
            "/v1/billing/meters",
            display_name="x",
            event_name=account.unique("contract"),
            default_aggregation={"formula": "median"},
        )
    )
    assert isinstance(error, stripe.InvalidRequestError)
    assert error.http_status == 400


def test_a_missing_object_in_the_url_is_a_404(account: StripeUnderTest, refused: Refused) -> None:
    error = refused(lambda: account.client.v1.customers.retrieve("cus_nobody"))
    assert isinstance(error, stripe.InvalidRequestError)
    assert (error.http_status, error.code) == (404, "resource_missing")
    assert "No such customer: 'cus_nobody'" in str(error)


def test_a_missing_object_in_a_parameter_is_a_400(
    account: StripeUnderTest, refused: Refused
) -> None:
    error = refused(
        lambda: account.client.v1.invoices.create({"customer": "cus_nobody"}),
    )
    assert isinstance(error, stripe.InvalidRequestError)
    assert (error.http_status, error.code, error.param) == (400, "resource_missing", "customer")


def test_an_unknown_url_is_a_404(account: StripeUnderTest, refused: Refused) -> None:
    error = refused(lambda: _raw(account, "get", "/v1/customer"))
    assert error.http_status == 404


def test_a_repeated_idempotency_key_gives_the_first_answer_again(
    account: StripeUnderTest,
) -> None:
    key = account.unique("key")
    first = account.client.v1.customers.create({"name": "Once"}, {"idempotency_key": key})
    again = account.client.v1.customers.create({"name": "Once"}, {"idempotency_key": key})
    assert again.id == first.id
    assert again.last_response is not None
    assert again.last_response.headers["idempotent-replayed"] == "true"


def test_an_idempotency_key_with_another_body_is_an_error(
    account: StripeUnderTest, refused: Refused
) -> None:
    key = account.unique("key")
    account.client.v1.customers.create({"name": "One"}, {"idempotency_key": key})
    error = refused(
        lambda: account.client.v1.customers.create({"name": "Two"}, {"idempotency_key": key})
    )
    assert isinstance(error, stripe.IdempotencyError)
    assert error.http_status == 400


def test_an_idempotency_key_at_another_endpoint_is_an_error(
    account: StripeUnderTest, refused: Refused
) -> None:
    key = account.unique("key")
    account.client.v1.customers.create({"name": "One"}, {"idempotency_key": key})
    error = refused(
        lambda: account.client.v1.products.create({"name": "One"}, {"idempotency_key": key})
    )
    assert isinstance(error, stripe.IdempotencyError)


def test_an_idempotency_key_repeats_a_refusal_of_the_endpoint_too(
    account: StripeUnderTest, refused: Refused
) -> None:
    key, meter = account.unique("key"), account.make_meter()
    account.client.v1.billing.meters.deactivate(meter.id)

    def deactivate() -> object:
        return account.client.v1.billing.meters.deactivate(meter.id, {}, {"idempotency_key": key})

    assert refused(deactivate).http_status == 400
    account.client.v1.billing.meters.reactivate(meter.id)
    assert refused(deactivate).http_status == 400


def test_lists_come_newest_first_and_page_by_cursor(account: StripeUnderTest) -> None:
    email = f"{account.unique('page')}@example.com"
    made = [account.client.v1.customers.create({"email": email}).id for _ in range(5)]
    first = account.client.v1.customers.list({"email": email, "limit": 2})
    assert [row.id for row in first.data] == [made[4], made[3]]
    assert first.has_more
    second = account.client.v1.customers.list(
        {"email": email, "limit": 2, "starting_after": made[3]}
    )
    assert [row.id for row in second.data] == [made[2], made[1]]
    back = account.client.v1.customers.list({"email": email, "limit": 2, "ending_before": made[1]})
    assert [row.id for row in back.data] == [made[3], made[2]]
    everyone = account.client.v1.customers.list({"email": email, "limit": 2})
    assert [row.id for row in everyone.auto_paging_iter()] == list(reversed(made))


@pytest.mark.parametrize("limit", [0, 101])
def test_a_limit_outside_1_to_100_is_refused(
    account: StripeUnderTest, refused: Refused, limit: int
) -> None:
    assert refused(lambda: account.client.v1.customers.list({"limit": limit})).http_status == 400


def test_expand_puts_the_object_in_place_of_its_id(account: StripeUnderTest) -> None:
    product = account.client.v1.products.create({"name": account.unique("Expanded")})
    price = account.client.v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 100, "expand": ["product"]}
    )
    assert price.to_dict()["product"]["name"] == product.name
    listed = account.client.v1.prices.list({"product": product.id, "expand": ["data.product"]})
    assert listed.data[0].to_dict()["product"]["id"] == product.id


def test_expanding_what_is_not_there_is_refused(account: StripeUnderTest, refused: Refused) -> None:
    customer = account.make_customer(card=False)
    error = refused(
        lambda: account.client.v1.customers.retrieve(customer, {"expand": ["shoe_size"]})
    )
    assert error.http_status == 400


def test_metadata_merges_and_an_empty_value_unsets_a_key(account: StripeUnderTest) -> None:
    customers = account.client.v1.customers
    customer = customers.create({"metadata": {"a": "1", "b": "2"}})
    changed = customers.update(customer.id, {"metadata": {"b": "", "c": "3"}})
    assert changed.to_dict()["metadata"] == {"a": "1", "c": "3"}
    cleared = customers.update(customer.id, {"metadata": ""})
    assert cleared.to_dict()["metadata"] == {}


def test_a_deleted_customer_is_shown_as_deleted(account: StripeUnderTest) -> None:
    customer = account.make_customer(card=False)
    account.client.v1.customers.delete(customer)
    assert account.client.v1.customers.retrieve(customer).to_dict()["deleted"] is True


def test_a_balance_transaction_moves_the_customers_balance(account: StripeUnderTest) -> None:
    customer = account.make_customer(card=False)
    moved = account.client.v1.customers.balance_transactions.create(
        customer, {"amount": -500, "currency": "usd", "description": "goodwill"}
    )
    assert (moved.ending_balance, moved.type) == (-500, "adjustment")
    assert account.client.v1.customers.retrieve(customer).balance == -500
    listed = account.client.v1.customers.balance_transactions.list(customer)
    assert [row.id for row in listed.data] == [moved.id]


def test_events_say_what_happened_to_an_object(account: StripeUnderTest) -> None:
    product = account.client.v1.products.create({"name": account.unique("Observed")})
    account.client.v1.products.update(product.id, {"name": "Renamed"})

    def seen() -> dict[str, Any]:
        listed = account.client.v1.events.list(
            {"types": ["product.created", "product.updated"], "limit": 100}
        )
        rows = [event.to_dict() for event in listed.data]
        return {
            row["type"]: row["data"] for row in rows if row["data"]["object"]["id"] == product.id
        }

    found = account.eventually(seen, lambda rows: len(rows) == 2)
    assert found["product.updated"]["object"]["name"] == "Renamed"
    assert found["product.updated"]["previous_attributes"]["name"] == product.name
