"""Links to a dashboard, made for an app that knows who is signed in."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import datetime

from meterline.domain.customers import Role
from meterline.domain.sessions import LINK_LIFE, Viewer
from meterline.errors import NotFoundError
from meterline.ports import Overviews, ViewerTokens


@dataclass(frozen=True, slots=True)
class PortalSession:
    """The token of a link, and until when it can be followed."""

    token: str
    expires_at: datetime


class OpenPortalSession:
    """The job of `POST /v1/portal-sessions`."""

    def __init__(self, overviews: Overviews, tokens: ViewerTokens) -> None:
        self._overviews = overviews
        self._tokens = tokens

    def __call__(
        self, customer: str, user: str | None, role: Role | None, now: datetime
    ) -> PortalSession:
        """A link's token; raises `NotFoundError`."""
        overview = self._overviews.load(customer)
        if overview is None:
            raise NotFoundError(f"There is no customer {customer}.")
        said: Role | None = role or Role.MEMBER
        if user is None:
            said = role or Role.ADMIN
        elif overview.account.find_user(user) is not None:
            # The list says which, at every load: a role taken away there is gone at once.
            said = None
        expires_at = now + LINK_LIFE
        viewer = Viewer(customer, user, said, secrets.token_urlsafe(16), expires_at)
        return PortalSession(self._tokens.sign(viewer, "link", now), expires_at)
