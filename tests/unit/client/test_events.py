"""The event's text: valid JSON for any names, exact numbers, one id per call."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline_client.attribution import Attribution
from meterline_client.events import (
    Work,
    check_usage,
    encode_event,
    format_quantity,
    format_time,
    make_event_id,
)

names = st.text(min_size=1, max_size=30).filter(str.isprintable)
texts = st.text(max_size=30)
maybe = st.none() | texts


@given(
    event_id=names,
    source=names,
    customer=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    user=st.none() | names,
    usage=st.none() | st.dictionaries(texts, st.integers(0, 10**30)),
    model=maybe,
    response_id=maybe,
    tier=maybe,
)
def test_an_event_reads_back_as_what_was_said(
    event_id: str,
    source: str,
    customer: str,
    user: str | None,
    usage: dict[str, int] | None,
    model: str | None,
    response_id: str | None,
    tier: str | None,
) -> None:
    work = Work("credits", usage=usage, model=model, response_id=response_id, tier=tier)
    line = encode_event(event_id, source, 1_790_000_000.25, Attribution(customer, user), work)
    assert line.count(b"\n") == 1
    event = json.loads(line)
    data = {
        "meter": "credits",
        "user": user,
        "usage": usage,
        "model": model,
        "response_id": response_id,
        "tier": tier,
    }
    assert event == {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": "meterline.usage",
        "subject": customer,
        "time": "2026-09-21T14:13:20.250000Z",
        "data": {name: value for name, value in data.items() if value is not None},
    }


def test_an_event_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than"):
        encode_event("e", "s", 0.0, Attribution("acme"), Work("credits", model="x" * 20_000))


FIRST, LAST = datetime(1970, 1, 1), datetime(2200, 1, 1)  # noqa: DTZ001 - hypothesis adds UTC


@given(st.datetimes(FIRST, LAST, timezones=st.just(UTC)))
def test_times_are_rfc_3339_in_utc_to_the_microsecond(at: datetime) -> None:
    text = format_time(at.timestamp())
    assert text.endswith("Z")
    assert abs((datetime.fromisoformat(text) - at).total_seconds()) < 1e-5


def test_ids_differ_within_a_process_and_between_forks() -> None:
    ids = {make_event_id() for _ in range(10_000)}
    assert len(ids) == 10_000
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, make_event_id().encode())
        os._exit(0)
    os.waitpid(child, 0)
    inherited = os.read(read, 100).decode()
    assert inherited.partition("-")[0] not in {name.partition("-")[0] for name in ids}


@pytest.mark.parametrize(
    ("given_quantity", "text"),
    [(1, "1"), ("0.5", "0.5"), (Decimal("1E+3"), "1000"), (Decimal("1E-7"), "0.0000001"), (0, "0")],
)
def test_quantities_are_written_exactly(given_quantity: Decimal | int | str, text: str) -> None:
    assert format_quantity(given_quantity) == text


@pytest.mark.parametrize("wrong", [1.0, float("nan"), True])
def test_a_float_is_never_a_quantity(wrong: object) -> None:
    with pytest.raises(TypeError):
        format_quantity(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", ["-1", "NaN", "Infinity", "many", Decimal("-0.1")])
def test_what_is_no_quantity_is_refused(wrong: Decimal | str) -> None:
    with pytest.raises(ValueError, match="no "):
        format_quantity(wrong)


@pytest.mark.parametrize("wrong", [1.5, True, "3", None])
def test_usage_is_counted_in_whole_numbers(wrong: object) -> None:
    with pytest.raises(TypeError):
        check_usage({"images": wrong})  # type: ignore[dict-item]


def test_usage_is_never_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        check_usage({"images": -1})
