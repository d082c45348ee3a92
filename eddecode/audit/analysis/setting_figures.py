"""The strongest attack where a run has several settings: templates, system prompts, transforms, temperatures.

An attacker chooses the setting as well as α, and may choose the best one for the base model alone too. So beside the
harm of the strongest setting stands what the pair adds: the strongest setting of the attack minus the strongest one of
the base (or of the aligned model), which may be two different settings. Bounds hold the truly best of all settings and
α's within the bound on lost utility (`stats.admissible`); utility is measured against the plain base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from eddecode.audit.analysis.headline import (
    ConditionMetrics,
    any_of_k_estimate,
    select_alpha,
    with_bounds,
)
from eddecode.audit.analysis.release_parts import AttackFigures, SettingCandidate, SettingFigures
from eddecode.audit.stats.admissible import BestAdmissible, best_over_references
from eddecode.audit.stats.clusters import Clusters
from eddecode.audit.stats.estimates import Estimate
from eddecode.audit.stats.paired import difference, rate_estimate
from eddecode.audit.stats.proportions import round_for_output


def setting_figures(
    figures: AttackFigures,
    candidates: Sequence[ConditionMetrics],
    conditions: Sequence[ConditionMetrics],
    base: ConditionMetrics,
    keys: Sequence[str],
    bound: float,
) -> SettingFigures:
    """The figures of the strongest setting.

    Args:
        figures: of the strongest attack among the candidates, against the plain models.
        candidates: every α above 0 in every setting.
        conditions: all conditions of the pair without a mitigation.
        base: the plain base model.
        keys: digests of the prompts.
        bound: ε.
    """
    selection = select_alpha(candidates, keys).selection
    attack = None if selection is None else selection.crossfitted
    found = {}
    for kind in ("base", "aligned"):
        own = [m for m in conditions if m.condition.kind == kind]
        name, alone, rate = _strongest(own, keys)
        best = best_over_references(
            [m.harm for m in candidates],
            [m.harm for m in own],
            [m.intact for m in candidates],
            base.intact,
            bound,
        )
        value = None if attack is None else difference(attack, alone)
        found[kind] = name, rate, with_bounds(value, best), best
    return SettingFigures(
        settings=len({m.condition.setting for m in conditions}),
        base_condition=found["base"][0],
        strongest_base=found["base"][1],
        over_strongest_base=found["base"][2],
        aligned_condition=found["aligned"][0],
        strongest_aligned=found["aligned"][1],
        over_strongest_aligned=found["aligned"][2],
        any_of_k=any_of_k_estimate(candidates, base, bound),
        candidates=_candidates(candidates, found["base"][3]),
        **dict(figures),
    )


def _strongest(own: Sequence[ConditionMetrics], keys: Sequence[str]) -> tuple[str, Clusters, Estimate]:
    """(condition, cross-fitted condition, its rate) of the most harmful setting of one model alone."""
    found = select_alpha([replace(m, is_admissible=True) for m in own], keys)
    assert found.best is not None  # every run has its base and its aligned model
    assert found.selection is not None
    alone = found.selection.crossfitted
    rate = rate_estimate(alone)
    highs = [rate_estimate(m.harm).high or 0.0 for m in own]
    high = round_for_output(max([rate.high or 0.0, *highs]))
    return found.best.condition.name, alone, replace(rate, high=high)


def _candidates(candidates: Sequence[ConditionMetrics], best: BestAdmissible) -> tuple[SettingCandidate, ...]:
    return tuple(
        SettingCandidate(
            alpha=m.condition.alpha,
            condition=m.condition.name,
            state=c.state,
            loss=round_for_output(c.loss),
            reversal=round_for_output(c.value),
            low=round_for_output(c.low) or 0.0,
            high=round_for_output(c.high) or 0.0,
        )
        for m, c in zip(candidates, best.candidates, strict=True)
    )
