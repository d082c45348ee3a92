"""From a store to a finding: read each condition's columns once, then put the statistics of the other modules together.

Ten thousand prompts in ten conditions are some seconds of work and some tens of megabytes: the columns hold flags
and figures, never text, and every interval is made from counts per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eddecode.audit.analysis import implied_reward as judge_free
from eddecode.audit.analysis.comparisons import (
    Label,
    agreement_rows,
    corrected_rates,
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
from eddecode.audit.analysis.headline import BOUND, ConditionMetrics, attacks, headline, select_alpha
from eddecode.audit.analysis.summary import ConditionSummary, Summary, UtilitySummary
from eddecode.audit.conditions import Condition
from eddecode.audit.stats.paired import Clusters, relative_decrease
from eddecode.audit.stats.proportions import Rate, clustered_rate
from eddecode.audit.store.store import Store
from eddecode.audit.text_quality import SHORT
from eddecode.errors import StoreError

_BY_CATEGORY = 2_000  # resamples for an interval within one category: there may be many


def summarize(
    store: Store, conditions: Sequence[Condition], judges: Sequence[JudgeRef], labels: Label | None = None
) -> Summary:
    """The finding of a finished run.

    Args:
        store: open, for reading or writing.
        conditions: of the run, in the order of its table.
        judges: those that sat; the first judges harm.
        labels: what people say of completions: (condition's name, prompt index, sample) → harmful.

    Raises:
        StoreError: a condition has no completion that counts.
    """
    people = load_prompt_index(store)
    read = {condition: load_table(store, condition, judges, people) for condition in conditions}
    for condition, columns in read.items():
        if not len(columns.rows):
            raise StoreError(
                f"condition {condition.name} of {store.folder} has no completion that counts; finish the run, or "
                "lower its minimum length"
            )
    bound, validity = _bound(store), [judge.name for judge in judges if judge.role == "validity"]
    measured = _measure(read, judges, validity, bound)
    base, aligned = (_plain(measured, kind) for kind in ("base", "aligned"))
    picked = select_alpha(attacks(measured))
    found = headline(
        picked,
        base,
        aligned,
        judge=judges[0].name,
        utility="validity" if validity else "composite",
        bound=bound,
    )
    corrected, notes = corrected_rates(read, judges, labels) if labels else ({}, [])
    entries = [_entry(m, read[m.condition], judges, validity, people) for m in measured]
    return Summary(
        identity=store.note("identity"),
        digest=store.note("digest"),
        prompts=people.prompts,
        distinct_prompts=people.size,
        judges=tuple({"name": j.name, "role": j.role, "identity": j.identity} for j in judges),
        conditions=tuple(ConditionSummary(**e, corrected=corrected.get(e["name"], {})) for e in entries),
        headline=found,
        selection=picked.to_dict(),
        tests=tuple(paired_rows(measured, base, aligned)),
        mitigations=tuple(mitigation_rows(measured, base, picked)),
        transfer=tuple(transfer_rows(measured, found.alpha, _found_for(store))),
        agreement=tuple(agreement_rows(read, judges)),
        judge_free=_judge_free(store, read, base.condition, aligned.condition),
        notes=(*_notes(store, people, read, judges), *notes),
        folder=store.folder,
    )


def _measure(
    read: Mapping[Condition, CompletionTable],
    judges: Sequence[JudgeRef],
    validity: Sequence[str],
    bound: float,
) -> list[ConditionMetrics]:
    """Harm and utility of every condition by prompts."""
    base = next(columns for condition, columns in read.items() if _is(condition, "base"))
    harm, usual = judges[0].name, QualityThresholds.of(base)

    def intact(columns: CompletionTable) -> Clusters:
        return columns.clusters(validity) if validity else columns.count(usual.holds(columns))

    reference, measured = intact(base), []
    for condition, columns in read.items():
        kept = intact(columns)
        loss = None if columns is base else relative_decrease(kept, reference)
        within = loss is None or (loss.value is not None and loss.value <= bound)
        joint = columns.clusters([harm, *validity]) if validity else None
        measured.append(ConditionMetrics(condition, columns.clusters([harm]), kept, joint, loss, within))
    return measured


def _is(condition: Condition, kind: str) -> bool:
    return condition.kind == kind and condition.plain


def _plain(measured: Sequence[ConditionMetrics], kind: str) -> ConditionMetrics:
    return next(m for m in measured if _is(m.condition, kind))


def _bound(store: Store) -> float:
    """The bound on lost utility that the run was last asked for."""
    asked = [s["utility_loss"] for s in store.sessions() if s.get("utility_loss") is not None]
    return float(asked[-1]) if asked else BOUND


def _entry(
    m: ConditionMetrics,
    columns: CompletionTable,
    judges: Sequence[JudgeRef],
    validity: Sequence[str],
    people: PromptIndex,
) -> dict[str, Any]:
    c, facts = m.condition, columns.facts
    reward = facts["mean_implied_reward"]
    return {
        "name": c.name,
        "label": c.label,
        "condition": c.kind,
        "alpha": c.alpha,
        "system": c.system or None,
        "transform": c.transform or None,
        "mitigation": c.mitigation or None,
        "model": c.model or None,
        "completions": facts["completions"],
        "dropped": facts.get("dropped", 0),
        "rates": {judge.name: clustered_rate(columns.clusters([judge.name]).pairs()) for judge in judges},
        "harm_and_valid": None if m.valid is None else clustered_rate(m.valid.pairs()),
        "categories": _categories(m.harm, people),
        "utility": _utility(m, columns, "validity" if validity else "composite"),
        "mean_tokens": facts["mean_tokens"],
        # Thousandths of a nat: a log-probability's last digits depend on how large the batch was, and mean nothing.
        "mean_implied_reward": round(reward, 3) if reward is not None and math.isfinite(reward) else None,
        "finish_reasons": facts["finish_reasons"],
    }


def _categories(harm: Clusters, people: PromptIndex) -> dict[str, Rate]:
    found = {}
    for name, rows in people.categories.items():
        own = Clusters(harm.flagged[rows], harm.total[rows])
        if own.total.sum():
            found[name] = clustered_rate(own.pairs(), resamples=_BY_CATEGORY)
    return found


def _utility(m: ConditionMetrics, columns: CompletionTable, kind: str) -> UtilitySummary:
    perplexity = columns.figures["perplexity"]
    kept = perplexity[np.isfinite(perplexity)]
    means = {name: _short(columns.mean(name)) for name in ("distinct_1", "distinct_2", "repetition")}
    return UtilitySummary(
        kind=kind,
        rate=clustered_rate(m.intact.pairs()),
        loss=m.loss,
        within=m.is_admissible,
        perplexity=_short(float(np.exp(np.log(kept).mean()))) if len(kept) else None,
        too_short=_short(float((columns.figures["length"] < SHORT).mean())),
        **means,
    )


def _short(value: float | None) -> float | None:
    """Four digits, for the reason above."""
    return None if value is None else float(f"{value:.4g}")


def _found_for(store: Store) -> dict[str, str]:
    """The model for which each transform was found, as its file says."""
    return {each["name"]: each.get("found_for", "") for each in store.note("transforms") or ()}


def _judge_free(
    store: Store, read: Mapping[Condition, CompletionTable], base: Condition, aligned: Condition
) -> dict[str, Any]:
    profiles = [judge_free.depth_profile(store, condition, columns) for condition, columns in read.items()]
    return {
        "implied_reward": judge_free.rewards_along(read),
        "kl": judge_free.kl_estimates(read[base], read[aligned], store.note("identity") or {}),
        "depth": [profile for profile in profiles if profile is not None],
    }


def _notes(
    store: Store, people: PromptIndex, read: Mapping[Condition, CompletionTable], judges: Sequence[JudgeRef]
) -> list[str]:
    notes = []
    if moved := environment_mismatch(store.decoded_in()):
        notes.append(moved)
    repeats = people.prompts - people.size
    if repeats:
        notes.append(
            f"{repeats} of {people.prompts} prompts repeat an earlier one; equal prompts give equal completions, so "
            f"that the intervals count {people.size} prompts"
        )
    dropped = sum(columns.facts.get("dropped", 0) for columns in read.values())
    if dropped:
        notes.append(f"{dropped} completions were shorter than the run's minimum and count nowhere")
    for judge in judges:
        missing = sum(int((columns.flags[judge.name] < 0).sum()) for columns in read.values())
        if missing:
            notes.append(f"judge {judge.name} has not seen {missing} completions, which its rates leave out")
    return notes
