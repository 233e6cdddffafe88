"""Test clocks: a time of their own for the customers made in them.

An advance answers `advancing` and is done before the next request; the clock is then `ready`.
"""

from __future__ import annotations

from infra.local.stripe_server.account import Account, Json, page, register_action, register_kind
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.periods import shift
from infra.local.stripe_server.routes import Params, route

register_kind("clock", "test clock")

_MAX_INTERVALS = 2
_LIFETIME_S = 30 * 86_400


@route("POST", "/v1/test_helpers/test_clocks", "test_helpers.TestClockCreateParams")
def create_test_clock(account: Account, params: Params) -> Json:
    """POST /v1/test_helpers/test_clocks."""
    now = account.clock.now_s()
    clock: Json = {
        "id": account.new_id("clock", 24),
        "object": "test_helpers.test_clock",
        "created": now,
        "deletes_after": now + _LIFETIME_S,
        "frozen_time": params["frozen_time"],
        "livemode": False,
        "name": params.get("name"),
        "status": "ready",
        "status_details": {},
    }
    account.add("clock", clock)
    account.emit("test_helpers.test_clock.created", "clock", clock)
    return account.render("clock", clock)


@route("GET", "/v1/test_helpers/test_clocks", "test_helpers.TestClockListParams")
def list_test_clocks(account: Account, params: Params) -> Json:
    """GET /v1/test_helpers/test_clocks."""
    return page(
        account, "clock", account.store("clock").values(), params, "/v1/test_helpers/test_clocks"
    )


@route("GET", "/v1/test_helpers/test_clocks/{}", "test_helpers.TestClockRetrieveParams")
def retrieve_test_clock(account: Account, _params: Params, clock_id: str) -> Json:
    """GET /v1/test_helpers/test_clocks/:id."""
    return account.render("clock", account.get("clock", clock_id))


@route("DELETE", "/v1/test_helpers/test_clocks/{}", "test_helpers.TestClockDeleteParams")
def delete_test_clock(account: Account, _params: Params, clock_id: str) -> Json:
    """DELETE /v1/test_helpers/test_clocks/:id: its customers go with it."""
    clock = account.get("clock", clock_id)
    for customer in account.store("cus").values():
        if customer["test_clock"] == clock_id:
            customer["_gone"] = True
    for subscription in account.store("sub").values():
        if subscription["test_clock"] == clock_id and subscription["status"] != "canceled":
            subscription["status"] = "canceled"
            subscription["ended_at"] = clock["frozen_time"]
    clock["_gone"] = True
    return {"id": clock_id, "object": "test_helpers.test_clock", "deleted": True}


@route("POST", "/v1/test_helpers/test_clocks/{}/advance", "test_helpers.TestClockAdvanceParams")
def advance_test_clock(account: Account, params: Params, clock_id: str) -> Json:
    """POST /v1/test_helpers/test_clocks/:id/advance: forward, two billing intervals at most."""
    clock = account.get("clock", clock_id)
    target = params["frozen_time"]
    if target <= clock["frozen_time"]:
        raise invalid_request(
            "The frozen_time must be later than the current frozen_time.", param="frozen_time"
        )
    furthest = _furthest(account, clock)
    if furthest is not None and target > furthest:
        raise invalid_request(
            "You cannot advance a clock more than two intervals of the shortest subscription "
            f"at once: at most to {furthest}.",
            param="frozen_time",
        )
    clock["status"] = "advancing"
    clock["_target"] = target
    account.schedule(target, "advances", "advance_clock", clock_id)
    account.emit("test_helpers.test_clock.advancing", "clock", clock)
    return account.render("clock", clock)


def _furthest(account: Account, clock: Json) -> int | None:
    ends = []
    for subscription in account.store("sub").values():
        if subscription["test_clock"] != clock["id"] or subscription["status"] == "canceled":
            continue
        item = account.store("si")[subscription["_items"][0]]
        recurring = account.store("price")[item["price"]]["recurring"]
        ends.append(
            shift(
                clock["frozen_time"],
                recurring["interval"],
                _MAX_INTERVALS * recurring["interval_count"],
            )
        )
    return min(ends) if ends else None


def finish_advances(account: Account) -> None:
    """Carry out the advances that were answered `advancing`."""
    account.run_due("advances", 2**62)


def _advance_when_due(account: Account, clock_id: str, _at_s: int) -> None:
    clock = account.store("clock").get(clock_id)
    if clock is None or clock.get("_gone") or clock["status"] != "advancing":
        return
    account.run_due(clock_id, clock["_target"])
    clock["frozen_time"] = clock["_target"]
    clock["status"] = "ready"
    account.emit("test_helpers.test_clock.ready", "clock", clock)


register_action("advance_clock", _advance_when_due)
