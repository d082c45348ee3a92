"""The section on harm and utility against α: charts, the table of the sweep, and how the headline α was selected."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report import charts
from eddecode.audit.report.layout import Row, Section, Table


def harm_section(summary: Summary, limits: Sequence[tuple[str, float]]) -> Section | None:
    """Harm and utility against α: two charts on one scale, and the table of the line."""
    drawn = []
    for make, caption in (
        (
            partial(charts.harm_chart, limits=limits),
            f"Share of completions that are harmful, with {100 * summary.level:g}% bands. The gray dashed line is the "
            "base" + (", the red one the gate's limit." if limits else "."),
        ),
        (
            charts.utility_chart,
            "Utility lost: share of completions that are no longer of use, against the base model.",
        ),
    ):
        chart = make(summary)
        if chart is not None:
            drawn.append((chart, caption))
    table = _conditions_table(summary)
    if table is None:
        return None
    return Section(
        "harm", "Harm and utility against α", charts=tuple(drawn), tables=(table,), after=_selected(summary)
    )


def _conditions_table(summary: Summary) -> Table | None:
    """One row per condition of the line."""
    entries = summary.line
    if not entries:
        return None
    joint = any(entry.harm_and_valid for entry in entries)
    utility = any(entry.utility for entry in entries)
    columns = ["condition", f"harm ({summary.harm_judge})"]
    columns += ["harm and valid"] * joint + ["utility lost"] * utility
    columns += ["implied reward, nats", "completions"]
    rows = []
    for entry in entries:
        harm, reward = summary.harm(entry), entry.mean_implied_reward
        cells = [entry.label, wording.format_rate(harm)]
        cells += [wording.format_rate(entry.harm_and_valid)] * joint
        cells += [wording.format_rate(entry.utility.loss if entry.utility else None)] * utility
        cells += [wording.NONE if reward is None else wording.format_signed(reward)]
        dropped = f" ({entry.dropped:,} more left out as too short)" if entry.dropped else ""
        cells += [f"{entry.completions:,}{dropped}"]
        rows.append(Row(tuple(cells), (harm,), entry.name == summary.headline.condition))
    return Table("All α that were tried", tuple(columns), tuple(rows), ("harm",), 0.0)


def _selected(summary: Summary) -> tuple[str, ...]:
    """How the headline α was selected, and the bias of that selection."""
    selection, head = summary.selection, summary.headline
    if len(selection.candidates) < 2 or head.alpha is None:
        return ()
    text = (
        f"The headline α is the one of {len(selection.candidates)} with the highest harm rate whose loss of utility is "
        f"within {wording.format_percent(head.bound)}."
    )
    if selection.optimism is not None and head.plain is not None:
        bias = (
            f"here by {wording.format_decimal(100 * selection.optimism)} points"
            if selection.optimism >= 0.0005
            else "but not here"
        )
        text += (
            f" Selecting the highest of several rates tends to bias it upwards, {bias}; the observed rate is "
            f"{wording.format_rate(head.plain)}. The headline rate has no such bias: α is selected on one half of the "
            "prompts, and its rate is measured on the other."
        )
    free = head.unconstrained
    if free is not None and free.harm is not None and free.harm.value is not None:
        at = wording.format_alpha(free.alpha)
        text += f" Without the bound on lost utility it would be {wording.format_rate(free.harm)} at {at}."
    return (text, *_states(summary))


def _states(summary: Summary) -> tuple[str, ...]:
    """Which α's are clearly within the bound on lost utility, which clearly beyond it, and which neither."""
    found = summary.headline.candidates
    parts = []
    for state, words in (
        ("inside", "clearly within the bound on lost utility"),
        ("open", "neither clearly within it nor clearly beyond it"),
        ("outside", "clearly beyond it"),
    ):
        alphas = [each.alpha.replace("-", wording.MINUS) for each in found if each.state == state]
        if alphas:
            parts.append(f"{words}: α = {', '.join(alphas)}")
    if not parts:
        return ()
    return (
        f"{'; '.join(parts).capitalize()}. The upper ends of the headline intervals hold every α that is not clearly "
        "beyond the bound, the lower ends only those clearly within it.",
    )
