"""API keys: who may call what."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meterline.domain.api_keys import MAX_KEY_LENGTH, ApiKey, Scope, hash_key
from meterline.errors import ForbiddenError, UnauthenticatedError
from meterline.services.authenticate import Authenticate

NOW = datetime(2026, 11, 22, 6, tzinfo=UTC)


class FakeKeys:
    """Keys in memory; remembers what was asked for."""

    def __init__(self, **keys: ApiKey) -> None:
        self._keys = {key.hash: key for key in keys.values()}
        self.asked: list[str] = []

    def find(self, key_hash: str) -> ApiKey | None:
        self.asked.append(key_hash)
        return self._keys.get(key_hash)


def make_key(secret: str, *scopes: Scope, revoked_at: datetime | None = None) -> ApiKey:
    return ApiKey(hash_key(secret), secret, frozenset(scopes), NOW, revoked_at)


KEYS = FakeKeys(
    usage=make_key("ml_key_usage", Scope.USAGE),
    both=make_key("ml_key_both", Scope.USAGE, Scope.ADMIN),
    revoked=make_key("ml_key_revoked", Scope.USAGE, revoked_at=NOW),
)


def make_authenticate(keys: FakeKeys, now: datetime = NOW) -> Authenticate:
    return Authenticate(keys, lambda _key, _now: None, lambda: now)


authenticate = make_authenticate(KEYS)


@pytest.mark.parametrize(
    "header", ["Bearer ml_key_usage", "bearer ml_key_usage", "BEARER  ml_key_usage "]
)
def test_a_known_key_is_let_in(header: str) -> None:
    assert authenticate(header, Scope.USAGE).name == "ml_key_usage"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Bearer    ",
        "Basic ml_key_usage",
        "ml_key_usage",
        "Bearer,ml_key_usage",
        "Bearer ml_key_nobody",
        "Bearer ML_KEY_USAGE",
        "Bearer ml_key_usage, Bearer ml_key_both",
        "Bearer " + "k" * 100_000,
        "Bearer cut \ud83d",
        "Bearer \0",
    ],
)
def test_anyone_else_is_turned_away(header: str | None) -> None:
    with pytest.raises(UnauthenticatedError):
        authenticate(header, Scope.USAGE)


def test_a_revoked_key_is_as_unknown_as_any() -> None:
    with pytest.raises(UnauthenticatedError) as revoked:
        authenticate("Bearer ml_key_revoked", Scope.USAGE)
    with pytest.raises(UnauthenticatedError) as unknown:
        authenticate("Bearer ml_key_nobody", Scope.USAGE)
    assert str(revoked.value) == str(unknown.value)


def test_a_key_that_was_rotated_counts_until_its_end_and_no_longer() -> None:
    keys = FakeKeys(old=replace(make_key("old", Scope.USAGE), expires_at=NOW + timedelta(days=7)))
    last = NOW + timedelta(days=7, microseconds=-1)
    assert make_authenticate(keys, last)("Bearer old", Scope.USAGE).name == "old"
    with pytest.raises(UnauthenticatedError):
        make_authenticate(keys, NOW + timedelta(days=7))("Bearer old", Scope.USAGE)


def test_only_known_keys_are_counted_and_whatever_they_ask_for() -> None:
    counted: list[str] = []
    called = Authenticate(KEYS, lambda key, _now: counted.append(key.name), lambda: NOW)
    for secret in ("ml_key_usage", "ml_key_nobody", "ml_key_revoked"):
        with pytest.raises((UnauthenticatedError, ForbiddenError)):
            called(f"Bearer {secret}", Scope.ADMIN)
    assert counted == ["ml_key_usage"]


def test_a_key_opens_its_scopes_and_no_other() -> None:
    with pytest.raises(ForbiddenError, match="admin"):
        authenticate("Bearer ml_key_usage", Scope.ADMIN)
    for scope in Scope:
        assert authenticate("Bearer ml_key_both", scope).name == "ml_key_both"


def test_only_the_hash_of_a_key_is_asked_for_and_never_of_a_huge_one() -> None:
    keys = FakeKeys()
    for header in ("Bearer secret", "Bearer " + "k" * (MAX_KEY_LENGTH + 1)):
        with pytest.raises(UnauthenticatedError):
            make_authenticate(keys)(header, Scope.USAGE)
    assert keys.asked == [hash_key("secret")]
    assert "secret" not in keys.asked[0]


@given(st.text(st.characters(), max_size=60))
def test_no_header_lets_in_by_chance_or_breaks(header: str) -> None:
    with pytest.raises(UnauthenticatedError):
        authenticate(header, Scope.USAGE)
