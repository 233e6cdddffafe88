"""Read what a model provider says a call used: each token counted once, never guessed.

Standard library only, and cheap enough for the calling thread. The numbers are the provider's
own; what cannot be read is refused with a named error, because a zero would be a silent loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from meterline_client.sdk_objects import flatten, is_sdk_object

MAX_COUNT = 1_000_000_000
"""The largest count believed of one call; the largest context windows hold ten million tokens."""

Reported: TypeAlias = Any
"""A body or event as decoded JSON, or as an SDK's object with attributes and `to_dict`."""


class UsageUnreadableError(ValueError):
    """The provider's answer holds no usage that can be billed; the subclass says why."""


class ProviderUnknownError(UsageUnreadableError):
    """No reader exists for this provider."""


class UsageMissingError(UsageUnreadableError):
    """The answer reports no usage in any shape this provider is known to use."""


class UsageMalformedError(UsageUnreadableError):
    """A count is not a whole number within bounds, or the counts contradict each other."""


class CallUnsuccessfulError(UsageUnreadableError):
    """The call failed, was cancelled or has not ended: nothing of it is billed."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the provider reports the call as {status!r}")
        self.status = status


class Usage(NamedTuple):
    """What one successful call used, in disjoint kinds: their sum counts every token once.

    `input_tokens` (neither read from nor written to a cache), `cache_read_tokens`,
    `cache_write_tokens`, `cache_write_1h_tokens` (Anthropic's one-hour writes, not in the kind
    before), `output_tokens` (reasoning included); or `predict_time_ms`. Kinds that are zero are
    left out, but `input_tokens` and `output_tokens` of a call counted in tokens.
    """

    kinds: Mapping[str, int]
    model: str | None
    response_id: str | None
    tier: str | None
    """The price tier as the provider names it, in lower case; None at its standard price."""
    also: tuple[Usage, ...] = ()
    """What the same call used of other models, not in `kinds` (Anthropic's advisor)."""
    web_searches: int = 0
    """Searches the provider charges for beside the tokens; not a kind, since no token is one."""


def read_usage(provider: str, body: Reported) -> Usage:
    """Read a complete response.

    Raises ProviderUnknownError, UsageMissingError, UsageMalformedError, CallUnsuccessfulError.
    """
    if provider == "replicate":
        return _read_replicate(body)
    shape, usage = _find_usage(provider, body)
    _refuse_unsuccessful(body)
    return _make_usage(shape, usage, body)


def break_down_usage(provider: str, body: Reported) -> dict[str, int]:
    """Read a complete response as totals and their parts, which overlap; zeros are left out.

    `input_tokens` includes what the cache gave and took, `output_tokens` includes reasoning;
    `output_reasoning_tokens`, `input_audio_tokens` and the like are parts of them. The words are
    those of the genai-prices package. For showing and comparing only: `read_usage` is for
    billing. Raises as `read_usage` does.
    """
    if provider == "replicate":
        return {kind: count for kind, count in _read_replicate(body).kinds.items() if count}
    shape, usage = _find_usage(provider, body)
    _refuse_unsuccessful(body)
    counts = shape.count(usage)
    totals = {
        "input_tokens": counts.input_total,
        "cache_read_tokens": counts.cache_read,
        "cache_write_tokens": counts.cache_write,
        "output_tokens": counts.output,
        "output_reasoning_tokens": counts.reasoning,
        "web_searches": counts.web_searches,
        **(shape.part(usage) if shape.part else {}),
    }
    return {name: count for name, count in totals.items() if count}


class AnthropicStream:
    """Reads the events of one Messages stream.

    `message_delta.usage` is cumulative: its fields replace those of `message_start`, they are
    never added (Anthropic, streaming messages).
    """

    __slots__ = ("_id", "_model", "_stopped", "_usage", "failed")

    def __init__(self) -> None:
        self._usage: dict[str, Any] | None = None
        self._model: Reported = None
        self._id: Reported = None
        self._stopped = False
        self.failed = False
        """The provider sent an `error` event: what was reported until then is all there is."""

    @property
    def complete(self) -> bool:
        """Whether the counts are final: a `message_delta` gave them with its stop reason."""
        return self._stopped

    def feed(self, event: Reported) -> None:
        """Take one event, as a mapping or as the SDK's object; other events are ignored."""
        kind = _field(event, "type")
        if kind == "message_start":
            message = _field(event, "message")
            self._model = _field(message, "model")
            self._id = _field(message, "id")
            self._usage = dict(_plain(_field(message, "usage")) or {})
            self._stopped = False
        elif kind == "message_delta":
            usage = _plain(_field(event, "usage"))
            if usage is None:
                return
            reported = {name: value for name, value in usage.items() if value is not None}
            self._usage = {**(self._usage or {}), **reported}
            if _field(_field(event, "delta"), "stop_reason") is not None:
                self._stopped = "output_tokens" in reported
        elif kind == "error":
            self.failed = True

    def usage(self) -> Usage | None:
        """What has been reported so far, or None; raises UsageMalformedError."""
        if not self._usage:
            return None
        return _make_usage(_MESSAGES, self._usage, {"model": self._model, "id": self._id})


class OpenAIChatStream:
    """Reads the chunks of one Chat Completions stream, of OpenAI or of who speaks as it does.

    OpenAI reports usage only when asked (`stream_options.include_usage`), in a last chunk with
    empty `choices`; others repeat a running total on every chunk, so the newest one counts.
    """

    __slots__ = ("_ended", "_first", "_last", "_open", "_trailing", "_usage", "failed")

    def __init__(self) -> None:
        self._first: Mapping[str, Any] | None = None
        self._last: Mapping[str, Any] | None = None
        self._usage: Mapping[str, Any] | None = None
        self._open: set[int] = set()
        self._ended = False
        self._trailing = False
        self.failed = False
        """A gateway ended the stream with an error in place of a finish reason."""

    @property
    def complete(self) -> bool:
        """Whether the counts are final: usage came after or with the end of every choice."""
        if self._usage is None or self.failed:
            return False
        return self._trailing or (self._ended and not self._open)

    def feed(self, chunk: Reported) -> None:
        """Take one chunk, as a mapping or as the SDK's object."""
        if self._first is None:
            self._first = _name_parts(chunk)
        choices = _field(chunk, "choices")
        for choice in choices or ():
            reason = _field(choice, "finish_reason")
            index = _field(choice, "index")
            if reason is None:
                # A gateway may repeat a choice, empty, beside the usage that follows its end.
                if not self._ended:
                    self._open.add(index)
            else:
                self._open.discard(index)
                self._ended = True
                self.failed = self.failed or reason == "error"
        usage = _plain(_field(chunk, "usage"))
        if usage is not None:
            self._usage = usage
            self._last = _name_parts(chunk)
            self._trailing = not choices

    def usage(self) -> Usage | None:
        """What has been reported so far, or None; raises UsageMalformedError."""
        if self._usage is None or self._first is None or self._last is None:
            return None
        if not _CHAT.fits(self._usage):
            raise UsageMissingError("the stream's usage has no prompt_tokens")
        body = {name: self._last[name] or self._first[name] for name in _NAMED}
        return _make_usage(_CHAT, self._usage, body)


class OpenAIResponsesStream:
    """Reads the events of one Responses stream: usage comes only with its last event."""

    __slots__ = ("_response", "_usage", "failed")

    def __init__(self) -> None:
        self._response: Reported = None
        self._usage: Mapping[str, Any] | None = None
        self.failed = False
        """The response failed: by the rules of money a failed call is not billed."""

    @property
    def complete(self) -> bool:
        """Whether the response ended, completed or cut at a limit, and said what it used."""
        return self._usage is not None and not self.failed

    def feed(self, event: Reported) -> None:
        """Take one event, as a mapping or as the SDK's object; other events are ignored."""
        kind = _field(event, "type")
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            response = _field(event, "response")
            self._response = _name_parts(response)
            self._usage = _plain(_field(response, "usage"))
            self.failed = self.failed or kind == "response.failed"
        elif kind == "error":
            self.failed = True

    def usage(self) -> Usage | None:
        """What has been reported so far, or None; raises UsageMalformedError."""
        if self._usage is None:
            return None
        if not _RESPONSES.fits(self._usage):
            raise UsageMissingError("the stream's usage has no input_tokens")
        return _make_usage(_RESPONSES, self._usage, self._response)


_NAMED = ("model", "id", "service_tier")


def _name_parts(reported: Reported) -> dict[str, Any]:
    """Copied at once: an app that passes events on may put its own names into them."""
    return {name: _field(reported, name) for name in _NAMED}


class _Counts(NamedTuple):
    """One report, whatever its provider: totals, and the parts of them that are priced apart."""

    input_total: int
    output: int
    cache_read: int = 0
    cache_write: int = 0
    """All writes, those for one hour included."""
    cache_write_1h: int = 0
    reasoning: int = 0
    web_searches: int = 0


@dataclass(frozen=True, slots=True)
class _Shape:
    """One way to report usage: how it is recognised, counted, and split for showing."""

    fits: Callable[[Mapping[str, Any]], bool]
    count: Callable[[Mapping[str, Any]], _Counts]
    part: Callable[[Mapping[str, Any]], dict[str, int]] | None = None
    usage_field: str = "usage"
    model_field: str = "model"
    id_field: str = "id"


def _find_usage(provider: str, body: Reported) -> tuple[_Shape, Mapping[str, Any]]:
    shapes = _SHAPES.get(provider)
    if shapes is None:
        raise ProviderUnknownError(f"no reader for provider {provider!r}")
    found: set[str] = set()
    for shape in shapes:
        usage = _plain(_field(body, shape.usage_field))
        if usage is not None:
            if shape.fits(usage):
                return shape, usage
            found.update(map(str, usage))
    if _field(body, "type") == "error":
        raise CallUnsuccessfulError("error")
    _refuse_unsuccessful(body)
    raise UsageMissingError(
        f"{provider}: usage in an unknown shape, with {sorted(found)}"
        if found
        else f"{provider}: the response reports no usage"
    )


def _refuse_unsuccessful(body: Reported) -> None:
    """OpenAI's Responses carry a status; `incomplete` is an answer cut at a limit, and billed."""
    status = _field(body, "status")
    if isinstance(status, str) and status not in ("completed", "incomplete"):
        raise CallUnsuccessfulError(status)


def _make_usage(shape: _Shape, usage: Mapping[str, Any], body: Reported) -> Usage:
    counts = shape.count(usage)
    model = _text(_field(body, shape.model_field))
    response_id = _text(_field(body, shape.id_field))
    tier = _read_tier(usage, body)
    also: tuple[Usage, ...] = ()
    if usage.get("iterations"):
        also = tuple(
            Usage(_split(_count_messages(iteration)), other, response_id, tier)
            for other, iteration in _advisor_iterations(usage)
        )
    return Usage(_split(counts), model, response_id, tier, also, counts.web_searches)


def _split(counts: _Counts) -> dict[str, int]:
    """The disjoint kinds: a token read from a cache, or written to one, is not input again."""
    kinds = {
        "input_tokens": counts.input_total - counts.cache_read - counts.cache_write,
        "output_tokens": counts.output,
    }
    if counts.cache_read:
        kinds["cache_read_tokens"] = counts.cache_read
    if counts.cache_write > counts.cache_write_1h:
        kinds["cache_write_tokens"] = counts.cache_write - counts.cache_write_1h
    if counts.cache_write_1h:
        kinds["cache_write_1h_tokens"] = counts.cache_write_1h
    return kinds


def _check(counts: _Counts) -> _Counts:
    if counts.cache_read + counts.cache_write > counts.input_total:
        raise UsageMalformedError("more cached tokens than input tokens")
    if counts.cache_write_1h > counts.cache_write:
        raise UsageMalformedError("more one-hour cache writes than cache writes")
    if counts.reasoning > counts.output:
        raise UsageMalformedError("more reasoning tokens than output tokens")
    return counts


_STANDARD_TIERS = frozenset(
    {"", "standard", "default", "auto", "on_demand", "traffic_type_unspecified", "unspecified"}
)


def _read_tier(usage: Mapping[str, Any], body: Reported) -> str | None:
    """Anthropic and Google name it in the usage, OpenAI and Bedrock in the body."""
    for value in (
        usage.get("service_tier"),
        usage.get("speed"),
        usage.get("serviceTier"),
        usage.get("trafficType"),
        _field(body, "service_tier"),
        _field(body, "serviceTier"),
    ):
        if value is None:
            continue
        tier = value if isinstance(value, str) else _field(value, "type")
        if isinstance(tier, str) and tier.lower() not in _STANDARD_TIERS:
            return tier.lower().removeprefix("on_demand_")  # Google: ON_DEMAND_FLEX
    return None


# Anthropic: Messages


_ANTHROPIC_CACHE = ("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation")


def _fits_messages(usage: Mapping[str, Any]) -> bool:
    return "input_tokens" in usage and "input_tokens_details" not in usage


def _count_messages(usage: Mapping[str, Any]) -> _Counts:
    """`input_tokens` excludes the cache; a compaction's tokens are in no total (Anthropic SDK)."""
    counts = _count_iteration(usage)
    for iteration in _entries(usage, "iterations"):
        if iteration.get("type") == "compaction":
            summed = map(sum, zip(counts, _count_iteration(iteration), strict=True))
            counts = _check(_Counts(*summed))
    return counts


def _count_iteration(usage: Mapping[str, Any]) -> _Counts:
    read = _count(usage, "cache_read_input_tokens")
    by_age = _mapping(usage, "cache_creation")
    write_1h = _count(by_age, "ephemeral_1h_input_tokens")
    if usage.get("cache_creation_input_tokens") is None:
        write = write_1h + _count(by_age, "ephemeral_5m_input_tokens")
    else:
        write = _count(usage, "cache_creation_input_tokens")
    return _check(
        _Counts(
            input_total=_required(usage, "input_tokens") + read + write,
            output=_required(usage, "output_tokens"),
            cache_read=read,
            cache_write=write,
            cache_write_1h=write_1h,
            reasoning=_count(_mapping(usage, "output_tokens_details"), "thinking_tokens"),
            web_searches=_count(_mapping(usage, "server_tool_use"), "web_search_requests"),
        )
    )


def _advisor_iterations(usage: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Work of a second model, which the totals leave out (seen on a recorded response)."""
    found = []
    for iteration in _entries(usage, "iterations"):
        if iteration.get("type") == "advisor_message":
            model = _text(iteration.get("model"))
            if model is None:
                raise UsageMalformedError("an advisor's usage names no model")
            found.append((model, iteration))
    return found


# OpenAI: Chat Completions and embeddings, Responses; and all who speak as it does


def _fits_chat(usage: Mapping[str, Any]) -> bool:
    return "prompt_tokens" in usage


def _count_chat(usage: Mapping[str, Any]) -> _Counts:
    """`prompt_tokens` includes the cache, `completion_tokens` the reasoning, but see below."""
    prompt = _required(usage, "prompt_tokens")
    details = _mapping(usage, "prompt_tokens_details")
    reasoning = _count(_mapping(usage, "completion_tokens_details"), "reasoning_tokens")
    total = _count(usage, "total_tokens")
    if usage.get("completion_tokens") is None and total == prompt:
        output = 0  # embeddings: the report has no completion
    else:
        output = _required(usage, "completion_tokens")
    if reasoning and total == prompt + output + reasoning:
        # xAI counts reasoning beside the completion; its total tells.
        output += reasoning
    return _check(
        _Counts(
            input_total=prompt,
            output=output,
            cache_read=_first_count(
                (details, "cached_tokens"),
                (usage, "cache_read_input_tokens"),  # LiteLLM, for Anthropic's models
                (usage, "prompt_cache_hit_tokens"),  # DeepSeek
            ),
            cache_write=_first_count(
                (details, "cache_write_tokens"),  # OpenAI, OpenRouter
                (details, "cache_creation_tokens"),  # LiteLLM
                (usage, "cache_creation_input_tokens"),  # LiteLLM, any-llm
            ),
            cache_write_1h=_count(
                _mapping(details, "cache_creation_token_details"), "ephemeral_1h_input_tokens"
            ),
            reasoning=reasoning,
        )
    )


def _part_chat(usage: Mapping[str, Any]) -> dict[str, int]:
    return {
        "input_audio_tokens": _count(_mapping(usage, "prompt_tokens_details"), "audio_tokens"),
        "output_audio_tokens": _count(_mapping(usage, "completion_tokens_details"), "audio_tokens"),
    }


def _fits_responses(usage: Mapping[str, Any]) -> bool:
    return "input_tokens" in usage and not any(name in usage for name in _ANTHROPIC_CACHE)


def _count_responses(usage: Mapping[str, Any]) -> _Counts:
    """`input_tokens` includes the cache and `output_tokens` the reasoning."""
    details = _mapping(usage, "input_tokens_details")
    return _check(
        _Counts(
            input_total=_required(usage, "input_tokens"),
            output=_required(usage, "output_tokens"),
            cache_read=_count(details, "cached_tokens"),
            cache_write=_count(details, "cache_write_tokens"),
            reasoning=_count(_mapping(usage, "output_tokens_details"), "reasoning_tokens"),
        )
    )


# Google: generateContent


def _fits_gemini(usage: Mapping[str, Any]) -> bool:
    return "promptTokenCount" in usage


def _count_gemini(usage: Mapping[str, Any]) -> _Counts:
    """The prompt includes the cache; tools' prompts and thoughts stand beside, not inside.

    A count of zero is left out of Google's JSON; the total tells an absent one from zero.
    """
    prompt = _required(usage, "promptTokenCount")
    tools = _count(usage, "toolUsePromptTokenCount")
    thoughts = _count(usage, "thoughtsTokenCount")
    if usage.get("candidatesTokenCount") is None:
        if _required(usage, "totalTokenCount") != prompt + tools + thoughts:
            raise UsageMalformedError("candidatesTokenCount is missing and the total is larger")
        candidates = 0
    else:
        candidates = _count(usage, "candidatesTokenCount")
    return _check(
        _Counts(
            input_total=prompt + tools,
            output=candidates + thoughts,
            cache_read=_count(usage, "cachedContentTokenCount"),
            reasoning=thoughts,
        )
    )


_MODALITIES = {
    "TEXT": "text",
    "AUDIO": "audio",
    "IMAGE": "image",
    "VIDEO": "video",
    "DOCUMENT": "image",  # Google prices a document's pages as images
}
_GEMINI_PARTS = (
    ("promptTokensDetails", "input_{}_tokens"),
    ("toolUsePromptTokensDetails", "input_{}_tokens"),
    ("toolUsePromptTokensDetails", "input_{}_tool_tokens"),
    ("cacheTokensDetails", "cache_{}_read_tokens"),
    ("candidatesTokensDetails", "output_{}_tokens"),
)


def _part_gemini(usage: Mapping[str, Any]) -> dict[str, int]:
    parts = {"input_tool_tokens": _count(usage, "toolUsePromptTokenCount")}
    for field, pattern in _GEMINI_PARTS:
        for entry in _entries(usage, field):
            modality = _MODALITIES.get(str(entry.get("modality")))
            if modality is not None:
                name = pattern.format(modality)
                parts[name] = parts.get(name, 0) + _count(entry, "tokenCount")
    return parts


# Amazon Bedrock: Converse


def _fits_converse(usage: Mapping[str, Any]) -> bool:
    return "inputTokens" in usage


def _count_converse(usage: Mapping[str, Any]) -> _Counts:
    """`inputTokens` excludes the cache; some answers name a count in two spellings."""
    read = _first_count((usage, "cacheReadInputTokens"), (usage, "cacheReadInputTokenCount"))
    write = _first_count((usage, "cacheWriteInputTokens"), (usage, "cacheWriteInputTokenCount"))
    return _check(
        _Counts(
            input_total=_required(usage, "inputTokens") + read + write,
            output=_required(usage, "outputTokens"),
            cache_read=read,
            cache_write=write,
            cache_write_1h=sum(
                _count(entry, "inputTokens")
                for entry in _entries(usage, "cacheDetails")
                if entry.get("ttl") == "1h"
            ),
        )
    )


# Cohere: Chat v2


def _fits_cohere(usage: Mapping[str, Any]) -> bool:
    return "billed_units" in usage


def _count_cohere(usage: Mapping[str, Any]) -> _Counts:
    """The units that Cohere bills; `tokens` beside them also counts its own prompt wrapping."""
    billed = _mapping(usage, "billed_units")
    return _check(_Counts(_required(billed, "input_tokens"), _required(billed, "output_tokens")))


# Replicate


def _read_replicate(body: Reported) -> Usage:
    """Tokens where a language model reports them, else the time it ran, never both."""
    status = _field(body, "status")
    if status != "succeeded":
        raise CallUnsuccessfulError(str(status))
    metrics = _plain(_field(body, "metrics"))
    if metrics is None:
        raise UsageMissingError("replicate: the prediction reports no metrics")
    if metrics.get("input_token_count") is not None or metrics.get("output_token_count"):
        kinds = _split(
            _Counts(
                _required(metrics, "input_token_count"), _required(metrics, "output_token_count")
            )
        )
    elif metrics.get("predict_time") is not None:
        kinds = {"predict_time_ms": _milliseconds(metrics["predict_time"])}
    else:
        raise UsageMissingError("replicate: neither token counts nor predict_time in the metrics")
    model = _text(_field(body, "model")) or _text(_field(body, "version"))
    return Usage(kinds, model, _text(_field(body, "id")), None)


def _milliseconds(seconds: object) -> int:
    """Seconds as JSON gives them, to whole milliseconds, half up."""
    from decimal import ROUND_HALF_UP, Decimal  # milliseconds of import, for Replicate alone

    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise UsageMalformedError(f"predict_time is not a number: {type(seconds).__name__}")
    exact = Decimal(seconds if isinstance(seconds, int) else str(seconds)) * 1000
    if not exact.is_finite() or not 0 <= exact <= MAX_COUNT:
        raise UsageMalformedError("predict_time is out of bounds")
    return int(exact.to_integral_value(ROUND_HALF_UP))


# One value


def _count(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    if value is None:
        return 0
    return _believe(value, name)


def _believe(value: object, name: str) -> int:
    if type(value) is not int:
        raise UsageMalformedError(f"{name} is not a whole number: {type(value).__name__}")
    if not 0 <= value <= MAX_COUNT:
        raise UsageMalformedError(f"{name} is out of bounds")
    return value


def _required(usage: Mapping[str, Any], name: str) -> int:
    value = usage.get(name)
    if value is None:
        raise UsageMalformedError(f"{name} is missing")
    return _believe(value, name)


def _first_count(*places: tuple[Mapping[str, Any], str]) -> int:
    """The first count that is there: the same number under several names, so never their sum."""
    for mapping, name in places:
        if mapping.get(name) is not None:
            return _count(mapping, name)
    return 0


_EMPTY: Mapping[str, Any] = {}


def _mapping(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = usage.get(name)
    if value is None:
        return _EMPTY
    if not isinstance(value, Mapping):
        raise UsageMalformedError(f"{name} is not an object")
    return value


def _entries(usage: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    entries = usage.get(name) or ()
    if not isinstance(entries, list | tuple):
        raise UsageMalformedError(f"{name} is not a list")
    if not all(isinstance(entry, Mapping) for entry in entries):
        raise UsageMalformedError(f"{name} holds what is not an object")
    return entries


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _field(reported: Reported, name: str) -> Any:
    if type(reported) is dict or isinstance(reported, Mapping):
        return reported.get(name)
    return getattr(reported, name, None)


def _plain(reported: Reported) -> Mapping[str, Any] | None:
    if reported is None or type(reported) is dict or isinstance(reported, Mapping):
        return reported
    if is_sdk_object(reported):
        return flatten(reported)
    if hasattr(reported, "to_dict"):
        plain = reported.to_dict()
        if isinstance(plain, Mapping):
            return plain
    raise UsageMalformedError(f"usage is not an object: {type(reported).__name__}")


_MESSAGES = _Shape(_fits_messages, _count_messages)
_CHAT = _Shape(_fits_chat, _count_chat, _part_chat)
_RESPONSES = _Shape(_fits_responses, _count_responses)
_GEMINI = _Shape(
    _fits_gemini, _count_gemini, _part_gemini, "usageMetadata", "modelVersion", "responseId"
)
_CONVERSE = _Shape(_fits_converse, _count_converse)
_COHERE = _Shape(_fits_cohere, _count_cohere)

_OPENAI_ALIKE = (_CHAT, _RESPONSES)
_GATEWAY = (_CHAT, _RESPONSES, _MESSAGES)
_SHAPES: Mapping[str, tuple[_Shape, ...]] = {
    "anthropic": (_CHAT, _MESSAGES),
    "aws": (_CONVERSE, *_GATEWAY),
    "azure": _GATEWAY,
    "bedrock": (_CONVERSE, *_GATEWAY),
    "cerebras": _OPENAI_ALIKE,
    "cohere": (_COHERE, _CHAT),
    "deepseek": _OPENAI_ALIKE,
    "fireworks": _OPENAI_ALIKE,
    "google": (_GEMINI, _CHAT),
    "groq": _OPENAI_ALIKE,
    "litellm": _GATEWAY,
    "mistral": _OPENAI_ALIKE,
    "openai": _OPENAI_ALIKE,
    "openrouter": _GATEWAY,
    "together": _OPENAI_ALIKE,
    "vercel": _GATEWAY,
    "x-ai": _OPENAI_ALIKE,
}
