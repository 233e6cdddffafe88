"""Metering a provider's official client in place: it is used exactly as before.

Anthropic's and OpenAI's SDKs are built alike: every resource, helper and raw variant ends in the
client's `request`, which holds the SDK's own retry loop. That one seam is metered, outside the
loop, so an attempt that failed is never seen. Replicate's ends in `_request` and `_async_request`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Any, Protocol, TypeVar

from meterline_client.attribution import Attribution
from meterline_client.calls import Call, Recorder, open_call
from meterline_client.errors import ClientUnsupportedError
from meterline_client.raw_responses import ByteWatch, settle_bytes, watch_bytes
from meterline_client.reading import AnthropicStream, OpenAIChatStream, OpenAIResponsesStream
from meterline_client.sdk_objects import summarize_answer
from meterline_client.wrapping_streams import (
    Accumulator,
    Filter,
    StreamWatch,
    WatchedAsyncIterator,
    WatchedIterator,
    filter_chat,
    filter_messages,
    filter_responses,
    keep_all,
    watch_close,
)

C = TypeVar("C")

MARK = "_meterline_meter"
MAX_KNOWN_URLS = 1_000
"""How many addresses a client remembers as billed or not; some hold ids."""

HOSTS: Mapping[str, str] = {"openrouter.ai": "openrouter", "ai-gateway.vercel.sh": "vercel"}
"""Gateways that are known by their address; any other is named with `provider=`."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """A path whose calls are billed, and what reads its stream."""

    stream: Callable[[], Accumulator] | None = None
    make_filter: Callable[[], Filter] = keep_all
    """Which of a stream's many events say anything of usage."""
    asks_for_usage: bool = False
    """Usage in the stream must be asked for, with `stream_options.include_usage`."""


ANTHROPIC_ENDPOINTS: Mapping[str, _Endpoint] = {
    "/v1/messages": _Endpoint(AnthropicStream, filter_messages),
    "/v1/complete": _Endpoint(),
}
OPENAI_ENDPOINTS: Mapping[str, _Endpoint] = {
    "/chat/completions": _Endpoint(OpenAIChatStream, filter_chat, asks_for_usage=True),
    "/completions": _Endpoint(OpenAIChatStream, filter_chat, asks_for_usage=True),
    "/responses": _Endpoint(OpenAIResponsesStream, filter_responses),
    "/responses/compact": _Endpoint(),
    "/embeddings": _Endpoint(),
}


class CallKeeper(Recorder, Protocol):
    """What says who is billed before the provider is called, and keeps calls that end later."""

    def check_call(self) -> Attribution | None:
        """Return who is billed; None when the platform pays. Raises if the call must not be."""

    def defer(self, call: Call, work_id: str, poll: Callable[[], Mapping[str, Any]] | None) -> None:
        """Keep a call whose work goes on after the answer; `poll` asks how it stands."""

    def find_deferred(self, provider: str, work_id: str) -> Call | None:
        """Return the deferred call of a piece of work."""


def wrap_client(keeper: CallKeeper, client: C, provider: str | None, include_usage: bool) -> C:
    """Meter a client in place and return it. Raises ClientUnsupportedError on anything else."""
    if getattr(client, MARK, None) is not None:
        return client
    family = next(
        (
            kind.__module__.partition(".")[0]
            for kind in type(client).__mro__
            if kind.__module__.partition(".")[0] in ("anthropic", "openai", "replicate")
        ),
        None,
    )
    if family == "replicate" and hasattr(client, "_async_request"):
        _ReplicateSeam(keeper, provider or "replicate").attach(client)
    elif family == "anthropic" and hasattr(client, "request"):
        _StainlessSeam(keeper, provider or "anthropic", ANTHROPIC_ENDPOINTS, False).attach(client)
    elif family == "openai" and hasattr(client, "request"):
        provider = provider or HOSTS.get(client.base_url.host, "openai")  # type: ignore[attr-defined]
        _StainlessSeam(keeper, provider, OPENAI_ENDPOINTS, include_usage).attach(client)
    else:
        raise ClientUnsupportedError(
            f"{type(client).__module__}.{type(client).__qualname__} is no client of anthropic, "
            "openai or replicate: meter its calls with `meter.measure()`"
        )
    return client


