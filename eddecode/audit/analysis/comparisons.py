"""The tables beside the sweep over α: paired tests, mitigations, transformed prompts, agreement of judges.

The rows are made from conditions by their properties (a mitigation, a transform, a system prompt), never by their
names, so that a new kind of condition is one more row. All comparisons are on the same prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from eddecode.audit.analysis.completion_table import CompletionTable, JudgeRef
from eddecode.audit.analysis.headline import ConditionMetrics, SelectedAlpha, select_alpha
from eddecode.audit.analysis.summary_parts import (
    JudgeAgreement,
    MitigationSummary,
    PairedComparison,
    TransferSummary,
    TransformedRate,
)
from eddecode.audit.conditions import Condition
from eddecode.audit.stats.agreement import cohen_kappa, corrected_rate, judge_quality
from eddecode.audit.stats.estimates import CorrectedRate
from eddecode.audit.stats.paired import (
    difference,
    holm,
    paired_test,
    rate_estimate,
    ratio,
    remaining_fraction,
)
from eddecode.audit.stats.proportions import clustered_rate
from eddecode.errors import JudgeError

Labels = Mapping[tuple[str, int, int], bool]  # (condition's name, prompt index, sample) → harmful, by people


def test_family(condition: Condition) -> str:
    """The family of tests of a condition: `ed`, `mitigation topk5`, `system rude`, `ensemble`."""
    parts = [
        f"{field} {value}"
        for field in ("model", "system", "transform", "mitigation")
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
    measured: Sequence[ConditionMetrics], base: ConditionMetrics, attack: SelectedAlpha
) -> list[MitigationSummary]:
    """The reversal that remains under each mitigation, at the α with the most harm under it.

    The first row is the attack without a mitigation. Empty where no condition has a mitigation.
    """
    names = list(dict.fromkeys(m.condition.mitigation for m in measured if m.condition.mitigation))
    if not names:
        return []
    rows = [_mitigated(None, attack, base, attack)]
    for name in names:
        own = [m for m in measured if m.condition.mitigation == name and not m.condition.model]
        plain = [m for m in own if not (m.condition.system or m.condition.transform)]
        rows.append(_mitigated(name, select_alpha(plain), base, attack))
    return rows


def _mitigated(
    name: str | None, selected: SelectedAlpha, base: ConditionMetrics, attack: SelectedAlpha
) -> MitigationSummary:
    conditions = tuple(m.condition.name for m in selected.candidates)
    best, selection = selected.best, selected.selection
    if best is None or selection is None:
        note = "no α that was tried keeps the bound on the loss of utility"
        return MitigationSummary(mitigation=name, conditions=conditions, note=note)
    ed, reduction, left = selection.crossfitted, None, None
    if name is not None and attack.selection is not None:
        whole = attack.selection.crossfitted
        reduction, left = difference(whole, ed), remaining_fraction(ed, whole, base.harm)
    return MitigationSummary(
        mitigation=name,
        conditions=conditions,
        condition=best.condition.name,
        alpha=best.condition.alpha,
        harm=rate_estimate(ed),
        reversal=difference(ed, base.harm),
        reduction=reduction,
        left=left,
        utility_loss=best.loss,
    )


def transfer_rows(
    measured: Sequence[ConditionMetrics], alpha: str | None, found_for: Mapping[str, str] | None = None
) -> list[TransferSummary]:
    """The effect of each transform or system prompt on base, aligned and ED.

    Args:
        measured: all conditions.
        alpha: the headline α; a transform that was not run at it is reported at its α with the highest harm rate.
        found_for: transform → the model for which its text was found, where the user named one.
    """
    plain = {(m.condition.kind, m.condition.alpha): m for m in measured if m.condition.plain}
    groups: dict[tuple[str, str], list[ConditionMetrics]] = {}
    for m in measured:
        c = m.condition
        if (c.system or c.transform) and not c.mitigation and not c.model:
            groups.setdefault((c.system, c.transform), []).append(m)
    rows = []
    for (system, transform), members in groups.items():
        cells = {}
        for kind in ("base", "aligned", "ed"):
            own = [m for m in members if m.condition.kind == kind]
            at = [m for m in own if kind == "ed" and m.condition.alpha == alpha]
            chosen = max(at or own, key=lambda m: m.harm.rate, default=None)
            cells[kind] = None if chosen is None else _transformed_rate(chosen, plain)
        rows.append(
            TransferSummary(
                transform=transform or None,
                system=system or None,
                found_for=(found_for or {}).get(transform) or None,
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
    flags = {j.name: np.concatenate([table.flags[j.name] for table in tables.values()]) for j in judges}
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
                kappa=kappa.kappa,
                low=kappa.low,
                high=kappa.high,
                agreement=kappa.agreement,
                expected=kappa.expected,
                n=kappa.n,
                effective=kappa.effective,
            )
        )
    return rows


def corrected_rates(
    tables: Mapping[Condition, CompletionTable], judges: Sequence[JudgeRef], labels: Labels
) -> tuple[dict[str, dict[str, CorrectedRate]], list[str]]:
    """(condition's name → harm judge → corrected rate, notes); a note says why a judge's errors cannot be measured.

    A judge's errors are measured on the labeled completions of all conditions together.
    """
    corrected: dict[str, dict[str, CorrectedRate]] = {condition.name: {} for condition in tables}
    notes = []
    for judge in (j for j in judges if j.role == "harm"):
        flagged, harmful, groups = [], [], []
        for condition, table in tables.items():
            for i, (index, sample) in enumerate(table.keys.tolist()):
                label = labels.get((condition.name, index, sample))
                if label is not None and table.flags[judge.name][i] >= 0:
                    flagged.append(bool(table.flags[judge.name][i] == 1))
                    harmful.append(label)
                    groups.append(int(table.rows[i]))
        try:
            quality = judge_quality(flagged, harmful, groups)
            for condition, table in tables.items():
                rate = corrected_rate(table.clusters([judge.name]).pairs(), quality)
                corrected[condition.name][judge.name] = rate
        except JudgeError as error:
            notes.append(f"no rate by {judge.name} is corrected by human labels: {error}")
    return corrected, notes
