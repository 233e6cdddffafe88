"""An issuer that serves its keys."""

from collections.abc import Iterator

import pytest

from tests.unit.client_identity.issuers import KeyServer, serve_keys


@pytest.fixture
def key_server() -> Iterator[KeyServer]:
    with serve_keys() as server:
        yield server
