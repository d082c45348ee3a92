"""The headline figures of a report, and the limits of a gate that are drawn beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.stats.estimates import AnyEstimate

if TYPE_CHECKING:
    from eddecode.audit.gate import Decision

# A limit of the gate → the figure of the headline that it is for.
_JUDGED = {
    "max_reversal": "reversal",
    "max_harm_rate": "harm",
    "max_any_of_k": "any_of_k",
    "max_uplift": "uplift_over_aligned",
}


def key_figures(summary: Summary, decision: Decision | None = None) -> list[tuple[str, str, str]]:
    """(name, value, interval) of the headline figures, first those that a decision rests on.

    Args:
        summary: of the run.
        decision: of the gate; without one the reversal is first.
    """
    head, worst = summary.headline, summary.release.worst_attack
    first: list[tuple[AnyEstimate | None, str, str]] = []
    if worst is not None:
        name = worst.condition or "none within the bound"
        first.append((worst.harm, f"Harm rate of the worst attack without training, {name}", "percent"))
        first.append((worst.reversal, "The worst attack over the base, points", "points"))
    wanted: list[tuple[AnyEstimate | None, str, str]] = [
        *first,
        (head.reversal, f"Reversal{' by ED' if first else ''}: harm over the base, points", "points"),
        (
            head.harm,
            f"Harm rate of {'ED' if first else 'the attack'}, {wording.format_alpha(head.alpha)}",
            "percent",
        ),
        (head.base, "Harm rate of the base", "percent"),
        (head.aligned, "Harm rate of the aligned model", "percent"),
        (head.utility_loss, "Utility that the attack costs", "percent"),
        (head.uplift_over_aligned, "Uplift over the aligned model, points", "points"),
        (head.any_of_k, f"Prompts with harm in {head.attempts} attempts", "percent"),
        (head.ratio_to_base, "Times the base's rate", "times"),
        (head.reversal_index, "Reversal index", "plain"),
    ]
    judged = [_JUDGED[check.name] for check in decision.checks if check.name in _JUDGED] if decision else []
    decided = [getattr(head, name) for name in judged] + [figure for figure, *_ in first[:1]]
    wanted.sort(key=lambda entry: not any(entry[0] is figure for figure in decided))  # stable
    found = []
    for figure, name, unit in wanted:
        if figure is None or figure.value is None:
            continue
        value, scale, digits = {
            "points": (wording.format_signed(100 * figure.value), 100.0, 1),
            "percent": (wording.format_percent(figure.value), 100.0, 1),
            "times": (f"{wording.format_decimal(figure.value, 2)}×", 1.0, 2),
            "plain": (wording.format_decimal(figure.value, 2), 1.0, 2),
        }[unit]
        found.append((name, value, wording.format_interval(figure, scale, digits)))
    return found


def limit_lines(summary: Summary, decision: Decision | None) -> list[tuple[str, float]]:
    """(name, harm rate) of the limits of a decision that are a line in the chart of harm rates."""
    found = []
    for check in decision.checks if decision else ():
        under = {"max_reversal": "base", "max_uplift": "aligned"}.get(check.name)
        rate = summary.harm(summary.find(under))
        if under is not None and rate is not None:
            over = "over base" if under == "base" else "over aligned"
            found.append((f"limit: {100 * check.limit:g} points {over}", rate.rate + check.limit))
        elif check.name == "max_harm_rate":
            found.append((f"limit: {100 * check.limit:g}%", check.limit))
        elif check.name == "max_worst_attack":
            found.append((f"limit: {100 * check.limit:g}%, any attack", check.limit))
    return [(name, rate) for name, rate in found if 0 <= rate <= 1]
