"""The wire: what is tried again, what is an error, and where it calls."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import NoCredentialsError

from meterline.adapters.dynamodb_wire import DynamoWire, TransactionCanceledError, back_off_s
from meterline.errors import ConfigurationError, StorageError, StorageUnavailableError
from tests.integration.storage.conftest import FaultProxy
from tests.integration.storage.stores import Store, make_session


def put(store: Store, wire: DynamoWire, pk: str) -> dict[str, Any]:
    item = {"pk": {"S": pk}, "sk": {"S": "profile"}, "name": {"S": "n"}}
    return wire.call("PutItem", {"TableName": store.tables.accounts, "Item": item})


RETRIED = [
    ("InternalServerError", 500),
    ("ServiceUnavailable", 503),
    ("ProvisionedThroughputExceededException", 400),
    ("ThrottlingException", 400),
    ("RequestLimitExceeded", 400),
    ("LimitExceededException", 400),
    ("TransactionConflictException", 400),
    ("TransactionInProgressException", 400),
    ("ItemCollectionSizeLimitExceededException", 400),
]
REFUSED = [
    ("ValidationException", 400),
    ("ResourceNotFoundException", 400),
    ("AccessDeniedException", 400),
    ("UnrecognizedClientException", 400),
    ("ConditionalCheckFailedException", 400),
]


@pytest.mark.parametrize(("code", "status"), RETRIED)
def test_what_dynamodb_asks_to_retry_is_retried(
    dynamodb_local_store: Store, proxy: FaultProxy, customer: str, code: str, status: int
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({"error": {"code": code, "status": status}, "times": 2})
    put(store, store.wire(proxy.url), customer)
    assert proxy.count_fired() == 2


@pytest.mark.parametrize(("code", "status"), RETRIED)
def test_retries_end(
    dynamodb_local_store: Store, proxy: FaultProxy, customer: str, code: str, status: int
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({"error": {"code": code, "status": status}})
    with pytest.raises(StorageUnavailableError, match=code):
        put(store, store.wire(proxy.url, attempts=3), customer)
    assert proxy.count_fired() == 3


@pytest.mark.parametrize(("code", "status"), REFUSED)
def test_what_is_refused_is_an_error_at_once(
    dynamodb_local_store: Store, proxy: FaultProxy, customer: str, code: str, status: int
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({"error": {"code": code, "status": status, "message": "no"}})
    with pytest.raises(StorageError) as caught:
        put(store, store.wire(proxy.url), customer)
    assert caught.value.code == code
    assert proxy.count_fired() == 1


@pytest.mark.parametrize("fault", [{"reset": True}, {"response": {"abort_bytes": 1}}])
def test_a_call_without_an_answer_is_made_again(
    dynamodb_local_store: Store, proxy: FaultProxy, customer: str, fault: dict[str, Any]
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({**fault, "times": 2})
    put(store, store.wire(proxy.url), customer)
    assert proxy.count_fired() == 2


def test_an_answer_that_comes_too_late_is_none(
    dynamodb_local_store: Store, proxy: FaultProxy, customer: str
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({"latency": 60_000, "times": 1})
    began_s = time.monotonic()
    put(store, store.wire(proxy.url, timeout_s=0.3, attempts=100), customer)
    assert 0.3 <= time.monotonic() - began_s < 60


def test_the_callers_deadline_counts_where_it_is_shorter(
    dynamodb_local_store: Store, proxy: FaultProxy
) -> None:
    store = dynamodb_local_store
    proxy.set_rules({"error": {"code": "InternalServerError"}})
    for own_s, told_s in [(200.0, 0.1), (0.5, 200.0)]:
        wire = store.wire(proxy.url, attempts=1000, deadline_s=own_s)
        began_s = time.monotonic()
        with pytest.raises(StorageUnavailableError):
            wire.call("ListTables", {}, deadline_s=told_s)
        assert time.monotonic() - began_s < 100


@contextmanager
def answer_with(*answers: bytes) -> Iterator[str]:
    """The URL of a server that gives these raw answers, one a connection, then closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join(60)


def http_answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def test_an_error_without_json_is_retried_or_named_by_its_status() -> None:
    page = b"<html>Bad gateway</html>"
    with answer_with(
        http_answer("502 Bad Gateway", page), http_answer("200 OK", b'{"TableNames": []}')
    ) as url:
        assert DynamoWire(make_session(), endpoint_url=url).call("ListTables", {}) == {
            "TableNames": []
        }
    with answer_with(http_answer("403 Forbidden", page)) as url:
        with pytest.raises(StorageError) as caught:
            DynamoWire(make_session(), endpoint_url=url).call("ListTables", {})
        assert caught.value.code == "HTTP 403"
        assert "Bad gateway" in caught.value.message


