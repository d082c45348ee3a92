"""The pair as a model of Inspect: `inspect eval … --model eddecode/pair -M base=… -M aligned=… -M alpha=0.6`.

Every argument of `-M` is a field of `PairOptions` or of `ContrastOptions`. Models of several α's, and of several
tasks, share one service per pair. A request may change its own contrast by `extra_body={"eddecode": {…}}`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, fields, replace
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelCall,
    ModelOutput,
    ModelUsage,
)
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from eddecode.audit.conditions import NO_PENALTIES
from eddecode.audit.data.prompts import as_json
from eddecode.audit.mitigations import access_of
from eddecode.audit.provenance import template_fingerprint
from eddecode.errors import ConfigError, ContextError, ParamsError, PromptError
from eddecode.integrations.inspect.service import Answer, PairService, service_of
from eddecode.integrations.pair_options import PairOptions
from eddecode.sampling.params import SamplingParams
from eddecode.utils.validation import Integer, Number, did_you_mean, raises

if TYPE_CHECKING:
    from inspect_ai.tool import ToolChoice, ToolInfo

    from eddecode.outputs import Completion

T = TypeVar("T")
MAX_TOKENS = 2048  # where neither Inspect nor the window sets a limit; Inspect's own default for local models
_STOP_REASONS = {"eos": "stop", "stop": "stop", "length": "max_tokens"}
# Settings that would change the completions and that this provider does not have: an error, and not ignored.
_UNSUPPORTED = (
    *("logit_bias", "best_of", "top_logprobs", "prompt_logprobs"),
    *("response_schema", "modalities", "fallback_models"),
    *("reasoning_effort", "reasoning_tokens", "effort", "verbosity"),
)


@raises(ParamsError)
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ContrastOptions:
    """The contrast of a model, or of one request.

    Attributes:
        alpha: strength; 0 is the base model, −1 the aligned one.
        plausibility, min_p, repetition_penalty, min_new_tokens: see `SamplingParams`.
        mitigation: a limit on the access to the aligned model, such as `topk5`.
        sample: number of the sample, which its random numbers depend on; None: the epoch of the running sample, from 0.
    """

    alpha: Number = 0.0
    plausibility: Number = 0.0
    min_p: Number = 0.0
    repetition_penalty: Number = 1.0
    min_new_tokens: Annotated[Integer, Field(ge=0)] = 0
    mitigation: str | None = None
    sample: Annotated[Integer, Field(ge=0)] | None = None


@plain_dataclass(frozen=True)
class _Request:
    messages: list[dict[str, str]]
    params: SamplingParams
    samples: list[int]
    contrast: ContrastOptions
    fill: bool


class PairAPI(ModelAPI):
    """A pair of models at one α.

    Raises:
        ConfigError, ParamsError: an argument is unknown or out of its range.
        PairError: the checkpoints cannot be loaded, or cannot be decoded against each other.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (as in ModelAPI)
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if model_name != "pair":
            raise ConfigError(
                f"there is no model eddecode/{model_name}; expected eddecode/pair, with the checkpoints as "
                "-M base=… -M aligned=…"
            )
        known = {field.name for kind in (PairOptions, ContrastOptions) for field in fields(kind)} - {"sample"}
        for name in model_args:
            if name not in known:
                raise ConfigError(f"-M {name} is unknown; {did_you_mean(name, sorted(known))}")
        contrast = {field.name for field in fields(ContrastOptions)}
        self.contrast = ContrastOptions(**{k: v for k, v in model_args.items() if k in contrast})
        self.options = PairOptions(**{k: v for k, v in model_args.items() if k not in contrast})
        self.service: PairService = service_of(self.options)
        self.identities = self.options.identities() | self._settings()
        # Inspect's cache is keyed by model, base_url and the request, and not by the arguments of -M. Without this,
        # `--cache` would return the completions of another α or of another pair.
        content = as_json([asdict(self.options), asdict(self.contrast), self.identities]).encode()
        self.base_url = f"eddecode:{hashlib.blake2b(content, digest_size=8).hexdigest()}"
        # Adaptive connections are Inspect's default and ignore `max_connections` below: a batch would begin with 20
        # requests and never exceed 100. This config is the model's own object.
        if config.max_connections is None and config.adaptive_connections is None:
            config.adaptive_connections = False

    def _settings(self) -> dict[str, Any]:
        """How the pair is loaded and prompted, as a run records it."""
        own = self.options.resolved()
        templates = ("base_template", "aligned_template")
        found = {"dtype": own.dtype, **{name: template_fingerprint(getattr(own, name)) for name in templates}}
        rendering = {
            name: getattr(own, name)
            for name in ("fold_system", "prefill", "quantization", "long_context", "mask_ids")
        }
        if own.template_variables is not None:
            rendering["template_variables"] = json.loads(own.template_variables)
        rendering["special_tokens_in_prompts"] = not own.escape_specials
        return found | {name: value for name, value in rendering.items() if value}

    def max_connections(self) -> int:
        """As many requests at a time as the engine has slots."""
        return self.options.max_slots

    def connection_key(self) -> str:
        """All α's of a pair share its connections."""
        return str(id(self.service))

    def collapse_user_messages(self) -> bool:
        """User messages in a row become one: chat templates want the roles to alternate."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """Assistant messages in a row become one."""
        return True

    async def count_text_tokens(self, text: str) -> int:
        """The number of tokens of a text by the pair's tokenizer."""
        return len(await self.tokenize(text))

    async def tokenize(self, text: str) -> list[int]:
        """The token ids of a text by the pair's tokenizer, without special tokens."""
        return await result_of(self.service.tokenize(text))

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> tuple[ModelOutput, ModelCall]:
        """One answer of Inspect's: the completions of a chat, and what each model read.

        Raises:
            ParamsError: a setting is out of its range, or is not supported.
            PromptError: the chat has tools, images, or roles that a template refuses.
        """
        if tools:
            raise PromptError(
                "the request offers tools to eddecode/pair, and a contrast of two models calls none; leave them out"
            )
        request = self._request(input, config)
        started = time.perf_counter()
        asked = self.service.submit(request.messages, request.params, request.samples, fill=request.fill)
        try:
            answer = await result_of(asked)
        except ContextError as error:
            return self._too_long(request, str(error))
        output = self._output(request, answer)
        output.time = time.perf_counter() - started
        response = {"completions": [completion.text for completion in answer.completions]}
        return output, ModelCall.create(_request_shown(request, answer), response, time=output.time)

    def _request(self, input: list[ChatMessage], config: GenerateConfig) -> _Request:
        for name in _UNSUPPORTED:
            if getattr(config, name, None):
                raise ParamsError(
                    f"{name} is {getattr(config, name)!r:.60}, and eddecode/pair does not support it; leave it out"
                )
        contrast = self._contrast_of(config)
        epoch = _running_epoch() - 1 if contrast.sample is None else contrast.sample
        count = config.num_choices or 1
        params = SamplingParams(
            alpha=contrast.alpha,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_k=config.top_k or 0,
            top_p=1.0 if config.top_p is None else config.top_p,
            min_p=contrast.min_p,
            repetition_penalty=contrast.repetition_penalty,
            presence_penalty=config.presence_penalty or 0.0,
            frequency_penalty=config.frequency_penalty or 0.0,
            plausibility=contrast.plausibility,
            max_new_tokens=MAX_TOKENS if config.max_tokens is None else config.max_tokens,
            min_new_tokens=contrast.min_new_tokens,
            stop=tuple(config.stop_seqs or ()),
            seed=config.seed or 0,
            logprobs=bool(config.logprobs),
            access=access_of(contrast.mitigation) if contrast.mitigation else None,
        )
        return _Request(
            messages=[_as_message(message) for message in input],
            params=params,
            samples=list(range(epoch * count, (epoch + 1) * count)),
            contrast=contrast,
            fill=config.max_tokens is None,
        )

    def _contrast_of(self, config: GenerateConfig) -> ContrastOptions:
        body = config.extra_body or {}
        if others := [name for name in body if name != "eddecode"]:
            raise ParamsError(
                f"extra_body has {', '.join(others)}, which eddecode/pair does not read; expected "
                "extra_body={'eddecode': {…}}, or leave it out"
            )
        own = body.get("eddecode")
        if own is None:
            return self.contrast
        if not isinstance(own, Mapping):
            raise ParamsError(
                f"extra_body.eddecode is {own!r:.60}; expected a table such as {{'alpha': 0.6}}"
            )
        known = [field.name for field in fields(ContrastOptions)]
        for name in own:
            if name not in known:
                raise ParamsError(f"extra_body.eddecode.{name} is unknown; {did_you_mean(name, known)}")
        return replace(self.contrast, **own)

    def _output(self, request: _Request, answer: Answer) -> ModelOutput:
        tokenizer = self.service.tokenizer
        choices = [
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=done.text, model=self._name, source="generate"),
                stop_reason=_STOP_REASONS[done.finish_reason],
                logprobs=_logprobs(done, tokenizer),
            )
            for done in answer.completions
        ]
        read = len(answer.prompt.aligned_ids)
        made = sum(len(done.token_ids) for done in answer.completions)
        return ModelOutput(
            model=self._name,
            choices=choices,
            usage=ModelUsage(input_tokens=read, output_tokens=made, total_tokens=read + made),
            metadata={
                "eddecode": self._record(request) | {"completions": [*map(_facts, answer.completions)]}
            },
        )

    @cached_property
    def _name(self) -> str:
        return f"eddecode/{self.model_name}"

    def _record(self, request: _Request) -> dict[str, Any]:
        """What an import needs to know of a request, besides Inspect's own fields."""
        contrast = {k: v for k, v in asdict(request.contrast).items() if v and k != "sample"}
        params = request.params
        return {
            **contrast,
            "alpha": params.alpha,
            "sampling": {
                **{name: getattr(params, name) for name in ("temperature", "top_k", "top_p", "min_p")},
                **{name: getattr(params, name) for name in ("plausibility", "max_new_tokens", "seed")},
                **{name: getattr(params, name) for name in NO_PENALTIES},
                "stop": list(params.stop),
            },
            **self.identities,
        }

    def _too_long(self, request: _Request, reason: str) -> tuple[ModelOutput, ModelCall]:
        """The answer to a prompt that does not fit: no text, and a stop reason that says why."""
        message = ChatMessageAssistant(content="", model=self._name, source="generate")
        output = ModelOutput(
            model=self._name,
            choices=[ChatCompletionChoice(message=message, stop_reason="model_length")],
            metadata={"eddecode": self._record(request) | {"error": reason}},
        )
        return output, ModelCall.create({"messages": request.messages}, {"error": reason})


