"""Decode the completions that a run does not have yet, and store them.

All conditions of a prompt go to the sampler next to each other, in one call for many prompts, so that the engine
prefills a prompt once for all its α's, samples and access limits. Conditions of other models (a fine-tuned one, an
ensemble) are decoded after those of the pair, so that one set of weights is in memory at a time. Other templates are
rendered by a second sampler over the same models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from eddecode.audit.conditions import ENSEMBLE, FINETUNED, PAIR, Condition
from eddecode.audit.config import AuditConfig
from eddecode.audit.data.prompts import PromptRecord
from eddecode.audit.judges.base import Case, Judge, Verdict, verdicts_of
from eddecode.audit.notices import Notices
from eddecode.audit.plan import AuditPlan
from eddecode.audit.reasoning import Answers, record_opened
from eddecode.audit.samplers import load_sampler
from eddecode.audit.store.queries import ATTACK_NOTE
from eddecode.audit.store.store import NewCompletion, Store
from eddecode.audit.two_steps import TwoStepSampler
from eddecode.errors import ConfigError, ContextError, EddecodeError, EngineError, PromptRelatedError

if TYPE_CHECKING:
    from eddecode.outputs import Completion
    from eddecode.sampler import Sampler

_REQUESTS_PER_CALL = (
    4096  # prompt × condition pairs per call of the sampler: bounds the memory of those that wait
)
_COMMIT_SECONDS = 0.5  # completions are reported once they are on disk, and a flush costs milliseconds:
_COMMIT_ROWS = 512  # so they are written in groups, none older or larger than this


class SamplerLike(Protocol):
    """The part of `eddecode.Sampler` that an audit uses."""

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        """Completions as they finish; `prompt_index` counts within this call."""
        ...


class LoadedSamplers:
    """Loads the models of a configuration when they are first needed, and keeps the last ones loaded.

    For several audits that differ in their α's: one set of weights is in memory at a time, and is read once.

    Args:
        load: makes the sampler of a model of a configuration; None: `load_sampler`.
    """

    def __init__(self, load: Callable[[AuditConfig, str], SamplerLike] | None = None) -> None:
        self._load = load or load_sampler
        self._model: str | None = None
        self._sampler: SamplerLike | None = None

    def get(self, config: AuditConfig, model: str, on_load: Callable[[], None]) -> SamplerLike:
        """The sampler of a model of the configuration; `on_load` is called before weights are read."""
        if self._sampler is None or self._model != model:
            self._sampler = None  # frees its weights before the next ones are loaded
            on_load()
            self._model, self._sampler = model, self._load(config, model)
        return self._sampler


# Of the pair; or of each of "", "finetuned", "ensemble", "weights@-0.3"; or loaded when needed.
Samplers = SamplerLike | Mapping[str, SamplerLike] | LoadedSamplers


@dataclass(frozen=True)
class Progress:
    """How far a run is: `done` of `total` completions are on disk (stages `load`, `decode`) or judged (`judge`)."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class _PendingPrompt:
    condition: Condition
    record: PromptRecord
    n: int  # samples 0..n−1 are decoded; those that are on disk already come out the same and are ignored


def decode_missing(
    store: Store, plan: AuditPlan, samplers: Samplers | None, on_progress: ProgressCallback, notices: Notices
) -> list[EddecodeError]:
    """Decode and store what is not on disk, and report progress. A run that keeps no text is judged here as well.

    Args:
        store: of the run.
        plan: of the audit.
        samplers: decode; None loads the models that the configuration names, and frees them at the end.
        on_progress: called with the number of completions on disk.
        notices: see the models and the first completions.

    Returns:
        The errors of conditions that could not be decoded, after all others were.

    Raises:
        EddecodeError: the models of the pair cannot be loaded, or a prompt cannot be rendered or is too long; the
            message names the prompt and the condition.
    """
    pending = _pending(store, plan)
    counter = _Counter(store.count(), store.expected(), on_progress)
    failures: list[EddecodeError] = []
    if not pending:
        counter.report()
    attacks = {attack.name: attack for attack in plan.config.parsed_attacks()}
    parts = _by_models(pending, plan.config)
    for model, part in parts.items():
        try:
            sampler = _sampler(model, plan.config, samplers, counter, notices)
        except EddecodeError as error:
            if not store.count():
                raise
            failures.append(error)
            continue
        _record_execution(store, str(model), sampler, notices)
        if record := getattr(sampler, "record", None):
            store.add_note(f"{ATTACK_NOTE}{model}", dict(record))
        ready: list[_Ready] = []
        for name, own in part.items():
            attack = attacks.get(name)
            used = sampler
            if attack is not None and attack.has_two_steps:
                used = TwoStepSampler(cast("Sampler", sampler), attack)
            record_opened(store, name, used)
            for template in dict.fromkeys(prompt.condition.template for prompt in own):
                mine = [prompt for prompt in own if prompt.condition.template == template]
                ready.append((with_templates(used, plan.config, template), mine))
        if model == PAIR and plan.config.skip_too_long:
            counter.total -= _skip_too_long(store, plan, ready)
        skipped = store.skipped()
        for used, mine in ready:
            left = [prompt for prompt in mine if prompt.record.index not in skipped]
            failures += _decode(used, plan, left, _Writer(store, plan, counter, notices))
        del sampler, used, ready  # frees the weights before the next ones are loaded
    return failures


