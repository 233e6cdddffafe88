"""A provider and a ledger on one port, as cheap as can be, in a process of its own.

`python -m tests.bench.client.wire_server` prints its port. It answers from prepared bytes, so that
what is measured in the client's process is the client.
"""

from __future__ import annotations

import asyncio
import json

from tests.integration.client.provider_server import (
    completion,
    completion_chunks,
    message,
    message_events,
)

STREAMED_WORDS = 40


def render(body: bytes, content_type: str = "application/json", status: str = "200 OK") -> bytes:
    """A whole HTTP/1.1 answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def render_stream(events: tuple[dict[str, object], ...], *, done: bool) -> bytes:
    """Server-sent events as one answer."""
    parts = []
    for event in events:
        name = f"event: {event['type']}\n" if "type" in event else ""
        parts.append(f"{name}data: {json.dumps(event)}\n\n")
    if done:
        parts.append("data: [DONE]\n\n")
    return render("".join(parts).encode(), "text/event-stream")


WORDS = ["word "] * STREAMED_WORDS
ANSWERS = {
    (b"/v1/chat/completions", False): render(json.dumps(completion()).encode()),
    (b"/v1/chat/completions", True): render_stream(completion_chunks(words=WORDS), done=True),
    (b"/v1/messages", False): render(json.dumps(message()).encode()),
    (b"/v1/messages", True): render_stream(message_events(), done=False),
}


class Wire(asyncio.Protocol):
    """One connection, kept alive."""

    def __init__(self) -> None:
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the connection."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self.buffer += data
        while True:
            head, gap, rest = self.buffer.partition(b"\r\n\r\n")
            if not gap:
                return
            at = head.lower().find(b"content-length:")
            size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < size:
                return
            body, self.buffer = rest[:size], rest[size:]
            path = head.split(b" ", 2)[1]
            assert self.transport is not None
            self.transport.write(answer(path, body))


def answer(path: bytes, body: bytes) -> bytes:
    """The answer to one request: a report is counted, everything else is prepared."""
    if path == b"/v1/usage":
        accepted = len(json.loads(body)["events"])
        receipt = {"accepted": accepted, "duplicates": 0, "ignored": 0, "rejected": []}
        return render(json.dumps(receipt).encode(), status="202 Accepted")
    streamed = b'"stream":true' in body or b'"stream": true' in body
    return ANSWERS[(path, streamed)]


async def serve() -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Wire, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve())
