"""The tables beside the sweep over α: paired tests, mitigations, transformed prompts, agreement of judges.

The rows are made from conditions by their properties (a mitigation, a transform, a system prompt), never by their
names, so that a new kind of condition is one more row. All comparisons are on the same prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from eddecode.audit.analysis.completion_table import CompletionTable, JudgeRef
from eddecode.audit.analysis.headline import (
    ConditionMetrics,
    SelectedAlpha,
    alpha_candidates,
    any_of_k_estimate,
    best_estimate,
    select_alpha,
)
from eddecode.audit.analysis.summary_parts import (
    JudgeAgreement,
    MitigationSummary,
    PairedComparison,
    TransferSummary,
    TransformedRate,
)
from eddecode.audit.conditions import Condition
from eddecode.audit.stats.agreement import (
    JudgeQuality,
    check_better_than_chance,
    cohen_kappa,
    corrected_rate,
    judge_quality,
)
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.estimates import CorrectedRate, Estimate
from eddecode.audit.stats.paired import (
    difference,
    holm,
    paired_test,
    rate_estimate,
    ratio,
    remaining_fraction,
)
from eddecode.audit.stats.proportions import DECIMALS, clustered_rate, round_for_output
from eddecode.errors import JudgeError

Labels = Mapping[tuple[str, int, int], bool]  # (condition's name, prompt index, sample) → harmful, by people


def test_family(condition: Condition) -> str:
    """The family of tests of a condition: `ed`, `mitigation topk5`, `system rude`, `ensemble`."""
    parts = [
        f"{field} {value}"
        for field in ("model", "system", "transform", "mitigation", "temperature", "template")
        if (value := getattr(condition, field))
    ]
    return ", ".join(parts) or condition.kind


def paired_rows(
    measured: Sequence[ConditionMetrics], base: ConditionMetrics, aligned: ConditionMetrics
) -> list[PairedComparison]:
    """Every other condition against base and against aligned, with Holm's correction within each family of tests."""
    pairs = []
    for name, reference in (("base", base), ("aligned", aligned)):
        others = [m for m in measured if m not in (base, aligned)]
        if name == "base":
            others = [aligned, *others]
        pairs += [(m, name, reference) for m in others]
    tests = [paired_test(m.harm, reference.harm) for m, _, reference in pairs]
    families = [f"{test_family(m.condition)} against {name}" for m, name, _ in pairs]
    adjusted: dict[int, float] = {}
    for family in dict.fromkeys(families):
        members = [i for i, other in enumerate(families) if other == family]
        adjusted |= dict(zip(members, holm([tests[i].p for i in members]), strict=True))
    return [
        PairedComparison(
            condition=m.condition.name,
            against=name,
            family=families[i],
            **vars(tests[i]),
            difference=difference(m.harm, reference.harm),
            ratio=ratio(m.harm, reference.harm),
            p_holm=adjusted[i],
        )
        for i, (m, name, reference) in enumerate(pairs)
    ]


def mitigation_rows(
    measured: Sequence[ConditionMetrics],
    base: ConditionMetrics,
    attack: SelectedAlpha,
    bound: float,
    keys: Sequence[str] | None = None,
    aligned: ConditionMetrics | None = None,
) -> list[MitigationSummary]:
    """The reversal that remains under each mitigation, at the α with the most harm under it.

    The first row is the attack without a mitigation. Empty where no condition has a mitigation.

    Args:
        measured: all conditions.
        base: the base model alone.
        attack: the α selected without a mitigation.
        bound: largest loss of utility of an admissible α.
        keys: digests of the prompts.
        aligned: the aligned model alone; None: no uplift over it.
    """
    names = list(dict.fromkeys(m.condition.mitigation for m in measured if m.condition.mitigation))
    if not names:
        return []
    rows = [_mitigated(None, attack, base, aligned, attack, bound)]
    for name in names:
        own = [m for m in measured if m.condition.mitigation == name and not m.condition.model]
        plain = [m for m in own if not (m.condition.system or m.condition.transform)]
        rows.append(_mitigated(name, select_alpha(plain, keys), base, aligned, attack, bound))
    return rows


def _mitigated(
    name: str | None,
    selected: SelectedAlpha,
    base: ConditionMetrics,
    aligned: ConditionMetrics | None,
    attack: SelectedAlpha,
    bound: float,
) -> MitigationSummary:
    conditions = tuple(m.condition.name for m in selected.candidates)
    best, selection = selected.best, selected.selection

    def best_of(
        value: Estimate | None, coefficients: Sequence[float], *references: Clusters
    ) -> Estimate | None:
        return best_estimate(value, selected.candidates, coefficients, references, base.intact, bound)

    any_of_k = any_of_k_estimate(selected.candidates, base, bound)
    candidates = alpha_candidates(selected, base, bound)
    if best is None or selection is None:
        return MitigationSummary(
            mitigation=name,
            conditions=conditions,
            harm=best_of(None, (1.0,)),
            reversal=best_of(None, (1.0, -1.0), base.harm),
            uplift_over_aligned=None if aligned is None else best_of(None, (1.0, -1.0), aligned.harm),
            any_of_k=any_of_k,
            candidates=candidates,
            note="no α that was tried keeps the bound on the loss of utility",
        )
    ed, reduction, left = selection.crossfitted, None, None
    if name is not None and attack.selection is not None:
        whole = attack.selection.crossfitted
        reduction, left = difference(whole, ed), remaining_fraction(ed, whole, base.harm)
    return MitigationSummary(
        mitigation=name,
        conditions=conditions,
        condition=best.condition.name,
        alpha=best.condition.alpha,
        harm=best_of(rate_estimate(ed), (1.0,)),
        reversal=best_of(difference(ed, base.harm), (1.0, -1.0), base.harm),
        reduction=reduction,
        left=left,
        utility_loss=best.loss,
        uplift_over_aligned=None
        if aligned is None
        else best_of(difference(ed, aligned.harm), (1.0, -1.0), aligned.harm),
        any_of_k=any_of_k,
        candidates=candidates,
    )


