"""Have what is missing decoded and stored.

All conditions of a prompt go to the sampler next to each other, in one call for many prompts: the engine then prefills
a prompt once for all its α's, samples and access limits. Conditions of other models (a fine-tuned one, an ensemble) are
decoded after the pair's, so that one set of weights is in memory at a time.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from eddecode.audit.conditions import ENSEMBLE, FINETUNED, PAIR, Condition
from eddecode.audit.config import AuditConfig
from eddecode.audit.data.prompts import Messages, PromptRecord
from eddecode.audit.data.transforms import Transform, read_transforms, with_system
from eddecode.audit.judges.base import Case, Judge, Verdict, verdicts_of
from eddecode.audit.store.store import Draft, Store
from eddecode.errors import ConfigError, EddecodeError

if TYPE_CHECKING:
    from eddecode.outputs import Completion

_REQUESTS_PER_CALL = (
    4096  # prompt × condition pairs handed to the sampler at once: bounds what waits in memory
)
_COMMIT_SECONDS = 0.5  # completions are reported when they are on disk, and a flush costs milliseconds:
_COMMIT_ROWS = 64  # so they go there in groups, none of which is older or larger than this
_NUMBER = re.compile(r"prompt (\d+)")


class Decoder(Protocol):
    """The part of `eddecode.Sampler` that an audit uses."""

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        """Completions as they finish; `prompt_index` counts within this call."""
        ...


Decoders = Decoder | Mapping[str, Decoder]  # for the pair; or for each of "", "finetuned", "ensemble"


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` completions are on disk (stages `load`, `decode`) or judged (`judge`)."""

    stage: str
    done: int
    total: int


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class _Request:
    condition: Condition
    record: PromptRecord
    n: int  # samples 0..n−1 are asked for; those that are on disk already come out the same and are ignored


def decode_missing(
    store: Store,
    config: AuditConfig,
    prompts: Sequence[PromptRecord],
    judges: Sequence[Judge],
    decoders: Decoders | None,
    report: Report,
) -> None:
    """Decode and store what is not on disk; report what is. Judges are needed where a run keeps no text."""
    missing = _missing(store, config, prompts)
    counter = _Counter(store.count(), store.expected(), report)
    if not missing:
        return counter.say()
    for model in (PAIR, FINETUNED, ENSEMBLE):
        part = [request for request in missing if request.condition.model == model]
        if part:
            decoder = _decoder(model, config, decoders, counter)
            writer = _Writer(store, config, judges, counter)
            _decode(decoder, config, part, writer)
            del decoder  # its weights go before the next ones come
    return None


def _missing(store: Store, config: AuditConfig, prompts: Sequence[PromptRecord]) -> list[_Request]:
    """What is not on disk yet, the conditions of a prompt next to each other."""
    done, wanted, conditions = store.done(), set(range(config.samples)), config.conditions()
    requests = []
    for record in prompts:
        for condition in conditions:
            missing = wanted - done.get((condition.key, record.index), set())
            if missing:
                requests.append(_Request(condition, record, max(missing) + 1))
    return requests


def _decode(decoder: Decoder, config: AuditConfig, requests: Sequence[_Request], writer: _Writer) -> None:
    transforms = {transform.name: transform for transform in read_transforms(config.transforms)}
    for start in range(0, len(requests), _REQUESTS_PER_CALL):
        part = requests[start : start + _REQUESTS_PER_CALL]
        asked = [prompt_under(request.condition, request.record, config, transforms) for request in part]
        params = [config.params(request.condition, request.n) for request in part]
        try:
            for completion in decoder.as_completed(asked, params):
                request = part[completion.prompt_index]
                writer.take(request.condition, request.record, completion)
        except EddecodeError as error:
            writer.flush()
            raise _named(error, part) from error
        finally:  # after Ctrl-C or an error too: what was decoded is kept
            writer.flush()


