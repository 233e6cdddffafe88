"""Our signatures are botocore's, whatever is signed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials

from meterline.adapters.aws_signature import JsonCallSigner

NOW = datetime.now(UTC)
PLAIN = ReadOnlyCredentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", None)
SESSION = ReadOnlyCredentials("ASIAEXAMPLE", "another/secret", "a+token/with=signs")


def sign_with_botocore(
    credentials: ReadOnlyCredentials, url: str, target: str, body: bytes
) -> dict[str, str]:
    request = AWSRequest(
        "POST",
        url,
        headers={"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.0"},
        data=body,
    )
    SigV4Auth(credentials, "dynamodb", "eu-central-1").add_auth(request)
    return dict(request.headers.items())


@pytest.mark.parametrize("credentials", [PLAIN, SESSION])
@pytest.mark.parametrize(
    ("host", "path"),
    [
        ("dynamodb.eu-central-1.amazonaws.com", "/"),
        ("127.0.0.1:4566", "/"),
        ("localhost:8000", "/aws/"),
        ("localhost:8000", "/a b~/"),
    ],
)
@pytest.mark.parametrize("body", [b"{}", b'{"S":"\xc3\xbc"}' * 1000])
def test_a_signature_is_the_one_that_botocore_makes(
    credentials: ReadOnlyCredentials, host: str, path: str, body: bytes
) -> None:
    scheme = "https" if "amazonaws" in host else "http"
    target = "DynamoDB_20120810.GetItem"
    expected = sign_with_botocore(credentials, f"{scheme}://{host}{path}", target, body)
    at = datetime.strptime(expected["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    signer = JsonCallSigner("dynamodb", "eu-central-1", host, path)
    assert signer.sign(credentials, target, body, at) == expected


def test_a_new_day_and_new_credentials_have_a_key_of_their_own() -> None:
    signer = JsonCallSigner("dynamodb", "eu-central-1", "localhost", "/")
    first = signer.sign(PLAIN, "T", b"{}", NOW)
    assert signer.sign(PLAIN, "T", b"{}", NOW) == first
    for credentials, at in ((SESSION, NOW), (PLAIN, NOW + timedelta(days=1))):
        again = signer.sign(credentials, "T", b"{}", at)
        assert again["Authorization"] != first["Authorization"]
        fresh = JsonCallSigner("dynamodb", "eu-central-1", "localhost", "/")
        assert again == fresh.sign(credentials, "T", b"{}", at)
