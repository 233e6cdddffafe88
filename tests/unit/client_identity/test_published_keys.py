"""Keys rotate, issuers fail, strangers invent key ids: what is fetched, and what is refused."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from meterline_client.identity import AppTokens, AuthJsSessions, ClerkSessions, SupabaseSessions
from meterline_client.identity import find_token as find
from meterline_client.identity_refusals import (
    AlgorithmRefusedError,
    KeysUnavailableError,
    KeyUnknownError,
    SignatureInvalidError,
    TokenMissingError,
)
from meterline_client.identity_signatures import PublishedKeys
from tests.unit.client_identity import issuers as made
from tests.unit.client_identity.issuers import KeyServer


def clerk_with(
    server: KeyServer, cooldown_s: float = 3600, failure_cooldown_s: float = 3600
) -> ClerkSessions:
    keys = PublishedKeys(f"{server.url}/.well-known/jwks.json", cooldown_s, failure_cooldown_s)
    return ClerkSessions(server.url, [made.APP_ORIGIN], keys=keys)


def signed_as(server: KeyServer, kid: str) -> str:
    return made.sign(server.clerk_claims(), made.OTHER_RSA_KEY, "RS256", kid)


def test_the_keys_are_fetched_once_from_where_each_layer_publishes_them(
    key_server: KeyServer,
) -> None:
    clerk = ClerkSessions(key_server.url, [made.APP_ORIGIN])
    supabase = SupabaseSessions(key_server.url)
    for _ in range(3):
        clerk.verify(key_server.clerk_token())
        supabase.verify(key_server.supabase_token())
    assert key_server.paths == ["/.well-known/jwks.json", "/auth/v1/.well-known/jwks.json"]


def test_a_rotated_key_is_fetched_when_first_seen(key_server: KeyServer) -> None:
    sessions = clerk_with(key_server, cooldown_s=0)
    assert sessions.verify(key_server.clerk_token()).customer == "org_acme"
    key_server.keys = [made.to_jwk(made.OTHER_RSA_KEY, "rsa-2")]
    assert sessions.verify(signed_as(key_server, "rsa-2")).customer == "org_acme"
    assert key_server.fetches == 2
    with pytest.raises(KeyUnknownError):
        sessions.verify(key_server.clerk_token())


def test_a_new_key_under_an_old_id_does_not_verify_old_tokens(key_server: KeyServer) -> None:
    key_server.keys = [made.to_jwk(made.OTHER_RSA_KEY, "rsa-1")]
    with pytest.raises(SignatureInvalidError):
        clerk_with(key_server).verify(key_server.clerk_token())


def test_a_flood_of_invented_key_ids_fetches_no_more_than_the_cooldown_allows(
    key_server: KeyServer,
) -> None:
    sessions = clerk_with(key_server)
    for number in range(200):
        with pytest.raises(KeyUnknownError):
            sessions.verify(signed_as(key_server, f"invented-{number}"))
    assert key_server.fetches == 1
    assert sessions.verify(key_server.clerk_token()).customer == "org_acme"
    assert key_server.fetches == 1


def test_a_flood_while_the_issuer_is_down_asks_it_once_and_known_users_stay_signed_in(
    key_server: KeyServer,
) -> None:
    sessions = clerk_with(key_server, cooldown_s=0)
    sessions.verify(key_server.clerk_token())
    key_server.status = 500
    for number in range(200):
        with pytest.raises(KeysUnavailableError):
            sessions.verify(signed_as(key_server, f"invented-{number}"))
        assert sessions.verify(key_server.clerk_token()).customer == "org_acme"
    assert key_server.fetches == 2


@pytest.mark.parametrize("status", [404, 500, 302])
def test_an_issuer_that_is_down_is_not_taken_for_a_bad_session(
    key_server: KeyServer, status: int
) -> None:
    key_server.status = status
    with pytest.raises(KeysUnavailableError):
        clerk_with(key_server).verify(key_server.clerk_token())


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"keys": []}', b'{"keys": [{}]}'])
def test_an_answer_that_holds_no_keys_is_an_issuer_that_is_down(
    key_server: KeyServer, body: bytes
) -> None:
    key_server.body = body
    with pytest.raises(KeysUnavailableError):
        clerk_with(key_server).verify(key_server.clerk_token())


def test_an_issuer_that_nobody_answers_for_is_down(key_server: KeyServer) -> None:
    token = key_server.clerk_token()
    sessions = clerk_with(key_server)
    key_server.close()
    with pytest.raises(KeysUnavailableError):
        sessions.verify(token)


def test_an_issuer_that_never_answers_is_given_up_after_two_seconds(key_server: KeyServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/jwks.json"
        sessions = ClerkSessions(key_server.url, [made.APP_ORIGIN], keys=PublishedKeys(url))
        began_s = time.monotonic()
        with pytest.raises(KeysUnavailableError):
            sessions.verify(key_server.clerk_token())
        assert 1.5 < time.monotonic() - began_s < 60


def test_an_issuer_that_came_back_is_asked_again_after_the_failures_cooldown(
    key_server: KeyServer,
) -> None:
    patient, eager = clerk_with(key_server), clerk_with(key_server, failure_cooldown_s=0)
    key_server.status = 503
    for sessions in (patient, eager):
        with pytest.raises(KeysUnavailableError):
            sessions.verify(key_server.clerk_token())
    key_server.status = 200
    assert eager.verify(key_server.clerk_token()).customer == "org_acme"
    with pytest.raises(KeysUnavailableError):
        patient.verify(key_server.clerk_token())


def test_a_shared_secret_in_the_key_set_signs_nothing(key_server: KeyServer) -> None:
    secret = made.base64url(made.SHARED_SECRET.encode())
    key_server.keys.append({"kty": "oct", "kid": "oct-1", "k": secret, "use": "sig"})
    token = made.sign(key_server.supabase_claims(), made.EC_KEY, "ES256", "oct-1")
    with pytest.raises(AlgorithmRefusedError):
        SupabaseSessions(key_server.url).verify(token)


def test_threads_that_start_at_once_fetch_the_keys_once(key_server: KeyServer) -> None:
    sessions, barrier = clerk_with(key_server), threading.Barrier(8)
    token = key_server.clerk_token()

    def verify() -> str:
        barrier.wait(timeout=60)
        return sessions.verify(token).customer

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(verify) for _ in range(8)]
        assert {result.result(timeout=60) for result in results} == {"org_acme"}
    assert key_server.fetches == 1


def test_what_would_be_unsafe_cannot_be_configured() -> None:
    pem = made.to_pem(made.EC_KEY)
    issuer, project = "https://app.example.test", "https://ref.supabase.co"
    refused: list[Callable[[], object]] = [
        lambda: PublishedKeys("http://clerk.example.test/.well-known/jwks.json"),
        lambda: PublishedKeys("file:///etc/keys.json"),
        lambda: ClerkSessions(issuer, []),
        lambda: ClerkSessions(issuer, "https://app.example.test"),
        lambda: SupabaseSessions(project, algorithm="HS256"),
        lambda: SupabaseSessions(project, secret=made.SHARED_SECRET),
        lambda: SupabaseSessions(project, algorithm="HS256", secret="short"),
        lambda: SupabaseSessions(project, algorithm="HS256", secret=pem),
        lambda: SupabaseSessions(
            project,
            algorithm="HS256",
            secret=made.SHARED_SECRET,
            keys=PublishedKeys(f"{project}/jwks.json"),
        ),
        lambda: SupabaseSessions(project, require_organisation=True),
        lambda: AppTokens(issuer, "meterline"),
        lambda: AppTokens(issuer, "meterline", public_key="not a key"),
        lambda: AppTokens(issuer, "meterline", algorithm="HS256", public_key=pem),
        lambda: AppTokens(issuer, "meterline", public_key=pem, secret=made.SHARED_SECRET),
        lambda: AuthJsSessions([]),
        lambda: AuthJsSessions([""]),
        lambda: AuthJsSessions("a secret that is a string"),
        lambda: AuthJsSessions([made.AUTHJS_SECRET], require_organisation=True),
    ]
    for configure in refused:
        with pytest.raises(ValueError, match=r"\w"):
            configure()


def test_the_bearer_token_comes_before_the_cookie() -> None:
    cookies = {"__session": "from-cookie"}
    assert find("Bearer from-header", cookies) == "from-header"
    assert find("bearer  from-header ", cookies) == "from-header"
    assert find("Basic dXNlcjpwYXNz", cookies) == "from-cookie"
    assert find("Bearer ", cookies) == "from-cookie"
    assert find(None, cookies) == "from-cookie"
    for authorization in (None, "", "Bearer", "Basic x"):
        with pytest.raises(TokenMissingError):
            find(authorization, {"other": "x"})


def test_importing_identity_imports_no_optional_package() -> None:
    code = (
        "import sys, meterline_client.identity, meterline_client.reading\n"
        "watched = {'jwt', 'joserfc', 'cryptography', 'meterline_client.reading'}\n"
        "print(sorted(watched & set(sys.modules)))"
    )
    paths = [path for path in sys.path if path]
    result = subprocess.run(  # a fresh interpreter: this one has imported them all
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert result.stdout.strip() == "['meterline_client.reading']"
