"""A customer's numbers as `GET /v1/customers/{id}/usage` answers them."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any

from meterline.domain.overviews import BillingFacts, PastInvoice
from meterline.domain.pricing import Plan
from meterline.domain.times import format_time
from meterline.schemas.limits import write_limits
from meterline.schemas.periods import write_period
from meterline.services.show_usage import Cost, Outlook, Share, SpendForecast, UsageReport


def write_report(report: UsageReport) -> dict[str, Any]:
    """The whole dashboard: quantities as decimal strings, money in minor units, times in UTC."""
    customer, plan, meter = report.account.customer, report.plan, report.meter
    subscription = report.account.subscription
    return {
        "customer": {"id": customer.id, "name": customer.name},
        "as_of": format_time(report.as_of),
        "counted_at": _write_time(report.counted_at),
        "period": write_period(report.period),
        "subscription_status": subscription.status if subscription is not None else None,
        "plan": write_plan(plan),
        "meter": {"id": meter.id, "unit": meter.unit},
        "usage_is_free": report.is_free,
        "used": write_quantity(report.used),
        "events": report.events,
        "included": write_quantity(report.included),
        "remaining": write_quantity(report.remaining),
        "overage": write_quantity(report.overage),
        "cost": _write_cost(report.cost, plan.currency) if report.cost is not None else None,
        "forecast": (
            _write_forecast(report.forecast, plan.currency) if report.forecast is not None else None
        ),
        "days": [
            {
                "day": each.day.isoformat(),
                "quantity": write_quantity(each.quantity),
                "events": each.events,
            }
            for each in report.days
        ],
        "actions": [{"action": each.name, **_write_share(each)} for each in report.actions],
        "users": [
            {
                "user": each.name,
                "name": each.user.name if each.user is not None else None,
                "role": each.user.role if each.user is not None else None,
                **_write_share(each),
            }
            for each in report.users
        ],
        "limits": write_limits(report.limits, plan, meter, report.used),
        "billing": _write_facts(report.facts) if report.facts is not None else None,
    }


def write_plan(plan: Plan) -> dict[str, Any]:
    """A plan's terms; rates are per unit of the meter, in minor units, exact."""
    return {
        "id": plan.id,
        "name": plan.name,
        "base_fee": write_money(plan.base_fee_minor, plan.currency),
        "included": write_quantity(plan.included),
        "tiers": [
            {
                "up_to": write_quantity(tier.up_to) if tier.up_to is not None else None,
                "unit_amount_minor": write_quantity(tier.unit_amount_minor),
                "flat_amount_minor": tier.flat_amount_minor,
            }
            for tier in plan.tiers
        ],
        "block_overage": plan.block_overage,
    }


def write_money(amount_minor: int, currency: str) -> dict[str, Any]:
    """Money as the contract writes it."""
    return {"amount_minor": amount_minor, "currency": currency}


def write_quantity(quantity: Decimal) -> str:
    """Plain decimal notation without zeros at its end."""
    text = f"{quantity:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _write_cost(cost: Cost, currency: str) -> dict[str, Any]:
    return {
        "base_fee": write_money(cost.base_fee_minor, currency),
        "overage": write_money(cost.overage_minor, currency),
        "total": write_money(cost.total_minor, currency),
    }


def _write_forecast(forecast: SpendForecast, currency: str) -> dict[str, Any]:
    def write(outlook: Outlook) -> dict[str, Any]:
        return {
            "quantity": write_quantity(outlook.quantity),
            **_write_cost(outlook.cost, currency),
        }

    return {
        "low": write(forecast.low),
        "expected": write(forecast.expected),
        "high": write(forecast.high),
    }


def _write_share(share: Share) -> dict[str, Any]:
    return {
        "quantity": write_quantity(share.quantity),
        "events": share.events,
        "share": str(share.share),
    }


def _write_facts(facts: BillingFacts) -> dict[str, Any]:
    told = facts.comparison
    return {
        "asked_at": format_time(facts.asked_at),
        "comparison": {
            "from": format_time(told.period_start),
            "until": format_time(told.until),
            "ours_sub_units": told.ours,
            "theirs_sub_units": told.theirs,
            "diverges": told.diverges,
        }
        if told is not None
        else None,
        "invoices": [_write_invoice(invoice) for invoice in facts.invoices],
    }


def _write_invoice(invoice: PastInvoice) -> dict[str, Any]:
    return {
        "id": invoice.id,
        "number": invoice.number,
        "status": invoice.status,
        "total": write_money(invoice.total_minor, invoice.currency),
        "created_at": format_time(invoice.created_at),
        "page_url": invoice.page_url,
    }


def _write_time(moment: datetime | None) -> str | None:
    return format_time(moment) if moment is not None else None
