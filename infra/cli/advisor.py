"""Which metric to bill: raw tokens, credits or outcomes, judged by what past events cost.

The three are made comparable: each gets the plan's base fee, and its included quota and rates are
converted so that the average unit of usage costs the same. What is left is how they spread it: a
metric whose units all cost about the same keeps every customer's margin near the average.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from enum import StrEnum

from infra.cli.past_usage import Gaps, PastEvent
from infra.cli.provider_costs import NoPriceError
from meterline.domain.currencies import to_main_unit
from meterline.domain.meters import Meter
from meterline.domain.pricing import Plan, Tier, price, total_minor
from meterline.domain.rating import RateCard, count_tokens
from meterline.errors import RejectedEventError

EVEN_ENOUGH = Decimal("0.5")
"""Variation of an outcome's cost up to which a flat price for it is fair."""
MIN_COVERED = Decimal("0.9")
"""Share of the cost that a metric must be able to bill to be recommended."""
Month = tuple[int, int]
_NONE = Decimal(0)


class Metric(StrEnum):
    """What could be metered (the names are those of the catalog's meters)."""

    TOKENS = "tokens"
    CREDITS = "credits"
    OUTCOMES = "outcomes"


@dataclass(frozen=True, slots=True)
class CustomerBill:
    """All months of one customer under one metric, in the plan's currency."""

    customer: str
    quantity: Decimal
    cost: Decimal
    bill: Decimal

    @property
    def margin(self) -> Decimal | None:
        """Share of the bill that is left after provider costs; None without a bill."""
        return (self.bill - self.cost) / self.bill if self.bill else None


@dataclass(frozen=True, slots=True)
class MetricReport:
    """How one metric would have done."""

    metric: Metric
    plan: Plan
    """The plan, converted to this metric."""
    quantity: Decimal
    events: int
    covered: Decimal
    """Share of the known cost that lies in events which this metric can bill."""
    cost_per_unit: Decimal
    variation: Decimal
    """Standard deviation of the cost of a unit over its mean, units weighing alike."""
    median_quantity: Decimal
    """Of an event."""
    bills: Sequence[CustomerBill]

    @property
    def revenue(self) -> Decimal:
        """All bills."""
        return sum((bill.bill for bill in self.bills), Decimal(0))

    @property
    def losing(self) -> int:
        """Customers who would have cost more than they paid."""
        return sum(bill.cost > bill.bill for bill in self.bills)

    @property
    def worst_margin(self) -> Decimal | None:
        """Of all customers with a bill."""
        return min((bill.margin for bill in self.bills if bill.margin is not None), default=None)


@dataclass(frozen=True, slots=True)
class Proposal:
    """What to post: the conversion ratio and the price of a unit."""

    tokens_per_unit: Decimal
    """Tokens of the observed mix in one unit."""
    unit_factor: Decimal
    """By how much to multiply the rate card, so that a usual event is 1 to 100 units."""
    min_unit_price: Decimal
    """Price of a unit that leaves the target margin on the average unit."""
    unit_price: Decimal
    """Of the plan's last tier, in the currency's main unit."""
    markup: Decimal
    """That price over what the average unit costs; below 1 every unit loses money."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The whole answer."""

    reports: Mapping[Metric, MetricReport]
    recommended: Metric
    reasons: Sequence[str]
    proposal: Proposal
    gaps: Gaps


class TooLittleDataError(Exception):
    """There is nothing to judge by."""


@dataclass(slots=True)
class _Sample:
    customer: str
    month: Month
    cost: Decimal
    tokens: Decimal
    quantities: dict[Metric, Decimal]


def advise(
    events: Iterable[PastEvent],
    cost_of: Callable[[PastEvent], Decimal],
    card: RateCard,
    meters: Mapping[str, Meter],
    plan: Plan,
    gaps: Gaps,
    *,
    target_margin: Decimal = Decimal("0.7"),
    usd_rate: Decimal = Decimal(1),
) -> Advice:
    """Judge the three metrics. `usd_rate` is how much of the plan's currency a dollar is.

    Events without a known cost are set aside into `gaps`; those that one metric cannot count stay
    out of that metric only. Raises `TooLittleDataError`.
    """
    samples, outcomes = _take_samples(events, cost_of, card, meters, gaps, usd_rate)
    by_metric = {Metric.TOKENS: samples, Metric.CREDITS: samples, Metric.OUTCOMES: outcomes}
    total_cost = sum((sample.cost for sample in samples), Decimal(0))
    if not total_cost:
        raise TooLittleDataError("no event with a known cost")
    base = _sum_quantity(by_metric[Metric(plan.meter)], Metric(plan.meter))
    if not base:
        raise TooLittleDataError(f"no event that the plan's own meter, {plan.meter}, can count")
    reports = {}
    for metric in Metric:
        quantity = _sum_quantity(by_metric[metric], metric)
        if quantity:
            converted = convert_plan(plan, meters[metric], quantity / base)
            reports[metric] = _report(metric, converted, by_metric[metric], total_cost, quantity)
    recommended, reasons = recommend(reports)
    proposal = _propose(reports[recommended], by_metric[recommended], target_margin)
    return Advice(reports, recommended, reasons, proposal, gaps)