def _named(error: EddecodeError, part: Sequence[_Request]) -> EddecodeError:
    """A sampler's error counts requests; a person counts prompts of a file, from 0, and knows conditions by name."""
    found = _NUMBER.match(str(error))
    if found is None or int(found[1]) >= len(part):
        return error
    request = part[int(found[1])]
    where = f"prompt {request.record.index} under condition {request.condition.name}"
    return type(error)(where + str(error)[found.end() :])


def prompt_under(
    condition: Condition, record: PromptRecord, config: AuditConfig, transforms: Mapping[str, Transform]
) -> str | Messages:
    """A prompt as a condition asks it: transformed, with a system prompt, or as it is."""
    prompt = record.prompt
    if condition.transform:
        prompt = transforms[condition.transform](prompt)
    if condition.system:
        prompt = with_system(prompt, config.systems[condition.system])
    return prompt


@dataclass
class _Counter:
    """Says how many completions are on disk."""

    done: int
    total: int
    report: Report

    def say(self, stage: str = "decode") -> None:
        self.report(Progress(stage, self.done, self.total))


class _Writer:
    """Takes completions one by one, and puts them on disk in groups, judged first where no text is kept."""

    def __init__(self, store: Store, config: AuditConfig, judges: Sequence[Judge], counter: _Counter) -> None:
        self._store, self._keep_text, self._counter = store, config.keep_text, counter
        self._judges = () if config.keep_text else judges
        self._pending: list[Draft] = []
        self._cases: list[Case] = []
        self._since = time.monotonic()

    def take(self, condition: Condition, record: PromptRecord, completion: Completion) -> None:
        self._pending.append((condition.key, record.index, completion))
        self._cases.append(Case(record.text, completion.text))
        if len(self._pending) >= _COMMIT_ROWS or time.monotonic() - self._since >= _COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        said: list[tuple[str, list[Verdict]]] = []
        for judge in self._judges:
            said.append((judge.name, verdicts_of(judge, self._cases)))
        self._counter.done += self._store.add(self._pending, said, keep_text=self._keep_text)
        self._pending, self._cases, self._since = [], [], time.monotonic()
        self._counter.say()


def _decoder(model: str, config: AuditConfig, given: Decoders | None, counter: _Counter) -> Decoder:
    if given is not None and not isinstance(given, Mapping):
        given = {PAIR: given}
    if given is not None and model in given:
        counter.say()
        return given[model]
    if given is not None:
        raise ConfigError(
            f"a sampler was given for {', '.join(name or 'the pair' for name in given)} and none for the "
            f'{model or "pair"}; pass a mapping with "", "finetuned" and "ensemble"'
        )
    counter.say("load")
    loaded = load_sampler(config, model)
    counter.say()
    return loaded


def load_sampler(config: AuditConfig, model: str = PAIR) -> Decoder:
    """The sampler of a configuration's pair, of its base with the fine-tuned model, or of its ensemble.

    The fine-tuned model stands in the aligned model's place and is decoded at α = −1, which is that model alone; so its
    completions' base log-probabilities are the base's, as for all other conditions.

    Raises:
        PairError: the checkpoints cannot be decoded against each other.
        PromptError: a template will not do.
    """
    from eddecode.models.pair import ModelPair
    from eddecode.sampler import Sampler

    placed: dict[str, Any] = {"dtype": config.dtype, "device": config.device}
    group: Any
    if model == ENSEMBLE:
        from eddecode.models.ensemble import Ensemble

        if config.base_revision or config.aligned_revision:
            raise ConfigError(
                "an ensemble takes no revisions: one would hold for all of its models; give local folders"
            )
        group = Ensemble.load(config.base, [config.aligned, *config.ensemble], **placed)
    elif model == FINETUNED:
        assert config.finetuned is not None  # or there would be no such condition
        group = ModelPair.load(config.base, config.finetuned, base_revision=config.base_revision, **placed)
    else:
        group = ModelPair.load(
            config.base,
            config.aligned,
            base_revision=config.base_revision,
            aligned_revision=config.aligned_revision,
            **placed,
        )
    sampler: Decoder = Sampler(
        group, base_template=config.base_template, aligned_template=config.aligned_template
    )
    return sampler
