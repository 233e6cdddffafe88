"""Watching a provider's stream pass, so that its call settles once, however the stream ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Protocol

from meterline_client.calls import Call, read_response_id
from meterline_client.reading import Usage


class Accumulator(Protocol):
    """What reads a stream's usage, event by event."""

    failed: bool

    @property
    def complete(self) -> bool:
        """Whether the counts are final."""

    def feed(self, event: Any) -> None:
        """Take one event."""

    def usage(self) -> Usage | None:
        """What has been reported so far."""


MAX_EARLY = 4
"""How many events are kept to find the response's id in, should its usage never come."""

Filter = Callable[[Any], bool]
"""Says whether one event of a stream says anything of usage."""


_MESSAGES_KINDS = frozenset({"message_start", "message_delta", "error"})
_RESPONSES_KINDS = frozenset(
    {
        "response.created",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "error",
    }
)


def keep_all() -> Filter:
    """Every event matters."""
    return lambda _: True


def filter_messages() -> Filter:
    """Of Anthropic's events, those that carry usage or an error."""
    return lambda event: getattr(event, "type", None) in _MESSAGES_KINDS


def filter_responses() -> Filter:
    """Of the Responses' events, the first, which names the response, and the last."""
    return lambda event: getattr(event, "type", None) in _RESPONSES_KINDS


def filter_chat() -> Filter:
    """Of a chat's chunks, those with usage, and each choice's first and last."""
    known: set[int] = set()

    def matters(chunk: Any) -> bool:
        # Asked of every chunk: plain attributes cost a third of `getattr` with a default.
        try:
            if chunk.usage is not None:
                return True
            for choice in chunk.choices:
                if choice.finish_reason is not None or choice.index not in known:
                    known.add(choice.index)
                    return True
        except (AttributeError, TypeError):
            # A gateway's own: without choices it says nothing, and with odd ones it is looked at.
            return bool(getattr(chunk, "choices", None))
        return False

    return matters


class StreamWatch:
    """One stream's accumulator and call, and how the stream's end settles the call."""

    __slots__ = (
        "_accumulator",
        "_broken",
        "_call",
        "_early",
        "_hide_usage",
        "is_reading",
        "matters",
    )

    def __init__(
        self, call: Call, accumulator: Accumulator, matters: Filter, *, hide_usage: bool
    ) -> None:
        self._call = call
        self.matters = matters
        """Whether `see` need be told of an event: asked of each, so that most cost little."""
        self._accumulator = accumulator
        self._hide_usage = hide_usage
        self._early: list[Any] = []
        """The first events seen: one of them names the response."""
        self._broken: str | None = None
        self.is_reading = False
        """The next event is being read: a response that closes now may still yield events."""

    def see(self, event: Any) -> bool:
        """Take one event; say whether the app is to see it.

        The usage chunk that was asked for on the app's behalf is kept from it: code that reads
        `chunk.choices[0]` does not expect a chunk without choices.
        """
        try:
            self._accumulator.feed(event)
            if len(self._early) < MAX_EARLY:
                self._early.append(event)
            if self._hide_usage:
                return bool(event.choices) or getattr(event, "usage", None) is None
        except Exception as error:  # noqa: BLE001 - the app's stream must go on
            self._broken = repr(error)
        return True

    def settle_on_error(self, error: BaseException) -> None:
        """The stream broke: by its connection, or because the provider says that the call failed.

        Both SDKs keep the provider's own words in `body`, and nothing there otherwise.
        """
        if getattr(error, "body", None) is not None:
            self._call.drop()
        self.settle(f"the stream broke ({type(error).__name__})")

    def settle_on_close(self, reason: str) -> None:
        """The response was closed: by the app if nothing is being read, or else at its end."""
        if not self.is_reading:
            self.settle(reason)

    def settle(self, reason: str) -> None:
        """The stream ended, was closed, was dropped or broke: settle by what was reported."""
        call = self._call
        if not call.is_open:
            return
        if self._broken is not None:
            call.give_up(f"an event of the stream cannot be read: {self._broken}")
            return
        accumulator = self._accumulator
        if accumulator.failed:
            call.drop()
            return
        try:
            usage = accumulator.usage()
        except Exception as error:  # noqa: BLE001 - the app's stream must end as it would have
            call.give_up(f"the stream's usage cannot be read: {error!r}", self._find_id())
            return
        if usage is None:
            call.give_up(f"{reason}, and no usage was reported", self._find_id())
        elif accumulator.complete:
            call.settle(usage)
        else:
            call.settle(usage, partial=True)

    def _find_id(self) -> str | None:
        return next(filter(None, map(_read_id, self._early)), None)