def recommend(reports: Mapping[Metric, MetricReport]) -> tuple[Metric, list[str]]:
    """One metric and why. Credits win unless something speaks against them: customers learn one
    word once, and models and providers can change behind it."""
    outcomes, tokens = reports.get(Metric.OUTCOMES), reports.get(Metric.TOKENS)
    in_credits = reports.get(Metric.CREDITS)
    if outcomes and outcomes.covered >= MIN_COVERED and outcomes.variation <= EVEN_ENOUGH:
        fair = f"An outcome's cost varies by {outcomes.variation:.0%} only: a flat price is fair, "
        return Metric.OUTCOMES, [
            fair + "and nothing is easier to understand.",
            f"Outcomes cover {outcomes.covered:.0%} of the cost.",
        ]
    reasons = []
    if outcomes and outcomes.covered < MIN_COVERED:
        reasons.append(
            f"Outcomes cover {outcomes.covered:.0%} of the cost: the rest has no action to bill."
        )
    elif outcomes:
        reasons.append(
            f"An outcome's cost varies by {outcomes.variation:.0%} around its mean: at one price "
            f"for all, {outcomes.losing} of {len(outcomes.bills)} customers would cost more than "
            "they pay."
        )
    if tokens and (in_credits is None or in_credits.covered < MIN_COVERED):
        covered = in_credits.covered if in_credits else Decimal(0)
        reasons.append(
            f"The rate card covers {covered:.0%} of the cost: bill raw tokens until it is complete."
        )
        return Metric.TOKENS, reasons
    assert in_credits is not None  # The plan's own meter, or tokens, are always there.
    if tokens:
        reasons.append(
            f"A credit's cost varies by {in_credits.variation:.0%}, a raw token's by "
            f"{tokens.variation:.0%}: "
            + (
                "credits follow what usage costs more closely."
                if in_credits.variation < tokens.variation
                else "no difference that would outweigh what credits hide."
            )
        )
    reasons.append(
        "Credits hide providers and models, so that a switch of model leaves invoices as they are."
    )
    return Metric.CREDITS, reasons


def convert_plan(plan: Plan, meter: Meter, factor: Decimal) -> Plan:
    """The plan on another meter, `factor` units of which stand for one of the plan's own."""
    if meter.id == plan.meter:
        return plan
    smallest = Decimal(1) / meter.sub_units
    tiers = tuple(
        Tier(
            None
            if tier.up_to is None
            else max(
                smallest,
                (tier.up_to * factor / smallest).quantize(Decimal(1), ROUND_HALF_UP) * smallest,
            ),
            (tier.unit_amount_minor / factor).quantize(Decimal("1e-12"), ROUND_HALF_UP),
            tier.flat_amount_minor,
        )
        for tier in plan.tiers
    )
    return replace(plan, meter=meter.id, tiers=tiers, currency_options={})


def count_quantity(
    event: PastEvent, metric: Metric, card: RateCard, meters: Mapping[str, Meter]
) -> Decimal | None:
    """What the event adds to a metric; None where it cannot say.

    Where no outcomes are reported, one is a successful model call with a name for what it did.
    """
    if event.usage is None:
        return event.quantity if event.meter == metric else None
    if not event.usage:
        return None
    try:
        if metric is Metric.TOKENS:
            return count_tokens(event.usage, meters[metric])
        if metric is Metric.CREDITS:
            if not event.provider or not event.model:
                return None
            return card.at(event.at).credits(
                event.provider, event.model, event.usage, meters[metric]
            )
    except RejectedEventError:
        return None
    return Decimal(1) if event.action else None


