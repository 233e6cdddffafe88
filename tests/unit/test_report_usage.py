"""Reports of usage: each event is judged by itself, and counts once."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from meterline.catalog import load_meters
from meterline.catalog.rate_cards import load_rate_card
from meterline.domain.rating import RateCard
from meterline.domain.usage import MAX_AHEAD, LedgerEntry
from meterline.errors import InvalidRequestError, StorageUnavailableError
from meterline.http import read_json
from meterline.ports import Recorded
from meterline.schemas.events import list_events
from meterline.services.report_usage import MAX_AGE, ReportUsage, UsageReport

NOW = datetime(2026, 11, 22, 6, 0, 0, 123_456, tzinfo=UTC)
Json = dict[str, Any]


class FakeLedger:
    """A ledger in memory, that can leave entries undecided."""

    def __init__(self) -> None:
        self.entries: dict[str, LedgerEntry] = {}
        self.calls = 0
        self.undecided: set[str] = set()
        """Ids of events on which there is no answer, though they are written."""

    def record(self, entries: Sequence[LedgerEntry]) -> Sequence[Recorded]:
        self.calls += 1
        keys = [entry.key.text for entry in entries]
        assert len(set(keys)) == len(keys), "the keys of one call must be distinct"
        return [self._record(entry) for entry in entries]

    def list_digests(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        if self.undecided:
            raise StorageUnavailableError("no answer")
        return {key: self.entries[key].digest for key in keys if key in self.entries}

    def _record(self, entry: LedgerEntry) -> Recorded:
        held = self.entries.setdefault(entry.key.text, entry)
        if entry.key.id in self.undecided:
            return Recorded.UNDECIDED
        if held is entry:
            return Recorded.ACCEPTED
        return Recorded.DUPLICATE if held.digest == entry.digest else Recorded.CONFLICT

    def only(self) -> LedgerEntry:
        [entry] = self.entries.values()
        return entry


class FakeCustomers:
    """Customers that exist."""

    def __init__(self, *customers: str) -> None:
        self._customers = set(customers)

    def known(self, customers: Iterable[str]) -> set[str]:
        return self._customers & set(customers)


class Reporting:
    """The service with its fakes."""

    def __init__(self) -> None:
        self.ledger = FakeLedger()
        self._use(load_rate_card())

    def _use(self, card: RateCard) -> None:
        self._report = ReportUsage(self.ledger, FakeCustomers("acme", "birch"), load_meters(), card)

    def drop_model(self, model: str) -> None:
        """From now on the rate card knows nothing of it."""
        card = load_rate_card()
        left = [each for each in card.rates if not each.covers("anthropic", model)]
        self._use(RateCard("later", left))

    def __call__(self, *events: object, now: datetime = NOW) -> UsageReport:
        return self._report(events, now)


@pytest.fixture
def report() -> Reporting:
    return Reporting()


def make_event(event_id: str = "req_8f2", **data: Any) -> Json:
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "backend/reports",
        "type": "meterline.usage",
        "subject": "acme",
        "time": "2026-11-22T06:00:00Z",
        "data": {
            "meter": "credits",
            "user": "u_9",
            "action": "report.generate",
            "provider": "anthropic",
            "model": "claude-sonnet-4-5",
            "usage": {"input_tokens": 1200, "output_tokens": 350},
        }
        | data,
    }


def make_quantity(quantity: Any, event_id: str = "req_8f2", meter: str = "credits") -> Json:
    return make_event(event_id) | {"data": {"meter": meter, "quantity": quantity}}


def list_codes(report: UsageReport) -> list[str]:
    return [rejection.code for rejection in report.rejected]


def count(report: UsageReport) -> tuple[int, int, int, int, int]:
    return (
        report.accepted,
        report.duplicates,
        report.ignored,
        len(report.rejected),
        report.undecided,
    )


def test_a_model_call_is_rated_and_kept_with_its_evidence(report: Reporting) -> None:
    told = report(make_event(response_id="msg_01", tier="standard", authorization="auth_1"))
    assert count(told) == (1, 0, 0, 0, 0)
    entry = report.ledger.only()
    assert entry.quantity == Decimal("2.950")
    assert (entry.key.customer, entry.key.source, entry.key.id) == (
        "acme",
        "backend/reports",
        "req_8f2",
    )
    assert entry.at == datetime(2026, 11, 22, 6, tzinfo=UTC)
    assert entry.received_at == NOW
    assert entry.rate_card == load_rate_card().version
    assert entry.usage == {"input_tokens": 1200, "output_tokens": 350}
    assert (entry.response_id, entry.tier, entry.authorization) == ("msg_01", "standard", "auth_1")


def test_an_event_without_a_time_gets_that_of_the_call_to_the_millisecond(
    report: Reporting,
) -> None:
    report(make_event() | {"time": None})
    assert report.ledger.only().at == NOW.replace(microsecond=123_000)


def test_raw_tokens_are_added(report: Reporting) -> None:
    report(make_event(meter="tokens"))
    assert report.ledger.only().quantity == 1550
    assert report.ledger.only().rate_card is None


def test_a_reported_quantity_is_kept_as_it_is(report: Reporting) -> None:
    report(make_quantity("12.5"), make_quantity(3, "whole", "outcomes"))
    assert [entry.quantity for entry in report.ledger.entries.values()] == [Decimal("12.5"), 3]


def test_an_event_sent_twice_is_one_event_whatever_its_time(report: Reporting) -> None:
    assert count(report(make_event())) == (1, 0, 0, 0, 0)
    assert count(report(make_event() | {"time": "2026-11-21T00:00:00Z"})) == (0, 1, 0, 0, 0)
    assert report.ledger.only().at == datetime(2026, 11, 22, 6, tzinfo=UTC)


@pytest.mark.parametrize(
    "other",
    [
        {"user": "u_10"},
        {"action": "chat"},
        {"model": "claude-opus-4-5"},
        {"meter": "tokens"},
        {"usage": {"input_tokens": 1201, "output_tokens": 350}},
        {"usage": {"input_tokens": 350, "output_tokens": 1200}},
        {"response_id": "msg_02"},
        {"status": "partial"},
        {"authorization": "auth_2"},
        {"tier": "batch"},
    ],
)
def test_the_same_id_with_other_content_is_a_conflict(report: Reporting, other: Json) -> None:
    report(make_event())
    told = report(make_event(**other))
    assert count(told) == (0, 0, 0, 1, 0)
    assert list_codes(told) == ["conflict"]
    assert report.ledger.only().quantity == Decimal("2.95")


def test_a_kind_of_tokens_that_is_zero_says_nothing(report: Reporting) -> None:
    report(make_event())
    again = make_event(usage={"output_tokens": 350, "cache_read_tokens": 0, "input_tokens": 1200})
    assert count(report(again)) == (0, 1, 0, 0, 0)


@pytest.mark.parametrize("again", ["5.0", "5.000", 5])
def test_a_quantity_written_otherwise_is_the_same_quantity(report: Reporting, again: Any) -> None:
    report(make_quantity("5"))
    assert count(report(make_quantity(again))) == (0, 1, 0, 0, 0)
    assert list_codes(report(make_quantity("5.001"))) == ["conflict"]


def test_a_retry_without_a_time_is_a_duplicate_though_its_model_left_the_rate_card(
    report: Reporting,
) -> None:
    report(make_event() | {"time": None})
    report.drop_model("claude-sonnet-4-5")
    fresh = make_event("fresh") | {"time": None}
    other = make_event(user="u_10") | {"time": None}
    told = report(make_event() | {"time": None}, fresh, other)
    assert count(told) == (0, 1, 0, 2, 0)
    assert list_codes(told) == ["unknown_model", "unknown_model"]


def test_what_cannot_be_rated_is_not_refused_while_the_ledger_does_not_say_what_it_holds(
    report: Reporting,
) -> None:
    untimed = [make_event(name) | {"time": None} for name in ("held", "fresh", "other")]
    report(untimed[0])
    report.drop_model("claude-sonnet-4-5")
    report.ledger.undecided.add("held")
    told = report(*untimed, make_quantity("5"))
    assert count(told) == (1, 0, 0, 0, 3)
    report.ledger.undecided.clear()
    again = report(*untimed, make_quantity("5"))
    assert count(again) == (0, 2, 0, 2, 0)
    assert [rejection.id for rejection in again.rejected] == ["fresh", "other"]


def test_a_number_of_more_digits_than_can_be_read_costs_its_own_event_only(
    report: Reporting,
) -> None:
    good, bad = json.dumps(make_quantity(1, "good")), json.dumps(make_quantity(1, "bad"))
    tokens = json.dumps(make_event("tokens")).replace("1200", "9" * 5_000)
    body = f"[{good},{bad.replace(': 1}', ': ' + '9' * 5_000 + '}')},{tokens}]"
    call = {"headers": {"content-type": "application/json"}, "body": body}
    told = report(*list_events(read_json(APIGatewayProxyEventV2(call))))
    assert count(told) == (1, 0, 0, 2, 0)
    assert list_codes(told) == ["invalid_quantity", "invalid_field"]


def test_ids_are_the_senders_own_for_each_customer_and_source(report: Reporting) -> None:
    told = report(
        make_event("invoice-42"),
        make_event("invoice-42") | {"subject": "birch"},
        make_event("invoice-42") | {"source": "backend/chat"},
    )
    assert count(told) == (3, 0, 0, 0, 0)


def test_a_repeat_inside_one_call_is_a_duplicate_and_is_written_once(report: Reporting) -> None:
    told = report(make_event(), make_event(), make_event())
    assert count(told) == (1, 2, 0, 0, 0)
    assert report.ledger.calls == 1


def test_a_contradiction_inside_one_call_is_a_conflict(report: Reporting) -> None:
    told = report(make_event(), make_event(user="u_10"))
    assert count(told) == (1, 0, 0, 1, 0)
    assert told.rejected[0].index == 1


def test_a_repeat_is_settled_by_what_the_ledger_holds_and_not_by_its_neighbour(
    report: Reporting,
) -> None:
    held, other = make_event(), make_event(user="u_10")
    report(held)
    told = report(other, held, other, make_event(user="u_11"))
    assert count(told) == (0, 1, 0, 3, 0)
    assert [rejection.index for rejection in told.rejected] == [0, 2, 3]


def test_a_repeat_of_what_is_undecided_is_undecided(report: Reporting) -> None:
    report.ledger.undecided = {"lost"}
    told = report(make_event("lost"), make_event("lost"), make_event("kept"))
    assert count(told) == (1, 0, 0, 0, 2)


def test_a_call_whose_answer_was_lost_may_be_sent_again_as_a_whole(report: Reporting) -> None:
    events = [make_event(f"e{number}") for number in range(10)]
    report.ledger.undecided = {"e3", "e7"}
    assert count(report(*events)) == (8, 0, 0, 0, 2)
    report.ledger.undecided = set()
    assert count(report(*events)) == (0, 10, 0, 0, 0)
    assert len(report.ledger.entries) == 10


def test_a_cache_hit_is_ignored_and_never_written(report: Reporting) -> None:
    told = report(make_event(cached=True), make_event(cached=True))
    assert count(told) == (0, 0, 2, 0, 0)
    assert report.ledger.entries == {}


def test_a_cache_hit_that_is_no_event_is_refused(report: Reporting) -> None:
    told = report(make_event(cached=True, usage={"input_tokens": -5}))
    assert list_codes(told) == ["invalid_field"]


def test_one_bad_event_never_costs_the_others(report: Reporting) -> None:
    told = report(
        make_event("a"),
        17,
        make_event("b", model="claude-9"),
        make_event("c"),
        make_event("d") | {"subject": "nobody"},
    )
    assert told.accepted == 2
    assert [(each.index, each.id, each.code) for each in told.rejected] == [
        (1, None, "invalid_event"),
        (2, "b", "unknown_model"),
        (4, "d", "unknown_customer"),
    ]


def test_a_refused_event_does_not_use_up_its_id(report: Reporting) -> None:
    assert list_codes(report(make_event(model="claude-9"))) == ["unknown_model"]
    assert report(make_event()).accepted == 1


def test_an_id_that_no_answer_can_hold_is_made_one(report: Reporting) -> None:
    [rejection] = report(make_event("cut \ud83d")).rejected
    assert rejection.id == "cut ?"


def test_a_huge_id_is_not_sent_back(report: Reporting) -> None:
    [rejection] = report(make_event("x" * 201)).rejected
    assert rejection.id is None


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (make_event(meter="apples"), "unknown_meter"),
        (make_event(quantity="1"), "ambiguous_quantity"),
        (make_event(usage=None), "missing_quantity"),
        (make_event(usage={}), "invalid_field"),
        (make_event(provider=None), "missing_field"),
        (make_event(model=None), "missing_field"),
        (make_event(meter="outcomes"), "missing_quantity"),
        (make_event(usage={"gpu_seconds": 1}), "unknown_usage_kind"),
        (make_event(meter="tokens", usage={"gpu_seconds": 1}), "unknown_usage_kind"),
        (make_quantity("0.0001"), "quantity_too_fine"),
        (make_quantity("0.5", meter="outcomes"), "quantity_too_fine"),
        (make_quantity("1" + "0" * 12), "quantity_too_large"),
        (make_quantity("1e3"), "invalid_quantity"),
        (make_event() | {"time": "soon"}, "invalid_time"),
        (make_event() | {"time": "9999-12-31T23:59:59-23:59"}, "invalid_time"),
    ],
)
def test_what_cannot_be_priced_is_refused_and_never_priced_at_zero(
    report: Reporting, event: Json, code: str
) -> None:
    assert list_codes(report(event)) == [code]
    assert report.ledger.entries == {}


def test_a_senders_clock_may_be_five_minutes_ahead_and_no_more(report: Reporting) -> None:
    whole = NOW.replace(microsecond=0)
    ahead = make_event("ahead") | {"time": (whole + MAX_AHEAD).isoformat()}
    assert report(ahead, now=whole).accepted == 1
    beyond = (whole + MAX_AHEAD + timedelta(milliseconds=1)).isoformat()
    assert list_codes(report(make_event("beyond") | {"time": beyond}, now=whole)) == [
        "time_in_future"
    ]


def test_two_years_ago_is_late_and_more_is_a_mistake(report: Reporting) -> None:
    whole = NOW.replace(microsecond=0)
    old = make_event("old") | {"time": (whole - MAX_AGE).isoformat()}
    assert report(old, now=whole).accepted == 1
    older = (whole - MAX_AGE - timedelta(milliseconds=1)).isoformat()
    assert list_codes(report(make_event("older") | {"time": older}, now=whole)) == ["time_too_old"]


def test_when_the_customers_cannot_be_read_nothing_is_written() -> None:
    class Silent:
        def known(self, customers: Iterable[str]) -> set[str]:
            raise StorageUnavailableError("late")

    ledger = FakeLedger()
    report = ReportUsage(ledger, Silent(), load_meters(), load_rate_card())
    with pytest.raises(StorageUnavailableError):
        report([make_event()], NOW)
    assert ledger.entries == {}


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["1.0", "meterline.usage", "acme", "credits", "anthropic", "gpt-5"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(
            ["specversion", "id", "source", "type", "subject", "time", "datacontenttype"]
        ),
        _JSON,
        max_size=2,
    ),
    st.dictionaries(
        st.sampled_from([*make_event()["data"], "quantity", "cached", "tier", "status", "other"]),
        _JSON,
        max_size=2,
    ),
)
def test_whatever_an_event_is_it_comes_to_one_of_four_ends(top: Json, data: Json) -> None:
    report = Reporting()
    event = make_event(**data) | top
    told = report(event, make_event("good"))
    assert told.accepted >= 1
    assert told.accepted + told.duplicates + told.ignored + len(told.rejected) == 2
    for rejection in told.rejected:
        rejection.message.encode()
        (rejection.id or "").encode()
        assert len(rejection.message) < 500


@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["u_1", "u_2", "u_3"])), max_size=12
    ),
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.sampled_from(["u_1", "u_2", "u_3"])), max_size=12
    ),
)
def test_one_call_is_answered_as_its_events_one_by_one(
    before: list[tuple[str, str]], call: list[tuple[str, str]]
) -> None:
    at_once, one_by_one = Reporting(), Reporting()
    for event_id, user in before:
        at_once(make_event(event_id, user=user))
        one_by_one(make_event(event_id, user=user))
    together = at_once(*(make_event(event_id, user=user) for event_id, user in call))
    apart = [one_by_one(make_event(event_id, user=user)) for event_id, user in call]
    assert together.accepted == sum(each.accepted for each in apart)
    assert together.duplicates == sum(each.duplicates for each in apart)
    assert [each.index for each in together.rejected] == [
        place for place, each in enumerate(apart) if each.rejected
    ]
    assert at_once.ledger.entries == one_by_one.ledger.entries


GOOD_BODY = json.dumps({"events": [make_event("a"), make_quantity("12.5", "b")]}).encode()
PIECES = st.sampled_from(
    [
        *(b"", b"\x00", b"\xff", b'"', b"\\", b"\\ud83d", b"[", b"]", b"{", b"}", b",", b":", b"-"),
        *(b"NaN", b"1e999", b"null", b"true", b"9" * 5_000, b"[" * 300, b"\xe2\x82", b"\r\n", b" "),
    ]
)


@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD_BODY)), st.integers(0, 12), PIECES),
        min_size=1,
        max_size=4,
    )
)
def test_a_body_with_bytes_put_wrong_is_refused_or_answered_event_by_event(
    changes: list[tuple[int, int, bytes]],
) -> None:
    body = GOOD_BODY
    for start, length, piece in changes:
        body = body[:start] + piece + body[start + length :]
    call = {
        "headers": {"content-type": "application/json"},
        "body": base64.b64encode(body).decode(),
        "isBase64Encoded": True,
    }
    report = Reporting()
    try:
        events = list_events(read_json(APIGatewayProxyEventV2(call)))
    except InvalidRequestError as error:
        to_json([error.status, error.code, str(error)])
        return
    told = report(*events)
    answered = told.accepted + told.duplicates + told.ignored + len(told.rejected)
    assert answered == len(events)
    to_json([asdict(rejection) for rejection in told.rejected])
