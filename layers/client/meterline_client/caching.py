"""Caches in front of metered calls: a hit never meters, a miss meters once.

The cache stands outside the meter by construction: what is decorated holds the metered call, and is
only run on a miss. Callers who want the same key at the same time wait for one of them (single
flight, within one process); if that one fails, the next of them tries.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from meterline_client.calls import note_hit, note_paid_work
from meterline_client.signals import SignalBoard

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


class Cache(Protocol):
    """A cache as redis-py's, in what is used here; both may be coroutines."""

    def get(self, key: str) -> Any:
        """Return the kept value, or None."""

    def set(self, key: str, value: Any) -> Any:
        """Keep a value."""


class ConvexCache:
    """A Convex table as a cache, through the app's own `get` and `set` functions there.

    `client` is a `convex.ConvexClient`: `query(name, args)` and `mutation(name, args)`.
    """

    def __init__(self, client: Any, *, get: str = "cache:get", set: str = "cache:set") -> None:  # noqa: A002
        self._client = client
        self._get = get
        self._set = set

    def get(self, key: str) -> Any:
        """Ask the query function for the value of a key."""
        return self._client.query(self._get, {"key": key})

    def set(self, key: str, value: Any, ttl_s: int | None = None) -> None:
        """Tell the mutation function to keep a value."""
        args: dict[str, Any] = {"key": key, "value": value}
        if ttl_s is not None:
            args["ttl"] = ttl_s
        self._client.mutation(self._set, args)


class VercelCache:
    """Vercel's runtime cache, as the `vercel` package's `get_cache()` gives it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def get(self, key: str) -> Any:
        """Return the kept value, or None."""
        return self._cache.get(key)

    def set(self, key: str, value: Any, ttl_s: int | None = None) -> Any:
        """Keep a value for `ttl_s` seconds."""
        return self._cache.set(key, value, {"ttl": ttl_s} if ttl_s is not None else {})


class CachedCalls:
    """Decorates functions that make metered calls with one cache in front of them."""

    def __init__(
        self,
        cache: Cache | MutableMapping[str, Any],
        signals: SignalBoard,
        *,
        key: Callable[..., str],
        ttl_s: int | None,
        dump: Callable[[Any], Any] | None,
        load: Callable[[Any], Any] | None,
    ) -> None:
        plain = isinstance(cache, MutableMapping)
        if ttl_s is not None and plain:
            raise ValueError("a mapping forgets nothing: ttl_s needs a cache that expires")
        self._cache = cache
        self._signals = signals
        self._key = key
        self._ttl_s = ttl_s
        self._dump = dump or (_keep if plain else json.dumps)
        self._load = load or (_keep if plain else _load_json)
        self._ttl_name = None if plain or ttl_s is None else _find_ttl_name(cache)
        self._lock = threading.Lock()
        self._flights: dict[str, threading.Lock] = {}
        self._waiting: dict[str, int] = {}

    def __call__(self, function: F) -> F:
        """Put the cache in front of a function or a coroutine function."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("a stream cannot be cached: cache the function that collects it")
        if inspect.iscoroutinefunction(function):
            return cast(F, self._wrap_async(function))
        return cast(F, self._wrap(function))

    def _wrap(self, function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            key = self._key(*args, **kwargs)
            found, value = self._look_up(key)
            if found:
                return cast(R, value)
            with self._flight(key):
                # Whoever held the flight before may have answered in the meantime.
                found, value = self._look_up(key)
                if found:
                    return cast(R, value)
                note_paid_work()
                answer = function(*args, **kwargs)
                self._store(key, answer)
                return answer

        return call

    def _wrap_async(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        import asyncio  # Loaded by those who use it: it costs 30 ms.

        flights: dict[tuple[int, str], tuple[asyncio.Lock, list[None]]] = {}

        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> R:
            key = self._key(*args, **kwargs)
            found, value = await self._look_up_async(key)
            if found:
                return cast(R, value)
            # An asyncio lock belongs to one loop; callers in other loops fly by themselves.
            slot = (id(asyncio.get_running_loop()), key)
            lock, waiting = flights.setdefault(slot, (asyncio.Lock(), []))
            waiting.append(None)
            try:
                async with lock:
                    found, value = await self._look_up_async(key)
                    if found:
                        return cast(R, value)
                    note_paid_work()
                    answer = await function(*args, **kwargs)
                    await self._store_async(key, answer)
                    return answer
            finally:
                waiting.pop()
                if not waiting:
                    flights.pop(slot, None)

        return call

    @contextlib.contextmanager
    def _flight(self, key: str) -> Iterator[None]:
        with self._lock:
            lock = self._flights.setdefault(key, threading.Lock())
            self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key], self._flights[key]

    def _look_up(self, key: str) -> tuple[bool, Any]:
        try:
            kept = self._cache.get(key)
            if inspect.isawaitable(kept):
                raise TypeError("an asynchronous cache needs a coroutine function")
        except TypeError:
            raise
        except Exception as error:  # noqa: BLE001 - a cache may fail in its own ways: then it misses
            self._report(error, key)
            return False, None
        return self._read(kept, key)

    async def _look_up_async(self, key: str) -> tuple[bool, Any]:
        try:
            kept = self._cache.get(key)
            if inspect.isawaitable(kept):
                kept = await kept
        except Exception as error:  # noqa: BLE001 - a cache may fail in its own ways: then it misses
            self._report(error, key)
            return False, None
        return self._read(kept, key)

    def _read(self, kept: Any, key: str) -> tuple[bool, Any]:
        if kept is None:
            return False, None
        try:
            value = self._load(kept)
        except (ValueError, TypeError, KeyError) as error:
            self._report(error, key)
            return False, None
        note_hit()
        return True, value

    def _set(self, key: str, answer: Any) -> Any:
        kept = self._dump(answer)
        if isinstance(self._cache, MutableMapping):
            self._cache[key] = kept
            return None
        if self._ttl_name is not None:
            return self._cache.set(key, kept, **{self._ttl_name: self._ttl_s})
        return self._cache.set(key, kept)

    def _store(self, key: str, answer: Any) -> None:
        try:
            self._set(key, answer)
        except Exception as error:  # noqa: BLE001 - the answer is paid for: it must reach the caller
            self._report(error, key)

    async def _store_async(self, key: str, answer: Any) -> None:
        try:
            done = self._set(key, answer)
            if inspect.isawaitable(done):
                await done
        except Exception as error:  # noqa: BLE001 - the answer is paid for: it must reach the caller
            self._report(error, key)

    def _report(self, error: Exception, key: str) -> None:
        self._signals.raise_signal("cache_failed", f"the cache failed: {error!r}", key=key)


def _keep(value: Any) -> Any:
    return value


def _load_json(value: Any) -> Any:
    return json.loads(value)


def _find_ttl_name(cache: Any) -> str:
    """redis-py says `ex`, the caches here `ttl_s`, others `ttl`, `expire` or `timeout`."""
    known = inspect.signature(cache.set).parameters
    for name in ("ex", "ttl_s", "ttl", "expire", "timeout"):
        if name in known:
            return name
    raise ValueError("this cache's `set` takes no time to live that is known here")
