"""Logs of Inspect as a run: for the gate, the report, and further judges.

The run's identity is made of what the logs record. Where they lack something that a verdict rests on, the run says so
(its note `source`), and the gate is inconclusive. The conditions base and aligned belong to every run: where no log
holds them, the run is not finished, and the gate is inconclusive too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eddecode.audit.analysis.headline import BOUND
from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.conditions import ALIGNED, BASE, NO_PENALTIES, Condition
from eddecode.audit.data.prompts import PromptRecord, as_json
from eddecode.audit.judges.base import JudgeLike
from eddecode.audit.judges.registry import make_judge
from eddecode.audit.provenance import fingerprint_digest
from eddecode.audit.report.curve import write_curve
from eddecode.audit.run import judge_all
from eddecode.audit.store.records import HUMAN
from eddecode.audit.store.schema import FILE
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError
from eddecode.integrations.inspect.read_logs import Entry, LogsRead, read_logs
from eddecode.models.fingerprint import short_digest

_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "plausibility", "max_new_tokens", "stop", "seed")

# A list of a run's identity → the field of its conditions that names an entry.
_PARTS = {
    "mitigations": "mitigation",
    "systems": "system",
    "transforms": "transform",
    "templates": "template",
    "attacks": "model",
}


@dataclass(frozen=True)
class ImportResult:
    """What an import made.

    Attributes:
        folder: of the run.
        completions: number of them.
        missing: what the logs lack, as sentences; the gate is inconclusive while there is any.
        summary: None where completions or verdicts are missing.
    """

    folder: Path
    completions: int
    missing: tuple[str, ...]
    summary: Summary | None


def import_logs(
    logs: Sequence[str | Path],
    out: str | Path,
    *,
    harm: str | None = None,
    judges: Sequence[JudgeLike] = (),
    utility_loss: float = BOUND,
) -> ImportResult:
    """Make a run of logs.

    Args:
        logs: see `read_logs`.
        out: folder of the run; without a run in it.
        harm: see `read_logs`.
        judges: judge the imported completions too.
        utility_loss: ε, see `AuditConfig`; logs that were exported from a run have their own.

    Raises:
        ConfigError: a file is no log, the logs contradict each other, or the folder holds a run.
        JudgeError: a judge cannot be used.
        StoreError: the folder cannot be written.
    """
    made = [make_judge(spec) for spec in judges]
    folder = Path(out)
    if (folder / FILE).exists():
        raise ConfigError(f"{folder} holds a run already; choose another --out")
    found = read_logs(logs, harm)
    prompts, placed = _placed(found.entries)
    conditions = _conditions(placed, found.positions)
    identity = _identity(found, prompts, conditions, placed)
    missing = tuple(f"{count:,} {sentence}" for sentence, count in found.missing.items() if count)
    missing += tuple(
        f"the logs have no {name}" for name in ("base", "aligned") if ", digest " not in str(identity[name])
    )
    source = {"format": "inspect", "logs": found.names, "missing": list(missing)}
    first: dict[str, Any] = found.exported[0] if found.exported else {}
    notes = {
        "identity": identity,
        "digest": fingerprint_digest(identity),
        "source": source,
        **first.get(
            "notes", {"systems": {}, "transforms": [], "mitigations": {}}
        ),  # canaries and benchmarks too
    }
    bound = first.get("utility_loss")
    environment = {
        "source": "inspect",
        **{
            name: version
            for name, version in found.packages.items()
            if name in ("eddecode", "torch", "inspect_ai")
        },
        "utility_loss": utility_loss if bound is None else bound,
    }
    with Store.create(folder) as store:
        try:
            store.initialize(notes, prompts, conditions, _now(), environment)
            summary = _fill(store, found, placed, made)
            count = store.count()
        except Exception:
            store.abandon()
            raise
    if summary is not None:
        summary.write()
        write_curve(summary, None)
    return ImportResult(folder, count, missing, summary)


def _fill(store: Store, found: LogsRead, placed: Sequence[Entry], judges: Sequence[Any]) -> Summary | None:
    """Store completions and verdicts, judge them, and make the summary if nothing is missing."""
    own = [judge for judge in found.judges.values() if judge.name != HUMAN]
    store.register_judges(own)
    groups: dict[tuple[str, ...], list[Entry]] = defaultdict(list)
    for entry in placed:
        if entry.completion is not None:
            groups[tuple(judge.name for judge in own if judge.name in entry.verdicts)].append(entry)
    for names, entries in groups.items():
        new: list[Any] = [
            (e.condition.key, e.completion.prompt_index, e.completion) for e in entries if e.completion
        ]
        store.add(new, [(name, [entry.verdicts[name] for entry in entries]) for name in names])
    judged = Counter(name for entry in placed if entry.completion for name in entry.verdicts)
    for judge in own:
        if judged[judge.name] == store.count():
            store.take_over(judge.name)
    labels = {
        (e.condition.key, e.completion.prompt_index, e.sample): e.verdicts[HUMAN].flag
        for e in placed
        if e.completion is not None and HUMAN in e.verdicts
    }
    if labels:
        store.add_labels(labels)
    if judges:
        store.register_judges(judges)
        judge_all(store, judges, lambda progress: None)
    if store.missing() or not any(judge.role == "harm" for judge in store.judges()):
        return None
    return summarize(store, store.conditions(), store.judges(), store.labels() or None)


def _placed(entries: Sequence[Entry]) -> tuple[list[PromptRecord], list[Entry]]:
    """The prompts of a run, and every entry with the index of its own.

    Raises:
        ConfigError: one index stands for two prompts, or one completion is there twice and differs.
    """
    numbered = all(entry.number[0] for entry in entries)
    keys: dict[Any, Entry] = {}
    for entry in entries:
        known = keys.setdefault(_key(entry, numbered), entry)
        if known.prompt != entry.prompt:
            raise ConfigError(
                f"the logs have two prompts with the index {entry.number[1]}: {known.prompt!r:.60} and "
                f"{entry.prompt!r:.60}; expected logs of the same prompts"
            )
    order = sorted(keys) if numbered else list(keys)
    index = {key: i for i, key in enumerate(order)}
    prompts = [PromptRecord(i, keys[key].prompt, dict(keys[key].meta)) for key, i in index.items()]
    placed: dict[tuple[str, int, int], Entry] = {}
    for entry in entries:
        at = index[_key(entry, numbered)]
        there = placed.get((entry.condition.key, at, entry.sample))
        if there is not None and there.completion is not None and entry.completion is not None:
            if there.completion.text != entry.completion.text:
                raise ConfigError(
                    f"two logs have the completion of condition {entry.condition.name}, prompt {at}, sample "
                    f"{entry.sample}, and they differ; expected each once"
                )
            continue
        if there is None or there.completion is None:
            own = None if entry.completion is None else replace(entry.completion, prompt_index=at)
            placed[entry.condition.key, at, entry.sample] = replace(entry, completion=own)
    return prompts, list(placed.values())


def _key(entry: Entry, numbered: bool) -> Any:
    return entry.number[1] if numbered else (as_json(entry.prompt), entry.number[1])


def _conditions(entries: Sequence[Entry], positions: Mapping[Condition, int]) -> list[Condition]:
    """Aligned, base, ED by α, then the others; of a run that was exported, in its own order."""
    there = list(dict.fromkeys([ALIGNED, BASE, *(entry.condition for entry in entries)]))
    if positions:
        return sorted(there, key=lambda condition: positions.get(condition, -1))
    others = there[2:]
    plain = sorted((c for c in others if c.plain), key=lambda condition: float(condition.alpha))
    return [ALIGNED, BASE, *plain, *(c for c in others if not c.plain)]


def _identity(
    found: LogsRead,
    prompts: Sequence[PromptRecord],
    conditions: Sequence[Condition],
    entries: Sequence[Entry],
) -> dict[str, Any]:
    """What decided the completions, in the form of a run's fingerprint.

    Raises:
        ConfigError: the logs differ in it.
    """
    samples = 1 + max(entry.sample for entry in entries)
    listed = as_json([prompt.prompt for prompt in prompts]).encode()
    measured: dict[str, Any] = {
        "prompts": f"{len(prompts)} prompts, digest {short_digest(listed)}",
        "alphas": ",".join(condition.alpha for condition in conditions if condition.kind == "ed"),
        "samples": samples,
    }
    if found.exported:
        return {**_exported_identity(found, conditions), **measured}
    shared: dict[str, Any] = {}
    for facts, name in zip(found.facts, found.names, strict=True):
        for field, value in facts.items():
            if value is not None and field != "model" and shared.setdefault(field, value) != value:
                raise ConfigError(
                    f"the logs differ in {field}: {shared[field]!r:.60} in {found.names[0]}, {value!r:.60} in {name}; "
                    "expected logs of one pair with the same settings"
                )
    models = {
        entry_name: facts.get("model") for entry_name, facts in zip(found.names, found.facts, strict=True)
    }
    foreign = ", ".join(sorted({str(model) for model in models.values() if model}))
    always = ("dtype", "base_template", "aligned_template", *_SAMPLING)
    unused = [name for name, off in NO_PENALTIES.items() if shared.get(name) == off]
    names = dict.fromkeys([*always, *shared])  # in this order
    judges = [judge for judge in found.judges.values() if judge.name != HUMAN]
    ordered = sorted(judges, key=lambda judge: judge.role != "harm")
    return {
        "base": shared.get("base") or f"base of {foreign}",
        "aligned": shared.get("aligned") or f"aligned of {foreign}",
        **{name: shared.get(name) for name in names if name not in ("base", "aligned", *unused)},
        **measured,
        "judges": [f"{judge.name}, digest {judge.identity}" for judge in ordered],
    }


def _exported_identity(found: LogsRead, conditions: Sequence[Condition]) -> dict[str, Any]:
    """The identity of the run that the logs were exported from, without the conditions that are not imported."""
    if len(found.exported) < len(found.names) or len({own["digest"] for own in found.exported}) > 1:
        raise ConfigError("the logs are of several runs; expected logs that were exported from one run")
    identity = dict(found.exported[0]["identity"])
    for field, part in _PARTS.items():
        if field in identity:
            there = {getattr(condition, part) for condition in conditions}
            kept = [each for each in identity[field] if str(each).partition(", digest ")[0] in there]
            identity |= {field: kept}
            if not kept:
                del identity[field]
    return identity


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
