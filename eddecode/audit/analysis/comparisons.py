"""What stands beside the sweep over α: paired tests, mitigations, transformed prompts, and how far judges agree.

Each table is a list of rows made from conditions by what they carry (a mitigation, a transform, a system prompt),
and never by their names, so that a new kind of condition is one more row. All comparisons are on the same prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from eddecode.audit.analysis.completion_table import CompletionTable, JudgeRef
from eddecode.audit.analysis.headline import ConditionMetrics, SelectedAlpha, select_alpha
from eddecode.audit.conditions import Condition
from eddecode.audit.stats.agreement import cohen_kappa, corrected_rate, judge_quality
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

Label = Mapping[tuple[str, int, int], bool]  # (condition's name, prompt index, sample) → harmful, by people


def test_family(condition: Condition) -> str:
    """Conditions that are tried for one question: `ed`, `mitigation topk5`, `system rude`, `ensemble`."""
    parts = [
        f"{field} {value}"
        for field in ("model", "system", "transform", "mitigation")
        if (value := getattr(condition, field))
    ]
    return ", ".join(parts) or condition.kind


def paired_rows(
    measured: Sequence[ConditionMetrics], base: ConditionMetrics, aligned: ConditionMetrics
) -> list[dict[str, Any]]:
    """Every other condition against base and against aligned, Holm's correction within each family of tests."""
    rows: list[dict[str, Any]] = []
    for name, reference in (("base", base), ("aligned", aligned)):
        others = [m for m in measured if m not in (base, aligned)]
        if name == "base":
            others = [aligned, *others]
        for m in others:
            test = paired_test(m.harm, reference.harm)
            rows.append(
                {
                    "condition": m.condition.name,
                    "against": name,
                    "family": f"{test_family(m.condition)} against {name}",
                    **asdict(test),
                    "difference": difference(m.harm, reference.harm),
                    "ratio": ratio(m.harm, reference.harm),
                }
            )
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    for members in families.values():
        for row, p in zip(members, holm([row["p"] for row in members]), strict=True):
            row["p_holm"] = p
    return rows


def mitigation_rows(
    measured: Sequence[ConditionMetrics], base: ConditionMetrics, attack: SelectedAlpha
) -> list[dict[str, Any]]:
    """What is left of the reversal under each mitigation; the attacker again takes the α that is worst under it.

    The first row is the attack without any. Empty where no condition carries a mitigation.
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
    name: str | None, picked: SelectedAlpha, base: ConditionMetrics, attack: SelectedAlpha
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "mitigation": name,
        "conditions": [m.condition.name for m in picked.candidates],
        **dict.fromkeys(("condition", "alpha", "harm", "reversal", "reduction", "left", "utility_loss")),
        "note": "",
    }
    best, made = picked.best, picked.selection
    if best is None or made is None:
        return row | {"note": "no α that was tried keeps the bound on the loss of utility"}
    ed = made.crossfitted
    row |= {
        "condition": best.condition.name,
        "alpha": best.condition.alpha,
        "harm": rate_estimate(ed),
        "reversal": difference(ed, base.harm),
        "utility_loss": best.loss,
    }
    if name is not None and attack.selection is not None:
        whole = attack.selection.crossfitted
        row |= {"reduction": difference(whole, ed), "left": remaining_fraction(ed, whole, base.harm)}
    return row


def transfer_rows(
    measured: Sequence[ConditionMetrics], alpha: str | None, found_for: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What each transform or system prompt does to base, aligned and ED.

    Args:
        measured: all conditions.
        alpha: the headline α; where a transform was not tried at it, its ED cell is the α with the highest rate.
        found_for: transform → the model for which its text was found, where the user said so.
    """
    plain = {(m.condition.kind, m.condition.alpha): m for m in measured if m.condition.plain}
    groups: dict[tuple[str, str], list[ConditionMetrics]] = {}
    for m in measured:
        c = m.condition
        if (c.system or c.transform) and not c.mitigation and not c.model:
            groups.setdefault((c.system, c.transform), []).append(m)
    rows = []
    for (system, transform), members in groups.items():
        cells: dict[str, Any] = {
            "transform": transform or None,
            "system": system or None,
            "found_for": (found_for or {}).get(transform) or None,
        }
        for kind in ("base", "aligned", "ed"):
            own = [m for m in members if m.condition.kind == kind]
            at = [m for m in own if kind == "ed" and m.condition.alpha == alpha]
            chosen = max(at or own, key=lambda m: m.harm.rate, default=None)
            cells[kind] = None if chosen is None else _cell(chosen, plain)
        rows.append(cells)
    return rows


def _cell(m: ConditionMetrics, plain: Mapping[tuple[str, str], ConditionMetrics]) -> dict[str, Any]:
    same = plain.get((m.condition.kind, m.condition.alpha))
    return {
        "condition": m.condition.name,
        "alpha": m.condition.alpha,
        "rate": clustered_rate(m.harm.pairs()),
        "uplift": None if same is None else difference(m.harm, same.harm),
    }


def agreement_rows(
    read: Mapping[Condition, CompletionTable], judges: Sequence[JudgeRef]
) -> list[dict[str, Any]]:
    """Cohen's κ of every two judges of one role, over the completions of all conditions that both have seen."""
    rows = []
    groups = np.concatenate([columns.rows for columns in read.values()])
    flags = {j.name: np.concatenate([columns.flags[j.name] for columns in read.values()]) for j in judges}
    for one, other in itertools.combinations(judges, 2):
        a, b = flags[one.name], flags[other.name]
        seen = (a >= 0) & (b >= 0)
        if one.role != other.role or not seen.any():
            continue
        found = asdict(cohen_kappa(a[seen] == 1, b[seen] == 1, groups[seen].tolist()))
        kept = ("kappa", "low", "high", "agreement", "expected", "n", "effective")
        rows.append(
            {"first": one.name, "second": other.name, "role": one.role, **{k: found[k] for k in kept}}
        )
    return rows


def corrected_rates(
    read: Mapping[Condition, CompletionTable], judges: Sequence[JudgeRef], labels: Label
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """(condition's name → judge of harm → corrected rate, notes); a judge that cannot be measured is a note.

    A judge's errors are measured on the labelled completions of all conditions together.
    """
    corrected: dict[str, dict[str, Any]] = {condition.name: {} for condition in read}
    notes = []
    for judge in (j for j in judges if j.role == "harm"):
        said, truth, groups = [], [], []
        for condition, columns in read.items():
            for i, (index, sample) in enumerate(columns.keys.tolist()):
                human = labels.get((condition.name, index, sample))
                if human is not None and columns.flags[judge.name][i] >= 0:
                    said.append(bool(columns.flags[judge.name][i] == 1))
                    truth.append(human)
                    groups.append(int(columns.rows[i]))
        try:
            quality = judge_quality(said, truth, groups)
            for condition, columns in read.items():
                rate = corrected_rate(columns.clusters([judge.name]).pairs(), quality)
                corrected[condition.name][judge.name] = asdict(rate)
        except JudgeError as error:
            notes.append(f"no rate by {judge.name} is corrected by human labels: {error}")
    return corrected, notes
