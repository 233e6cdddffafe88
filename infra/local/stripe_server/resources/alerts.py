"""Billing alerts: an event, once for each customer, when a meter's usage reaches a threshold.

Only alerts of one customer, or of all, that fire once: what Stripe's documentation calls
`usage_threshold` and `one_time`.
"""

from __future__ import annotations

from infra.local.stripe_server.account import Account, Json, register_kind
from infra.local.stripe_server.errors import invalid_request
from infra.local.stripe_server.routes import Params, route

register_kind("alrt", "alert")
register_kind("alrtt", "alert_triggered", lambda _account, value: value)


@route("POST", "/v1/billing/alerts", "billing.AlertCreateParams")
def create_alert(account: Account, params: Params) -> Json:
    """POST /v1/billing/alerts."""
    threshold = params.get("usage_threshold")
    if params["alert_type"] != "usage_threshold" or threshold is None:
        raise invalid_request("Only usage_threshold alerts are kept here.", param="alert_type")
    meter = account.get("mtr", threshold["meter"], param="usage_threshold[meter]")
    alert: Json = {
        "id": account.new_id("alrt", 24),
        "object": "billing.alert",
        "alert_type": "usage_threshold",
        "livemode": False,
        "status": "active",
        "title": params["title"],
        "usage_threshold": {
            "filters": threshold.get("filters"),
            "gte": threshold["gte"],
            "meter": meter["id"],
            "recurrence": threshold["recurrence"],
        },
        "_told": [],
    }
    return account.render("alrt", account.add("alrt", alert))


@route("GET", "/v1/billing/alerts/{}", "billing.AlertRetrieveParams")
def retrieve_alert(account: Account, _params: Params, alert_id: str) -> Json:
    """GET /v1/billing/alerts/:id."""
    return account.render("alrt", account.get("alrt", alert_id))


def trigger_alerts(account: Account, meter: Json, customer: str) -> None:
    """Tell of each alert that the customer's usage of the meter has reached."""
    for alert in account.store("alrt").values():
        threshold = alert["usage_threshold"]
        only = [each.get("customer") for each in threshold["filters"] or ()]
        is_watched = threshold["meter"] == meter["id"] and (not only or customer in only)
        if not is_watched or customer in alert["_told"]:
            continue
        account.usage.apply_all()
        value = account.usage.total(
            meter["event_name"],
            customer,
            meter["default_aggregation"]["formula"],
            meter["event_time_window"],
            0,
            account.usage.latest_s + 1,
        )
        if value >= threshold["gte"]:
            alert["_told"].append(customer)
            triggered: Json = {
                "object": "billing.alert_triggered",
                "alert": account.render("alrt", alert),
                "created": account.now(),
                "customer": customer,
                "livemode": False,
                "value": value,
            }
            account.emit("billing.alert.triggered", "alrtt", triggered)
