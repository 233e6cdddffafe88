"""A server on 127.0.0.1 that speaks the wire formats of Anthropic, OpenAI and Replicate.

It answers as it is told to: each POST takes the next step of the script, and when the script is
empty it answers well. Numbers are the caller's to choose, so that a test knows what must come out.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.integration.client.quiet_server import QuietServer

ANTHROPIC_USAGE: Mapping[str, Any] = {"input_tokens": 120, "output_tokens": 35}
CHAT_USAGE: Mapping[str, Any] = {
    "prompt_tokens": 120,
    "completion_tokens": 35,
    "total_tokens": 155,
}
RESPONSES_USAGE: Mapping[str, Any] = {
    "input_tokens": 120,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 35,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 155,
}


@dataclass(frozen=True)
class Fail:
    """Answer with an error status; SDKs are asked to retry at once."""

    status: int = 500
    retry_after: str | None = None


@dataclass(frozen=True)
class Hang:
    """Take the request and give no answer until the server closes or the client has gone."""


@dataclass(frozen=True)
class Reset:
    """Take the request and reset the connection."""


@dataclass(frozen=True)
class Say:
    """Answer 200 with this body."""

    body: Mapping[str, Any]


@dataclass(frozen=True)
class Stream:
    """Answer with these server-sent events; then end well, cut the connection, or hold it open."""

    events: tuple[Mapping[str, Any], ...]
    then: str = "end"
    """`end`, `cut` (no end of the chunked body) or `hold` (until the client has gone)."""
    is_compressed: bool = False
    done: bool = False
    """Whether `data: [DONE]` ends it, as OpenAI's chat does."""


Step = Fail | Hang | Reset | Say | Stream


def message(usage: Mapping[str, Any] = ANTHROPIC_USAGE, **more: Any) -> dict[str, Any]:
    """An Anthropic message."""
    return {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-5-5",
        "content": [{"type": "text", "text": "Hello."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": dict(usage),
    } | more


def message_events(
    start: Mapping[str, Any] = ANTHROPIC_USAGE, end: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], ...]:
    """An Anthropic message as a stream; usage at the start has the first output token only."""
    first = {**start, "output_tokens": 1}
    return (
        {"type": "message_start", "message": message(first, content=[], stop_reason=None)},
        {
            "type": "content_block_start",
            "index": 0,
            "content_block": {"type": "text", "text": ""},
        },
        *(
            {
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": word},
            }
            for word in ("Hel", "lo", ".")
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": dict(end or {"output_tokens": start["output_tokens"]}),
        },
        {"type": "message_stop"},
    )


def completion(usage: Mapping[str, Any] = CHAT_USAGE, **more: Any) -> dict[str, Any]:
    """An OpenAI chat completion."""
    return {
        "id": "chatcmpl_01",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "gpt-5-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello."},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": dict(usage),
    } | more


def completion_chunks(
    usage: Mapping[str, Any] | None = CHAT_USAGE, words: Iterable[str] = ("Hel", "lo", ".")
) -> tuple[dict[str, Any], ...]:
    """An OpenAI chat completion as chunks, the last with usage unless it is None."""
    frame = {
        "id": "chatcmpl_01",
        "object": "chat.completion.chunk",
        "created": 1_790_000_000,
        "model": "gpt-5-mini",
    }

    def choice(delta: Mapping[str, Any], reason: str | None) -> dict[str, Any]:
        found = {"index": 0, "delta": dict(delta), "finish_reason": reason, "logprobs": None}
        return frame | {"choices": [found], "usage": None}

    chunks = [choice({"role": "assistant", "content": ""}, None)]
    chunks += [choice({"content": word}, None) for word in words]
    chunks.append(choice({}, "stop"))
    if usage is not None:
        chunks.append(frame | {"choices": [], "usage": dict(usage)})
    return tuple(chunks)


def response(
    usage: Mapping[str, Any] | None = RESPONSES_USAGE, status: str = "completed", **more: Any
) -> dict[str, Any]:
    """An OpenAI response."""
    return {
        "id": "resp_01",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "model": "gpt-5-mini",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "output": [
            {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "Hello.", "annotations": []}],
            }
        ],
        "usage": dict(usage) if usage is not None else None,
    } | more


def response_events(
    usage: Mapping[str, Any] = RESPONSES_USAGE, end: str = "completed"
) -> tuple[dict[str, Any], ...]:
    """An OpenAI response as a stream; usage comes with the last event."""
    part = {"type": "output_text", "text": "", "annotations": []}
    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress"}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response(None, "in_progress", output=[])},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": item | {"content": []},
        },
        {"type": "response.content_part.added", **at, "part": part},
        *(
            {"type": "response.output_text.delta", **at, "delta": word, "logprobs": []}
            for word in ("Hel", "lo", ".")
        ),
        {"type": f"response.{end}", "response": response(usage, end)},
    ]
    return tuple(event | {"sequence_number": n} for n, event in enumerate(events))


