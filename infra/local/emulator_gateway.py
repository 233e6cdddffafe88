"""Addresses of their own for what the emulator tells apart by the `Host` header alone.

`python -m infra.local.emulator_gateway --upstream-port N --host NAME` listens on a port of
127.0.0.1, prints it as its first line, and hands every request on with that `Host` header. A body
is taken in whole first, up to API Gateway's 10 MB, as API Gateway does. At most `--calls` requests
are handed on at once: the emulator starts a process for each call in flight, where AWS would have
room. `--waiting` more may wait; the rest is answered as API Gateway answers above its rate limit.
`--rate` sets that limit too, in calls a second: a bucket of tokens that holds one second's worth,
one call at least.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from infra.local.owned_process import end_with_owner

BODY_LIMIT_BYTES = 10 * 1024 * 1024
_HEAD_LIMIT_BYTES = 65_536
_LOG = logging.getLogger(__name__)


class MalformedMessageError(Exception):
    """What came in is no HTTP/1.1 message."""


class BodyTooLargeError(Exception):
    """The body is over API Gateway's limit for a payload, 10 MB (API Gateway quotas, HTTP API)."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the header lines of a message, with their framing read."""

    lines: tuple[bytes, ...]
    length_bytes: int | None
    chunked: bool
    closing: bool
    waits_for_continue: bool

    @classmethod
    def parse(cls, raw: bytes) -> Head:
        """Read a head, its empty line included. Raises MalformedMessageError."""
        lines = tuple(raw[:-4].split(b"\r\n"))
        length: int | None = None
        chunked = closing = waits = False
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon:
                raise MalformedMessageError(line)
            key, value = name.lower(), value.strip().lower()
            if key == b"content-length":
                if not value.isdigit():
                    raise MalformedMessageError(line)
                length = int(value)
            elif key == b"transfer-encoding":
                chunked = value.endswith(b"chunked")
            elif key == b"connection":
                closing = value == b"close"
            elif key == b"expect":
                waits = value == b"100-continue"
        return cls(lines, length, chunked, closing, waits)

    def addressed_to(self, host: bytes, length_bytes: int) -> bytes:
        """The same head for another `Host`, before a body of `length_bytes`; then it is over."""
        kept = self._lines_without(
            *(b"host", b"expect", b"content-length", b"transfer-encoding", b"connection"),
            *(b"x-forwarded-host", b"x-forwarded-proto"),
        )
        # As API Gateway says which scheme was called; and, since this one changes it, which host.
        kept += [
            b"X-Forwarded-Host:" + line.partition(b":")[2]
            for line in self.lines[1:]
            if line.partition(b":")[0].lower() == b"host"
        ]
        kept.append(b"X-Forwarded-Proto: http")
        kept.append(b"Connection: close")
        if length_bytes or self.length_bytes is not None:
            kept.append(b"Content-Length: %d" % length_bytes)
        return b"\r\n".join((self.lines[0], b"Host: " + host, *kept)) + b"\r\n\r\n"

    def kept_open(self) -> bytes:
        """The same head without `Connection`, for a connection that stays."""
        return b"\r\n".join((self.lines[0], *self._lines_without(b"connection"))) + b"\r\n\r\n"

    def _lines_without(self, *names: bytes) -> list[bytes]:
        return [line for line in self.lines[1:] if line.partition(b":")[0].lower() not in names]

    @property
    def method(self) -> bytes:
        """Of a request: its method. Raises MalformedMessageError."""
        parts = self.lines[0].split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            raise MalformedMessageError(self.lines[0])
        return parts[0]

    @property
    def status(self) -> int:
        """Of a response: its status. Raises MalformedMessageError."""
        parts = self.lines[0].split(b" ", 2)
        if len(parts) < 2 or not parts[1].isdigit():
            raise MalformedMessageError(self.lines[0])
        return int(parts[1])


