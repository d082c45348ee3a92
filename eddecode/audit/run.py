"""Run an audit: resolve its plan, decode what is missing, judge what is unjudged, summarize; and judge a run again.

Every step asks the store what is left to do, so that starting, resuming and repeating a finished run take the same
path.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.conditions import condition_name
from eddecode.audit.config import AuditConfig
from eddecode.audit.config_file import write_as_run
from eddecode.audit.data.canaries import Canary, canary_result, read_canaries
from eddecode.audit.data.labels import majority_vote, read_labels
from eddecode.audit.data.shards import Shard
from eddecode.audit.decode import (
    LoadedSamplers,
    Progress,
    ProgressCallback,
    SamplerLike,
    Samplers,
    decode_missing,
)
from eddecode.audit.environment import collect_environment
from eddecode.audit.export.labeling import completion_ids
from eddecode.audit.growth import grow as grow_in_place
from eddecode.audit.growth import obstacles
from eddecode.audit.judges.base import Case, Judge, JudgeLike, release, verdicts_of
from eddecode.audit.judges.registry import make_judge
from eddecode.audit.notices import Notices
from eddecode.audit.plan import AuditPlan, resolve
from eddecode.audit.provenance import diff
from eddecode.audit.reasoning import Answers
from eddecode.audit.report.curve import write_curve
from eddecode.audit.samplers import load_sampler
from eddecode.audit.store.discard import discard_run
from eddecode.audit.store.queries import SHARD_NOTE
from eddecode.audit.store.records import HUMAN, LabelKey
from eddecode.audit.store.store import Store
from eddecode.errors import ConfigError, EddecodeError, JudgeError, PromptRelatedError, StoreError

__all__ = ["Progress", "SamplerLike", "audit", "load_sampler", "rejudge"]

_JUDGE_BATCH = 256  # completions per call of a judge

_LONGEST_NAME = 200  # of a judge, in characters


def audit(
    config: AuditConfig,
    *,
    sampler: Samplers | None = None,
    judges: Sequence[JudgeLike] | None = None,
    title: str | None = None,
    grow: bool = False,
    fresh: bool = False,
    shard: Shard | str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> Summary:
    """Run an audit, continue it where it was stopped, or return its summary if it is complete.

    The run's folder holds the store, `audit.toml`, `summary.json`, `curve.svg` and `curve.png` at the end. A start that
    decodes nothing leaves nothing in the folder.

    Args:
        config: of the audit.
        sampler: decodes; None loads the models that the configuration names, if anything is left to decode. A mapping
            gives one for each of "" (the pair), "finetuned" and "ensemble"; a `LoadedSamplers` keeps what it loaded
            for the next audit.
        judges: take the place of those that the configuration names; the first one judges harm.
        title: of the picture.
        grow: where the folder holds a run to which this configuration only adds (α's and other conditions, prompts,
            samples, judges), add that to it; what is there stays.
        fresh: delete the run in the folder first.
        shard: decode and judge only this part of the prompts ("3/16": the third of 16); `merge` joins all parts to the
            run. Draws are keyed by prompt and sample, so that shards need not talk to each other.
        on_progress: called with the number of completions on disk; after a kill at any moment, at least that many are
            there.
        on_notice: called with a sentence for whatever looks wrong with the pair, as soon as it shows; None: a Python
            warning.

    Returns:
        The summary; one without figures if no judge of harm is there yet (`judges=["later"]`).

    Raises:
        ConfigError: the folder holds a run of another configuration; the message shows the difference.
        StoreError: the folder is in use, cannot be written, or is damaged.
        EddecodeError: prompts, judges, parameters or checkpoints cannot be used.
    """
    plan = resolve(config, judges, Shard.parse(shard) if isinstance(shard, str) else shard)
    if grow and plan.shard is not None:
        raise ConfigError("a shard cannot grow; start the shards of the larger audit, or grow the merged run")
    _check_names(plan.judges)
    notices = Notices(plan, on_notice or _warn)
    notices.before_loading()
    if fresh:
        discard_run(config.out_folder)
    if grow:
        grow_in_place(plan)
    with _opened(plan) as store, _without_traces(store):
        _check_same_run(store, plan)
        loads = sampler is None or isinstance(sampler, LoadedSamplers)
        environment = collect_environment(plan.fingerprint, config, loads=loads)
        store.initialize(plan.notes(), plan.own_prompts, plan.conditions, _now(), environment)
        store.register_judges(plan.judges)
        report = _recorded(plan, judges, on_progress or _ignore)
        failures = decode_missing(store, plan, sampler, report, notices)
        judge_all(store, plan.judges, report)
        if failures:
            raise _kept(failures[0], store)
        if not plan.judges and not store.judges():
            return unjudged(store)
        if plan.judges:
            judge_canaries(store, plan.judges[0], plan.canaries)
        if plan.shard is not None:
            return _shard_result(store, plan.shard)
        summary = summarize(store, plan.conditions, store.judges(), store.labels() or None)
    summary.write()
    write_curve(summary, title)
    return summary


def _opened(plan: AuditPlan) -> Store:
    """The store of the plan's folder; a run of another configuration that has no completion is replaced."""
    folder = plan.config.out_folder
    store = Store.create(folder)
    if store.note("identity") not in (None, plan.fingerprint) and not store.count():
        store.abandon()
        store = Store.create(folder)
    return store


