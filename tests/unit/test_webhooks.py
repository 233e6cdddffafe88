"""Webhooks: what is let in, what is written down, and what a repeat or a crash does."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.dropped import DroppedUsage, DropReport, read_identifier
from meterline.domain.webhooks import (
    TOLERANCE_S,
    Notice,
    SignatureRefusedError,
    verify_signature,
)
from meterline.errors import InvalidRequestError, StorageUnavailableError
from meterline.services.apply_stripe_event import Applied, ApplyStripeEvent
from meterline.services.poll_stripe_events import OVERLAP_S, PollStripeEvents
from meterline.services.receive_stripe_webhook import (
    MAX_BODY_BYTES,
    Received,
    ReceiveStripeWebhook,
)

NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
NOW_S = int(NOW.timestamp())
SECRET = "whsec_present"
OLD_SECRET = "whsec_former"


def make_body(event_type: str = "customer.subscription.updated", event_id: str = "evt_1") -> bytes:
    event = {
        "id": event_id,
        "object": "event",
        "type": event_type,
        "created": NOW_S,
        "data": {"object": {"id": "sub_1", "customer": "cus_acme"}},
    }
    return json.dumps(event).encode()


def sign(body: bytes, secret: str = SECRET, at_s: int = NOW_S) -> str:
    """A header as Stripe's own library makes it for tests."""
    digest = hmac.new(secret.encode(), b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


@dataclass
class FakeInbox:
    """The inbox in memory."""

    queued: set[str] = field(default_factory=set)
    noted: list[str] = field(default_factory=list)
    done: set[str] = field(default_factory=set)
    at_s: int | None = None

    def note(self, notice: Notice, now: datetime) -> bool:
        self.noted.append(notice.id)
        return notice.id in self.queued

    def mark_queued(self, notice_id: str, now: datetime) -> None:
        self.queued.add(notice_id)

    def is_done(self, notice_id: str) -> bool:
        return notice_id in self.done

    def mark_done(self, notice_id: str, now: datetime) -> None:
        self.done.add(notice_id)

    def cursor(self) -> int | None:
        return self.at_s

    def move_cursor(self, to_s: int) -> None:
        self.at_s = to_s


@dataclass
class FakeNoticeQueue:
    """The queue in memory; it can be down."""

    notices: list[Notice] = field(default_factory=list)
    is_down: bool = False

    def put(self, notice: Notice) -> None:
        if self.is_down:
            raise StorageUnavailableError("SQS: down")
        self.notices.append(notice)


@dataclass
class Door:
    """The receiver with all that is around it. `cached` is what it knows of the secrets."""

    inbox: FakeInbox = field(default_factory=FakeInbox)
    queue: FakeNoticeQueue = field(default_factory=FakeNoticeQueue)
    cached: Collection[str] = (SECRET,)
    current: Collection[str] = (SECRET,)
    asked_fresh: int = 0

    def secrets(self, fresh: bool) -> Collection[str]:
        self.asked_fresh += fresh
        return self.current if fresh else self.cached

    def receive(self, body: bytes, header: str) -> Received:
        service = ReceiveStripeWebhook(self.secrets, self.inbox, self.queue)
        return service(body, header, NOW).received


def test_a_signed_event_is_written_down_and_queued_once_however_often_it_comes() -> None:
    door = Door()
    body = make_body()
    outcomes = [door.receive(body, sign(body)) for _ in range(5)]
    assert outcomes == [Received.QUEUED, *[Received.REPEATED] * 4]
    assert [notice.id for notice in door.queue.notices] == ["evt_1"]


def test_an_event_that_was_written_down_but_never_queued_is_queued_by_its_repeat() -> None:
    door = Door()
    body = make_body()
    door.queue.is_down = True
    with pytest.raises(StorageUnavailableError):
        door.receive(body, sign(body))
    door.queue.is_down = False
    assert door.receive(body, sign(body)) is Received.QUEUED
    assert len(door.queue.notices) == 1


def test_nothing_of_an_unknown_type_is_kept() -> None:
    door = Door()
    body = make_body("charge.succeeded")
    assert door.receive(body, sign(body)) is Received.IGNORED
    assert not door.inbox.noted
    assert not door.queue.notices


BODY = make_body()
ATTACKS = {
    "no header": ("", "signature_missing"),
    "header without a time": ("v1=" + "0" * 64, "signature_missing"),
    "header without a signature": (f"t={NOW_S}", "signature_missing"),
    "a time that is no number": (f"t=now,v1={'0' * 64}", "signature_missing"),
    "a time beyond all numbers": (f"t={'9' * 400},v1={'0' * 64}", "signature_missing"),
    "digits that are not ASCII": (f"t=١٢٣,v1={'0' * 64}", "signature_missing"),
    "another secret": (sign(BODY, "whsec_guessed"), "signature_mismatch"),
    "an empty secret": (sign(BODY, ""), "signature_mismatch"),
    "the former scheme only": (sign(BODY).replace("v1=", "v0="), "signature_missing"),
    "the signature of another body": (sign(make_body(event_id="evt_2")), "signature_mismatch"),
    "the time changed after signing": (
        sign(BODY, at_s=NOW_S - 4000).replace(str(NOW_S - 4000), str(NOW_S)),
        "signature_mismatch",
    ),
    "an old delivery, replayed": (
        sign(BODY, at_s=NOW_S - TOLERANCE_S - 1),
        "signature_expired",
    ),
    "a delivery from the future": (
        sign(BODY, at_s=NOW_S + TOLERANCE_S + 1),
        "signature_expired",
    ),
    "a signature that is no text": (f"t={NOW_S},v1=\udcff", "signature_mismatch"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_is_not_signed_by_us_and_lately_is_refused_and_leaves_no_trace(attack: str) -> None:
    header, code = ATTACKS[attack]
    door = Door()
    with pytest.raises(SignatureRefusedError) as refused:
        door.receive(BODY, header)
    assert refused.value.code == code
    assert not door.inbox.noted
    assert not door.queue.notices


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[]", "invalid_body"),
        (b"null", "invalid_body"),
        (b'{"id": "evt_1"}', "invalid_body"),
        (b'{"id": "", "type": "x", "created": 1, "data": {}}', "invalid_body"),
        (b'{"id": 7, "type": "x", "created": 1, "data": {}}', "invalid_body"),
        (b'{"id": "e", "type": "x", "created": 1, "data": []}', "invalid_body"),
        (b'{"object": "v2.core.event", "id": "e", "type": "x", "created": "-"}', "invalid_body"),
        (b" " * (MAX_BODY_BYTES + 1), "body_too_large"),
    ],
)
def test_a_signed_body_that_is_no_event_is_refused(body: bytes, code: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        Door().receive(body, sign(body))
    assert refused.value.code == code


class CountedSecret(str):
    """A secret that counts how often it is taken to sign with."""

    taken = 0

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        CountedSecret.taken += 1
        return super().encode(encoding, errors)


def test_a_body_is_hashed_once_for_each_secret_however_many_signatures_a_stranger_sends() -> None:
    header = f"t={NOW_S}" + ",v1=" * 2_500
    before = CountedSecret.taken
    with pytest.raises(SignatureRefusedError):
        verify_signature(make_body(), header, [CountedSecret(SECRET), OLD_SECRET], NOW_S)
    assert CountedSecret.taken - before == 1


def test_while_secrets_rotate_either_of_them_lets_in() -> None:
    door = Door(cached=(OLD_SECRET, SECRET))
    for secret in (OLD_SECRET, SECRET):
        body = make_body(event_id=f"evt_{secret}")
        assert door.receive(body, sign(body, secret)) is Received.QUEUED
    both = sign(BODY, OLD_SECRET) + "," + sign(BODY).partition(",")[2]
    assert Door(cached=(SECRET,)).receive(BODY, both) is Received.QUEUED


def test_a_secret_that_was_rotated_in_just_now_is_fetched() -> None:
    door = Door(cached=(OLD_SECRET,), current=(SECRET,))
    assert door.receive(BODY, sign(BODY)) is Received.QUEUED
    assert door.asked_fresh == 1


def test_a_secret_that_was_rotated_out_no_longer_lets_in() -> None:
    with pytest.raises(SignatureRefusedError):
        Door().receive(BODY, sign(BODY, OLD_SECRET))


@given(
    body=st.text(max_size=200),
    signed=st.text(max_size=200),
    secret=st.sampled_from([SECRET, OLD_SECRET]),
    age_s=st.integers(-2 * TOLERANCE_S, 2 * TOLERANCE_S),
)
def test_the_verdict_is_that_of_stripes_own_library(
    body: str, signed: str, secret: str, age_s: int
) -> None:
    now_s = int(time.time())
    raw = body.encode()
    for message in (raw, signed.encode()):
        header = sign(message, secret, now_s - age_s)
        try:
            verify_signature(raw, header, [SECRET], now_s)
            ours = True
        except SignatureRefusedError:
            ours = False
        if age_s < 0 or abs(age_s - TOLERANCE_S) <= 1:
            continue  # Stripe's library takes any future; and its clock is its own.
        try:
            stripe.WebhookSignature.verify_header(body, header, SECRET, TOLERANCE_S)
            theirs = True
        except stripe.SignatureVerificationError:
            theirs = False
        assert ours == theirs


@dataclass
class FakeEvents:
    """The billing layer's own list."""

    notices: list[Notice]
    asked_since: list[int] = field(default_factory=list)

    def since(self, created_s: int) -> list[Notice]:
        self.asked_since.append(created_s)
        return [notice for notice in self.notices if notice.created_s >= created_s]


def make_notice(event_id: str, event_type: str = "invoice.created", **told: object) -> Notice:
    fields = {"object_id": "in_1", "customer": "cus_acme", "created_s": NOW_S - 60} | told
    return Notice(event_id, event_type, **fields)  # type: ignore[arg-type]  # as the test says


def test_a_poll_finds_what_was_never_delivered_and_nothing_else() -> None:
    inbox, queue = FakeInbox(queued={"evt_came"}), FakeNoticeQueue()
    events = FakeEvents([make_notice("evt_came"), make_notice("evt_lost")])
    poll = PollStripeEvents(events, inbox, queue)
    assert poll(NOW) == (2, 1)
    assert [notice.id for notice in queue.notices] == ["evt_lost"]
    assert poll(NOW) == (2, 0)
    assert events.asked_since[1] == NOW_S - OVERLAP_S


def test_a_poll_that_breaks_off_begins_at_the_same_place_again() -> None:
    inbox, queue = FakeInbox(at_s=NOW_S - 100), FakeNoticeQueue(is_down=True)
    poll = PollStripeEvents(FakeEvents([make_notice("evt_lost")]), inbox, queue)
    with pytest.raises(StorageUnavailableError):
        poll(NOW)
    assert inbox.at_s == NOW_S - 100
    queue.is_down = False
    assert poll(NOW).missed == 1


@dataclass
class Bench:
    """The applier with all that is around it."""

    inbox: FakeInbox = field(default_factory=FakeInbox)
    synced: list[str] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    listed: list[tuple[str, ...]] = field(default_factory=list)
    """Customers, each with the invoices that were checked before."""
    alerts: list[tuple[str, ...]] = field(default_factory=list)
    dropped: list[DroppedUsage] = field(default_factory=list)
    fails: bool = False
    changed_at: datetime | None = None

    def of_billing_customer(self, billing_customer: str) -> list[str]:
        return ["acme"] if billing_customer == "cus_acme" else []

    def fetch_report(self, event_id: str) -> DropReport:
        sample = DroppedUsage("ml_1", "meter_event_customer_not_found", "No such customer")
        return DropReport(event_id, "mtr_1", 3, [sample.code], [sample])

    def record(self, samples: list[DroppedUsage], now: datetime) -> None:
        self.dropped += samples

    def find(self, identifiers: list[str]) -> dict[str, DroppedUsage]:
        return {}

    def sync(self, customer: str, now: datetime, changed_at: datetime | None) -> None:
        if self.fails:
            raise StorageUnavailableError("down")
        self.synced.append(customer)
        self.changed_at = changed_at

    def apply(self, notice: Notice) -> Applied:
        service = ApplyStripeEvent(
            self.inbox,
            self,
            self,
            self,  # type: ignore[arg-type]  # a list is a sequence of what it holds
            sync=self.sync,
            check_invoice=lambda invoice, _now: self.checked.append(invoice),
            list_after_end=lambda customer, _now: self.listed.append((customer, *self.checked)),
            tell_alert=lambda event_id, customers, _now: self.alerts.append((event_id, *customers)),
        )
        return service(notice, NOW).applied


@pytest.mark.parametrize("kind", ["created", "updated", "deleted"])
def test_an_event_of_a_subscription_has_its_customer_asked_about(kind: str) -> None:
    bench = Bench()
    notice = make_notice("evt_1", f"customer.subscription.{kind}")
    assert bench.apply(notice) is Applied.SUBSCRIPTION_SYNCED
    assert bench.synced == ["acme"]
    assert bench.listed == [("acme",)]
    told = datetime.fromtimestamp(notice.created_s, UTC)
    assert bench.changed_at == (told if kind == "updated" else None)


@pytest.mark.parametrize("kind", ["created", "finalized", "finalization_failed", "paid"])
def test_an_event_of_an_invoice_has_the_period_read_before_the_invoice(kind: str) -> None:
    bench = Bench()
    assert bench.apply(make_notice("evt_1", f"invoice.{kind}")) is Applied.INVOICE_CHECKED
    assert (bench.synced, bench.checked) == (["acme"], ["in_1"])
    assert bench.listed == [("acme", "in_1")], "no invoice waits for it"


def test_an_alert_is_told_of_to_those_it_is_about_once() -> None:
    bench = Bench()
    notice = make_notice("evt_1", "billing.alert.triggered")
    assert bench.apply(notice) is Applied.ALERT_TOLD
    assert bench.apply(notice) is Applied.REPEATED
    assert bench.alerts == [("evt_1", "acme")]


def test_an_event_counts_as_handled_only_when_it_was() -> None:
    bench = Bench(fails=True)
    notice = make_notice("evt_1")
    with pytest.raises(StorageUnavailableError):
        bench.apply(notice)
    bench.fails = False
    assert bench.apply(notice) is Applied.INVOICE_CHECKED
    assert bench.apply(notice) is Applied.REPEATED
    assert bench.checked == ["in_1"]


def test_an_event_of_somebody_elses_customer_is_left_alone() -> None:
    bench = Bench()
    assert bench.apply(make_notice("evt_1", customer="cus_other")) is Applied.NOT_OURS
    assert not bench.synced


def test_a_report_of_dropped_usage_is_fetched_and_its_samples_kept() -> None:
    bench = Bench()
    notice = make_notice("evt_1", "v1.billing.meter.error_report_triggered", customer=None)
    assert bench.apply(notice) is Applied.DROPS_RECORDED
    assert [drop.identifier for drop in bench.dropped] == ["ml_1"]


@pytest.mark.parametrize(
    ("identifier", "key", "expected"),
    [
        ("ml_abc", None, "ml_abc"),
        (None, "ml_abc-0123-1795334400", "ml_abc"),
        ("ml_abc", "else", "ml_abc"),
        ("evt_of_another", "key", None),
        (None, None, None),
    ],
)
def test_a_sample_is_ours_by_either_of_its_names(
    identifier: str | None, key: str | None, expected: str | None
) -> None:
    assert read_identifier(identifier, key) == expected