def prediction(status: str = "succeeded", **more: Any) -> dict[str, Any]:
    """A Replicate prediction."""
    ended = status in ("succeeded", "failed", "canceled")
    return {
        "id": "pred_01",
        "model": "acme/painter",
        "version": "v1",
        "input": {"prompt": "a cat"},
        "output": "https://127.0.0.1/cat.png" if status == "succeeded" else None,
        "logs": "",
        "error": "out of memory" if status == "failed" else None,
        "status": status,
        "created_at": "2026-11-22T06:00:00Z",
        "started_at": "2026-11-22T06:00:01Z",
        "completed_at": "2026-11-22T06:00:03Z" if ended else None,
        "metrics": {"predict_time": 1.25} if ended else {},
        "urls": {},
    } | more


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class _State:
    script: deque[Step] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    predictions: dict[str, deque[Mapping[str, Any]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)


class ProviderServer:
    """The server; `url` is its address, `seen` what arrived."""

    def __init__(self) -> None:
        self._state = _State()
        state = self._state

        class Handler(_Handler):
            shared = state

        self._server = QuietServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )
        self._thread.start()

    def script(self, *steps: Step) -> None:
        """Take these steps, one for each POST, before answering well again."""
        with self._state.lock:
            self._state.script.extend(steps)

    def show_prediction(self, work_id: str, *bodies: Mapping[str, Any]) -> None:
        """What each GET of a prediction or background response shows; the last one stays."""
        with self._state.lock:
            self._state.predictions[work_id] = deque(bodies)

    @property
    def seen(self) -> list[Seen]:
        """The requests that arrived since the last reset."""
        with self._state.lock:
            return list(self._state.seen)

    def reset(self) -> None:
        """Forget the script and what was seen."""
        with self._state.lock:
            self._state.script.clear()
            self._state.seen.clear()
            self._state.predictions.clear()

    def close(self) -> None:
        """Stop serving."""
        self._state.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _render_event(event: Mapping[str, Any]) -> bytes:
    name = f"event: {event['type']}\n" if "type" in event else ""
    return f"{name}data: {json.dumps(event)}\n\n".encode()


class _Handler(BaseHTTPRequestHandler):
    shared: _State
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's word
        """Say nothing."""

    def do_GET(self) -> None:
        """Show a prediction or a background response."""
        self._note(None)
        work_id = self.path.rstrip("/").rpartition("/")[2]
        if self.path.startswith("/stream/"):
            self._stream_output()
            return
        with self.shared.lock:
            bodies = self.shared.predictions.get(work_id)
            body = None
            if bodies:
                body = bodies.popleft() if len(bodies) > 1 else bodies[0]
        if body is None:
            self._send(404, {"detail": "not found", "error": {"message": "not found"}})
        else:
            self._send(200, body)

    def do_POST(self) -> None:
        """Take the next step of the script, or answer well."""
        size = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(size)
        body = json.loads(raw) if raw else {}
        self._note(body)
        with self.shared.lock:
            step = self.shared.script.popleft() if self.shared.script else None
        if step is None:
            step = self._answer_well(body)
        match step:
            case Fail(status, retry_after):
                error = {"type": "error", "error": {"type": "api_error", "message": "scripted"}}
                headers = {"retry-after-ms": "1"} if retry_after is None else {}
                if retry_after is not None:
                    headers["retry-after"] = retry_after
                self._send(status, error | {"detail": "scripted"}, headers)
            case Hang():
                self._wait_for_client_to_go()
                self.close_connection = True
            case Reset():
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.connection.close()
                self.close_connection = True
            case Say(said):
                self._send(200, said)
            case Stream():
                self._send_stream(step)

    def _answer_well(self, body: Mapping[str, Any]) -> Step:
        streamed = bool(body.get("stream"))
        path = self.path.partition("?")[0]
        if path.endswith("/messages"):
            return Stream(message_events()) if streamed else Say(message())
        if path.endswith("/count_tokens"):
            return Say({"input_tokens": 120})
        if path.endswith("/chat/completions"):
            if not streamed:
                return Say(completion())
            asked = (body.get("stream_options") or {}).get("include_usage")
            return Stream(completion_chunks(CHAT_USAGE if asked else None), done=True)
        if path.endswith("/responses/compact"):
            item = {"id": "cmp_1", "type": "compaction", "encrypted_content": "x"}
            said = {"id": "resp_02", "object": "response.compaction", "created_at": 1}
            return Say(said | {"output": [item], "usage": dict(RESPONSES_USAGE)})
        if path.endswith("/responses"):
            return Stream(response_events()) if streamed else Say(response())
        if path.endswith("/embeddings"):
            vector = {"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}
            usage = {"prompt_tokens": 120, "total_tokens": 120}
            said = {"object": "list", "model": "text-embedding-3-small", "data": [vector]}
            return Say(said | {"usage": usage})
        if path.endswith("/predictions"):
            return Say(prediction())
        return Say({"id": "x", "object": "thing", "usage": {"input_tokens": 1}})

    def _note(self, body: Any) -> None:
        with self.shared.lock:
            seen = Seen(self.command, self.path, dict(self.headers.items()), body)
            self.shared.seen.append(seen)

    def _send(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("request-id", "req_upstream")
        self.send_header("x-request-id", "req_upstream")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _send_stream(self, stream: Stream) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        if stream.is_compressed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if stream.is_compressed:
            # In one piece, so that the last events come out only as the response closes itself.
            self._send_chunk(gzip.compress(b"".join(map(_render_event, stream.events))))
            self._send_chunk(b"")
            return
        try:
            for event in stream.events:
                self._send_chunk(_render_event(event))
            if stream.then == "hold":
                self._wait_for_client_to_go()
            if stream.then != "end":
                self.close_connection = True
                return
            if stream.done:
                self._send_chunk(b"data: [DONE]\n\n")
            self._send_chunk(b"")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _stream_output(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number, word in enumerate(("a", "b", "c")):
                self._send_chunk(f"event: output\nid: {number}\ndata: {word}\n\n".encode())
            self._send_chunk(b"event: done\nid: 9\ndata: {}\n\n")
            self._send_chunk(b"")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _wait_for_client_to_go(self) -> None:
        """Return when the client has closed its end, or the server is to stop."""
        self.connection.settimeout(0.05)
        while not self.shared.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return
