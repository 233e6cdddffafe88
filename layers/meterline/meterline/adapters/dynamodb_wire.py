"""DynamoDB's JSON protocol over plain HTTP connections, without boto3's client on top.

boto3's client walks every parameter and every answer against its service model: measured on
batches of 25 conditional inserts, that is more than half of the CPU of a usage report. What the
model would check is checked by the storage contract suite; configuration, credentials and their
refresh stay botocore's.
"""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import botocore.session
import urllib3
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import NoCredentialsError
from pydantic_core import from_json, to_json

from meterline.adapters.aws_signature import JsonCallSigner
from meterline.adapters.kept_connections import KeptConnections, NoAnswerError
from meterline.errors import ConfigurationError, StorageError, StorageUnavailableError

RETRYABLE_CODES = frozenset(
    {
        "InternalServerError",
        "ItemCollectionSizeLimitExceededException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "ThrottlingException",
        "TransactionConflictException",
        "TransactionInProgressException",
    }
)
"""Error codes that DynamoDB's API reference marks as worth trying again, and that of a write which
met another's transaction on its item: that is over in a moment."""

_KEYS_PER_GET = 100
"""What one BatchGetItem may ask for (DynamoDB API reference)."""
_ASK_AGAIN_S = 5.0
"""For so long keys of one BatchGetItem that were left unprocessed are asked for again."""

AttributeValue = dict[str, Any]
"""One value in DynamoDB's own JSON: `{"S": "…"}`, `{"N": "1"}`, …"""
Item = dict[str, AttributeValue]


def back_off_s(attempt: int, *, base_s: float = 0.05, cap_s: float = 2.0) -> float:
    """Seconds to wait before try `attempt` + 1: exponential, with full jitter."""
    return random.uniform(0, min(cap_s, base_s * 2**attempt))  # noqa: S311


class DynamoWire:
    """One account's DynamoDB in one region. Safe to share between threads.

    `call` retries what DynamoDB asks to retry, up to `attempts` times inside `deadline_s`; then it
    raises `StorageUnavailableError`. Every other refusal is a `StorageError`. A call whose answer
    was lost is tried again too, so callers must only make calls that bear it: conditional writes,
    and transactions with a condition on what they move.
    """

    def __init__(
        self,
        session: botocore.session.Session | None = None,
        *,
        endpoint_url: str | None = None,
        timeout_s: float = 3.0,
        attempts: int = 5,
        deadline_s: float = 10.0,
        pool_size: int = 8,
    ) -> None:
        self._session = session or botocore.session.get_session()
        region = self._session.get_config_variable("region")
        if not region:
            raise ConfigurationError("no AWS region is set")
        self.endpoint_url = endpoint_url or _endpoint_url(self._session, region)
        self._credentials = self._session.get_credentials()
        self._attempts = attempts
        self._deadline_s = deadline_s
        url = urllib3.util.parse_url(self.endpoint_url)
        self._path = (url.path or "/").rstrip("/") + "/"
        self._signer = JsonCallSigner("dynamodb", region, host_header(url), self._path)
        self._connections = KeptConnections(
            url, connect_timeout_s=1.0, read_timeout_s=timeout_s, kept=pool_size
        )

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = math.inf
    ) -> dict[str, Any]:
        """Make one call; `request` and the answer are DynamoDB's JSON (bytes are base64 text).

        `deadline_s` is the caller's own, where that is shorter. A try that began before the
        deadline runs to its end, so an answer may take one timeout longer; none begins after it.
        """
        if deadline_s <= 0:
            raise StorageUnavailableError(f"{operation}: the time for it is up")
        body = to_json(request)
        give_up_at_s = time.monotonic() + min(self._deadline_s, deadline_s)
        for attempt in range(self._attempts):
            if attempt:
                pause_s = back_off_s(attempt)
                if time.monotonic() + pause_s > give_up_at_s:
                    break
                time.sleep(pause_s)
            try:
                status, content = self._connections.post(
                    self._path, body, self._sign(operation, body)
                )
            except NoAnswerError as error:
                why = f"{operation}: {error}"
                continue
            if status == 200:
                try:
                    decoded: dict[str, Any] = from_json(content)
                except ValueError as error:
                    # Cut on its way: like a lost answer, it does not say what was done.
                    why = f"{operation}: {error}"
                    continue
                return decoded
            code, message = _read_error(status, content)
            why = f"{operation}: {code}: {message}"
            if status < 500 and code not in RETRYABLE_CODES:
                if code == "TransactionCanceledException":
                    raise TransactionCanceledError(message, _reasons(content))
                raise StorageError(code, message)
        raise StorageUnavailableError(why)

    def _sign(self, operation: str, body: bytes) -> dict[str, str]:
        if self._credentials is None:
            raise NoCredentialsError
        # Refreshable credentials are read as one frozen set, so that key and token match.
        return self._signer.sign(
            self._credentials.get_frozen_credentials(),
            f"DynamoDB_20120810.{operation}",
            body,
            datetime.now(UTC),
        )