def _read_id(event: Any) -> str | None:
    if isinstance(event, Mapping):
        holders = [event, event.get("message"), event.get("response")]
    else:
        holders = [event, getattr(event, "message", None), getattr(event, "response", None)]
    return next(filter(None, map(read_response_id, holders)), None)


class WatchedIterator(Iterator[Any]):
    """A stream's own iterator with a watch on it. When it is dropped, its call settles."""

    __slots__ = ("_inner", "_watch")

    def __init__(self, inner: Iterator[Any], watch: StreamWatch) -> None:
        self._inner = inner
        self._watch = watch

    def __iter__(self) -> Iterator[Any]:
        """As `__next__` again and again, for half of its cost: a generator is resumed in C."""
        watch = self._watch
        matters = watch.matters
        try:
            watch.is_reading = True
            for event in self._inner:
                if matters(event) and not watch.see(event):
                    continue
                watch.is_reading = False
                yield event
                watch.is_reading = True
        except GeneratorExit:
            # The loop was left, not the stream: it may be read on, and is settled when it is gone.
            raise
        except BaseException as error:
            watch.settle_on_error(error)
            raise
        else:
            watch.settle("the stream ended")
        finally:
            watch.is_reading = False

    def __next__(self) -> Any:
        watch = self._watch
        watch.is_reading = True
        try:
            event = next(self._inner)
            while watch.matters(event) and not watch.see(event):
                event = next(self._inner)
        except StopIteration:
            watch.settle("the stream ended")
            raise
        except BaseException as error:
            watch.settle_on_error(error)
            raise
        finally:
            watch.is_reading = False
        return event

    def close(self) -> None:
        """Close the stream's iterator, as a generator is closed."""
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()
        self._watch.settle("the stream was closed")

    def __del__(self) -> None:
        self._watch.settle("the stream was abandoned")


class WatchedAsyncIterator(AsyncIterator[Any]):
    """An asynchronous stream's own iterator with a watch on it."""

    __slots__ = ("_inner", "_watch")

    def __init__(self, inner: AsyncIterator[Any], watch: StreamWatch) -> None:
        self._inner = inner
        self._watch = watch

    async def __anext__(self) -> Any:
        watch = self._watch
        watch.is_reading = True
        try:
            event = await anext(self._inner)
            while watch.matters(event) and not watch.see(event):
                event = await anext(self._inner)
        except StopAsyncIteration:
            watch.settle("the stream ended")
            raise
        except BaseException as error:
            watch.settle_on_error(error)
            raise
        finally:
            watch.is_reading = False
        return event

    async def aclose(self) -> None:
        """Close the stream's iterator, as an asynchronous generator is closed."""
        close = getattr(self._inner, "aclose", None)
        if close is not None:
            await close()
        self._watch.settle("the stream was closed")

    def __del__(self) -> None:
        self._watch.settle("the stream was abandoned")


def watch_close(response: Any, settle: Callable[[str], None]) -> None:
    """Settle when an httpx response is closed, by whichever of its ways.

    What is put on the response is taken off again as it closes: it refers to the response, and a
    cycle would leave the whole answer to the garbage collector.
    """

    def close() -> None:
        restore_methods(response)
        try:
            response.close()
        finally:
            settle("the response was closed")

    async def aclose() -> None:
        restore_methods(response)
        try:
            await response.aclose()
        finally:
            settle("the response was closed")

    response.close = close
    response.aclose = aclose


def restore_methods(response: Any) -> None:
    """Take what watches a response off it."""
    own = vars(response)
    for name in ("close", "aclose", "iter_bytes", "aiter_bytes"):
        own.pop(name, None)
