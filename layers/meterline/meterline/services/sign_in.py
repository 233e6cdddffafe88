"""Who is it that looks: by a portal link, by our session, or by the session of the app itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from meterline.domain.sessions import SESSION_LIFE, Viewer
from meterline.errors import LinkUsedError, UnauthenticatedError
from meterline.ports import AppSessions, FollowedLinks, ViewerTokens


class SignIn:
    """Tokens of links and sessions have purposes, and none is taken for another."""

    def __init__(
        self, tokens: ViewerTokens, links: FollowedLinks, app_sessions: AppSessions
    ) -> None:
        self._tokens = tokens
        self._links = links
        self._app_sessions = app_sessions

    def follow_link(
        self, token: str, session_token: str | None, now: datetime
    ) -> tuple[Viewer, str]:
        """Exchange a link's token for a session, once: who it is, and the session's token.

        A browser that has that very session already keeps it: somebody went back, or reloaded.
        Raises `LinkUsedError` in any other.
        """
        linked = self._tokens.read(token, "link", now)
        if self._links.follow(linked.session, linked.expires_at):
            viewer = replace(linked, expires_at=now + SESSION_LIFE)
            return viewer, self._tokens.sign(viewer, "session", now)
        with suppress(UnauthenticatedError):
            viewer = self._tokens.read(session_token or "", "session", now)
            if viewer.session == linked.session and session_token:
                return viewer, session_token
        raise LinkUsedError("A link works once. Go back to your app and open this page from there.")

    def identify(
        self,
        session_token: str | None,
        authorization: str | None,
        cookies: Mapping[str, str],
        now: datetime,
    ) -> Viewer:
        """Who it is; raises `UnauthenticatedError`, or `StorageUnavailableError` while the keys
        of the app's sign-in cannot be fetched."""
        if session_token:
            return self._tokens.read(session_token, "session", now)
        viewer = self._app_sessions.find(authorization, cookies, now)
        if viewer is None:
            raise UnauthenticatedError("Open this page from your app: nobody is signed in.")
        return viewer

    def sign_form(self, viewer: Viewer, now: datetime) -> str:
        """A token that only this session's own pages hold."""
        return self._tokens.sign(viewer, "form", now)

    def check_form(self, viewer: Viewer, token: str, now: datetime) -> None:
        """Raise `UnauthenticatedError` unless the form is from a page of this very session."""
        signed = self._tokens.read(token, "form", now)
        if (signed.customer, signed.user, signed.session) != (
            viewer.customer,
            viewer.user,
            viewer.session,
        ):
            raise UnauthenticatedError("This form is from another session.")
