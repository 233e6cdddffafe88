"""Invoice spikes: a draft that is over 150% of the last comparable invoice.

Like is held against like. Not compared are: prorations and one-off items (they are of a change, not
of a period), lines of another interval than a month's bill (an annual fee comes once), and whatever
came before the subscription's first whole period. A shorter period before is scaled up by its days.
After a change of prices the amounts say nothing: then the metered quantities are compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction

from meterline.domain.periods import Period

SPIKE_PERCENT = 150
_LONGEST = timedelta(days=45)
"""Of a line that is compared: longer ones are of a quarter or a year."""
_SHORT = Fraction(9, 10)
"""A period that is shorter than this part of the other is scaled."""


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """One line of an invoice. Amounts are minor units, quantities sub-units of the meter."""

    price: str
    description: str
    amount_minor: int
    period: Period
    is_metered: bool
    quantity: int = 0
    is_recurring: bool = True
    """Of a subscription's item; not an item that somebody added."""
    is_proration: bool = False

    @property
    def is_comparable(self) -> bool:
        """Whether it comes again in every period."""
        length = self.period.end - self.period.start
        return self.is_recurring and not self.is_proration and length <= _LONGEST


@dataclass(frozen=True, slots=True)
class ComparedInvoice:
    """An invoice as far as it is compared."""

    id: str
    currency: str
    lines: Sequence[InvoiceLine]

    @property
    def comparable(self) -> list[InvoiceLine]:
        """The lines that come again."""
        return [line for line in self.lines if line.is_comparable]


@dataclass(frozen=True, slots=True)
class GrownLine:
    """A price that grew: minor units, or sub-units where quantities are compared."""

    description: str
    before: int
    now: int


@dataclass(frozen=True, slots=True)
class Spike:
    """A draft that is too large to be sent unseen."""

    before: int
    """What it is held against, scaled to the draft's period."""
    now: int
    is_in_money: bool
    """False: sub-units of metered quantities, since the prices changed."""
    grown: tuple[GrownLine, ...]

    @property
    def percent(self) -> int:
        """The draft as a percentage of what was before."""
        return self.now * 100 // self.before


def find_spike(draft: ComparedInvoice, before: ComparedInvoice | None) -> Spike | None:
    """Whether the draft is over 150% of the invoice before; None also where nothing compares."""
    if before is None or draft.currency != before.currency:
        return None
    ours, theirs = draft.comparable, before.comparable
    if not ours or not theirs:
        return None
    is_in_money = {line.price for line in ours} == {line.price for line in theirs}
    if not is_in_money:
        ours = [line for line in ours if line.is_metered]
        theirs = [line for line in theirs if line.is_metered]
    scale = _scale(ours, theirs)
    now = _sum(ours, in_money=is_in_money)
    was = _sum(theirs, in_money=is_in_money, scale=scale)
    total_now, total_was = sum(now.values()), int(sum(was.values()))
    if total_was <= 0 or total_now * 100 <= SPIKE_PERCENT * total_was:
        return None
    names = {_key(line, in_money=is_in_money): line.description for line in (*theirs, *ours)}
    grown = [
        GrownLine(names[key], int(was[key]), int(amount))
        for key, amount in now.items()
        if amount > was[key]
    ]
    grown.sort(key=lambda line: line.before - line.now)
    return Spike(total_was, int(total_now), is_in_money, tuple(grown))


def _key(line: InvoiceLine, *, in_money: bool) -> str:
    # Prices differ after a change: all metered usage is one sum then.
    return line.price if in_money else "usage"


def _sum(
    lines: Sequence[InvoiceLine], *, in_money: bool, scale: Fraction = Fraction(1)
) -> Counter[str]:
    sums: dict[str, Fraction] = {}
    for line in lines:
        size = line.amount_minor if in_money else line.quantity
        factor = scale if line.is_metered else 1
        key = _key(line, in_money=in_money)
        sums[key] = sums.get(key, Fraction(0)) + size * factor
    return Counter({key: round(size) for key, size in sums.items()})


def _scale(ours: Sequence[InvoiceLine], theirs: Sequence[InvoiceLine]) -> Fraction:
    """How much longer the draft's metered period is, where the one before was a short one."""
    spans = [
        max((line.period.seconds for line in lines if line.is_metered), default=0)
        for lines in (ours, theirs)
    ]
    if not all(spans) or spans[1] >= _SHORT * spans[0]:
        return Fraction(1)
    return Fraction(spans[0], spans[1])
