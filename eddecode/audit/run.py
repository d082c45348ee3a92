"""Do the audit: decode what is missing, judge what is unjudged, summarise; and judge a finished run again.

Every step asks the store what is left to do, so that starting, resuming and repeating a finished run are one and the
same path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.conditions import condition_name
from eddecode.audit.config import AuditConfig
from eddecode.audit.config_file import write_as_run
from eddecode.audit.data.labels import read_labels, settle
from eddecode.audit.data.prompts import read_prompts
from eddecode.audit.data.transforms import read_transforms
from eddecode.audit.decode import Decoder, Decoders, Progress, Report, decode_missing, load_sampler
from eddecode.audit.environment import environment
from eddecode.audit.judges.base import Case, Judge, JudgeLike, release, verdicts_of
from eddecode.audit.judges.registry import make_judge, make_judges
from eddecode.audit.mitigations import meaning
from eddecode.audit.provenance import differences, identity_digest, run_identity
from eddecode.audit.report.curve import write_curve
from eddecode.audit.store.store import HUMAN, LabelKey, Store
from eddecode.errors import ConfigError, JudgeError

__all__ = ["Decoder", "Progress", "audit", "load_sampler", "rejudge"]

_JUDGE_BATCH = 256


def audit(
    config: AuditConfig,
    *,
    sampler: Decoders | None = None,
    judges: Sequence[JudgeLike] | None = None,
    title: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Run an audit, or go on with it where it was stopped, or return the finding if it is complete.

    The run's folder holds the store, `audit.toml`, `summary.json`, `curve.svg` and `curve.png` in the end.

    Args:
        config: what is asked for.
        sampler: decodes; None loads the models that the configuration names, if anything is left to decode. A mapping
            gives one for each of "" (the pair), "finetuned" and "ensemble".
        judges: instead of those that the configuration names; the first judges harm.
        title: of the picture.
        on_progress: called with what is on disk; after a kill at any moment, at least that much is there.

    Raises:
        ConfigError: the folder holds a run of another configuration; the message shows the difference.
        StoreError: the folder is in use, cannot be written, or is damaged.
        EddecodeError: prompts, judges, parameters or checkpoints that will not do.
    """
    prompts = read_prompts(config.prompts)
    bench = make_judges(config.judges if judges is None else judges)
    _no_reserved(bench)
    conditions = config.conditions()
    for condition in conditions:  # a parameter out of range is found before anything is loaded
        config.params(condition, config.samples)
    identity = run_identity(config, prompts, bench)
    report = on_progress or (lambda progress: None)
    with Store.create(config.out_folder) as store:
        _same_run(store, identity)
        notes = {"identity": identity, "digest": identity_digest(identity), **_said(config)}
        store.begin(notes, prompts, conditions, _now(), environment(identity, config, loads=sampler is None))
        write_as_run(config, prompts, [judge.name for judge in bench] if judges is not None else None)
        store.seat(bench)
        decode_missing(store, config, prompts, bench, sampler, report)
        judge_all(store, bench, report)
        summary = summarize(store, conditions, store.judges(), store.labels() or None)
    summary.write()
    write_curve(summary, title)
    return summary


def rejudge(
    folder: str | Path,
    judges: Sequence[JudgeLike] = (),
    *,
    labels: str | Path | None = None,
    title: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Have a finished run judged by further judges, or by people, without decoding anything.

    A judge of a new name gets a column of its own. One that has a name of the run and another identity (an edited word
    list) adds its verdicts and speaks under that name from then on; the verdicts of the former one are kept.
    `labels` is a CSV file of human labels (see docs/judges.md): judges' rates are corrected by them.

    Raises:
        StoreError: there is no run in the folder, or it is in use.
        ConfigError: the run is not finished, or keeps no text that could be judged.
        JudgeError: two judges of one name, or one that cannot judge.
    """
    bench = [make_judge(spec) for spec in judges]
    names = [judge.name for judge in bench]
    _no_reserved(bench)
    if len(set(names)) < len(names):
        raise JudgeError(f"the judges are called {', '.join(names)}; expected each name once")
    people = None if labels is None else _labels(labels)
    with Store.open(folder) as store:
        finished_run(store)
        sat = store.judges()
        _check_harm_first(bench, sat[0].name)
        if bench and (store.note("identity") or {}).get("no_text"):
            raise ConfigError(
                f"{folder} keeps no completion text (--no-text), so that nothing is left to judge"
            )
        identity = store.note("identity")
        store.resume(_now(), environment(identity))
        store.seat(bench)
        judge_all(store, bench, on_progress or (lambda progress: None))
        if people is not None:
            store.add_labels(people)
        summary = summarize(store, store.conditions(), store.judges(), store.labels() or None)
    summary.write()
    write_curve(summary, title)
    return summary


def judge_all(store: Store, judges: Sequence[Judge], report: Report) -> None:
    """Have every judge see every completion that it has not seen; one judge's weights in memory at a time."""
    total, done = len(judges) * store.count(), 0
    for number, judge in enumerate(judges, start=1):
        last, asked = 0, {record.index: record.text for record in store.prompts()}
        while batch := store.unjudged(judge.name, _JUDGE_BATCH, after=last):
            last = batch[-1].id
            verdicts = verdicts_of(judge, [Case(asked[item.prompt_index], item.text) for item in batch])
            store.judge(judge.name, zip((item.id for item in batch), verdicts, strict=True))
            done += len(batch)
            report(Progress("judge", done, total))
        release(judge)
        done = number * total // len(judges)
    report(Progress("judge", total, total))


def finished_run(store: Store) -> None:
    """Refuse a run that has not all its completions.

    Raises:
        ConfigError: some are missing.
        StoreError: the run was never begun.
    """
    done, expected = store.count(), store.expected()
    if done < expected:
        raise ConfigError(
            f"the run in {store.folder} is not finished: {done} of {expected} completions are there; "
            "run its eddecode audit command again first"
        )


def _labels(path: str | Path) -> dict[LabelKey, bool]:
    """What people say, by majority, under the names of conditions; ties say nothing."""
    settled = settle(read_labels(path)).labels
    return {
        (condition_name((condition, alpha)), index, sample): flag
        for (condition, alpha, index, sample), flag in settled.items()
    }


def _no_reserved(bench: Sequence[Judge]) -> None:
    for judge in bench:
        if judge.name == HUMAN or "#" in judge.name:
            raise JudgeError(
                f"a judge is called {judge.name!r}; the name {HUMAN} is for labels of people, and # marks former "
                "judges; give another (,name=…)"
            )


def _check_harm_first(bench: Sequence[Judge], first: str) -> None:
    for judge in bench:
        if judge.name == first and judge.role != "harm":
            raise JudgeError(
                f"judge {judge.name} judges {judge.role}, and the judge of that name in the run is the one of harm; "
                "give it another name (,name=…)"
            )


def _said(config: AuditConfig) -> dict[str, Any]:
    """The words behind the names of conditions, for who reads the run."""
    return {
        "systems": dict(config.systems),
        "transforms": [transform.to_dict() for transform in read_transforms(config.transforms)],
        "mitigations": {name: meaning(name) for name in config.mitigations},
    }


def _same_run(store: Store, identity: dict[str, Any]) -> None:
    old = store.note("identity")
    if old is None or old == identity:
        return
    lines = "\n  ".join(differences(old, identity))
    raise ConfigError(
        f"{store.folder} holds a run of another configuration, and half of each would be no finding:\n  {lines}\n"
        "Run it with the configuration that it was started with, or choose another --out."
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
