"""Queues in memory behind SQS's own protocol, on a clock that a test moves.

boto3 talks to it over a socket, and a fault proxy can stand in between. Only what fills a queue or
delays a message is spoken; the reading side is `FifoQueue` itself, in the part of Lambda.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.faults.whole_path import FifoQueue

_serial = itertools.count()


def _send_message(queue: FifoQueue, told: Mapping[str, Any]) -> dict[str, Any]:
    body = told["MessageBody"]
    # A standard queue knows neither groups nor repeats: every message is one of its own.
    own = f"message-{next(_serial)}"
    queue.send(body, told.get("MessageGroupId", own), told.get("MessageDeduplicationId", own))
    return {
        "MessageId": own,
        "MD5OfMessageBody": hashlib.md5(body.encode(), usedforsecurity=False).hexdigest(),
    }


def _send_message_batch(queue: FifoQueue, told: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "Successful": [
            {"Id": entry["Id"], **_send_message(queue, entry)} for entry in told["Entries"]
        ],
        "Failed": [],
    }


def _change_message_visibility_batch(queue: FifoQueue, told: Mapping[str, Any]) -> dict[str, Any]:
    for entry in told["Entries"]:
        queue.show(entry["ReceiptHandle"], entry["VisibilityTimeout"])
    return {"Successful": [{"Id": entry["Id"]} for entry in told["Entries"]], "Failed": []}


_OPERATIONS = {
    "SendMessage": _send_message,
    "SendMessageBatch": _send_message_batch,
    "ChangeMessageVisibilityBatch": _change_message_visibility_batch,
}


@contextmanager
def serve_queues(queues: Mapping[str, FifoQueue]) -> Iterator[str]:
    """The URL of a server of these queues, each under its name as `QueueUrl`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            operation = self.headers["X-Amz-Target"].removeprefix("AmazonSQS.")
            answer = json.dumps(_OPERATIONS[operation](queues[told["QueueUrl"]], told)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as in the base
            """Nothing is logged."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="queues")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