class TimedWire(DynamoWire):
    """A wire whose calls share the seconds that `begin` gives them.

    What begins within them may take one timeout longer; what begins later is
    `StorageUnavailableError`.
    """

    _ends_at_s = -math.inf

    def begin(self, seconds: float) -> None:
        """From now on there are so many seconds."""
        self._ends_at_s = time.monotonic() + seconds

    def has_time(self) -> bool:
        """Whether a call may still begin."""
        return time.monotonic() < self._ends_at_s

    def call(
        self, operation: str, request: Mapping[str, Any], *, deadline_s: float = math.inf
    ) -> dict[str, Any]:
        """As of any wire, within the time that is left."""
        left_s = self._ends_at_s - time.monotonic()
        return super().call(operation, request, deadline_s=min(deadline_s, left_s))


def query_pages(
    wire: DynamoWire, request: Mapping[str, Any], limit: int | None = None
) -> Iterator[Mapping[str, Any]]:
    """All items of a query, or its first `limit`, page by page."""
    page = dict(request)
    left = limit
    while True:
        if left is not None:
            page["Limit"] = left
        answer = wire.call("Query", page)
        yield from answer["Items"]
        if left is not None:
            left -= len(answer["Items"])
        if "LastEvaluatedKey" not in answer or left == 0:
            return
        page["ExclusiveStartKey"] = answer["LastEvaluatedKey"]


def read_many(
    wire: DynamoWire,
    table: str,
    keys: Sequence[Item],
    *,
    consistent: bool = False,
    attributes: str | None = None,
    deadline_s: float = math.inf,
) -> Iterator[Mapping[str, Any]]:
    """The items of these keys, in any order; what is not there is left out.

    `attributes` names those to read. What ends without an error has read every key; where
    DynamoDB leaves keys unprocessed for too long, or `deadline_s` is over before all are read,
    `StorageUnavailableError` follows what was read.
    """
    give_up_at_s = time.monotonic() + deadline_s
    how: dict[str, Any] = {"ConsistentRead": consistent}
    if attributes is not None:
        how["ProjectionExpression"] = attributes
    for start in range(0, len(keys), _KEYS_PER_GET):
        part = {"Keys": list(keys[start : start + _KEYS_PER_GET]), **how}
        request: Mapping[str, Any] = {table: part}
        part_ends_at_s = min(give_up_at_s, time.monotonic() + _ASK_AGAIN_S)
        for tries in itertools.count(1):
            left_s = give_up_at_s - time.monotonic()
            answer = wire.call("BatchGetItem", {"RequestItems": request}, deadline_s=left_s)
            yield from answer["Responses"].get(table, ())
            request = answer.get("UnprocessedKeys") or {}
            if not request:
                break
            pause_s = back_off_s(tries)
            if time.monotonic() + pause_s > part_ends_at_s:
                raise StorageUnavailableError("BatchGetItem: keys were left unprocessed")
            time.sleep(pause_s)


class TransactionCanceledError(StorageError):
    """A transaction was refused as a whole; `reasons` has a code for each of its items."""

    def __init__(self, message: str, reasons: list[str]) -> None:
        super().__init__("TransactionCanceledException", message)
        self.reasons = reasons

    @property
    def is_conflict(self) -> bool:
        """Whether only another transaction or throttling stood in the way: worth trying again."""
        return bool(self.reasons) and all(
            reason
            in ("None", "TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded")
            for reason in self.reasons
        )


def _read_error(status: int, content: bytes) -> tuple[str, str]:
    try:
        told = from_json(content)
        code = str(told.get("__type", "")).rpartition("#")[2]
        return code or f"HTTP {status}", str(told.get("message", told.get("Message", "")))
    except (ValueError, AttributeError):
        return f"HTTP {status}", content[:200].decode(errors="replace")


def _reasons(content: bytes) -> list[str]:
    return [
        reason.get("Code", "None") for reason in from_json(content).get("CancellationReasons", [])
    ]


def host_header(url: urllib3.util.Url) -> str:
    """The Host header that urllib3 sends: without the scheme's own port."""
    usual = {"http": 80, "https": 443}[url.scheme or "https"]
    return str(url.host if url.port in (None, usual) else url.netloc)


def _endpoint_url(session: botocore.session.Session, region: str) -> str:
    """Where botocore itself would call: the environment's endpoint first, then the region's."""
    configured = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name="dynamodb",
    ).provide()
    if configured:
        return str(configured)
    # Not from botocore's list of all endpoints, which takes longer to load than the rest of a wire.
    for partition in session.get_component("data_loader").load_data("partitions")["partitions"]:
        if re.match(partition["regionRegex"], region):
            return f"https://dynamodb.{region}.{partition['outputs']['dnsSuffix']}"
    raise ConfigurationError(f"{region!r} is not a region of AWS")
