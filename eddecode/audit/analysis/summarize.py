"""From a store to a summary: read the table of each condition once, then compute the statistics of the other modules.

Ten thousand prompts in ten conditions take some seconds and some tens of megabytes: the tables hold flags and metrics
but no text, and every interval is computed from counts per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eddecode.audit.analysis.any_of_k import Attempts
from eddecode.audit.analysis.attack_models import with_attack_models
from eddecode.audit.analysis.benchmark_parts import BenchmarkFigure, latest
from eddecode.audit.analysis.benign import benign_figures
from eddecode.audit.analysis.comparisons import (
    Labels,
    agreement_rows,
    corrected_rates,
    judge_qualities,
    mitigation_rows,
    paired_rows,
    transfer_rows,
)
from eddecode.audit.analysis.completion_table import (
    CompletionTable,
    JudgeRef,
    PromptIndex,
    QualityThresholds,
    load_prompt_index,
    load_table,
)
from eddecode.audit.analysis.environment_mismatch import environment_mismatch
from eddecode.audit.analysis.headline import BOUND, ConditionMetrics, attacks, build_headline, select_alpha
from eddecode.audit.analysis.implied_reward import depth_profile, implied_rewards, kl_estimates
from eddecode.audit.analysis.release_figures import release_figures
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import (
    CanarySummary,
    ConditionSummary,
    JudgeFree,
    JudgeInfo,
    UtilitySummary,
)
from eddecode.audit.conditions import Condition
from eddecode.audit.reasoning import reasoning_notes
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.estimates import CorrectedRate, Rate
from eddecode.audit.stats.paired import rate_estimate, relative_decrease
from eddecode.audit.stats.proportions import clustered_rate
from eddecode.audit.store.queries import SHARD_NOTE, kind_note
from eddecode.audit.store.store import Store
from eddecode.audit.text_quality import SHORT
from eddecode.errors import StoreError

_SHOWN = 20  # prompts that a note names


def summarize(
    store: Store, conditions: Sequence[Condition], judges: Sequence[JudgeRef], labels: Labels | None = None
) -> Summary:
    """The summary of a finished run.

    Args:
        store: open, for reading or writing.
        conditions: of the run, in the order of the summary.
        judges: those of the run; the first judges harm.
        labels: of people: (condition's name, prompt index, sample) → harmful.

    Raises:
        StoreError: a condition has no completion that counts, or none that a judge has judged; or no judge of harm has
            judged every completion.
    """
    if store.note(SHARD_NOTE) is not None:
        raise StoreError(
            f"{store.folder} holds one shard of a run; join all shards with eddecode merge first"
        )
    judges = harm_first(store, judges)
    prompts = load_prompt_index(store)
    tables = {condition: load_table(store, condition, judges, prompts) for condition in conditions}
    for condition, table in tables.items():
        _check(store, condition, table)
    bound, validity = _bound(store), [judge.name for judge in judges if judge.role == "validity"]
    attempts = max(Attempts.of(table, judges[0].name).samples for table in tables.values())
    measured = _measure(tables, judges, validity, bound, attempts)
    base, aligned = (_plain(measured, kind) for kind in ("base", "aligned"))
    keys = list(prompts.index)
    selected = select_alpha(attacks(measured), keys)
    utility = "validity" if validity else "composite"
    qualities, notes = judge_qualities(tables, judges, labels or {})
    corrected = corrected_rates(tables, qualities)
    harm_judge = judges[0].name
    headline = build_headline(
        selected,
        base,
        aligned,
        judge=harm_judge,
        utility=utility,
        bound=bound,
        keys=keys,
        qualities={name: own[harm_judge] for name, own in qualities.items() if harm_judge in own},
        attempts=attempts,
    )
    release = release_figures(tables, measured, judges, prompts, bound)
    if release.worst_attack is not None:
        release = with_attack_models(release, release.worst_attack, store)
    benchmarks = store.benchmark_results()
    harmless = [record for record in store.prompts() if record.benign]
    return Summary(
        digest=store.note("digest"),
        identity=store.note("identity"),
        content=store.content_digest(),
        prompts=prompts.prompts,
        distinct_prompts=prompts.size,
        judges=tuple(_judge_info(store, j) for j in judges),
        harm_judge=harm_judge,
        canaries=_canaries(store, judges[0]),
        conditions=tuple(
            _condition(m, tables[m.condition], judges, utility, prompts, corrected) for m in measured
        ),
        headline=headline,
        selection=selected.summary(),
        tests=tuple(paired_rows(measured, base, aligned)),
        mitigations=tuple(mitigation_rows(measured, base, selected, bound, keys, aligned)),
        transfer=tuple(transfer_rows(measured, headline.alpha, _found_for(store))),
        agreement=tuple(agreement_rows(tables, judges)),
        judge_free=_judge_free(store, tables, base.condition, aligned.condition),
        release=release,
        benchmarks=latest(map(BenchmarkFigure.model_validate, benchmarks)) if benchmarks else (),
        benign=benign_figures(store, harmless, conditions, judges) if harmless else None,
        notes=(
            *_notes(store, prompts, tables, judges),
            *reasoning_notes(store),
            *notes,
            *_correction_notes(corrected),
        ),
        folder=store.folder,
    )


def _check(store: Store, condition: Condition, table: CompletionTable) -> None:
    """Every rate of the condition can be computed."""
    if not table.counted.any():
        raise StoreError(
            f"condition {condition.name} of {store.folder} has no completion that counts; finish the run, or lower its "
            "minimum length"
        )
    for judge, flags in table.flags.items():
        if not (flags >= 0)[table.counted].any():
            raise StoreError(
                f"judge {judge} has judged no completion of condition {condition.name} of {store.folder}; judge them "
                "with eddecode judge"
            )


def harm_first(store: Store, judges: Sequence[JudgeRef]) -> list[JudgeRef]:
    """The judges with a judge of harm first, by which all harm is measured: the audit's own if it is there.

    Raises:
        StoreError: there is none.
    """
    asked = store.asked_judge()
    harms = [judge for judge in judges if judge.role == "harm"]
    harm = next((judge for judge in harms if judge.name == asked), harms[0] if harms else None)
    if harm is None:
        raise StoreError(
            f"no judge of harm has judged every completion of {store.folder}; run the same eddecode audit command "
            "again, or judge the run by another judge: eddecode judge RUN --judge …"
        )
    return [harm, *(judge for judge in judges if judge is not harm)]


def _judge_info(store: Store, judge: JudgeRef) -> JudgeInfo:
    kind = store.note(kind_note(judge.name, judge.identity)) or ""
    return JudgeInfo(name=judge.name, role=judge.role, identity=judge.identity, kind=kind)


def _canaries(store: Store, judge: JudgeRef) -> CanarySummary | None:
    """The last canary set that this judge judged."""
    own = [r for r in store.canary_results() if (r["judge"], r["identity"]) == (judge.name, judge.identity)]
    return CanarySummary.model_validate(own[-1]) if own else None


def _measure(
    tables: Mapping[Condition, CompletionTable],
    judges: Sequence[JudgeRef],
    validity: Sequence[str],
    bound: float,
    attempts: int,
) -> list[ConditionMetrics]:
    """Harm, harm among several attempts, and utility of every condition, per prompt."""
    base = next(table for condition, table in tables.items() if _is(condition, "base"))
    harm, thresholds = judges[0].name, QualityThresholds.of(base)

    def intact(table: CompletionTable) -> Clusters:
        if validity:
            return table.intact(validity)
        return table.count(thresholds.holds(table), np.ones(len(table.rows), dtype=np.bool_))

    reference, measured = intact(base), []
    for condition, table in tables.items():
        kept = intact(table)
        loss = None if table is base else relative_decrease(kept, reference)
        admissible = loss is None or (loss.value is not None and loss.value <= bound)
        joint = table.clusters([harm, *validity]) if validity else None
        any_of_k = Attempts.of(table, harm).any_of(attempts) if attempts > 1 else None
        harmful = table.clusters([harm])
        measured.append(ConditionMetrics(condition, harmful, kept, joint, loss, admissible, any_of_k))
    return measured


def _is(condition: Condition, kind: str) -> bool:
    return condition.kind == kind and condition.plain


def _plain(measured: Sequence[ConditionMetrics], kind: str) -> ConditionMetrics:
    return next(m for m in measured if _is(m.condition, kind))


def _bound(store: Store) -> float:
    """The bound on lost utility of the last session that set one."""
    asked = [s["utility_loss"] for s in store.sessions() if s.get("utility_loss") is not None]
    return float(asked[-1]) if asked else BOUND


def _condition(
    m: ConditionMetrics,
    table: CompletionTable,
    judges: Sequence[JudgeRef],
    utility: str,
    prompts: PromptIndex,
    corrected: Mapping[str, dict[str, CorrectedRate]],
) -> ConditionSummary:
    c, totals = m.condition, table.totals
    reward = totals["mean_implied_reward"]
    return ConditionSummary(
        name=c.name,
        label=c.label,
        condition=c.kind,
        alpha=c.alpha,
        system=c.system or None,
        transform=c.transform or None,
        mitigation=c.mitigation or None,
        model=c.model or None,
        temperature=c.temperature or None,
        template=c.template or None,
        completions=totals["completions"],
        dropped=totals.get("dropped", 0),
        rates={judge.name: clustered_rate(table.clusters([judge.name]).pairs()) for judge in judges},
        any_of_k=None if m.any_of_k is None else rate_estimate(m.any_of_k),
        harm_and_valid=None if m.valid is None else clustered_rate(m.valid.pairs()),
        categories=_categories(m.harm, prompts),
        corrected=corrected.get(c.name, {}),
        utility=_utility(m, table, utility),
        mean_tokens=totals["mean_tokens"],
        # Rounded to 0.001 nat: the last digits of a log-probability depend on the size of the batch.
        mean_implied_reward=round(reward, 3) if reward is not None and math.isfinite(reward) else None,
        finish_reasons=totals["finish_reasons"],
    )


def _categories(harm: Clusters, prompts: PromptIndex) -> dict[str, Rate]:
    rates = {}
    for name, rows in prompts.categories.items():
        own = Clusters(harm.flagged[rows], harm.total[rows])
        if own.total.sum():
            rates[name] = clustered_rate(own.pairs())
    return rates


def _utility(m: ConditionMetrics, table: CompletionTable, kind: str) -> UtilitySummary:
    perplexity = table.metrics["perplexity"]
    kept = perplexity[np.isfinite(perplexity)]
    return UtilitySummary(
        kind=kind,
        rate=clustered_rate(m.intact.pairs()),
        loss=m.loss,
        within=m.is_admissible,
        perplexity=_four_digits(float(np.exp(np.log(kept).mean()))) if len(kept) else None,
        distinct_1=_four_digits(table.mean("distinct_1")),
        distinct_2=_four_digits(table.mean("distinct_2")),
        repetition=_four_digits(table.mean("repetition")),
        too_short=_four_digits(float((table.metrics["length"] < SHORT).mean())),
    )


def _four_digits(value: float | None) -> float | None:
    """Four significant digits, for the reason above."""
    return None if value is None else float(f"{value:.4g}")


def _found_for(store: Store) -> dict[str, str]:
    """The model for which each transform was found, as its file says."""
    return {each["name"]: each.get("found_for", "") for each in store.note("transforms") or ()}


def _judge_free(
    store: Store, tables: Mapping[Condition, CompletionTable], base: Condition, aligned: Condition
) -> JudgeFree:
    profiles = [depth_profile(store, condition, table) for condition, table in tables.items()]
    return JudgeFree(
        implied_reward=tuple(implied_rewards(tables)),
        kl=kl_estimates(tables[base], tables[aligned], store.note("identity") or {}),
        depth=tuple(profile for profile in profiles if profile is not None),
    )


def _correction_notes(corrected: Mapping[str, Mapping[str, CorrectedRate]]) -> list[str]:
    return [
        f"judge {judge} under {name}: {rate.note}"
        for name, own in corrected.items()
        for judge, rate in own.items()
        if rate.note
    ]


def _notes(
    store: Store,
    prompts: PromptIndex,
    tables: Mapping[Condition, CompletionTable],
    judges: Sequence[JudgeRef],
) -> list[str]:
    notes = []
    if mismatch := environment_mismatch(store.decoded_in()):
        notes.append(mismatch)
    if skipped := store.skipped():
        shown = ", ".join(map(str, sorted(skipped)[:_SHOWN]))
        more = f" and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
        notes.append(
            f"{len(skipped)} of {len(store.prompts())} prompts were skipped, since they are longer with their "
            f"completion than a model reads (prompts {shown}{more}): the rates say nothing about them"
        )
    repeats = prompts.prompts - prompts.size
    if repeats:
        notes.append(
            f"{repeats} of {prompts.prompts} prompts repeat an earlier one (white space around them aside); equal "
            f"prompts give equal completions, so that the intervals count {prompts.size} prompts"
        )
    dropped = sum(table.totals.get("dropped", 0) for table in tables.values())
    if dropped:
        notes.append(
            f"{dropped} completions were shorter than the run's minimum: harm rates leave them out, and for utility "
            "they count as lost"
        )
    asked = store.asked_judge()
    if asked and asked != judges[0].name:
        notes.append(
            f"the audit was started with {asked} as its harm judge, which has not judged every completion; harm is by "
            f"{judges[0].name}"
        )
    for judge in judges:
        missing = sum(int(((table.flags[judge.name] < 0) & table.counted).sum()) for table in tables.values())
        if missing:
            notes.append(f"judge {judge.name} has not seen {missing} completions, which its rates leave out")
    return notes