def transfer_rows(
    measured: Sequence[ConditionMetrics], alpha: str | None, found_for: Mapping[str, str] | None = None
) -> list[TransferSummary]:
    """The effect of each setting (transform, system prompt, temperature, templates) on base, aligned and ED.

    Args:
        measured: all conditions.
        alpha: the headline α; a transform that was not run at it is reported at its α with the highest harm rate.
        found_for: transform → the model for which its text was found, where the user named one.
    """
    plain = {(m.condition.kind, m.condition.alpha): m for m in measured if m.condition.plain}
    groups: dict[tuple[str, ...], list[ConditionMetrics]] = {}
    for m in measured:
        if any(m.condition.setting) and not m.condition.mitigation and not m.condition.model:
            groups.setdefault(m.condition.setting, []).append(m)
    rows = []
    for members in groups.values():
        first = members[0].condition
        cells = {}
        for kind in ("base", "aligned", "ed"):
            own = [m for m in members if m.condition.kind == kind]
            at = [m for m in own if kind == "ed" and m.condition.alpha == alpha]
            chosen = max(at or own, key=lambda m: m.harm.rate, default=None)
            cells[kind] = None if chosen is None else _transformed_rate(chosen, plain)
        rows.append(
            TransferSummary(
                transform=first.transform or None,
                system=first.system or None,
                temperature=first.temperature or None,
                template=first.template or None,
                found_for=(found_for or {}).get(first.transform) or None,
                base=cells["base"],
                aligned=cells["aligned"],
                ed=cells["ed"],
            )
        )
    return rows


def _transformed_rate(
    m: ConditionMetrics, plain: Mapping[tuple[str, str], ConditionMetrics]
) -> TransformedRate:
    same = plain.get((m.condition.kind, m.condition.alpha))
    return TransformedRate(
        condition=m.condition.name,
        alpha=m.condition.alpha,
        rate=clustered_rate(m.harm.pairs()),
        uplift=None if same is None else difference(m.harm, same.harm),
    )


def agreement_rows(
    tables: Mapping[Condition, CompletionTable], judges: Sequence[JudgeRef]
) -> list[JudgeAgreement]:
    """Cohen's κ of every two judges of one role, over the completions of all conditions that both have judged."""
    rows = []
    groups = np.concatenate([table.rows for table in tables.values()])
    flags = {
        j.name: np.concatenate([np.where(t.counted, t.flags[j.name], -1) for t in tables.values()])
        for j in judges
    }
    for one, other in itertools.combinations(judges, 2):
        a, b = flags[one.name], flags[other.name]
        judged = (a >= 0) & (b >= 0)
        if one.role != other.role or not judged.any():
            continue
        kappa = cohen_kappa(a[judged] == 1, b[judged] == 1, groups[judged].tolist())
        rows.append(
            JudgeAgreement(
                first=one.name,
                second=other.name,
                role=one.role,
                kappa=round_for_output(kappa.kappa),
                low=round_for_output(kappa.low),
                high=round_for_output(kappa.high),
                agreement=kappa.agreement,
                expected=kappa.expected,
                n=kappa.n,
                effective=round(kappa.effective, DECIMALS),
            )
        )
    return rows


Qualities = Mapping[str, Mapping[str, JudgeQuality]]  # condition's name → harm judge → its errors there


def judge_qualities(
    tables: Mapping[Condition, CompletionTable], judges: Sequence[JudgeRef], labels: Labels
) -> tuple[Qualities, list[str]]:
    """(the errors of each harm judge in each condition, notes).

    The errors are measured in each condition by itself: a judge that was tuned on ordinary text may miss more of what
    the contrast writes, and one error for all conditions would bias the reversal. A condition without labeled
    completions of both kinds has none; a note says so where there are labels.
    """
    found: dict[str, dict[str, JudgeQuality]] = {condition.name: {} for condition in tables}
    notes: list[str] = []
    for judge in (j for j in judges if j.role == "harm" and labels):
        for condition, table in tables.items():
            flags = np.where(table.counted, table.flags[judge.name], -1)
            labeled = [
                (bool(flags[i] == 1), label, int(table.rows[i]))
                for i, (index, sample) in enumerate(table.keys.tolist())
                if (label := labels.get((condition.name, index, sample))) is not None and flags[i] >= 0
            ]
            if not labeled:
                continue
            verdicts, truths, prompts = (list(column) for column in zip(*labeled, strict=True))
            try:
                quality = judge_quality(verdicts, truths, prompts)
                check_better_than_chance(quality)
            except JudgeError as error:
                notes.append(f"judge {judge.name} under {condition.name} is not corrected: {error}")
                continue
            found[condition.name][judge.name] = quality
    return found, notes


def corrected_rates(
    tables: Mapping[Condition, CompletionTable], qualities: Qualities
) -> dict[str, dict[str, CorrectedRate]]:
    """Condition's name → harm judge → harm rate corrected by the judge's errors in that condition."""
    return {
        condition.name: {
            judge: corrected_rate(table.clusters([judge]).pairs(), quality)
            for judge, quality in qualities[condition.name].items()
        }
        for condition, table in tables.items()
    }
