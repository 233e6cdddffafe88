"""What the tests of the whole path run on: DynamoDB Local and the local Stripe."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from infra.local.stripe_server import LocalStripe
from tests.faults.invoiced import PlannedSurroundings
from tests.faults.whole_path import Surroundings
from tests.integration.storage.stores import Store


@pytest.fixture(scope="module")
def around(dynamodb_local: str) -> Iterator[Surroundings]:
    """One storage and one Stripe for all worlds of a module; each is a customer of its own.

    What a module does to Stripe's clock is no matter of the next one's.
    """
    with LocalStripe() as local:
        yield Surroundings(Store("dynamodb_local", dynamodb_local), local)
        # Every request is one that the SDK's own types describe.
        assert local.violations() == []


@pytest.fixture(scope="module")
def planned(dynamodb_local: str) -> Iterator[Surroundings]:
    """Storage and Stripe of one module, set up from the catalog by the setup command."""
    with LocalStripe() as local:
        yield PlannedSurroundings(Store("dynamodb_local", dynamodb_local), local)
        assert local.violations() == []