class _StainlessSeam:
    """Meters `request` of one Anthropic or OpenAI client, and of the copies made from it."""

    def __init__(
        self,
        keeper: CallKeeper,
        provider: str,
        endpoints: Mapping[str, _Endpoint],
        include_usage: bool,
    ) -> None:
        self._keeper = keeper
        self._provider = provider
        self._endpoints = endpoints
        self._include_usage = include_usage
        self._known: dict[str, _Endpoint | None] = {}
        self._warned: set[str] = set()

    def attach(self, client: Any) -> None:
        """Replace the client's `request`, and make its copies metered as well."""
        request = client.request
        if iscoroutinefunction(request):

            async def request_async(cast_to: Any, options: Any, **kwargs: Any) -> Any:
                call, endpoint, hides = self._open(options, kwargs.get("stream", False))
                if call is None:
                    return self._see_other(options, await request(cast_to, options, **kwargs))
                try:
                    result = await request(cast_to, options, **kwargs)
                except BaseException:
                    call.drop()
                    raise
                self._end(call, endpoint, hides, result)
                return result

            client.request = request_async
        else:

            def request_sync(cast_to: Any, options: Any, **kwargs: Any) -> Any:
                call, endpoint, hides = self._open(options, kwargs.get("stream", False))
                if call is None:
                    return self._see_other(options, request(cast_to, options, **kwargs))
                try:
                    result = request(cast_to, options, **kwargs)
                except BaseException:
                    call.drop()
                    raise
                self._end(call, endpoint, hides, result)
                return result

            client.request = request_sync

        copy = client.copy

        def copy_metered(*args: Any, **kwargs: Any) -> Any:
            return wrap_client(
                self._keeper, copy(*args, **kwargs), self._provider, self._include_usage
            )

        client.copy = client.with_options = copy_metered
        setattr(client, MARK, self._keeper)

    def _open(self, options: Any, stream: bool) -> tuple[Call | None, _Endpoint, bool]:
        endpoint = self._find_endpoint(options)
        if endpoint is None:
            return None, _Endpoint(), False
        attribution = self._keeper.check_call()
        if attribution is None:
            return None, endpoint, False
        body = options.json_data
        model = body.get("model") if type(body) is dict or isinstance(body, Mapping) else None
        model = model if isinstance(model, str) else None
        call = open_call(self._keeper, attribution, self._provider, model)
        hides = False
        if stream and endpoint.asks_for_usage and self._include_usage:
            hides = _ask_for_usage(options)
        return call, endpoint, hides

    def _find_endpoint(self, options: Any) -> _Endpoint | None:
        if options.method not in ("post", "POST"):
            return None
        url = options.url
        if url in self._known:
            return self._known[url]
        path = url.partition("?")[0]
        # Azure's and other deployments put their own prefix before the path.
        found = next(
            (e for known, e in self._endpoints.items() if path.endswith(known)),
            None,
        )
        if len(self._known) < MAX_KNOWN_URLS:
            self._known[url] = found
        return found

    def _see_other(self, options: Any, result: Any) -> Any:
        """A call that is not billed by itself: it may tell the end of one, or be a gap."""
        path = options.url.partition("?")[0]
        work_id = getattr(result, "id", None) if "/responses/" in path else None
        call = self._keeper.find_deferred(self._provider, work_id) if work_id else None
        if call is not None:
            call.settle_body(summarize_answer(result))
        elif (
            options.method in ("post", "POST")
            and self._find_endpoint(options) is None
            and getattr(result, "usage", None) is not None
            and path not in self._warned
        ):
            self._warned.add(path)
            self._keeper.signals.raise_signal(
                "path_unmetered",
                f"{path} reports usage, and its calls are not metered: use `meter.measure()`",
                provider=self._provider,
                path=path,
            )
        return result

    def _end(self, call: Call, endpoint: _Endpoint, hides: bool, result: Any) -> None:
        try:
            self._watch_result(call, endpoint, hides, result)
        except Exception as error:  # noqa: BLE001 - the app's answer is paid for: it must arrive
            call.give_up(f"the answer cannot be watched: {error!r}")

    def _watch_result(self, call: Call, endpoint: _Endpoint, hides: bool, result: Any) -> None:
        if hasattr(type(result), "model_dump"):
            if call.settle_body(summarize_answer(result)) is not None:
                self._keeper.defer(call, result.id, None)
            return
        response = getattr(result, "http_response", None)
        if response is None and hasattr(result, "iter_bytes"):
            response = result
        if response is not None:
            _watch_raw(call, endpoint, response)
        elif hasattr(result, "_iterator") and endpoint.stream is not None:
            watch = StreamWatch(call, endpoint.stream(), endpoint.make_filter(), hide_usage=hides)
            if hasattr(result, "__anext__"):
                result._iterator = WatchedAsyncIterator(result._iterator, watch)
            else:
                result._iterator = WatchedIterator(result._iterator, watch)
            watch_close(result.response, watch.settle_on_close)
        else:
            call.settle_body(result)