@contextmanager
def _without_traces(store: Store) -> Iterator[None]:
    """Leave nothing in the folder if the block fails, other than by Ctrl-C, before there is a completion."""
    try:
        yield
    except Exception:
        with suppress(StoreError):
            store.abandon()
        raise


def _recorded(
    plan: AuditPlan, judges: Sequence[JudgeLike] | None, on_progress: ProgressCallback
) -> ProgressCallback:
    """The callback, which first writes `audit.toml` when there is a completion."""
    written = False

    def report(progress: Progress) -> None:
        nonlocal written
        if progress.done and not written:
            names = None if judges is None else [judge.name for judge in plan.judges]
            write_as_run(plan.config, plan.prompts, names)
            written = True
        on_progress(progress)

    return report


def _kept(error: EddecodeError, store: Store) -> EddecodeError:
    """The error of a condition, with what became of the others."""
    hint = (
        f" The other conditions are decoded and kept: {store.count():,} of {store.expected():,} completions. The same "
        "command tries again; without that condition and with --grow, the run is finished with the others."
    )
    if isinstance(error, PromptRelatedError):
        error.reason += "." * (not error.reason.endswith(".")) + hint
        return error
    return type(error)(f"{str(error).removesuffix('.')}.{hint}")


def unjudged(store: Store) -> Summary:
    """What is known of a run that no judge has judged yet."""
    return _without_figures(
        store,
        f"{store.count():,} completions are decoded and not judged yet; choose a judge of harm: "
        f"eddecode judge {store.folder} --judge …",
    )


def _shard_result(store: Store, shard: Shard) -> Summary:
    """What is known of a shard: that it is finished. Figures are those of the merged run."""
    return _without_figures(
        store,
        f"shard {shard} is finished with {store.count():,} completions; join all {shard.of} shards: "
        "eddecode merge PART… --out RUN",
    )


def _without_figures(store: Store, note: str) -> Summary:
    return Summary(
        digest=store.note("digest"),
        identity=store.note("identity"),
        prompts=len(store.prompts()),
        notes=(note,),
        folder=store.folder,
    )


