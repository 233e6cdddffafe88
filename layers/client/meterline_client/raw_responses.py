"""Reading usage from a response's bytes, for apps that take them raw instead of parsed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from meterline_client.calls import Call
from meterline_client.wrapping_streams import StreamWatch, watch_close

MAX_BODY_BYTES = 32 << 20
"""The longest body of which a copy is kept while the app reads it."""


class ByteWatch:
    """Sees the decoded bytes of one response pass, and settles its call at their end."""

    __slots__ = ("_buffer", "_call", "_overflown", "_watch", "is_reading")

    def __init__(self, call: Call, watch: StreamWatch | None) -> None:
        self._call = call
        self._watch = watch
        self._buffer = bytearray()
        self._overflown = False
        self.is_reading = False
        """The next bytes are being read: a response that closes now may still yield some."""

    def see(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if self._overflown or not self._call.is_open:
            return
        self._buffer += chunk
        if self._watch is not None:
            self._feed_events(self._watch)
        if len(self._buffer) > MAX_BODY_BYTES:
            self._overflown = True
            self._buffer.clear()

    def _feed_events(self, watch: StreamWatch) -> None:
        """Server-sent events end with an empty line; `data` lines are joined (HTML standard)."""
        while True:
            text = self._buffer
            cut, gap = min(
                ((at, len(end)) for end in (b"\n\n", b"\r\n\r\n") if (at := text.find(end)) >= 0),
                default=(-1, 0),
            )
            if cut < 0:
                return
            block = bytes(text[:cut])
            del text[: cut + gap]
            lines = (line.strip() for line in block.splitlines())
            data = b"\n".join(line[5:].strip() for line in lines if line.startswith(b"data:"))
            if data and data != b"[DONE]":
                try:
                    event = json.loads(data)
                except ValueError:
                    continue
                watch.see(event)

    def end_on_close(self, reason: str) -> None:
        """The response was closed: by the app if nothing is being read, or else at its end."""
        if not self.is_reading:
            self.end(reason, whole=False)

    def __del__(self) -> None:
        self.end("the response was abandoned", whole=False)

    def end(self, reason: str, *, whole: bool) -> None:
        """The bytes ended (`whole`) or stopped coming."""
        if not self._call.is_open:
            return
        if self._watch is not None:
            self._watch.settle(reason)
        elif not whole or self._overflown:
            self._call.give_up(f"{reason} before its usage could be read")
        else:
            settle_bytes(self._call, bytes(self._buffer))


def settle_bytes(call: Call, content: bytes) -> None:
    """Settle a call by a whole JSON body."""
    try:
        body = json.loads(content)
    except ValueError:
        call.give_up("the answer is no JSON")
        return
    status = call.settle_body(body)
    if status is not None:
        call.give_up(f"the answer says {status!r}", body.get("id"))


def watch_bytes(response: Any, watch: ByteWatch) -> None:
    """Let a watch see the bytes of an httpx response that has not been read yet."""
    response.iter_bytes = _watch_iterator(response.iter_bytes, watch)
    response.aiter_bytes = _watch_async_iterator(response.aiter_bytes, watch)
    watch_close(response, watch.end_on_close)


def _watch_iterator(
    inner: Callable[..., Iterator[bytes]], watch: ByteWatch
) -> Callable[..., Iterator[bytes]]:
    def iter_bytes(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        chunks = inner(*args, **kwargs)
        whole = False
        try:
            while True:
                watch.is_reading = True
                try:
                    chunk = next(chunks)
                except StopIteration:
                    whole = True
                    return
                finally:
                    watch.is_reading = False
                watch.see(chunk)
                yield chunk
        finally:
            watch.end("the body ended" if whole else "reading the body stopped", whole=whole)

    return iter_bytes


def _watch_async_iterator(
    inner: Callable[..., AsyncIterator[bytes]], watch: ByteWatch
) -> Callable[..., AsyncIterator[bytes]]:
    async def aiter_bytes(*args: Any, **kwargs: Any) -> AsyncIterator[bytes]:
        chunks = inner(*args, **kwargs)
        whole = False
        try:
            while True:
                watch.is_reading = True
                try:
                    chunk = await anext(chunks)
                except StopAsyncIteration:
                    whole = True
                    return
                finally:
                    watch.is_reading = False
                watch.see(chunk)
                yield chunk
        finally:
            watch.end("the body ended" if whole else "reading the body stopped", whole=whole)

    return aiter_bytes
