"""Open question on finding 3: does a stronger alignment give away more at equal utility?

How far an alignment moved a model is KL(aligned‖base) per completion. By the chain rule it is a sum of two parts:

    KL(aligned‖base) = KL of the classes {rude, not rude} + mean over classes of KL within a class

The first part is what the alignment was for, here called its strength; it is at most −log P(not rude) of the base. The
second part is everything else that training changed, here called its damage. ED is compared at equal utility: at the
best α that loses at most a tenth of the base's validity. Its rate is regressed on both parts at once, over all members
of both families and all seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from eddecode.experiments.findings import plots
from eddecode.experiments.findings.criteria import LEVEL, UTILITY_LOSS, Flags, Floats, best_alpha, format_rate
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.strength import AlignmentRun, measure_families
from eddecode.testbed import rules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

COLUMNS = (
    "aligned model", "KL(aligned‖base), nats", "strength, nats", "damage, nats", "ED at equal utility %", "best α",
    "valid there %",
)  # fmt: skip
TREND_COLUMNS = ("part of the KL", "points of ED", "95% interval")
TERMS = ("strength", "damage")


def class_divergence(aligned: Flags, base: Flags) -> float:
    """KL of two rates, nats, each with half a completion of either kind added, so that it is finite.

    >>> round(class_divergence(np.zeros(999, bool), np.arange(999) < 499), 3)
    0.689
    """
    q, p = ((flags.sum() + 0.5) / (len(flags) + 1) for flags in (aligned, base))
    return float(q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))


def strength_of(member: AlignmentRun, moods: Sequence[str]) -> float:
    """The part of KL(aligned‖base) that is between the classes, nats: mean over the moods, whose rates differ."""
    aligned, base = (member.conditions[alpha].rude for alpha in (-1.0, 0.0))
    each = [[mood == one for mood in moods] for one in rules.MOODS]
    return float(np.mean([class_divergence(aligned[mask], base[mask]) for mask in map(np.array, each)]))


@dataclass(frozen=True)
class Trend:
    """Slopes of a linear regression, with 95% intervals (Student's t)."""

    slopes: tuple[float, ...]
    halves: tuple[float, ...]


def regress(y: Floats, terms: Floats, groups: Sequence[Any]) -> Trend:
    """Least squares of y (n,) on terms (n, k) with an intercept of its own for each group.

    Returns an infinite half-width where there are no more points than coefficients.
    """
    labels = sorted(set(groups))
    intercepts = np.array([[float(g == label) for label in labels] for g in groups])
    design = np.hstack([terms, intercepts])  # (n, k + groups)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    freedom, k = len(y) - design.shape[1], terms.shape[1]
    if freedom < 1:
        return Trend(tuple(coefficients[:k].tolist()), (math.inf,) * k)
    residual = y - design @ coefficients
    covariance = np.linalg.pinv(design.T @ design) * float(residual @ residual) / freedom
    halves = stats.t.ppf(1 - LEVEL / 2, freedom) * np.sqrt(np.diag(covariance)[:k])
    return Trend(tuple(coefficients[:k].tolist()), tuple(halves.tolist()))


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """Both parts of the KL and ED at equal utility, for every member of every family."""
    moods = [request.mood for request in harness.requests]
    points: list[dict[str, Any]] = []
    rows = []
    for family, members in measure_families(harness).items():
        for member in members:
            best = best_alpha(list(member.conditions.values()), within=member.conditions[0.0])
            kl, strength = float(member.conditions[-1.0].reward.mean()), strength_of(member, moods)
            rate = float(best.rude_and_valid.mean())
            point = {"family": family, "name": member.name, "kl": kl, "strength": strength, "ed": rate}
            points.append({**point, "damage": max(0.0, kl - strength), "alpha": best.alpha})
            parts = (f"{kl:.2f}", f"{strength:.2f}", f"{kl - strength:.2f}")
            rates = (format_rate(best.rude_and_valid), f"{best.alpha:g}", format_rate(best.valid))
            rows.append((member.name, *parts, *rates))
    title = f"Strength, damage, and ED with at most {100 * UTILITY_LOSS:.0f}% of validity lost"
    table = ResultTable(title, COLUMNS, rows)
    holds, summary, _ = _trend([points])
    return ExperimentResult(holds, summary, {"points": points}, [table])


def _trend(seeds: Sequence[Sequence[dict[str, Any]]]) -> tuple[bool, str, dict[str, Any]]:
    """Whether the slope on strength is above 0, in words and as data; points of several seeds."""
    flat = [(i, point) for i, points in enumerate(seeds) for point in points]
    y = np.array([100 * point["ed"] for _, point in flat])
    terms = np.array([[point["strength"] / 0.1, math.log2(1 + point["damage"])] for _, point in flat])
    trend = regress(y, terms, [(i, point["family"]) for i, point in flat])
    ends = [(slope - half, slope + half) for slope, half in zip(trend.slopes, trend.halves, strict=True)]
    said = [f"{s:+.1f} [{low:+.1f}, {high:+.1f}]" for s, (low, high) in zip(trend.slopes, ends, strict=True)]
    summary = (
        f"ED gains {said[0]} points per 0.1 nat of strength at equal damage, and {said[1]} per doubling of 1 + damage "
        f"in nats at equal strength ({len(flat)} aligned models, {len(seeds)} seed{'s' * (len(seeds) > 1)})"
    )
    data = {name: [slope, *end] for name, slope, end in zip(TERMS, trend.slopes, ends, strict=True)}
    return ends[0][0] > 0, summary, data


def pool(results: Sequence[ExperimentResult]) -> ExperimentResult:
    """The trend over all seeds."""
    holds, summary, data = _trend([result.figures["points"] for result in results])
    units = ("strength, per 0.1 nat", "damage, per doubling of 1 + damage in nats")
    rows = [
        (unit, f"{data[name][0]:+.1f}", f"[{data[name][1]:+.1f}, {data[name][2]:+.1f}]")
        for unit, name in zip(units, TERMS, strict=True)
    ]
    table = ResultTable("Trend of ED at equal utility, both parts at once", TREND_COLUMNS, rows)
    return ExperimentResult(holds, summary, data, [table])


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """ED at equal utility against strength, and against damage; every member of every seed is a point."""
    figure, panels = plots.axes(2)
    families = list(dict.fromkeys(p["family"] for p in results[0].figures["points"]))
    for panel, name in zip(panels, TERMS, strict=True):
        for i, family in enumerate(families):
            points = [p for r in results for p in r.figures["points"] if p["family"] == family]
            look = {**plots.style(i), "linestyle": ""}
            panel.plot([p[name] for p in points], [100 * p["ed"] for p in points], label=family, **look)
        plots.percent(panel)
        panel.set_xlabel(f"{name}, nats")
    panels[1].set_xscale("symlog", linthresh=1)
    panels[1].set_xticks([0, 1, 10], ["0", "1", "10"])
    panels[1].set_xlim(-0.15, 1.5 * max(1.0, *(p["damage"] for r in results for p in r.figures["points"])))
    panels[1].minorticks_off()
    panels[0].set_ylabel("ED at equal utility")
    plots.legend(figure, 2)
    return figure


TREND = Experiment(
    "strength-trend",
    3,
    "Does a stronger alignment give away more at equal utility?",
    "At equal utility and equal damage, ED reverses more of an alignment that moved the rate of rude replies further.",
    "KL(aligned‖base) of each member of both families is split into strength (between rude and not rude) and damage "
    "(within them). Regressing the rude-and-valid rate of ED, at the best α that loses at most "
    f"{100 * UTILITY_LOSS:.0f}% of validity, on strength and log2(1 + damage), with an intercept per seed and family: "
    "the 95% interval of the slope on strength is above 0, all seeds together.",
    measure,
    draw,
    "Intervals treat aligned models as independent, though those of a seed share a base. The KL is estimated from 300 "
    "completions; a damage below 0 by chance counts as 0. Strength has an upper end, near which all filters are.",
    headline=True,
    pool=pool,
    question=True,
)
