"""The one Stripe account that the server holds: its objects, its time and its events.

Objects are kept as the JSON that Stripe would answer, referring to each other by id; keys that
start with `_` are the server's own and never leave it. Nothing here knows about HTTP.
"""

from __future__ import annotations

import heapq
import itertools
import random
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.local.stripe_server.clock import ServerClock
from infra.local.stripe_server.errors import StripeError, invalid_request, missing_resource
from infra.local.stripe_server.usage import MeterEvent, UsageBook

Json = dict[str, Any]
Render = Callable[["Account", Json], Json]

API_VERSION = "2026-10-28.endive"
_ALPHABET = string.ascii_letters + string.digits


@dataclass(slots=True)
class Settings:
    """What a test may change while the server runs."""

    summary_lag_s: float = 0.0
    """How long an event is not yet seen by summaries and previews."""
    async_errors: frozenset[str] = frozenset({"meter_event_customer_not_found"})
    """Codes that are answered 200 and reported later as a thin event, instead of a 400."""
    lock_hold_s: float = 0.001
    """How long one meter event holds its customer and meter; a second call meanwhile gets 409."""
    draft_s: int = 3600
    """How long a draft of a subscription waits before it is finalised."""
    drafts_follow: bool = False
    """Whether a draft shows usage that came since it was made; finalisation counts it anyway."""
    upcoming_s: int = 7 * 86_400
    """How long before a renewal `invoice.upcoming` is sent."""
    error_report_delay_s: float = 0.05
    """How long errors of one meter are collected before they are reported together."""


@dataclass(slots=True)
class RequestContext:
    """Which API request is being served: what an event says it came from."""

    id: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of objects: how its ids begin, what Stripe calls it, how it is shown."""

    prefix: str
    noun: str
    render: Render


@dataclass(frozen=True, slots=True)
class FailedUsage:
    """A meter event that was answered 200 and then dropped."""

    event: MeterEvent
    meter: str | None
    message: str


@dataclass(slots=True)
class _Due:
    at_s: int
    action: str
    object_id: str


@dataclass
class Account:
    """All state of the server. One thread; every request is served whole before the next."""

    clock: ServerClock = field(default_factory=ServerClock)
    settings: Settings = field(default_factory=Settings)
    seed: int = 0
    request: RequestContext = field(default_factory=RequestContext)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every object; settings and clock stay."""
        self._random = random.Random(self.seed)  # noqa: S311 - ids, not secrets
        self._stores: dict[str, dict[str, Json]] = {prefix: {} for prefix in KINDS}
        self.events: list[Json] = []
        self.thin_events: dict[str, Json] = {}
        self.outbox: list[Json] = []
        """Events, snapshot and thin, that wait to be handed to the deliverer."""
        self.usage = UsageBook()
        self.failed_usage: list[FailedUsage] = []
        """Meter events accepted and then dropped, until a thin event reports them."""
        self.counters: Counter[str] = Counter()
        self._agenda: dict[str, list[tuple[int, int, _Due]]] = {}
        self._sequence = itertools.count()
        self._time_of: dict[str, int] = {}

    # Ids and objects

    def new_id(self, prefix: str, length: int = 14) -> str:
        """A fresh id such as `cus_Ab3…`."""
        return f"{prefix}_" + "".join(self._random.choices(_ALPHABET, k=length))

    def store(self, prefix: str) -> dict[str, Json]:
        """All objects of a kind, oldest first."""
        return self._stores[prefix]

    def add(self, prefix: str, value: Json) -> Json:
        """Keep a new object under its `id`."""
        self._stores[prefix][value["id"]] = value
        return value

    def get(self, prefix: str, object_id: str, *, param: str = "id") -> Json:
        """The stored object, or resource_missing."""
        value = self._stores[prefix].get(object_id)
        if value is None or value.get("_gone"):
            raise missing_resource(KINDS[prefix].noun, object_id, param=param)
        return value

    def render(self, prefix: str, value: Json) -> Json:
        """The object as Stripe answers it."""
        return KINDS[prefix].render(self, value)

    def render_id(self, object_id: str) -> Json | None:
        """The object behind an id of any kind, for `expand`."""
        prefix = object_id.rpartition("_")[0]
        value = self._stores.get(prefix, {}).get(object_id)
        return None if value is None else self.render(prefix, value)

    # Time

    def now(self, test_clock: str | None = None) -> int:
        """The time of a test clock's customers, or of everyone else."""
        moving = self._time_of.get(test_clock or "")
        if moving is not None:
            return moving
        if test_clock is not None:
            frozen: int = self.get("clock", test_clock)["frozen_time"]
            return frozen
        return self.clock.now_s()

    def customer_now(self, customer_id: str) -> int:
        """The time that this customer lives in."""
        return self.now(self.store("cus")[customer_id]["test_clock"])

    def schedule(self, at_s: int, test_clock: str | None, action: str, object_id: str) -> None:
        """Have `action` looked at when that time comes; it checks for itself if it still holds."""
        agenda = self._agenda.setdefault(test_clock or "", [])
        heapq.heappush(agenda, (at_s, next(self._sequence), _Due(at_s, action, object_id)))

    def run_due(self, test_clock: str | None, until_s: int) -> None:
        """Do all that is due up to a time, in order, each at its own time."""
        scope = test_clock or ""
        agenda = self._agenda.get(scope, [])
        while agenda and agenda[0][0] <= until_s:
            due = heapq.heappop(agenda)[2]
            self._time_of[scope] = due.at_s
            try:
                ACTIONS[due.action](self, due.object_id, due.at_s)
            finally:
                del self._time_of[scope]

    # Events

    def emit(self, event_type: str, prefix: str, value: Json, previous: Json | None = None) -> Json:
        """Record a snapshot event of the object as it is now, and hand it to the deliverer."""
        shown = self.render(prefix, value)
        data: Json = {"object": shown}
        if previous is not None:
            data["previous_attributes"] = previous
        event = {
            "api_version": API_VERSION,
            "created": self._event_time(value),
            "data": data,
            "id": self.new_id("evt", 24),
            "livemode": False,
            "object": "event",
            "pending_webhooks": 0,
            "request": {
                "id": self.request.id,
                "idempotency_key": self.request.idempotency_key,
            },
            "type": event_type,
        }
        self.events.append(event)
        self.outbox.append(event)
        return event

    def emit_update(self, event_type: str, prefix: str, value: Json, before: Json) -> None:
        """Record an update with the former values of what changed."""
        after = self.render(prefix, value)
        previous = {key: was for key, was in before.items() if after.get(key) != was}
        if previous:
            self.emit(event_type, prefix, value, previous)

    def collect_error(self, event: MeterEvent, meter: Json | None, message: str) -> None:
        """Remember a dropped meter event for the next error report."""
        self.failed_usage.append(FailedUsage(event, meter["id"] if meter else None, message))

    def _event_time(self, value: Json) -> int:
        test_clock = value.get("test_clock")
        customer = value.get("customer")
        if test_clock is None and isinstance(customer, str) and customer in self.store("cus"):
            test_clock = self.store("cus")[customer]["test_clock"]
        try:
            return self.now(test_clock)
        except StripeError:
            return self.clock.now_s()