def rejudge(
    folder: str | Path,
    judges: Sequence[JudgeLike] = (),
    *,
    labels: str | Path | None = None,
    canaries: str | Path | None = None,
    title: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Summary:
    """Judge a finished run by further judges, or import human labels, without decoding anything.

    A judge of a new name gets a column of its own. One with a name of the run and another identity (an edited word
    list) adds its verdicts and replaces the judge of that name in all results, once it has judged every completion; the
    verdicts of the replaced one are kept.

    Args:
        folder: of the run.
        judges: specifications or judges.
        labels: a CSV file of human labels (see docs/judges.md), by which the judges' rates are corrected.
        canaries: completions that are known to be harmful or harmless (see docs/gate.md), for the first of the judges.
        title: of the picture.
        on_progress: called with the number of completions judged.

    Raises:
        StoreError: there is no run in the folder, or it is in use.
        ConfigError: the run is not finished, or keeps no text that could be judged.
        JudgeError: two judges of one name, or one that cannot judge.
    """
    made = [make_judge(spec) for spec in judges]
    names = [judge.name for judge in made]
    _check_names(made)
    if len(set(names)) < len(names):
        raise JudgeError(f"the judges are called {', '.join(names)}; expected each name once")
    known = () if canaries is None else read_canaries(canaries)
    if known and (not made or made[0].role != "harm"):
        raise JudgeError(
            "canaries need a judge of harm; give the run's harm judge with --judge, as the first one"
        )
    with Store.open(folder) as store:
        if store.note(SHARD_NOTE) is not None:
            raise ConfigError(f"{folder} holds one shard of a run; join the shards with eddecode merge first")
        check_finished(store)
        fingerprint = store.note("identity")
        _check_harm_judge(made, store.asked_judge())
        if made and fingerprint.get("no_text"):
            raise ConfigError(f"{folder} keeps no completion text (--no-text), so there is nothing to judge")
        votes = None if labels is None else _labels(labels, store)
        store.resume(_now(), collect_environment(fingerprint))
        store.register_judges(made)
        judge_all(store, made, on_progress or _ignore)
        if made:
            judge_canaries(store, made[0], known)
        if votes is not None:
            store.add_labels(votes)
        summary = summarize(store, store.conditions(), store.judges(), store.labels() or None)
    summary.write()
    write_curve(summary, title)
    return summary


def judge_all(store: Store, judges: Sequence[Judge], on_progress: ProgressCallback) -> None:
    """Have every judge judge the completions that it has not judged; one judge's weights in memory at a time.

    A judge that has judged all of them takes over its name: results never rest on one that stopped half-way.
    """
    total, done = len(judges) * store.count(), 0
    prompts = {record.index: record for record in store.prompts()}
    answers = Answers(store, {condition.name: condition for condition in store.conditions()})
    for number, judge in enumerate(judges, start=1):
        last = 0
        while batch := store.unjudged(judge.name, _JUDGE_BATCH, after=last):
            last = batch[-1].id
            cases = [
                prompts[item.prompt_index].case(answers.of(item.condition, item.text).text) for item in batch
            ]
            verdicts = verdicts_of(judge, cases)
            store.judge(judge.name, zip((item.id for item in batch), verdicts, strict=True))
            done += len(batch)
            on_progress(Progress("judge", done, total))
        store.take_over(judge.name)
        release(judge)
        done = number * total // len(judges)
    on_progress(Progress("judge", total, total))


def judge_canaries(store: Store, judge: Judge, canaries: Sequence[Canary]) -> None:
    """Have the harm judge judge a canary set, and record the result in the run."""
    if canaries:
        verdicts = verdicts_of(judge, [Case(canary.prompt, canary.completion) for canary in canaries])
        store.add_canaries(canary_result(judge, canaries, [verdict.flag for verdict in verdicts]))
        release(judge)


def check_finished(store: Store) -> None:
    """Refuse a run that does not have all its completions.

    Raises:
        ConfigError: some are missing.
        StoreError: the run was never started.
    """
    done, expected = store.count(), store.expected()
    if done < expected:
        raise ConfigError(
            f"the run in {store.folder} is not finished: {done} of {expected} completions are there; "
            "run its eddecode audit command again first"
        )


def _labels(path: str | Path, store: Store) -> dict[LabelKey, bool]:
    """Human labels by majority, under the names of conditions; ties have none."""
    votes = majority_vote(read_labels(path, completion_ids(store))).labels
    return {
        (condition_name((condition, alpha)), index, sample): flag
        for (condition, alpha, index, sample), flag in votes.items()
    }


def _check_names(judges: Sequence[Judge]) -> None:
    for judge in judges:
        named = isinstance(judge.name, str) and judge.name.strip() and judge.name.isprintable()
        if not named or len(judge.name) > _LONGEST_NAME:
            raise JudgeError(
                f"a judge is called {judge.name!r:.60}; expected a name of at most {_LONGEST_NAME} printable characters"
            )
        if judge.name == HUMAN or "#" in judge.name:
            raise JudgeError(
                f"a judge is called {judge.name!r}; the name {HUMAN} is reserved for human labels, and # marks "
                "replaced judges; give another name (,name=…)"
            )


def _check_harm_judge(judges: Sequence[Judge], first: str) -> None:
    """The first judge of a run judges harm, and one that replaces it must do so too."""
    for judge in judges:
        if judge.name == first and judge.role != "harm":
            raise JudgeError(
                f"judge {judge.name} judges {judge.role}, and the judge of that name in the run judges harm; "
                "give it another name (,name=…)"
            )


def _check_same_run(store: Store, plan: AuditPlan) -> None:
    old, new = store.note("identity"), plan.fingerprint
    if old is None:
        return
    _check_same_shard(store, plan)
    if old == new:
        return
    lines = "\n  ".join(diff(old, new))
    ways = [
        "Run it with the configuration that it was started with, choose another --out, or start over with --fresh."
    ]
    if {**old, "judges": None} == {**new, "judges": None}:
        ways.append(f"To judge its completions by other judges: eddecode judge {store.folder} --judge …")
    reasons = obstacles(store, plan)
    if not reasons:
        ways.append("To add to the run what is new: the same command with --grow; what is there stays.")
    elif {**old, "alphas": None} == {**new, "alphas": None}:
        ways.append(
            f"To add α's to the run: eddecode audit --grow with all of them, {old['alphas']} included."
        )
    raise ConfigError(
        f"{store.folder} holds a run of another configuration, and a mixture of both would be no result:\n  {lines}\n"
        + " ".join(ways)
    )


def _check_same_shard(store: Store, plan: AuditPlan) -> None:
    old, new = store.note(SHARD_NOTE), plan.notes().get(SHARD_NOTE)
    if old != new:
        held, asked = (
            "a whole run" if note is None else f"shard {note['number']} of {note['of']}"
            for note in (old, new)
        )
        raise ConfigError(f"{store.folder} holds {held}, and {asked} is asked for; choose another --out")


def _ignore(progress: Progress) -> None:
    """Progress that nobody asked for."""


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
