"""What the client sends is what the service takes: its own schema reads each event."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from meterline.schemas.events import read_event
from meterline_client.attribution import MAX_ID_CHARACTERS, Attribution, clip_label
from meterline_client.events import MAX_COUNT, Work, encode_event, make_event_id

unfit = st.characters(min_codepoint=0x20, exclude_categories=["Cc", "Cs"])
labels = st.text(unfit, min_size=1, max_size=128)
ids = st.text(unfit, min_size=1, max_size=MAX_ID_CHARACTERS)
kinds = st.text(unfit, min_size=1, max_size=64)


@given(
    event_id=ids,
    source=ids,
    customer=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    user=st.none() | labels,
    action=st.none() | labels,
    authorization=st.none() | labels,
    usage=st.dictionaries(kinds, st.integers(0, MAX_COUNT), min_size=1, max_size=16),
    model=st.none() | labels,
    status=st.sampled_from([None, "partial"]),
    response_id=st.none() | st.text(max_size=400),
)
def test_every_event_that_can_be_kept_is_one_that_the_service_can_read(
    event_id: str,
    source: str,
    customer: str,
    user: str | None,
    action: str | None,
    authorization: str | None,
    usage: dict[str, int],
    model: str | None,
    status: str | None,
    response_id: str | None,
) -> None:
    attribution = Attribution(customer, user, action, authorization).checked()
    work = Work(
        "credits",
        usage=usage,
        provider="openai",
        model=model,
        status=status,
        response_id=clip_label(response_id),
    )
    line = encode_event(event_id, source, 1_790_000_000.0, attribution, work)
    event = read_event(json.loads(line))
    assert (event.id, event.source, event.subject) == (event_id, source, customer)
    assert event.data.usage == usage


def test_an_id_made_here_is_one_that_the_service_can_read() -> None:
    work = Work("outcomes", quantity="1")
    line = encode_event(make_event_id(), "s", 1_790_000_000.0, Attribution("acme"), work)
    assert read_event(json.loads(line)).data.quantity == "1"