def test_a_good_status_with_an_unreadable_body_is_no_answer() -> None:
    with answer_with(
        http_answer("200 OK", b'{"TableNa'), http_answer("200 OK", b'{"TableNames": []}')
    ) as url:
        assert DynamoWire(make_session(), endpoint_url=url).call("ListTables", {}) == {
            "TableNames": []
        }


def test_a_refused_transaction_says_which_item_was_in_the_way(store: Store, customer: str) -> None:
    wire = store.wire()
    put(store, wire, customer)
    table = store.tables.accounts

    def write(pk: str, condition: str) -> dict[str, Any]:
        item = {"pk": {"S": pk}, "sk": {"S": "profile"}, "name": {"S": "n"}}
        return {"Put": {"TableName": table, "Item": item, "ConditionExpression": condition}}

    with pytest.raises(TransactionCanceledError) as caught:
        wire.call(
            "TransactWriteItems",
            {
                "TransactItems": [
                    write(f"{customer}-new", "attribute_not_exists(pk)"),
                    write(customer, "attribute_not_exists(pk)"),
                ]
            },
        )
    assert caught.value.reasons == ["None", "ConditionalCheckFailed"]
    assert not caught.value.is_conflict
    answer = wire.call(
        "GetItem",
        {"TableName": table, "Key": {"pk": {"S": f"{customer}-new"}, "sk": {"S": "profile"}}},
    )
    assert "Item" not in answer, "all or nothing"


@pytest.mark.parametrize(
    ("reasons", "is_conflict"),
    [
        (["None", "TransactionConflict"], True),
        (["ThrottlingError", "None"], True),
        (["ProvisionedThroughputExceeded"], True),
        (["TransactionConflict", "ConditionalCheckFailed"], False),
        (["None", "ValidationError"], False),
        ([], False),
    ],
)
def test_only_conflicts_and_throttling_are_worth_another_transaction(
    reasons: list[str], is_conflict: bool
) -> None:
    assert TransactionCanceledError("", reasons).is_conflict is is_conflict


def test_a_missing_table_is_an_error_by_name(store: Store) -> None:
    with pytest.raises(StorageError) as caught:
        store.wire().call("GetItem", {"TableName": "no-such", "Key": {"pk": {"S": "x"}}})
    assert caught.value.code == "ResourceNotFoundException"


def test_backing_off_grows_is_jittered_and_is_capped() -> None:
    for attempt in range(12):
        pauses_s = [back_off_s(attempt) for _ in range(200)]
        longest_s = min(2.0, 0.05 * 2**attempt)
        assert 0 <= min(pauses_s) <= max(pauses_s) <= longest_s
        assert max(pauses_s) - min(pauses_s) > longest_s / 2


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that says nothing about AWS."""
    import os

    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_without_a_region_nothing_starts(bare: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="region"):
        DynamoWire(botocore.session.Session())


def test_without_credentials_no_call_is_made(bare: pytest.MonkeyPatch) -> None:
    bare.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    wire = DynamoWire(botocore.session.Session(), endpoint_url="http://127.0.0.1:1")
    with pytest.raises(NoCredentialsError):
        wire.call("ListTables", {})


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, "https://dynamodb.eu-central-1.amazonaws.com"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1/"}, "http://127.0.0.1:1/"),
        ({"AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:2"}, "http://127.0.0.1:2"),
        (
            {
                "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
                "AWS_ENDPOINT_URL_DYNAMODB": "http://127.0.0.1:2",
            },
            "http://127.0.0.1:2",
        ),
    ],
)
def test_it_calls_where_botocore_itself_would(
    bare: pytest.MonkeyPatch, environment: dict[str, str], endpoint: str
) -> None:
    bare.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    for name, value in environment.items():
        bare.setenv(name, value)
    session = botocore.session.Session()
    session.set_credentials("test", "test")
    assert DynamoWire(session).endpoint_url == endpoint


def test_an_endpoint_below_a_path_is_called_there() -> None:
    with answer_with(http_answer("200 OK", b'{"TableNames": []}')) as url:
        wire = DynamoWire(make_session(), endpoint_url=f"{url}/aws/")
        assert wire.call("ListTables", {}) == {"TableNames": []}