def _take_samples(
    events: Iterable[PastEvent],
    cost_of: Callable[[PastEvent], Decimal],
    card: RateCard,
    meters: Mapping[str, Meter],
    gaps: Gaps,
    usd_rate: Decimal,
) -> tuple[list[_Sample], list[_Sample]]:
    """A sample for each model call, and those to judge outcomes by: where the app reported its
    outcomes, one for each customer, action and day, else the calls themselves."""
    samples: list[_Sample] = []
    groups: dict[tuple[str, str | None, date], _Sample] = {}
    are_reported = False
    for event in events:
        month = (event.at.year, event.at.month)
        place = (event.customer, event.action, event.at.date())
        group = groups.setdefault(
            place, _Sample(event.customer, month, Decimal(0), Decimal(0), {Metric.OUTCOMES: _NONE})
        )
        if event.usage is None and event.meter == Metric.OUTCOMES and event.quantity is not None:
            are_reported = True
            group.quantities[Metric.OUTCOMES] += event.quantity
            continue
        try:
            cost = cost_of(event) * usd_rate
        except NoPriceError as error:
            gaps.add(str(error), event)
            continue
        quantities = {}
        for metric in Metric:
            quantity = count_quantity(event, metric, card, meters)
            if quantity is not None:
                quantities[metric] = quantity
            elif metric is Metric.CREDITS:
                gaps.add(f"no rate for {event.provider} {event.model} (counts for tokens)", event)
        tokens = Decimal(sum(event.usage.values()) if event.usage else 0)
        samples.append(_Sample(event.customer, month, cost, tokens, quantities))
        group.cost += cost
        group.tokens += tokens
    return samples, list(groups.values()) if are_reported else samples


def _sum_quantity(samples: Iterable[_Sample], metric: Metric) -> Decimal:
    return sum((sample.quantities.get(metric, Decimal(0)) for sample in samples), Decimal(0))


def _report(
    metric: Metric,
    plan: Plan,
    samples: Sequence[_Sample],
    total_cost: Decimal,
    quantity: Decimal,
) -> MetricReport:
    counted = [sample for sample in samples if sample.quantities.get(metric)]
    cost = sum((sample.cost for sample in counted), Decimal(0))
    mean = cost / quantity
    # Weighted by units: sum of q * (cost/q - mean)^2.
    spread = sum(
        (
            (sample.cost - mean * sample.quantities[metric]) ** 2 / sample.quantities[metric]
            for sample in counted
        ),
        Decimal(0),
    )
    ordered = sorted(sample.quantities[metric] for sample in counted)
    return MetricReport(
        metric=metric,
        plan=plan,
        quantity=quantity,
        events=len(counted),
        covered=cost / total_cost,
        cost_per_unit=mean,
        variation=(spread / quantity).sqrt() / mean,
        median_quantity=ordered[len(ordered) // 2],
        bills=_bill_customers(metric, plan, samples),
    )


def _bill_customers(metric: Metric, plan: Plan, samples: Sequence[_Sample]) -> list[CustomerBill]:
    months: dict[tuple[str, Month], Decimal] = defaultdict(Decimal)
    costs: dict[str, Decimal] = defaultdict(Decimal)
    for sample in samples:
        months[sample.customer, sample.month] += sample.quantities.get(metric, Decimal(0))
        costs[sample.customer] += sample.cost
    bills: dict[str, int] = defaultdict(int)
    quantities: dict[str, Decimal] = defaultdict(Decimal)
    for (customer, _month), quantity in months.items():
        bills[customer] += total_minor(price(quantity, plan))
        quantities[customer] += quantity
    return [
        CustomerBill(
            customer,
            quantities[customer],
            costs[customer],
            to_main_unit(bills[customer], plan.currency),
        )
        for customer in sorted(costs)
    ]


def _propose(report: MetricReport, samples: Sequence[_Sample], target_margin: Decimal) -> Proposal:
    counted = [sample for sample in samples if sample.quantities.get(report.metric)]
    tokens = sum((sample.tokens for sample in counted), Decimal(0))
    factor = Decimal(1)
    if report.metric is Metric.CREDITS:
        while report.median_quantity * factor < 1:
            factor *= 10
        while report.median_quantity * factor >= 100:
            factor /= 10
    last_tier = report.plan.tiers[-1]
    unit_price = last_tier.unit_amount_minor * to_main_unit(1, report.plan.currency)
    return Proposal(
        tokens_per_unit=tokens / report.quantity,
        unit_factor=factor,
        min_unit_price=report.cost_per_unit / (1 - target_margin),
        unit_price=unit_price,
        markup=unit_price / report.cost_per_unit,
    )


@dataclass(frozen=True, slots=True)
class Quota:
    """An included quota that covers a share of the customers, from each one's highest window."""

    percentile: int
    quantity: Decimal
    median: Decimal
    customers: int
    above: int
    """Customers whose highest window is above it."""


def find_quota(highest: Sequence[Decimal], percentile: int) -> Quota:
    """The smallest observed quantity that at least `percentile` % of customers stay within
    (nearest rank, so that no customer is made up). Raises `TooLittleDataError`."""
    if not highest:
        raise TooLittleDataError("no customer with any usage")
    ordered = sorted(highest)
    rank = -(-len(ordered) * percentile // 100)
    quantity = ordered[max(0, rank - 1)]
    return Quota(
        percentile,
        quantity,
        ordered[(len(ordered) - 1) // 2],
        len(ordered),
        sum(each > quantity for each in ordered),
    )