KINDS: dict[str, Kind] = {}
"""Every family of objects by id prefix; each resource module adds its own."""

ACTIONS: dict[str, Callable[[Account, str, int], None]] = {}
"""What can be scheduled, by name; `action(account, object id, due time)`."""


def show_plain(_account: Account, value: Json) -> Json:
    """Show an object as it is stored, without the server's own keys."""
    return {key: item for key, item in value.items() if not key.startswith("_")}


def register_kind(prefix: str, noun: str, render: Render = show_plain) -> None:
    """Add a family of objects."""
    KINDS[prefix] = Kind(prefix, noun, render)


def register_action(name: str, action: Callable[[Account, str, int], None]) -> None:
    """Add something that time can bring about."""
    ACTIONS[name] = action


# What every resource does with its parameters.

_MAX_METADATA_KEYS = 50


def merge_metadata(current: Mapping[str, str], change: Any) -> dict[str, str]:
    """Apply a metadata parameter: an empty value unsets a key, an empty parameter all keys."""
    if change in ("", None):
        return {} if change == "" else dict(current)
    merged = {**current, **change}
    merged = {key: value for key, value in merged.items() if value != ""}
    if len(merged) > _MAX_METADATA_KEYS:
        raise invalid_request(
            f"Metadata can have up to {_MAX_METADATA_KEYS} keys.", param="metadata"
        )
    return merged


def page(
    account: Account, prefix: str, values: Iterable[Json], params: Mapping[str, Any], url: str
) -> Json:
    """A list object: newest first, `limit` 10 (1 to 100), `starting_after`, `ending_before`."""
    newest = [value for value in values if not value.get("_gone")]
    newest.reverse()
    return page_rendered(newest, params, url, lambda value: account.render(prefix, value))


def page_rendered(
    values: list[Json],
    params: Mapping[str, Any],
    url: str,
    render: Callable[[Json], Json] = lambda value: value,
) -> Json:
    """A list object of values that are already in order."""
    limit = params.get("limit", 10)
    if not 1 <= limit <= 100:
        raise invalid_request(
            "Invalid integer: limit must be between 1 and 100."
            if limit > 0
            else f"This value must be greater than or equal to 1 (it currently is '{limit}').",
            param="limit",
        )
    ids = [value["id"] for value in values]
    after, before = params.get("starting_after"), params.get("ending_before")
    if after is not None and before is not None:
        raise invalid_request(
            "You can only specify one of these parameters: starting_after, ending_before."
        )
    for param, cursor in (("starting_after", after), ("ending_before", before)):
        if cursor is not None and cursor not in ids:
            raise missing_resource("object", cursor, param=param)
    if before is not None:
        earlier = values[: ids.index(before)]
        chosen, has_more = earlier[-limit:], len(earlier) > limit
    else:
        rest = values[ids.index(after) + 1 :] if after is not None else values
        chosen, has_more = rest[:limit], len(rest) > limit
    return {
        "object": "list",
        "data": [render(value) for value in chosen],
        "has_more": has_more,
        "url": url,
    }


def created_within(value: Json, created: Any) -> bool:
    """The `created` filter of lists: an integer, or gt, gte, lt, lte."""
    if created is None:
        return True
    at = value["created"]
    if isinstance(created, int):
        return bool(at == created)
    tests: dict[str, Callable[[int, int], bool]] = {
        "gt": lambda a, b: a > b,
        "gte": lambda a, b: a >= b,
        "lt": lambda a, b: a < b,
        "lte": lambda a, b: a <= b,
    }
    return all(tests[name](at, bound) for name, bound in created.items())