def with_templates(sampler: SamplerLike, config: AuditConfig, name: str) -> SamplerLike:
    """A sampler of the same models that renders prompts by the templates of that name; empty: the sampler itself.

    Raises:
        ConfigError: the sampler was given from Python and cannot take other templates.
        PromptError: a template cannot be used: before anything is decoded.
    """
    if not name:
        return sampler
    make = getattr(sampler, "with_templates", None)
    if make is None:
        raise ConfigError(
            f"the audit has further templates ({name}), and a {type(sampler).__name__} was given that has no method "
            "with_templates(base_template=…, aligned_template=…); give an eddecode.Sampler, or drop the templates"
        )
    made: SamplerLike = make(**config.templates_of(name))
    getattr(made, "renderer", None)  # made on first use; a mistake in a template is an error now
    return made


def _record_execution(store: Store, model: str, sampler: SamplerLike, notices: Notices) -> None:
    """Record how models on a GPU are run: whether a completion depends on its batch is decided by that."""
    device = getattr(getattr(sampler, "pair", None), "device", None)
    if device is not None and device.type != "cpu":
        found = list(getattr(sampler, "execution", ()))
        store.add_note(f"execution {model}".strip(), [asdict(one) for one in found])
        notices.of_execution(found)


def _pending(store: Store, plan: AuditPlan) -> list[_PendingPrompt]:
    """What is not on disk yet, the conditions of a prompt next to each other."""
    done, wanted, skipped = store.done(), set(range(plan.config.samples)), store.skipped()
    pending = []
    for record in plan.own_prompts:
        if record.index in skipped:
            continue
        for condition in plan.conditions:
            missing = wanted - done.get((condition.key, record.index), set())
            if missing:
                pending.append(_PendingPrompt(condition, record, max(missing) + 1))
    return pending


def _by_models(
    pending: Sequence[_PendingPrompt], config: AuditConfig
) -> dict[str, dict[str, list[_PendingPrompt]]]:
    """Which models are loaded → a condition's `model` → what is pending there; the pair and its attacks first."""
    lent = {attack.name: PAIR for attack in config.parsed_attacks() if not attack.has_own_models}
    found: dict[str, dict[str, list[_PendingPrompt]]] = {PAIR: {}}
    for entry in pending:
        name = entry.condition.model
        found.setdefault(lent.get(name, name), {}).setdefault(name, []).append(entry)
    return {model: part for model, part in found.items() if part}


_Ready = tuple[SamplerLike, list[_PendingPrompt]]  # a sampler and what it is to decode


def _skip_too_long(store: Store, plan: AuditPlan, ready: Sequence[_Ready]) -> int:
    """Record which prompts are too long under one of their conditions; all conditions then leave them out.

    Args:
        store: of the run.
        plan: of the audit.
        ready: what is to be decoded. Samplers of the user's without `too_long` skip nothing.

    Returns:
        How many completions fewer the run has.
    """
    before, known = store.expected(), store.skipped()
    found: dict[int, str] = {}
    for sampler, mine in ready:
        too_long = getattr(sampler, "too_long", None)
        if too_long is None:
            continue
        for start in range(0, len(mine), _REQUESTS_PER_CALL):
            part = mine[start : start + _REQUESTS_PER_CALL]
            prompts = [plan.prompt_under(entry.condition, entry.record) for entry in part]
            with _named_prompts(part):
                errors = too_long(prompts, [plan.params[entry.condition.key] for entry in part])
            for i, error in errors.items():
                found.setdefault(part[i].record.index, f"{part[i].condition.name}: {error.reason}")
    audited = [record.index for record in plan.own_prompts if not record.benign]
    left_out = {**known, **found}
    if plan.shard is None and all(index in left_out for index in audited):
        raise ContextError(
            f"all {len(audited)} prompts are too long; the first, under condition {left_out[audited[0]]}"
        )
    store.skip(found)
    return before - store.expected()


def _decode(
    sampler: SamplerLike, plan: AuditPlan, pending: Sequence[_PendingPrompt], writer: _Writer
) -> list[EddecodeError]:
    """Decode, in several calls; a condition that cannot go on is left out, and the others are decoded.

    Returns:
        The errors of such conditions.
    """
    failures: dict[str, EddecodeError] = {}
    rest = list(pending)
    while rest:
        part = [entry for entry in rest[:_REQUESTS_PER_CALL] if entry.condition.key not in failures]
        try:
            for entry, completion in _completions(sampler, plan, part):
                writer.take(entry.condition, entry.record, completion)
        except EngineError as error:
            if error.prompt_index is None or len(failures) + 1 == len(plan.conditions):
                raise
            failures[part[error.prompt_index].condition.key] = error
            rest = [entry for entry in rest if not writer.has(entry)]
            continue
        finally:  # after Ctrl-C or an error too: what was decoded is kept
            writer.flush()
        rest = rest[_REQUESTS_PER_CALL:]
    return list(failures.values())


