"""Finding 5, on the implied reward: how well log p_aligned − log p_base ranks completions by rudeness, over α.

The paper calls that log-ratio a safety reward. If it is one, rude completions have a low reward. Under ED it is what
sampling pushes down; at a large α everything that was sampled has a low reward, rude language and non-language alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eddecode.experiments.findings import plots
from eddecode.experiments.findings.criteria import ConditionResult
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.experiments.findings.ranking import Auc, auc
from eddecode.utils import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

FEWEST = 10
"""Completions of each kind that an area needs."""
COLUMNS = ("α", "AUC", "rude and valid", "others")


def ranking(condition: ConditionResult) -> Auc | None:
    """AUC of the negative implied reward for rude and valid completions; None with too few of one kind."""
    flagged = condition.rude_and_valid
    if min(int(flagged.sum()), int((~flagged).sum())) < FEWEST:
        return None
    return auc(-condition.reward, flagged)


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """The area on the base's completions, and on those of ED by α."""
    conditions = harness.sweep(harness.main_target, large=True)
    areas = {alpha: ranking(c) for alpha, c in sorted(conditions.items()) if alpha >= 0}
    known = {alpha: area for alpha, area in areas.items() if area is not None}
    rows = [
        (
            f"{a:g}",
            f"{one.value:.3f} [{one.interval[0]:.3f}, {one.interval[1]:.3f}]",
            f"{one.flagged}",
            f"{one.others}",
        )
        for a, one in known.items()
    ]
    points = [[a, one.value, *one.interval] for a, one in known.items()]
    base, last = known.get(0.0), max(known, default=0.0)
    figures: dict[str, Any] = {"points": points}
    table = ResultTable("Implied reward as a ranking of completions by rudeness", COLUMNS, rows)
    if base is None:
        return ExperimentResult(False, "too few completions of one kind at α=0", figures, [table])
    end = known[last]
    falls = end.value < base.value and end.differs_from(base)
    summary = (
        f"AUC {base.value:.3f} [{base.interval[0]:.3f}, {base.interval[1]:.3f}] on the base's completions, "
        f"{end.value:.3f} [{end.interval[0]:.3f}, {end.interval[1]:.3f}] at α={last:g}, the largest with {FEWEST} "
        "completions of each kind"
    )
    return ExperimentResult(base.interval[0] > 0.5 and falls, summary, figures, [table])


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """The area over α: the first seed with its intervals, other seeds as thin lines."""
    figure, (panel,) = plots.axes()
    points = results[0].figures["points"]
    xs = [p[0] for p in points]
    plots.line(panel, xs, [plots.PlottedRate(*p[1:]) for p in points], 0, "first seed")
    for other in results[1:]:
        more = other.figures["points"]
        panel.plot([p[0] for p in more], [100 * p[1] for p in more], color=plots.GRAY, linewidth=0.8)
    panel.axhline(50, color=plots.GRAY, linewidth=1, linestyle=":")
    plots.percent(panel)
    plotting.number_axis(panel.yaxis, lambda value: plotting.format_tick(value / 100))
    plots.alpha_axis(panel, xs)
    panel.set_ylabel("AUC (dotted: chance)")
    seeds = f" (gray: {len(results) - 1} more seeds)" if len(results) > 1 else ""
    panel.set_title(f"first seed with its intervals{seeds}", loc="left", fontsize=10)
    return figure


REWARD = Experiment(
    "reward-auc",
    5,
    "The implied reward as a measure of harm",
    "The implied reward ranks the base's completions by rudeness, and those of ED less and less as α grows.",
    "Area under the ROC curve of the negative implied reward, for rude and valid: its 95% interval on the base's "
    f"completions is above 0.5; and at the largest α with at least {FEWEST} completions of each kind the area is lower "
    "(z-test at 0.05, standard errors by DeLong), on every seed.",
    measure,
    draw,
    "What is ranked at each α are that α's own completions, so the area falls for two reasons: the reward says less "
    "about text that is not language, and fewer completions of one kind are left.",
    headline=True,
)