async def _read_head(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise MalformedMessageError(error.partial[:80]) from error
        return None
    except asyncio.LimitOverrunError as error:
        raise MalformedMessageError(f"a head of more than {_HEAD_LIMIT_BYTES} bytes") from error


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while True:
        line = await reader.readuntil(b"\r\n")
        try:
            size = int(line.split(b";", 1)[0], 16)
        except ValueError as error:
            raise MalformedMessageError(line) from error
        if size == 0:
            while await reader.readuntil(b"\r\n") != b"\r\n":
                continue
            return bytes(body)
        if len(body) + size > BODY_LIMIT_BYTES:
            raise BodyTooLargeError
        body += (await reader.readexactly(size + 2))[:-2]


async def _read_request_body(request: Head, reader: asyncio.StreamReader) -> bytes:
    if request.chunked:
        return await _read_chunks(reader)
    if (request.length_bytes or 0) > BODY_LIMIT_BYTES:
        raise BodyTooLargeError
    return await reader.readexactly(request.length_bytes or 0)


def _answer(status_line: bytes, message: bytes) -> bytes:
    body = b'{"message":"%s"}' % message
    return (
        b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        b"Connection: close\r\n\r\n%s" % (status_line, len(body), body)
    )


class Gateway:
    """Hands requests on to 127.0.0.1:`upstream_port`, under the name `host`."""

    def __init__(
        self, upstream_port: int, host: str, *, calls: int, waiting: int, rate: float | None
    ) -> None:
        self._upstream_port = upstream_port
        self._host = host.encode("ascii")
        self._room = asyncio.Semaphore(calls)
        self._present = 0
        self._most_present = calls + waiting
        self._rate = rate
        self._most_tokens = self._tokens = max(1.0, rate or 0.0)
        self._filled_s = time.monotonic()

    def _admits(self) -> bool:
        if self._present >= self._most_present:
            return False
        if self._rate is None:
            return True
        now_s = time.monotonic()
        gained = (now_s - self._filled_s) * self._rate
        self._tokens = min(self._most_tokens, self._tokens + gained)
        self._filled_s = now_s
        admitted = self._tokens >= 1
        self._tokens -= admitted
        return admitted

    async def serve_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One client's connection: its requests, one after another."""
        try:
            closing = False
            while not closing and (raw := await _read_head(reader)):
                request = Head.parse(raw)
                if request.waits_for_continue:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                body = await _read_request_body(request, reader)
                if not self._admits():
                    writer.write(_answer(b"429 Too Many Requests", b"Too Many Requests"))
                    return
                self._present += 1
                try:
                    async with self._room:
                        closing = await self._hand_on(request, body, writer) or request.closing
                finally:
                    self._present -= 1
        except BodyTooLargeError:
            writer.write(_answer(b"413 Request Entity Too Large", b"Request Entity Too Large"))
        except (MalformedMessageError, asyncio.LimitOverrunError) as error:
            _LOG.warning("refused: %s", error)
            writer.write(_answer(b"400 Bad Request", b"Bad Request"))
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            _LOG.info("a connection ended early: %r", error)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _hand_on(self, request: Head, body: bytes, writer: asyncio.StreamWriter) -> bool:
        """Hand one request on and its answer back; true when the connection must end with it."""
        method = request.method
        try:
            from_upstream, to_upstream = await asyncio.open_connection(
                "127.0.0.1", self._upstream_port, limit=_HEAD_LIMIT_BYTES
            )
        except ConnectionRefusedError:
            writer.write(_answer(b"502 Bad Gateway", b"Bad Gateway"))
            return True
        try:
            to_upstream.write(request.addressed_to(self._host, len(body)) + body)
            await to_upstream.drain()
            raw = await _read_head(from_upstream)
            while raw and Head.parse(raw).status < 200:
                raw = await _read_head(from_upstream)
            if not raw:
                writer.write(_answer(b"502 Bad Gateway", b"Bad Gateway"))
                return True
            response = Head.parse(raw)
            if method == b"HEAD" or response.status in (204, 304):
                writer.write(response.kept_open())
            elif response.length_bytes is not None:
                body = await from_upstream.readexactly(response.length_bytes)
                writer.write(response.kept_open() + body)
            else:
                # Ended by its chunks or by the connection's end: the client sees the same.
                writer.write(raw)
                while piece := await from_upstream.read(_HEAD_LIMIT_BYTES):
                    writer.write(piece)
                    await writer.drain()
                return True
            await writer.drain()
            return False
        finally:
            to_upstream.close()


async def _serve(gateway: Gateway) -> None:
    server = await asyncio.start_server(
        gateway.serve_connection, "127.0.0.1", 0, limit=_HEAD_LIMIT_BYTES, backlog=512
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upstream-port", type=int, required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--waiting", type=int, default=256)
    parser.add_argument("--rate", type=float, help="calls a second; without it, no limit")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    end_with_owner()
    gateway = Gateway(
        arguments.upstream_port,
        arguments.host,
        calls=arguments.calls,
        waiting=arguments.waiting,
        rate=arguments.rate,
    )
    asyncio.run(_serve(gateway))


if __name__ == "__main__":
    main()
