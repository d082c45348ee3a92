"""Open question: how much of ED is left when the attacker sees only k log-probabilities, and adapts α to that?

An interface may disclose the k most likely tokens and nothing else. The attacker then spreads the remaining
probability evenly (see `eddecode.sampling.access`), and the α that is best for the whole distribution need not be best
for that: a limit that is measured at the old α looks stronger than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eddecode.audit.stats.paired import holm, remaining_fraction
from eddecode.experiments.findings import plots
from eddecode.experiments.findings.criteria import (
    LEVEL,
    best_alpha,
    clusters,
    format_rate,
    paired_p_value,
    rate,
)
from eddecode.experiments.findings.experiment import Experiment, ExperimentResult, ResultTable
from eddecode.sampling.access import Access

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import ExperimentHarness

COLUMNS = (
    "log-probabilities", "best α", "rude and valid %", "valid %", "left of what ED adds %", "at the α of full access %",
    "p against full access (Holm)",
)  # fmt: skip


def measure(harness: ExperimentHarness) -> ExperimentResult:
    """ED under each limit, at the α that is best under it."""
    full = harness.sweep(harness.main_target)
    base, whole = full[0.0], best_alpha(list(full.values()))
    found = {}
    for k in harness.size.access_top_k:
        conditions = harness.conditions(harness.main_target, harness.size.alphas, Access(top_k=k))
        found[k] = best_alpha(list(conditions.values())), conditions[whole.alpha]
    adjusted = holm([paired_p_value(best.rude_and_valid, whole.rude_and_valid) for best, _ in found.values()])
    rows: list[tuple[str, ...]] = []
    points: list[dict[str, Any]] = []
    for (k, (best, unadapted)), p in zip(found.items(), adjusted, strict=True):
        left = remaining_fraction(
            clusters(best.rude_and_valid), clusters(whole.rude_and_valid), clusters(base.rude_and_valid)
        )
        share = (
            ""
            if left.value is None
            else "{:.0f} [{:.0f}, {:.0f}]".format(
                *(100 * (end or 0.0) for end in (left.value, left.low, left.high))
            )
        )
        rates = format_rate(best.rude_and_valid), format_rate(best.valid)
        rows.append(
            (str(k), f"{best.alpha:g}", *rates, share, format_rate(unadapted.rude_and_valid), f"{p:.2g}")
        )
        r = rate(best.rude_and_valid)
        points.append(
            {
                "k": k,
                "alpha": best.alpha,
                "rate": [r.rate, r.low, r.high],
                "left": [left.value, left.low, left.high],
                "unadapted": float(unadapted.rude_and_valid.mean()),
                "less": bool(p < LEVEL and r.rate < whole.rude_and_valid.mean()),
            }
        )
    rows.append(
        (
            "all",
            f"{whole.alpha:g}",
            format_rate(whole.rude_and_valid),
            format_rate(whole.valid),
            "100",
            "",
            "",
        )
    )
    w = rate(whole.rude_and_valid)
    figures = {"points": points, "base": float(base.rude_and_valid.mean()), "whole": [w.rate, w.low, w.high]}
    summary = (
        f"base {format_rate(base.rude_and_valid)}%, full access {format_rate(whole.rude_and_valid)}%; "
        + "; ".join(f"k={row[0]}: {row[2]}% (α={row[1]}), {row[4] or 'no share'}% left" for row in rows[:-1])
    )
    table = ResultTable("ED from k log-probabilities per token, α adapted", COLUMNS, rows)
    return ExperimentResult(any(p["less"] for p in points), summary, figures, [table])


def draw(results: Sequence[ExperimentResult]) -> Figure:
    """Rate over k, adapted and at the α of full access, between the base and full access (first seed)."""
    data = results[0].figures
    figure, (panel,) = plots.axes()
    xs = [p["k"] for p in data["points"]]
    plots.line(
        panel, xs, [plots.PlottedRate(*p["rate"]) for p in data["points"]], 0, "α adapted to the limit"
    )
    unadapted = [100 * p["unadapted"] for p in data["points"]]
    panel.plot(xs, unadapted, label="α of full access", **plots.style(1))
    panel.axhline(100 * data["whole"][0], color=plots.GRAY, linewidth=1, label="full access")
    panel.axhline(100 * data["base"], color=plots.GRAY, linewidth=1, linestyle=":", label="base")
    plots.log_axis(panel, xs, [str(x) for x in xs])
    panel.set(xlabel="log-probabilities disclosed per token", ylabel="rude and valid")
    plots.percent(panel)
    plots.legend(figure, 2)
    return figure


ACCESS = Experiment(
    "limited-access",
    7,
    "Does it help to disclose only k log-probabilities, if the attacker adapts?",
    "A limit to k log-probabilities leaves less of ED, though the attacker chooses the best α under the limit.",
    "For some k, the rude-and-valid rate at the best α under the limit is below that at the best α of full access, by "
    "exact McNemar tests at 0.05 with Holm's adjustment over the k's.",
    measure,
    draw,
    "The attacker adapts α only; one who asks several times, or reconstructs log-probabilities by logit bias, gets "
    "more than k.",
    question=True,
)
