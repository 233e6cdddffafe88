"""`python -m infra.openapi_file`: write the API's description where its function serves it from.

Made here and not by the function: all models of the API take longer to load than all else that a
function does when it starts. A test says when the file is behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meterline.schemas.openapi import build_document

FILE = Path(__file__).resolve().parents[1] / "functions" / "serve_openapi" / "openapi.json"


def write_document(document: dict[str, Any]) -> str:
    """The document as JSON, with a line for each path and each schema: changes can be read."""
    return _write(document, 3) + "\n"


def _write(value: Any, levels: int) -> str:
    if levels == 0 or not isinstance(value, dict) or not value:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    members = (f"{json.dumps(name)}:{_write(each, levels - 1)}" for name, each in value.items())
    return "{\n" + ",\n".join(members) + "\n}"


if __name__ == "__main__":
    FILE.write_text(write_document(build_document()))
