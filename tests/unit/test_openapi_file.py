"""The API's description that is served is the one that the code makes."""

from __future__ import annotations

import json

from infra.openapi_file import FILE, write_document
from meterline.schemas.openapi import build_document


def test_the_served_document_is_up_to_date() -> None:
    assert FILE.read_text() == write_document(build_document()), "run `make openapi`"


def test_the_file_is_the_document() -> None:
    document = build_document()
    assert json.loads(write_document(document)) == json.loads(json.dumps(document))
