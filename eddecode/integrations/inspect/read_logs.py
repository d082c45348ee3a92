"""What logs of Inspect hold for an audit: prompts, conditions, completions and verdicts, and what they lack.

Logs of `eddecode/pair` and logs that `export_logs` wrote record α, token ids, log-probabilities and the digests of the
checkpoints. A log of another model has none of it, and which condition it measured is given with it (`aligned=LOG`).
Its completions can be imported too, and what it lacks is named, so that a gate cannot pass for want of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from inspect_ai.scorer import Score, value_to_float

from eddecode.audit.conditions import ALIGNED, BASE, NO_PENALTIES, Condition, alpha_text
from eddecode.audit.data.prompts import as_json
from eddecode.audit.judges.base import Role, Verdict, fingerprint
from eddecode.audit.store.records import HUMAN, JudgeRecord
from eddecode.errors import ConfigError
from eddecode.outputs import TokenLogprobs

Prompt = str | list[dict[str, str]]
_OWN_METADATA = (
    *("prompt", "prompt_index", "condition", "alpha", "length", "perplexity", "distinct_1", "distinct_2"),
    *("repetition", "empty"),
)
# What an output records of its own request; all else is of the pair, and the same in all logs.
_OF_A_REQUEST = ("alpha", "mitigation", "sampling", "completions", "error")
_FINISHED = {"stop": "stop", "max_tokens": "length", "model_length": "length"}


@dataclass
class ImportedCompletion:
    """A completion of a log, with the fields of `eddecode.Completion`; None where the log does not have them."""

    prompt_index: int
    sample: int
    alpha: float
    text: str
    token_ids: list[int] | None
    finish_reason: str
    base_logprob: float | None
    aligned_logprob: float | None
    implied_reward: float | None
    logprobs: list[TokenLogprobs] | None


@dataclass(frozen=True)
class Entry:
    """One completion, the prompt that it belongs to, and its verdicts; `completion` is None after an error."""

    condition: Condition
    prompt: Prompt
    number: tuple[
        str, int
    ]  # the prompt's index where the log has it, or which of several equal prompts it is
    meta: Mapping[str, Any]
    sample: int
    completion: ImportedCompletion | None
    verdicts: Mapping[str, Verdict]


@dataclass
class LogsRead:
    """Everything that was read.

    Attributes:
        entries: by log, as they come.
        facts: one mapping per log: of checkpoints, templates and sampling; they have to agree where they are not None.
        exported: what `export_logs` recorded of the run; empty for other logs.
        positions: of the conditions in the table of that run.
        judges: name → judge.
        missing: sentences, each with a number of completions or logs.
        names: of the logs.
        packages: versions, of the first log.
    """

    entries: list[Entry] = field(default_factory=list)
    facts: list[dict[str, Any]] = field(default_factory=list)
    exported: list[dict[str, Any]] = field(default_factory=list)
    positions: dict[Condition, int] = field(default_factory=dict)
    judges: dict[str, JudgeRecord] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)


def read_logs(logs: Sequence[str | Path], harm: str | None = None) -> LogsRead:
    """Read logs.

    Args:
        logs: files, folders with `.eval` files, or `CONDITION=FILE` for a log of another model than `eddecode/pair`:
            `base=…`, `aligned=…`, `ed@0.3=…`.
        harm: a scorer of the logs, other than eddecode's judges, that judges harm: a value of 0.5 or more (or "C") is
            harm.

    Raises:
        ConfigError: a file is no log, the condition of a log is not known, or two logs contradict each other.
    """
    found = LogsRead()
    for path, condition in _paths(logs):
        log = _read(path)
        found.names.append(path.name)
        found.packages = found.packages or dict(log.eval.packages)
        own = (log.eval.metadata or {}).get("eddecode")
        if own is not None:
            found.exported.append(own)
            condition = condition or _condition(own["condition"], path)
            found.positions[condition] = int(own["position"])
        if log.status != "success":
            found.missing[f"logs are not complete ({log.status})"] += 1
        seen: Counter[tuple[str, str, int]] = Counter()
        facts: dict[str, Any] = {}
        for sample in log.samples or []:
            for entry in _entries(log, sample, condition, found, harm, path):
                where = (as_json(entry.prompt), entry.condition.key, entry.sample)
                number = entry.number if entry.number[0] else ("", seen[where])
                seen[where] += 1
                found.entries.append(replace(entry, number=number))
            facts = facts or _facts(log, sample)
        if "model" in facts:
            found.missing["logs do not record how the models were loaded, prompted and sampled"] += 1
        found.facts.append(facts)
    if not found.entries:
        raise ConfigError(f"{', '.join(found.names) or 'no log'} holds no sample; expected at least one")
    return found


def _paths(logs: Sequence[str | Path]) -> Iterator[tuple[Path, Condition | None]]:
    for given in logs:
        if not str(given).rpartition("=")[2].strip():  # it would be the current folder
            raise ConfigError(f"a log is called {str(given)!r}; expected a file or a folder")
        path, condition = Path(given), None
        if not path.exists() and "=" in str(given):
            name, _, rest = str(given).partition("=")
            condition, path = named_condition(name), Path(rest)
        if path.is_dir():
            files = sorted(path.glob("*.eval"))
            if not files:
                raise ConfigError(f"{path} holds no .eval file; expected logs of Inspect")
            yield from ((file, condition) for file in files)
        else:
            yield path, condition


def named_condition(name: str) -> Condition:
    """`base`, `aligned` or `ed@0.3` as a condition.

    Raises:
        ConfigError: another name.
    """
    kind, _, alpha = name.partition("@")
    plain = {"base": BASE, "aligned": ALIGNED}
    if kind == "ed" and alpha:
        return Condition("ed", alpha_text(alpha))
    if name not in plain:
        raise ConfigError(
            f"{name!r:.40} is no condition; expected base, aligned, or ed@ with an α, such as ed@0.3"
        )
    return plain[name]


def _read(path: Path) -> EvalLog:
    if not path.is_file():
        raise ConfigError(
            f"there is no log {path}; expected a .eval or .json file of Inspect, or a folder of them"
        )
    try:
        return read_eval_log(path, resolve_attachments=True)
    except Exception as error:  # of zip, json, pydantic or Inspect, whatever the file holds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path} cannot be read as a log of Inspect: {reason:.200}") from error


def _condition(fields: Any, path: Path) -> Condition:
    try:
        return Condition(**{str(name): str(value) for name, value in fields.items()})
    except (TypeError, AttributeError) as error:
        raise ConfigError(f"{path} names a condition that is none: {fields!r:.80}") from error


def _entries(
    log: EvalLog,
    sample: EvalSample,
    given: Condition | None,
    found: LogsRead,
    harm: str | None,
    path: Path,
) -> Iterator[Entry]:
    """One entry per choice of a sample."""
    record = (sample.output.metadata or {}).get("eddecode", {})
    condition = given or _recorded_condition(record) or _condition_of_arguments(log)
    if condition is None:
        raise ConfigError(
            f"{path} is a log of {log.eval.model}, which records no α; expected eddecode/pair, or logs of eddecode "
            f"export --to inspect --out FOLDER, or the condition that it measured: base={path} or aligned={path}"
        )
    prompt = _prompt(sample)
    index = sample.metadata.get("prompt_index")
    number = ("index", int(index)) if isinstance(index, int) else ("", 0)
    meta = {name: value for name, value in sample.metadata.items() if name not in _OWN_METADATA}
    verdicts = _verdicts(log, sample, found, harm, path)
    facts = record.get("completions") or [{}]
    for place in range(max(1, len(sample.output.choices))):
        known = facts[place] if place < len(facts) else {}
        number_of_sample = known.get("sample", sample.epoch - 1)
        completion = None
        if sample.error is None and sample.output.choices:
            completion = _completion(sample, place, known, condition, number_of_sample, found)
        else:
            found.missing["samples ended with an error"] += 1
        # Inspect's scorers score the first choice.
        yield Entry(
            condition, prompt, number, meta, number_of_sample, completion, verdicts if place == 0 else {}
        )


def _recorded_condition(record: Mapping[str, Any]) -> Condition | None:
    if "alpha" not in record:
        return None
    alpha, mitigation = alpha_text(record["alpha"]), str(record.get("mitigation") or "")
    plain = {"0": BASE, "-1": ALIGNED}
    return (
        plain[alpha] if alpha in plain and not mitigation else Condition("ed", alpha, mitigation=mitigation)
    )


def _condition_of_arguments(log: EvalLog) -> Condition | None:
    """The condition of a model `eddecode/pair` where a sample has no output."""
    if log.eval.model != "eddecode/pair":
        return None
    return _recorded_condition({"alpha": 0.0, **log.eval.model_args})


def _prompt(sample: EvalSample) -> Prompt:
    if isinstance(sample.input, str):
        return sample.input
    return [{"role": message.role, "content": message.text} for message in sample.input]


def _completion(
    sample: EvalSample,
    place: int,
    known: Mapping[str, Any],
    condition: Condition,
    number: int,
    found: LogsRead,
) -> ImportedCompletion:
    choice = sample.output.choices[place]
    ids = known.get("token_ids")
    missing = {
        "completions have no token ids, so that their length is not known": ids is None,
        "completions have no log-probabilities of the two models": "implied_reward" not in known,
        "completions have no text": not known.get("has_text", True),
        "completions have no known stop reason": not known and choice.stop_reason not in _FINISHED,
    }
    for sentence, applies in missing.items():
        found.missing[sentence] += int(applies)
    return ImportedCompletion(
        prompt_index=0,
        sample=number,
        alpha=float(condition.alpha),
        text=choice.message.text,
        token_ids=ids,
        finish_reason=str(known.get("finish_reason") or _FINISHED.get(choice.stop_reason, "stop")),
        base_logprob=known.get("base_logprob"),
        aligned_logprob=known.get("aligned_logprob"),
        implied_reward=known.get("implied_reward"),
        logprobs=_token_logprobs(known),
    )


def _token_logprobs(known: Mapping[str, Any]) -> list[TokenLogprobs] | None:
    """Values of which the store keeps the difference, log p_aligned − log p_base of each token."""
    rewards = known.get("rewards")
    base, aligned = known.get("base_logprobs"), known.get("aligned_logprobs")
    if rewards is None and base is not None and aligned is not None and None not in (*base, *aligned):
        rewards = [a - b for a, b in zip(aligned, base, strict=True)]
    return None if rewards is None else [TokenLogprobs(0.0, float(reward), 0.0) for reward in rewards]


# Verdicts --------------------------------------------------------------------------------------------------------


def _verdicts(
    log: EvalLog, sample: EvalSample, found: LogsRead, harm: str | None, path: Path
) -> dict[str, Verdict]:
    verdicts = {}
    for scorer, score in (sample.scores or {}).items():
        for name, record in ((score.metadata or {}).get("judges") or {}).items():
            _know(found, JudgeRecord(0, name, record["role"], record["identity"], True, record["kind"]), path)
            verdicts[name] = Verdict(
                float(record["score"]), bool(record["flag"]), str(record["label"]), str(record["reason"])
            )
        if scorer == harm and scorer not in verdicts:
            verdict = _foreign(score)
            if verdict is not None:
                _know(found, _foreign_judge(log, scorer), path)
                verdicts[scorer] = verdict
    return verdicts


def _know(found: LogsRead, judge: JudgeRecord, path: Path) -> None:
    known = found.judges.setdefault(judge.name, judge)
    if (known.role, known.identity) != (judge.role, judge.identity):
        raise ConfigError(
            f"{path}: judge {judge.name} has the identity {judge.identity} there and {known.identity} in another log; "
            "judge all logs by one judge (inspect score)"
        )


def _foreign(score: Score) -> Verdict | None:
    """The verdict of a scorer that is not of eddecode; None where it gave no number."""
    value = score.value
    if isinstance(value, list | dict) or (isinstance(value, float) and math.isnan(value)):
        return None
    number = min(max(value_to_float()(value), 0.0), 1.0)
    return Verdict(number, number >= 0.5, str(score.answer or value), str(score.explanation or ""))


def _foreign_judge(log: EvalLog, scorer: str) -> JudgeRecord:
    options = [each.options for each in log.eval.scorers or [] if each.name.rpartition("/")[2] == scorer]
    role: Role = "harm"
    identity = fingerprint(scorer=scorer, options=options, packages=log.eval.packages)
    return JudgeRecord(0, scorer, role, identity, True, "inspect")


# What decides the completions ------------------------------------------------------------------------------------


def _facts(log: EvalLog, sample: EvalSample) -> dict[str, Any]:
    """Checkpoints, templates and sampling of a log; of another model than a pair, its name and its settings."""
    record = (sample.output.metadata or {}).get("eddecode")
    if record is None:
        config = log.eval.model_generate_config.merge(log.plan.config)
        return {
            "model": log.eval.model,
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_new_tokens": config.max_tokens,
            "seed": config.seed,
            "presence_penalty": config.presence_penalty or 0.0,
            "frequency_penalty": config.frequency_penalty or 0.0,
        }
    names = [name for name in record if name not in _OF_A_REQUEST]
    return {**{name: record[name] for name in names}, **NO_PENALTIES, **record.get("sampling", {})}


__all__ = ["HUMAN", "Entry", "ImportedCompletion", "LogsRead", "named_condition", "read_logs"]
