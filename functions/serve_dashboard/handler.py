"""The pages: `/settings/usage` for whoever is signed in, `/pricing` for everybody."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.event_handler import Response
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from meterline.bootstrap import serve_dashboard as build_serve_dashboard
from meterline.clock import utc_now
from meterline.domain.limits import InvalidLimitError
from meterline.domain.sessions import Viewer
from meterline.domain.times import format_time
from meterline.errors import InvalidRequestError, UnreadablePageCallError
from meterline.pages import FormError, tell_limit_error
from meterline.pages.answers import (
    PUBLIC,
    find_session,
    make_pages_app,
    read_cookies,
    read_form,
)
from meterline.schemas.export import read_span, write_csv
from meterline.schemas.limits import read_form as read_limits
from meterline.schemas.traces import read_place, write_place
from meterline.services.export_events import MAX_ROWS
from meterline.services.view_dashboard import View

logger = Logger()
metrics = Metrics()
dashboard = build_serve_dashboard(os.environ)
pages, answers = dashboard.pages, dashboard.answers
app = make_pages_app(logger, pages, answers)
_PAGE = "/settings/usage"
_SAVED = "Your limits are saved."
_SAVED_REACHED = f"{_SAVED} As much is used already: usage stops now, until the next period."


@app.get("/settings/usage")
def get_usage() -> Response[str]:
    """The dashboard; a link's token is first exchanged for a session, and leaves the address."""
    now = utc_now()
    asked = app.current_event.query_string_parameters or {}
    if "token" in asked:
        session = find_session(app.current_event)
        viewer, session = dashboard.sign_in.follow_link(asked["token"], session, now)
        cookie = answers.session_cookie(app.current_event, session, viewer.expires_at)
        return answers.see_other(_PAGE, cookie)
    view = _view(now)
    notice = ""
    if asked.get("saved") == "1":
        notice = _SAVED_REACHED if view.report.is_stopped else _SAVED
    return _draw(view, now, notice=notice)


@app.post("/settings/usage/limits")
def post_limits() -> Response[str]:
    """The limits form, from a page of this very session."""
    now = utc_now()
    form = read_form(app.current_event)
    view = _view(now)
    dashboard.sign_in.check_form(view.viewer, form.get("form_token", ""), now)
    try:
        dashboard.views.set_limits(view, lambda plan: read_limits(form, plan), now)
    except InvalidLimitError as error:
        return _draw(view, now, wrong=tell_limit_error(error), form=form, status=422)
    return answers.see_other(f"{_PAGE}?saved=1")


@app.post("/settings/usage/sign-out")
def post_sign_out() -> Response[str]:
    """End the session in this browser."""
    now = utc_now()
    form = read_form(app.current_event)
    dashboard.sign_in.check_form(_identify(now), form.get("form_token", ""), now)
    cookie = answers.session_cookie(app.current_event, "", datetime.fromtimestamp(0, UTC))
    return answers.see_other(_PAGE, cookie)


@app.get("/settings/usage/events.csv")
def get_events() -> Response[str]:
    """Events of a span; `Link: rel="next"` where one file does not hold them all."""
    asked = app.current_event.query_string_parameters or {}
    viewer = _identify(utc_now())
    start, end = read_span(asked.get("from"), asked.get("to"))
    part = dashboard.views.export(viewer, start, end)
    further = {}
    if part.next_start is not None:
        following = f"{_PAGE}/events.csv?from={format_time(part.next_start)}&to={format_time(end)}"
        further["Link"] = f'<{following}>; rel="next"'
    name = f"{viewer.customer}-{start:%Y%m%dT%H%M%S}Z.csv"
    return answers.file(write_csv(part.entries), name, further)


@app.get("/settings/usage/invoice-events.csv")
def get_invoice_events() -> Response[str]:
    """The events behind an invoice; `Link: rel="next"` where one file does not hold them all."""
    asked = app.current_event.query_string_parameters or {}
    viewer = _identify(utc_now())
    invoice = asked.get("invoice", "")
    try:
        after = read_place(asked.get("cursor"))
    except InvalidRequestError as error:
        raise UnreadablePageCallError(str(error)) from error
    page = dashboard.views.export_invoice(viewer, invoice, MAX_ROWS, after)
    further = {}
    if page.next_after is not None:
        following = urlencode({"invoice": invoice, "cursor": write_place(page.next_after)})
        further["Link"] = f'<{_PAGE}/invoice-events.csv?{following}>; rel="next"'
    return answers.file(write_csv(page.entries), f"{viewer.customer}-{invoice}.csv", further)


@app.get("/pricing")
def get_pricing() -> Response[str]:
    """What it costs."""
    plans, meters = dashboard.views.list_plans(utc_now())
    return answers.page(pages.draw_pricing(plans, meters), cache=PUBLIC)


@app.get("/pricing/changelog")
def get_changelog() -> Response[str]:
    """What changed in pricing, and why."""
    return answers.page(pages.draw_changelog(dashboard.changelog), cache=PUBLIC)


def _identify(now: datetime) -> Viewer:
    """Who is signed in; raises `UnauthenticatedError`."""
    event = app.current_event
    return dashboard.sign_in.identify(
        find_session(event), event.headers.get("authorization"), read_cookies(event), now
    )


def _view(now: datetime) -> View:
    view = dashboard.views(_identify(now), now)
    report = view.report
    if report.comparison_failure is not None:
        logger.warning(
            "no comparison asked",
            customer=view.viewer.customer,
            reason=report.comparison_failure,
        )
    if view.divergence is not None:
        metrics.add_metric("DashboardDivergence", MetricUnit.Count, int(view.divergence.diverges))
        if view.divergence.diverges:
            logger.warning(
                "counts diverge",
                customer=view.viewer.customer,
                meter=view.divergence.meter,
                ours_sub_units=view.divergence.ours,
                theirs_sub_units=view.divergence.theirs,
            )
    return view


def _draw(
    view: View,
    now: datetime,
    *,
    notice: str = "",
    wrong: FormError | None = None,
    form: Any = None,
    status: int = 200,
) -> Response[str]:
    token = dashboard.sign_in.sign_form(view.viewer, now)
    html = pages.draw_usage(
        view.report,
        form_token=token if view.is_admin else None,
        out_token=token,
        notice=notice,
        wrong=wrong,
        form=form,
    )
    return answers.page(html, status=status)


@logger.inject_lambda_context
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """API Gateway's HTTP API, payload format 2.0."""
    return app.resolve(event, context)
