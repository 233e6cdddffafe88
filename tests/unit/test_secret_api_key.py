"""The key from Secrets Manager, as the threads of one call ask for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError
from typing import Any

import pytest

from meterline.adapters.secrets_api_key import SecretApiKey
from meterline.errors import ConfigurationError


class FakeSecrets:
    """One secret."""

    def __init__(self, secret: Any) -> None:
        self.secret = secret

    def get(self, _name: str, *, transform: str, max_age: int) -> Any:
        assert (transform, max_age) == ("json", 300)
        return self.secret


def test_threads_that_begin_at_once_make_one_client() -> None:
    both_make = Barrier(2)
    made: list[Any] = []

    def make() -> Any:
        # Passed only when two threads make a client at the same time.
        with suppress(BrokenBarrierError):
            both_make.wait(timeout=0.5)
        made.append(FakeSecrets({"api_key": "sk_test_1"}))
        return made[-1]

    api_key = SecretApiKey("stripe", make)
    with ThreadPoolExecutor(8) as threads:
        keys = list(threads.map(lambda _: api_key(), range(8)))
    assert keys == ["sk_test_1"] * 8
    assert len(made) == 1


@pytest.mark.parametrize("secret", ["sk_test_1", {}, {"api_key": ""}, {"api_key": 1}])
def test_a_secret_without_a_key_is_a_mistake_that_is_not_repeated(secret: Any) -> None:
    with pytest.raises(ConfigurationError) as error:
        SecretApiKey("stripe", lambda: FakeSecrets(secret))()  # type: ignore[arg-type,return-value]
    assert "sk_test" not in str(error.value)