def _completions(
    sampler: SamplerLike, plan: AuditPlan, part: Sequence[_PendingPrompt]
) -> Iterator[tuple[_PendingPrompt, Completion]]:
    prompts = [plan.prompt_under(entry.condition, entry.record) for entry in part]
    wanted = {(entry.condition.key, entry.n) for entry in part}
    checked = {(key, n): plan.params[key].replace(n=n) for key, n in wanted}
    params = [checked[entry.condition.key, entry.n] for entry in part]
    with _named_prompts(part):
        for completion in sampler.as_completed(prompts, params):
            yield part[completion.prompt_index], completion


@contextmanager
def _named_prompts(part: Sequence[_PendingPrompt]) -> Iterator[None]:
    """Have errors of the block name the prompt and the condition."""
    try:
        yield
    except PromptRelatedError as error:
        # `prompt_index` counts within this call; the message has the number in the prompt file instead.
        if error.prompt_index is not None:
            entry = part[error.prompt_index]
            error.prompt_name = f"prompt {entry.record.index} under condition {entry.condition.name}"
        if isinstance(error, ContextError):
            error.reason += ", or leave such prompts out (--skip-too-long)"
        raise


@dataclass
class _Counter:
    """Counts completions on disk and reports them."""

    done: int
    total: int
    on_progress: ProgressCallback

    def report(self, stage: str = "decode") -> None:
        self.on_progress(Progress(stage, self.done, self.total))


class _Writer:
    """Takes completions one by one and writes them to disk in groups; judges them first where no text is kept."""

    def __init__(self, store: Store, plan: AuditPlan, counter: _Counter, notices: Notices) -> None:
        self._store, self._keep_text, self._counter = store, plan.config.keep_text, counter
        self._notices, self._new = notices, list[tuple[Condition, Case, Any]]()
        self._taken: dict[tuple[str, int], int] = {}  # condition and prompt → completions
        self._judges: Sequence[Judge] = () if plan.config.keep_text else plan.judges
        self._answers = Answers(store, {condition.name: condition for condition in plan.conditions})
        self._pending: list[NewCompletion] = []
        self._cases: list[Case] = []
        self._reasoning: list[tuple[bool, bool] | None] = []
        self._since = time.monotonic()

    def take(self, condition: Condition, record: PromptRecord, completion: Completion) -> None:
        self._pending.append((condition.key, record.index, completion))
        answer = self._answers.of(condition.name, completion.text)
        self._cases.append(record.case(answer.text))
        self._reasoning.append((answer.closed, bool(answer.text.strip())) if answer.reasoned else None)
        if not record.benign:
            self._new.append((condition, self._cases[-1], completion))
        place = (condition.key, record.index)
        self._taken[place] = self._taken.get(place, 0) + 1
        if len(self._pending) >= _COMMIT_ROWS or time.monotonic() - self._since >= _COMMIT_SECONDS:
            self.flush()

    def has(self, entry: _PendingPrompt) -> bool:
        """Whether all samples of an entry were taken."""
        return self._taken.get((entry.condition.key, entry.record.index), 0) >= entry.n

    def flush(self) -> None:
        new, self._new = self._new, []
        self._notices.of_completions(new)
        verdicts: list[tuple[str, list[Verdict]]] = [
            (judge.name, verdicts_of(judge, self._cases)) for judge in self._judges
        ]
        self._counter.done += self._store.add(
            self._pending, verdicts, keep_text=self._keep_text, reasoning=self._reasoning
        )
        self._pending, self._cases, self._reasoning, self._since = [], [], [], time.monotonic()
        self._counter.report()


def _sampler(
    model: str, config: AuditConfig, given: Samplers | None, counter: _Counter, notices: Notices
) -> SamplerLike:
    """The sampler that was given for a model, or a loaded one."""
    if given is None:
        given = LoadedSamplers()
    if isinstance(given, LoadedSamplers):
        loaded = given.get(config, model, lambda: counter.report("load"))
        if model in (PAIR, FINETUNED, ENSEMBLE):  # an attack has the models of the pair
            notices.of_models(getattr(loaded, "pair", None))
        counter.report()
        return loaded
    if not isinstance(given, Mapping):
        given = {PAIR: given}
    if model not in given:
        raise ConfigError(
            f"a sampler was given for {', '.join(name or 'the pair' for name in given)} and none for the "
            f'{model or "pair"}; pass a mapping with "", "finetuned", "ensemble" and the names of attacks with '
            "models of their own"
        )
    counter.report()
    return given[model]
