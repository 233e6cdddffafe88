"""Pages over HTTP: the headers that every page has, cookies, and errors that people can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError as NoSuchRouteError
from aws_lambda_powertools.shared.cookies import Cookie, SameSite
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2

from meterline.errors import (
    ForbiddenError,
    InvalidRequestError,
    LinkUsedError,
    NotFoundError,
    StorageUnavailableError,
    UnauthenticatedError,
    UnreadablePageCallError,
)
from meterline.failures import list_places
from meterline.pages import Pages
from meterline.schemas.addresses import find_origin

_HTML = "text/html; charset=utf-8"
_FORM_TYPE = "application/x-www-form-urlencoded"
_MAX_FORM_CHARS = 10_000
_SESSION_COOKIE = "meterline_session"
PUBLIC = "public, max-age=300"
PRIVATE = "no-store"


class PageAnswers:
    """Makes answers. `frame_origins` are those whose pages may show ours in a frame."""

    def __init__(self, pages: Pages, frame_origins: Sequence[str]) -> None:
        self._frame_origins = tuple(frame_origins)
        ancestors = " ".join(self._frame_origins) or "'none'"
        self._headers = {
            "Content-Security-Policy": "; ".join(
                (
                    "default-src 'none'",
                    f"style-src {pages.stylesheet_source}",
                    "img-src data:",
                    "form-action 'self'",
                    "base-uri 'none'",
                    f"frame-ancestors {ancestors}",
                )
            ),
            # Not `no-referrer`: with it a form of ours would not say where it comes from.
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
            "Strict-Transport-Security": "max-age=31536000",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Vary": "Cookie",
        }
        if not self._frame_origins:
            self._headers["X-Frame-Options"] = "DENY"

    def page(self, html: str, *, status: int = 200, cache: str = PRIVATE) -> Response[str]:
        """A page."""
        return Response(status, _HTML, html, headers={**self._headers, "Cache-Control": cache})

    def file(self, text: str, name: str, further: Mapping[str, str]) -> Response[str]:
        """A CSV file to save."""
        return Response(
            200,
            "text/csv; charset=utf-8",
            text,
            headers={
                **self._headers,
                "Cache-Control": PRIVATE,
                "Content-Disposition": f'attachment; filename="{name}"',
                **further,
            },
        )

    def see_other(self, location: str, cookie: Cookie | None = None) -> Response[str]:
        """On to another page of ours."""
        return Response(
            303,
            _HTML,
            "",
            headers={**self._headers, "Cache-Control": PRIVATE, "Location": location},
            cookies=[cookie] if cookie is not None else [],
        )

    def session_cookie(
        self, event: APIGatewayProxyEventV2, token: str, expires_at: datetime
    ) -> Cookie:
        """The session, out of reach of scripts.

        Inside a frame of another site only a cookie with SameSite=None is sent; `Partitioned`
        keeps it to that one site. Without frames it stays on this site altogether. The prefix
        `__Host-` (RFC 6265bis) keeps other hosts from setting it; it needs https, as only a local
        stack is without.
        """
        secure = _is_secure(event)
        framed = bool(self._frame_origins) and secure
        return Cookie(
            name=_cookie_name(event),
            value=token,
            path="/",
            secure=secure,
            http_only=True,
            expires=expires_at,
            same_site=SameSite.NONE_MODE if framed else SameSite.LAX_MODE,
            custom_attributes=["Partitioned"] if framed else [],
        )


def make_pages_app(logger: Logger, pages: Pages, answers: PageAnswers) -> APIGatewayHttpResolver:
    """A router whose errors are pages."""
    app = APIGatewayHttpResolver()

    def tell(status: int, title: str) -> Callable[[Exception], Response[str]]:
        return lambda error: answers.page(pages.draw_told(title, str(error)), status=status)

    def explain_unavailable(error: StorageUnavailableError) -> Response[str]:
        logger.warning("storage unavailable", reason=str(error))
        return answers.page(
            pages.draw_told("Not now", "The numbers cannot be read at the moment. Try again."),
            status=503,
        )

    def explain_unexpected(error: Exception) -> Response[str]:
        logger.error("unexpected error", error=type(error).__name__, places=list_places(error))
        return answers.page(
            pages.draw_told("Something went wrong", "It is on our side. Try again in a moment."),
            status=500,
        )

    explanations: dict[type[Exception], Callable[[Any], Response[str]]] = {
        UnauthenticatedError: tell(401, "Not signed in"),
        LinkUsedError: tell(410, "This link was used already"),
        ForbiddenError: tell(403, "Not for this sign-in"),
        NotFoundError: tell(404, "Not found"),
        NoSuchRouteError: lambda _: answers.page(
            pages.draw_told("Not found", "There is nothing at this address."), status=404
        ),
        # Such as a plan that is in the catalog no more.
        InvalidRequestError: lambda error: answers.page(
            pages.draw_told("That cannot be shown", str(error)), status=error.status
        ),
        UnreadablePageCallError: lambda error: answers.page(
            pages.draw_told("That cannot be read", str(error)), status=error.status
        ),
        StorageUnavailableError: explain_unavailable,
        Exception: explain_unexpected,
    }
    for kind, explain in explanations.items():
        app.exception_handler(kind)(explain)
    return app


def read_cookies(event: APIGatewayProxyEventV2) -> Mapping[str, str]:
    """The call's cookies by name. API Gateway hands them over as a list, the header without it."""
    cookies: dict[str, str] = {}
    # Pair by pair: one that another application wrote badly must not hide ours, as it does from
    # http.cookies.
    for part in event.raw_event.get("cookies") or [event.headers.get("cookie") or ""]:
        for pair in part.split(";"):
            name, equals, value = pair.strip().partition("=")
            if equals:
                cookies.setdefault(name, value)
    return cookies


def find_session(event: APIGatewayProxyEventV2) -> str | None:
    """The token of our own session cookie."""
    return read_cookies(event).get(_cookie_name(event))


def read_form(event: APIGatewayProxyEventV2) -> Mapping[str, str]:
    """A form that one of our pages sent; raises `UnreadablePageCallError` or `ForbiddenError`."""
    origin = event.headers.get("origin")
    if origin is not None and origin != find_origin(event):
        raise ForbiddenError("This form was sent from another site.")
    if (event.headers.get("sec-fetch-site") or "same-origin") != "same-origin":
        raise ForbiddenError("This form was sent from another site.")
    content_type = (event.headers.get("content-type") or "").partition(";")[0].strip().lower()
    if content_type != _FORM_TYPE:
        raise UnreadablePageCallError("Send a form.", 415)
    try:
        body = event.decoded_body or ""
        if len(body) > _MAX_FORM_CHARS:
            raise UnreadablePageCallError("The form is too large.", 413)
        fields = parse_qsl(body, keep_blank_values=True, max_num_fields=20, errors="strict")
    except ValueError:
        raise UnreadablePageCallError("The form cannot be read.") from None
    return dict(fields)


def _is_secure(event: APIGatewayProxyEventV2) -> bool:
    return find_origin(event).startswith("https://")


def _cookie_name(event: APIGatewayProxyEventV2) -> str:
    return f"__Host-{_SESSION_COOKIE}" if _is_secure(event) else _SESSION_COOKIE
