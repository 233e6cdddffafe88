"""The control API under `/_local/`, for tests and for `make run`; no key is asked for.

Fixed address: GET health, state, faults, meter_events, totals, deliveries, violations, journal;
POST settings, clock, faults, webhook_faults, settle, reset; DELETE faults.

- health: {"status": "ok"}.
- state: clock, settings, faults, how many of each object, calls by method and path, locks held.
- settings (POST): any of summary_lag_s, lock_hold_s, draft_s, drafts_follow, upcoming_s,
  error_report_delay_s, async_errors (a list of codes that are answered 200 and reported by thin
  event).
- clock (POST): {"advance_s": n}, {"set": epoch seconds}, after which it stands, or {"reset": true};
  what that brings (renewals, finalisations) happens at once.
- faults: GET lists, POST adds one rule (fields in faults.py), DELETE takes all away.
- webhook_faults (POST): repeat_probability, drop_probability, shuffle_window_s, retry_delays_s,
  seed.
- webhook_endpoints/{id}/roll_secret (POST): a second secret beside the first, or with
  {"keep_old": false} instead of it.
- meter_events: every meter event call with its outcome; filters customer, event_name, outcome,
  identifier.
- totals: what each meter has counted per customer, over all time.
- deliveries: webhook deliveries with their attempts.
- violations: requests that stripe.params does not describe.
- journal: the last 50,000 requests: method, path, status, key, replayed, answer lost.
- settle (POST): report dropped usage, flush webhooks, wait until none is under way
  ({"timeout_s": 10}).
- reset (POST): forget all objects, faults and records; the clock and the settings stay.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from infra.local.stripe_server.account import KINDS, Settings
from infra.local.stripe_server.app import StripeApp
from infra.local.stripe_server.errors import StripeError
from infra.local.stripe_server.faults import Fault, InvalidFaultError
from infra.local.stripe_server.webhooks import WebhookFaults

_SETTINGS = {entry.name for entry in fields(Settings)}


class _Control:
    def __init__(self, app: StripeApp) -> None:
        self.app = app

    async def health(self, _request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def state(self, _request: Request) -> JSONResponse:
        account = self.app.account
        settings = asdict(account.settings)
        settings["async_errors"] = sorted(settings["async_errors"])
        counts = {
            kind.noun: sum(not value.get("_gone") for value in account.store(prefix).values())
            for prefix, kind in KINDS.items()
        }
        return JSONResponse(
            {
                "now": account.clock.now_s(),
                "offset_s": account.clock.offset_s,
                "settings": settings,
                "faults": [rule.as_json() for rule in self.app.faults.rules],
                "objects": counts,
                "calls": dict(self.app.calls),
                "locked": self.app.locked,
            }
        )

    async def settings(self, request: Request) -> JSONResponse:
        change: dict[str, Any] = await request.json()
        unknown = set(change) - _SETTINGS
        if unknown:
            return JSONResponse({"error": f"unknown setting {sorted(unknown)[0]}"}, 400)
        for name, value in change.items():
            setattr(
                self.app.account.settings,
                name,
                frozenset(value) if name == "async_errors" else value,
            )
        return await self.state(request)

    async def clock(self, request: Request) -> JSONResponse:
        change: dict[str, Any] = await request.json()
        clock = self.app.account.clock
        if "advance_s" in change:
            clock.advance(change["advance_s"])
        elif "set" in change:
            clock.set_to(change["set"])
        elif change.get("reset"):
            clock.reset()
        else:
            return JSONResponse({"error": "one of advance_s, set, reset"}, 400)
        self.app.catch_up()
        return JSONResponse({"now": clock.now_s(), "offset_s": clock.offset_s})

    async def list_faults(self, _request: Request) -> JSONResponse:
        return JSONResponse([rule.as_json() for rule in self.app.faults.rules])

    async def add_fault(self, request: Request) -> JSONResponse:
        try:
            rule = Fault(**await request.json())
        except (TypeError, InvalidFaultError) as error:
            return JSONResponse({"error": str(error)}, 400)
        self.app.faults.rules.append(rule)
        return JSONResponse(rule.as_json())

    async def clear_faults(self, _request: Request) -> JSONResponse:
        self.app.faults.rules.clear()
        return JSONResponse([])

    async def webhook_faults(self, request: Request) -> JSONResponse:
        change: dict[str, Any] = await request.json()
        if "retry_delays_s" in change:
            change["retry_delays_s"] = tuple(change["retry_delays_s"])
        try:
            faults = WebhookFaults(**change)
        except TypeError as error:
            return JSONResponse({"error": str(error)}, 400)
        self.app.deliverer.set_faults(faults)
        return JSONResponse(asdict(faults))

    async def roll_secret(self, request: Request) -> JSONResponse:
        account = self.app.account
        target_id: str = request.path_params["id"]
        try:
            target = account.get(target_id.partition("_")[0], target_id)
        except (StripeError, KeyError):
            return JSONResponse({"error": f"no endpoint {target_id}"}, 404)
        change = await request.json()
        secret = account.new_id("whsec", 32)
        kept = target["_secrets"] if change.get("keep_old", True) else []
        target["_secrets"] = [*kept[-1:], secret]
        return JSONResponse({"secret": secret})

    async def meter_events(self, request: Request) -> JSONResponse:
        wanted = dict(request.query_params)
        unknown = set(wanted) - {"customer", "event_name", "outcome", "identifier"}
        if unknown:
            return JSONResponse({"error": f"unknown filter {sorted(unknown)[0]}"}, 400)
        return JSONResponse(
            [
                event.as_json()
                for event in self.app.account.usage.log
                if all(getattr(event, name) == value for name, value in wanted.items())
            ]
        )

    async def totals(self, _request: Request) -> JSONResponse:
        account = self.app.account
        account.usage.apply_all()
        rows = []
        for meter in account.store("mtr").values():
            for customer in account.store("cus"):
                total = account.usage.total(
                    meter["event_name"],
                    customer,
                    meter["default_aggregation"]["formula"],
                    meter["event_time_window"],
                    0,
                    account.usage.latest_s + 1,
                )
                if total:
                    rows.append(
                        {
                            "event_name": meter["event_name"],
                            "customer": customer,
                            "total": str(total),
                        }
                    )
        return JSONResponse(rows)

    async def deliveries(self, _request: Request) -> JSONResponse:
        return JSONResponse([delivery.as_json() for delivery in self.app.deliverer.deliveries])

    async def violations(self, _request: Request) -> JSONResponse:
        return JSONResponse(self.app.violations)

    async def journal(self, _request: Request) -> JSONResponse:
        return JSONResponse(list(self.app.journal))

    async def settle(self, request: Request) -> JSONResponse:
        body = await request.body()
        change: dict[str, Any] = await request.json() if body else {}
        self.app.catch_up()
        self.app.report_failed_usage()
        idle = await self.app.deliverer.wait_idle(change.get("timeout_s", 10.0))
        return JSONResponse({"idle": idle})

    async def reset(self, _request: Request) -> JSONResponse:
        await self.app.reset()
        return JSONResponse({"status": "ok"})


def build_control(app: StripeApp) -> Starlette:
    """The control application of a server."""
    control = _Control(app)
    rows = [
        ("GET", "health", control.health),
        ("GET", "state", control.state),
        ("POST", "settings", control.settings),
        ("POST", "clock", control.clock),
        ("GET", "faults", control.list_faults),
        ("POST", "faults", control.add_fault),
        ("DELETE", "faults", control.clear_faults),
        ("POST", "webhook_faults", control.webhook_faults),
        ("POST", "webhook_endpoints/{id}/roll_secret", control.roll_secret),
        ("GET", "meter_events", control.meter_events),
        ("GET", "totals", control.totals),
        ("GET", "deliveries", control.deliveries),
        ("GET", "violations", control.violations),
        ("GET", "journal", control.journal),
        ("POST", "settle", control.settle),
        ("POST", "reset", control.reset),
    ]
    return Starlette(
        routes=[Route(f"/_local/{path}", handler, methods=[verb]) for verb, path, handler in rows]
    )