def _as_message(message: ChatMessage) -> dict[str, str]:
    kinds = {part.type for part in message.content} if isinstance(message.content, list) else {"text"}
    if not kinds <= {"text", "reasoning"}:
        raise PromptError(
            f"a {message.role} message holds {', '.join(sorted(kinds - {'text'}))}, and eddecode/pair reads text only"
        )
    return {"role": message.role, "content": message.text}


def _logprobs(done: Completion, tokenizer: Any) -> Logprobs | None:
    """The log-probabilities under the contrast, which the tokens were sampled from."""
    if done.logprobs is None:
        return None
    pieces = (
        tokenizer.convert_ids_to_tokens(done.token_ids) if tokenizer is not None else map(str, done.token_ids)
    )
    return Logprobs(
        content=[
            Logprob(token=piece, logprob=token.contrast, bytes=list(piece.encode()))
            for piece, token in zip(pieces, done.logprobs, strict=True)
        ]
    )


def _facts(done: Completion) -> dict[str, Any]:
    """A completion as JSON data, without its text."""
    found: dict[str, Any] = {
        "sample": done.sample,
        "token_ids": done.token_ids,
        "finish_reason": done.finish_reason,
        "base_logprob": _finite(done.base_logprob),
        "aligned_logprob": _finite(done.aligned_logprob),
        "implied_reward": _finite(done.implied_reward),
    }
    if done.logprobs is not None:
        found["base_logprobs"] = [_finite(token.base) for token in done.logprobs]
        found["aligned_logprobs"] = [_finite(token.aligned) for token in done.logprobs]
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _request_shown(request: _Request, answer: Answer) -> dict[str, Any]:
    return {
        "messages": request.messages,
        "base_prompt": answer.base_text,
        "aligned_prompt": answer.aligned_text,
        "params": {k: v for k, v in asdict(request.params).items() if k not in ("n", "access")},
        "mitigation": request.contrast.mitigation,
        "samples": request.samples,
    }


def _running_epoch() -> int:
    """The epoch of the sample that Inspect is running, from 1; 1 where none is running.

    Every epoch asks with the same seed, and a request has no field for the epoch.
    """
    try:
        from inspect_ai.log._samples import sample_active
    except ImportError:  # a private name: it may move in a later release
        return 1
    active = sample_active()
    return 1 if active is None else active.epoch


async def result_of(future: Future[T]) -> T:
    """The result of another thread's future, in the asynchronous framework that Inspect runs on."""
    import sniffio

    if sniffio.current_async_library() == "asyncio":
        return await asyncio.wrap_future(future)
    from anyio import CapacityLimiter, to_thread

    return await to_thread.run_sync(future.result, abandon_on_cancel=True, limiter=CapacityLimiter(1))
