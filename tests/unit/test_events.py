"""The usage report as it crosses the border."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.usage import CORRECTIONS, EventKey
from meterline.errors import InvalidRequestError, RejectedEventError
from meterline.schemas.events import MAX_EVENTS, list_events, read_event
from meterline.schemas.locations import write_location

Json = dict[str, Any]
EVENT: Json = {
    "specversion": "1.0",
    "id": "req_8f2",
    "source": "backend/reports",
    "type": "meterline.usage",
    "subject": "acme",
    "data": {"meter": "credits", "quantity": "1"},
}
LONGEST = "\U0001f9fe" * 200


def refuse(raw: object) -> RejectedEventError:
    with pytest.raises(RejectedEventError) as refused:
        read_event(raw)
    return refused.value


def test_an_event_is_one_a_list_or_an_object_with_a_list() -> None:
    assert list_events(EVENT) == [EVENT]
    assert list_events([EVENT, 17]) == [EVENT, 17]
    assert list_events({"events": [EVENT, None]}) == [EVENT, None]


def test_an_event_that_has_an_attribute_called_events_is_still_one_event() -> None:
    event = EVENT | {"events": []}
    assert list_events(event) == [event]


@pytest.mark.parametrize(
    ("document", "code", "status"),
    [
        (None, "invalid_body", 400),
        (17, "invalid_body", 400),
        ("events", "invalid_body", 400),
        ({"events": {}}, "invalid_body", 400),
        ({"events": None}, "invalid_body", 400),
        ([], "no_events", 400),
        ({"events": []}, "no_events", 400),
        ([EVENT] * (MAX_EVENTS + 1), "too_many_events", 413),
    ],
)
def test_what_holds_no_events_is_refused_as_a_whole(
    document: object, code: str, status: int
) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        list_events(document)
    assert (refused.value.code, refused.value.status) == (code, status)


def test_a_thousand_events_are_not_too_many() -> None:
    assert len(list_events([EVENT] * MAX_EVENTS)) == MAX_EVENTS


def test_attributes_that_nobody_here_knows_are_let_through_but_fields_of_data_are_not() -> None:
    assert read_event(EVENT | {"traceparent": "00-0a"}).id == "req_8f2"
    refused = refuse(EVENT | {"data": EVENT["data"] | {"tokens": 5}})
    assert (refused.code, str(refused)) == (
        "unknown_field",
        "data.tokens is not a field of an event.",
    )


@pytest.mark.parametrize("field", ["specversion", "id", "source", "type", "subject", "data"])
def test_a_missing_field_is_named(field: str) -> None:
    refused = refuse({name: value for name, value in EVENT.items() if name != field})
    assert (refused.code, str(refused)) == ("missing_field", f"{field} is missing.")


@pytest.mark.parametrize("raw", [None, 17, "event", [], True, b"{}"])
def test_what_is_no_object_is_no_event(raw: object) -> None:
    assert refuse(raw).code == "invalid_event"


def test_nobody_reports_under_the_name_of_corrections() -> None:
    refused = refuse(EVENT | {"source": CORRECTIONS})
    assert (refused.code, str(refused)) == (
        "invalid_field",
        "source: This source is that of corrections.",
    )
    assert read_event(EVENT | {"source": f"{CORRECTIONS}s"}).source == f"{CORRECTIONS}s"


@pytest.mark.parametrize(
    "subject",
    ["", ".", "..", "-a", "_a", "a b", "a/b", "a#b", "a\x1fb", "a\n", "\u00e4", "a" * 65, "../a"],
)
def test_a_customers_id_has_few_letters(subject: str) -> None:
    assert refuse(EVENT | {"subject": subject}).code == "invalid_field"


@given(
    st.text(st.characters(categories=["Cc"]), min_size=1, max_size=1),
    st.sampled_from(["id", "source"]),
)
def test_no_control_character_gets_into_a_key(control: str, field: str) -> None:
    refused = refuse(EVENT | {field: f"a{control}b"})
    assert str(refused) == f"{field}: Control characters are not allowed."


@given(
    st.text(min_size=1, max_size=200),
    st.text(min_size=1, max_size=200),
    st.from_regex(r"\A[a-z]{1,64}\Z"),
)
def test_a_key_that_is_let_in_is_told_from_every_other(
    source: str, event_id: str, customer: str
) -> None:
    try:
        event = read_event(EVENT | {"source": source, "id": event_id, "subject": customer})
    except RejectedEventError:
        return
    key = EventKey(event.subject, event.source, event.id)
    assert EventKey.parse(key.text) == key
    assert key.text.count("\x1f") == 2


def test_the_longest_key_is_one_that_dynamodb_takes() -> None:
    event = read_event(EVENT | {"source": LONGEST, "id": LONGEST, "subject": "a" * 64})
    assert len(EventKey(event.subject, event.source, event.id).text.encode()) <= 2048


def test_an_answer_names_a_place_without_growing_with_it() -> None:
    assert write_location(("data", "usage", 3)) == "data.usage.3"
    assert len(write_location(("x" * 100_000,))) < 100
    write_location(("cut \ud83d",)).encode()
