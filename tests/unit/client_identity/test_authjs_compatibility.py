"""A cookie that Auth.js itself made (its package @auth/core 0.41.3) is read."""

import pytest

from meterline_client.identity import AuthJsSessions
from meterline_client.identity_refusals import TokenExpiredError, TokenNotYetValidError
from tests.unit.client_identity.issuers import AUTHJS_COOKIE, AUTHJS_SECRET

ISSUED_AT_S = 1795342181
MADE_BY_AUTHJS = (
    "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2Q0JDLUhTNTEyIiwia2lkIjoiWU05S1R2TmhMYUMwVFhwMHR4el9NUkRs"
    "azMtX0phYjJxQ1RtNkNMZWtTYUZzV2FNeHRxcVpVcE5GNUxXdXZZcHd3LU5VRXVBSjZpZzlCUzE3RktzZVEifQ.."
    "V55ZyAo7eP9qVvuYRE_OcA.NncBF2A8qurdlrXY92knTpeypnuHiFdFztiLiPDYNoyWKIHzUnQar8l_kb1pLCren"
    "qoDYMBYd68K5TVqNJZqZy2d34eciv_7D5shbawEc1iXHBuXfYmzpkfDb4yYh45KUrfD2q4fCjDbJp9M1c6xdXxD8"
    "Qh69pAHKdSSuyyVuhs.6cIRgjEOO7tfg_rjxqpezXi8gYnH2q3IxxWruz4bTlU"
)


def sessions_at(now_s: float) -> AuthJsSessions:
    return AuthJsSessions([AUTHJS_SECRET], organisation_claim="org", read_time_s=lambda: now_s)


def test_a_cookie_of_authjs_itself_is_read() -> None:
    identity = sessions_at(ISSUED_AT_S + 60).verify({AUTHJS_COOKIE: MADE_BY_AUTHJS})
    assert (identity.user, identity.organisation) == ("u_9", "acme")
    assert identity.claims["name"] == "Ada"


def test_its_hour_ends_with_the_leeway_that_authjs_allows() -> None:
    cookies = {AUTHJS_COOKIE: MADE_BY_AUTHJS}
    assert sessions_at(ISSUED_AT_S + 3614).verify(cookies).user == "u_9"
    with pytest.raises(TokenExpiredError):
        sessions_at(ISSUED_AT_S + 3615).verify(cookies)
    assert sessions_at(ISSUED_AT_S - 15).verify(cookies).user == "u_9"
    with pytest.raises(TokenNotYetValidError):
        sessions_at(ISSUED_AT_S - 16).verify(cookies)
