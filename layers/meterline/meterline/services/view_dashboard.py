"""A signed-in person's dashboard: what they may see of it, set in it and take out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from meterline.domain.customers import Role
from meterline.domain.limits import Limits
from meterline.domain.meters import Meter
from meterline.domain.overviews import Comparison
from meterline.domain.pricing import Plan
from meterline.domain.sessions import Viewer
from meterline.errors import ForbiddenError, NotFoundError
from meterline.ports import Overviews, Plans
from meterline.services.export_events import ExportEvents, ExportPart
from meterline.services.set_limits import SetLimits
from meterline.services.show_usage import ShowUsage, UsageReport, require_role
from meterline.services.trace_usage import EventPage, InvoiceEvents, Place


@dataclass(frozen=True, slots=True)
class View:
    """What one person sees, and what the two counts of the period said when they were compared."""

    viewer: Viewer
    role: Role
    report: UsageReport
    divergence: Comparison | None

    @property
    def is_admin(self) -> bool:
        """Whether they see and set everything of the customer."""
        return self.role is Role.ADMIN


class ViewDashboard:
    """An admin of the customer sees all of it; a member the total and their own part.

    The role is looked up at every call, so that one that was taken away is gone at once.
    """

    def __init__(
        self,
        overviews: Overviews,
        show_usage: ShowUsage,
        limits: SetLimits,
        export: ExportEvents,
        invoice_events: InvoiceEvents,
        plans: Plans,
        meters: Mapping[str, Meter],
    ) -> None:
        self._overviews = overviews
        self._show_usage = show_usage
        self._limits = limits
        self._export = export
        self._invoice_events = invoice_events
        self._plans = plans
        self._meters = meters

    def __call__(self, viewer: Viewer, now: datetime) -> View:
        """The dashboard as that person sees it; `ForbiddenError` or `NotFoundError`."""
        overview = self._overviews.load(viewer.customer)
        if overview is None:
            raise NotFoundError(f"There is no customer {viewer.customer}.")
        role = require_role(overview.account, viewer.user, viewer.role)
        report = self._show_usage.show(overview, now, member=_own_part(viewer, role))
        told = overview.facts.comparison if overview.facts is not None else None
        return View(viewer, role, report, told)

    def set_limits(self, view: View, read: Callable[[Plan], Limits], now: datetime) -> None:
        """Set what `read` makes of a form; `ForbiddenError`, `InvalidLimitError`."""
        if not view.is_admin:
            raise ForbiddenError("Only admins set limits.")
        by = f"user {view.viewer.user}" if view.viewer.user is not None else "account"
        self._limits.put(view.viewer.customer, read(view.report.plan), by, now)

    def export(self, viewer: Viewer, start: datetime, end: datetime) -> ExportPart:
        """The events of [start, end) that this person may see."""
        overview = self._overviews.load(viewer.customer)
        if overview is None:
            raise NotFoundError(f"There is no customer {viewer.customer}.")
        role = require_role(overview.account, viewer.user, viewer.role)
        return self._export(viewer.customer, start, end, user=_own_part(viewer, role))

    def export_invoice(
        self, viewer: Viewer, invoice: str, limit: int, after: Place | None
    ) -> EventPage:
        """The events behind one of the customer's invoices, for its admins."""
        overview = self._overviews.load(viewer.customer)
        if overview is None:
            raise NotFoundError(f"There is no customer {viewer.customer}.")
        if require_role(overview.account, viewer.user, viewer.role) is not Role.ADMIN:
            raise ForbiddenError("Only admins see invoices.")
        check = self._invoice_events.get_invoice(viewer.customer, invoice)
        return self._invoice_events.read_page(check, limit, after)

    def list_plans(self, now: datetime) -> tuple[Sequence[Plan], Mapping[str, Meter]]:
        """The plans on offer, cheapest first."""
        plans = sorted(self._plans.at(now).values(), key=lambda plan: plan.base_fee_minor)
        return plans, self._meters


def _own_part(viewer: Viewer, role: Role) -> str | None:
    """Whose part it is when a member looks; None when all of it may be seen."""
    if role is Role.ADMIN:
        return None
    if viewer.user is None:
        raise ForbiddenError("A member needs a user.")
    return viewer.user