def _watch_raw(call: Call, endpoint: _Endpoint, response: Any) -> None:
    if response.is_stream_consumed:
        settle_bytes(call, response.content)
        return
    content_type = response.headers.get("content-type", "")
    watch = None
    if endpoint.stream is not None and content_type.startswith("text/event-stream"):
        watch = StreamWatch(call, endpoint.stream(), keep_all(), hide_usage=False)
    watch_bytes(response, ByteWatch(call, watch))


def _ask_for_usage(options: Any) -> bool:
    """Ask for usage in the stream; say whether that was on the app's behalf, unasked."""
    body = options.json_data
    if not isinstance(body, Mapping):
        return False
    asked = body.get("stream_options")
    asked = asked if isinstance(asked, Mapping) else {}
    if asked.get("include_usage"):
        return False
    options.json_data = {**body, "stream_options": {**asked, "include_usage": True}}
    return True


class _ReplicateSeam:
    """Meters `_request` and `_async_request` of one Replicate client."""

    def __init__(self, keeper: CallKeeper, provider: str) -> None:
        self._keeper = keeper
        self._provider = provider

    def attach(self, client: Any) -> None:
        """Replace the client's two request methods."""
        request, async_request = client._request, client._async_request

        def request_metered(method: str, path: str, **kwargs: Any) -> Any:
            call = self._open(method, path, kwargs)
            try:
                response = request(method, path, **kwargs)
            except BaseException:
                if call is not None:
                    call.drop()
                raise
            self._see(call, path, response, request)
            return response

        async def async_request_metered(method: str, path: str, **kwargs: Any) -> Any:
            call = self._open(method, path, kwargs)
            try:
                response = await async_request(method, path, **kwargs)
            except BaseException:
                if call is not None:
                    call.drop()
                raise
            self._see(call, path, response, request)
            return response

        client._request = request_metered
        client._async_request = async_request_metered
        setattr(client, MARK, self._keeper)

    def _open(self, method: str, path: str, kwargs: Mapping[str, Any]) -> Call | None:
        if method.upper() != "POST" or not path.endswith("/predictions"):
            return None
        attribution = self._keeper.check_call()
        if attribution is None:
            return None
        model = _name_model(path, kwargs.get("json"))
        return open_call(self._keeper, attribution, self._provider, model)

    def _see(self, call: Call | None, path: str, response: Any, request: Any) -> None:
        if "/predictions" not in path:
            return
        try:
            prediction = json.loads(response.content)
        except ValueError:
            if call is not None:
                call.give_up("the answer is no JSON")
            return
        work_id = prediction.get("id") if isinstance(prediction, dict) else None
        if call is None and isinstance(work_id, str):
            call = self._keeper.find_deferred(self._provider, work_id)
        if call is None:
            return
        status = call.settle_body(prediction)
        if status is None:
            return
        if not isinstance(work_id, str):
            call.give_up(f"the answer says {status!r}, and names no prediction")
            return

        def poll() -> Mapping[str, Any]:
            found: Mapping[str, Any] = request("GET", f"/v1/predictions/{work_id}").json()
            return found

        self._keeper.defer(call, work_id, poll)


def _name_model(path: str, body: Any) -> str | None:
    """`/v1/models/{owner}/{name}/predictions` names the model, else the body its version."""
    parts = path.strip("/").split("/")
    if len(parts) == 5 and parts[1] in ("models", "deployments"):
        return f"{parts[2]}/{parts[3]}"
    version = body.get("version") if isinstance(body, Mapping) else None
    return version if isinstance(version, str) else None
