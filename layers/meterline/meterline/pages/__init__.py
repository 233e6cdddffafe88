"""The pages: HTML made on the server, complete without any script.

Templates escape everything. The stylesheet is in the page and named by its hash in the policy, so
that a page is one request and nothing else may style or script it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from meterline.domain.currencies import to_main_unit
from meterline.domain.limits import (
    InvalidLimitError,
    Limit,
    MoneyLimit,
    QuantityLimit,
    most_quantity,
    stop_quantity,
)
from meterline.domain.periods import calendar_month
from meterline.domain.times import format_time
from meterline.pages.formats import (
    format_clock,
    format_day,
    format_moment,
    format_money,
    format_percent,
    format_quantity,
    format_rate,
    format_unit,
    format_whole,
)

if TYPE_CHECKING:
    from meterline.catalog.changelog import PricingChange
    from meterline.domain.meters import Meter
    from meterline.domain.pricing import Plan
    from meterline.services.show_usage import UsageReport

_HERE = Path(__file__).parent
_SHOWN_ROWS = 20


@dataclass(frozen=True, slots=True)
class FormError:
    """What is wrong with a form that was sent, and with which field."""

    field: str
    message: str


class Pages:
    """Draws each page; made once for a process."""

    def __init__(self) -> None:
        self._templates = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._templates.filters |= {
            "clock": format_clock,
            "day": format_day,
            "instant": format_time,
            "moment": format_moment,
            "money": format_money,
            "percent": format_percent,
            "quantity": format_quantity,
            "unit": format_unit,
            "whole": format_whole,
        }

    @cached_property
    def stylesheet(self) -> str:
        """The one stylesheet."""
        return (_HERE / "style.css").read_text(encoding="utf-8")

    @cached_property
    def stylesheet_source(self) -> str:
        """How a Content-Security-Policy names it."""
        digest = base64.b64encode(sha256(self.stylesheet.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    def draw_usage(
        self,
        report: UsageReport,
        *,
        form_token: str | None,
        out_token: str | None,
        notice: str = "",
        wrong: FormError | None = None,
        form: Mapping[str, str] | None = None,
    ) -> str:
        """The dashboard. `form_token` is there for whoever may set limits; `form` is what was sent
        when something in it is `wrong`."""
        from meterline.pages.charts import draw_days

        line = report.included_a_day if report.included and report.viewer is None else None
        bar = min(100, round(100 * report.used / report.included)) if report.included else 0
        return self._draw(
            "usage.html",
            report=report,
            bar=bar,
            # Most periods begin in mid-month: "this month" would be another stretch of time.
            span="this month" if report.period == calendar_month(report.as_of) else "this period",
            chart_line=line.quantize(report.meter.from_sub_units(1)) if line is not None else None,
            # The only text that is not escaped: an element tree written out, text escaped by it.
            chart_wide=Markup(draw_days(report.days, line, report.meter.unit)),  # noqa: S704
            chart_narrow=Markup(  # noqa: S704
                draw_days(report.days, line, report.meter.unit, narrow=True)
            ),
            shown=_SHOWN_ROWS,
            form_token=form_token,
            out_token=out_token,
            notice=notice,
            wrong=wrong,
            form=_fill_form(report, form),
            limits_told=_tell_limits(report),
        )

    def draw_pricing(self, plans: Sequence[Plan], meters: Mapping[str, Meter]) -> str:
        """Every plan of the catalog: base fee, included quota, overage."""
        return self._draw(
            "pricing.html",
            plans=plans,
            meters=meters,
            rows=lambda plan: list(_list_tiers(plan, meters[plan.meter])),
            explanation=_explain_units({meters[plan.meter].id for plan in plans}),
        )

    def draw_changelog(self, changes: Sequence[PricingChange]) -> str:
        """What changed in pricing: when, why, and for whom."""
        return self._draw("changelog.html", changes=changes)

    def draw_told(self, title: str, message: str) -> str:
        """A page that says one thing, such as why another cannot be shown."""
        return self._draw("told.html", title=title, message=message)

    def _draw(self, template: str, **values: Any) -> str:
        # Its own file: between `style` tags nothing can be escaped, or the hash would be another.
        stylesheet = Markup(self.stylesheet)  # noqa: S704
        return self._templates.get_template(template).render(stylesheet=stylesheet, **values)


def _fill_form(report: UsageReport, sent: Mapping[str, str] | None) -> dict[str, Any]:
    if sent is not None:
        return {
            field: {
                "number": sent.get(field, ""),
                "unit": "quantity" if sent.get(f"{field}_in") == "quantity" else "money",
            }
            for field in ("warn_at", "stop_at")
        } | {"block_overage": sent.get("block_overage") == "on"}
    limits = report.limits
    return {
        "warn_at": _fill_limit(limits.warn_at, report),
        "stop_at": _fill_limit(limits.stop_at, report),
        "block_overage": limits.block_overage,
    }


def _fill_limit(limit: Limit | None, report: UsageReport) -> dict[str, str]:
    if limit is None:
        return {"number": "", "unit": "money"}
    # The form's money is the bill's: one of another currency is shown as what it comes to.
    if isinstance(limit, MoneyLimit) and limit.currency != report.plan.currency:
        limit = QuantityLimit(most_quantity(limit, report.plan, report.meter))
    if isinstance(limit, MoneyLimit):
        amount = to_main_unit(limit.amount_minor, limit.currency)
        return {"number": f"{amount:f}", "unit": "money"}
    return {"number": format_quantity(limit.quantity).replace(",", ""), "unit": "quantity"}


def _tell_limits(report: UsageReport) -> dict[str, str]:
    limits, plan, meter = report.limits, report.plan, report.meter

    def tell(limit: Limit | None) -> str:
        if limit is None:
            return "no limit"
        quantity = most_quantity(limit, plan, meter)
        told = f"{format_quantity(quantity)} {format_unit(quantity, meter.unit)}"
        if isinstance(limit, MoneyLimit) and report.viewer is None:
            return f"{format_money(limit.amount_minor, limit.currency)}, {told}"
        return told

    stop = tell(limits.stop_at)
    least = stop_quantity(limits, plan, meter)
    if least is not None and (limits.block_overage or plan.block_overage):
        stop = f"{format_quantity(least)} {format_unit(least, meter.unit)}"
        stop += ", the included quota" if least == plan.included else ""
    return {"warn": tell(limits.warn_at), "stop": stop}


def _list_tiers(plan: Plan, meter: Meter) -> Iterable[dict[str, str]]:
    below = None
    for tier in plan.tiers:
        many = f"{meter.unit}s"
        if not tier.unit_amount_minor and not tier.flat_amount_minor and below is None:
            what = f"{format_quantity(tier.up_to)} {many}" if tier.up_to is not None else many
            yield {"what": what, "price": "Included"}
        else:
            batch = 1000 if tier.unit_amount_minor < 1 else 1
            first = (
                f"Every further {batch:,} {many}" if batch > 1 else f"Every further {meter.unit}"
            )
            what = first if below is not None else first.replace("further ", "")
            if tier.up_to is not None:
                what += f", up to {format_quantity(tier.up_to)}"
            price = format_rate(tier.unit_amount_minor * batch, plan.currency)
            if tier.flat_amount_minor:
                price += f" and {format_money(tier.flat_amount_minor, plan.currency)} once"
            yield {"what": what, "price": price}
        below = tier.up_to
        if plan.block_overage:
            yield {"what": "Beyond them", "price": "Usage stops"}
            return


def _explain_units(meters: Iterable[str]) -> str:
    told = {
        "credits": "A credit is about 1,000 input tokens of a mid-sized model; larger models and "
        "longer answers take more, smaller ones less.",
        "tokens": "Tokens are counted as the model's provider reports them.",
        "outcomes": "An outcome is one finished piece of work.",
    }
    return " ".join(told[meter] for meter in sorted(meters) if meter in told)


def tell_limit_error(error: InvalidLimitError) -> FormError:
    """A limit's mistake in the words of the form."""
    words = {"warn_at": "Warn at", "stop_at": "Stop at"}
    message = str(error).replace(error.field, words.get(error.field, error.field))
    return FormError(error.field, message.replace("stop_at", words["stop_at"]))
