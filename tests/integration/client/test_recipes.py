"""Every recipe of the client's README, run as it stands against servers of this machine."""

from __future__ import annotations

import contextvars
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakeredis
import jwt
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import rsa

import meterline_client
from meterline_client.identity_signatures import PinnedKey
from tests.integration.client.ledger_server import LedgerServer
from tests.integration.client.provider_server import ProviderServer
from tests.integration.client.world import describe_event

README = Path(meterline_client.__file__).parent.parent / "README.md"
ONE = "acme: in 120, out 35"


def read_recipes() -> list[tuple[str, str]]:
    """The Python blocks of the README, each with the heading that it stands under."""
    found = []
    heading = "top"
    for part in re.split(r"^(#+ .+|```python\n(?:.|\n)*?^```)$", README.read_text(), flags=re.M):
        if part.startswith("#"):
            heading = part.lstrip("# ")
        elif part.startswith("```python"):
            found.append((heading, part.removeprefix("```python\n").removesuffix("```")))
    return found


class ConvexClient:
    """A table behind `query` and `mutation`, as a Convex client has them."""

    def __init__(self) -> None:
        self.table: dict[str, Any] = {}

    def query(self, name: str, args: Mapping[str, Any]) -> Any:
        assert name == "cache:get"
        return self.table.get(args["key"])

    def mutation(self, name: str, args: Mapping[str, Any]) -> None:
        assert name == "cache:set"
        assert args["ttl"] == 60
        self.table[args["key"]] = args["value"]


class VercelRuntimeCache:
    """A cache as Vercel's runtime cache is: options in a mapping."""

    def __init__(self) -> None:
        self.table: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self.table.get(key)

    def set(self, key: str, value: Any, options: Mapping[str, Any]) -> None:
        assert options == {"ttl": 60}
        self.table[key] = value


def make_session() -> dict[str, Any]:
    """A Clerk session, signed with a key made here."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    now_s = int(time.time())
    claims = {
        "iss": "https://clerk.example.com",
        "azp": "https://app.example.com",
        "sub": "user_1",
        "iat": now_s,
        "nbf": now_s,
        "exp": now_s + 3600,
        "v": 2,
        "o": {"id": "org_1"},
    }
    public = key.public_key().public_bytes(*_pem()).decode()
    return {
        "issuer": "https://clerk.example.com",
        "keys": PinnedKey(public),
        "token": jwt.encode(claims, key, "RS256"),
    }


def _pem() -> tuple[Any, Any]:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return Encoding.PEM, PublicFormat.SubjectPublicKeyInfo


class Lambda:
    """An invocation's context."""

    def get_remaining_time_in_millis(self) -> int:
        return 5_000


def invoke(namespace: Mapping[str, Any]) -> None:
    event = {"customer": "acme", "user": "u_9", "question": "What is a meter?"}
    assert namespace["lambda_handler"](event, Lambda()) == "Hello."


@dataclass(frozen=True)
class Expected:
    """What must come out of a recipe, what it finds around it, and what is done after it."""

    events: tuple[str, ...]
    names: Callable[[], Mapping[str, Any]] = dict
    then: Callable[[Mapping[str, Any]], None] = lambda _: None


EXPECTED = [
    Expected((ONE,)),
    Expected((ONE,) * 3),
    Expected(("acme: in 120, out 35 [batch]",)),
    Expected(("acme: in 120, out 0", ONE, ONE)),
    Expected((ONE,) * 2),
    Expected((ONE,) * 3),
    Expected(("acme: predict_time_ms 1250",)),
    Expected(("acme: images 4", "acme: outcomes 1", "acme: predict_time_ms 1250")),
    Expected((ONE,)),
    Expected(
        (ONE,) * 2,
        names=lambda: {"convex_client": ConvexClient(), "vercel_cache": VercelRuntimeCache()},
    ),
    Expected((ONE,) * 3 + ("org_1: in 120, out 35",), names=make_session),
    Expected((ONE,)),
    Expected((ONE,), then=invoke),
]
RECIPES = read_recipes()


def test_every_recipe_has_its_expected_events() -> None:
    assert len(RECIPES) == len(EXPECTED)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [(text, expected) for (_, text), expected in zip(RECIPES, EXPECTED, strict=True)],
    ids=[f"{number}-{heading}" for number, (heading, _) in enumerate(RECIPES)],
)
def test_a_recipe_does_what_it_says(
    recipe: str,
    expected: Expected,
    provider: ProviderServer,
    ledger: LedgerServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    provider.reset()
    ledger.reset()
    environment = {
        "METERLINE_ENDPOINT": ledger.url,
        "METERLINE_API_KEY": "test-key",
        "METERLINE_SOURCE": "recipes",
        "METERLINE_SPOOL": str(tmp_path),
        "ANTHROPIC_API_KEY": "k",
        "ANTHROPIC_BASE_URL": provider.url,
        "OPENAI_API_KEY": "k",
        "OPENAI_BASE_URL": provider.url + "/v1",
        "OPENROUTER_BASE_URL": provider.url + "/v1",
        "LITELLM_BASE_URL": provider.url + "/v1",
        "VERCEL_BASE_URL": provider.url + "/v1",
        "REPLICATE_API_TOKEN": "k",
        "REPLICATE_BASE_URL": provider.url,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(redis, "Redis", fakeredis.FakeRedis)
    namespace: dict[str, Any] = dict(expected.names())

    def run() -> None:
        exec(compile(recipe, str(README), "exec"), namespace)
        expected.then(namespace)

    contextvars.copy_context().run(run)

    meter = namespace["meter"]
    assert meter.flush(60)
    meter.close()
    assert sorted(map(describe_event, ledger.read_events())) == sorted(expected.events)
    assert meter.counts == {}
    assert json.dumps(ledger.held) == "{}"
