"""What a run looks like in a terminal: its table, a reading of it in words, and how far it is.

Rates and intervals only: the text of completions is not for tables. What is written here fits 80 columns.
"""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import ConditionSummary, Headline
from eddecode.audit.stats.estimates import Estimate, Rate


def percent(rate: Rate | None) -> str:
    """`32.3 [27.1, 37.9]`: a rate and its interval, in percent; at most 17 characters, so that three fit a line."""
    if rate is None:
        return "–"
    rounded = [f"{100 * value:.1f}".replace("100.0", "100") for value in (rate.rate, rate.low, rate.high)]
    return f"{rounded[0]} [{rounded[1]}, {rounded[2]}]"


def rates_table(summary: Summary) -> Table:
    """One row per condition of the pair itself: harm, the other judges, harm and validity together, utility, reward.

    With more judges than fit, only harm keeps its intervals; `summary.json` has them all.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("condition", no_wrap=True)
    joint, best = summary.validity_judge is not None, best_alpha(summary)
    if best is not None and (
        summary.headline.reversal is None or (summary.headline.reversal.value or 0) <= 0
    ):
        best = None  # nothing to point at
    wide = len(summary.judges) + joint <= 3
    for judge in summary.judges:
        word = {"harm": "harm", "validity": "valid"}.get(judge.role, judge.role)
        name = judge.name if wide or len(judge.name) <= 12 else f"{judge.name[:11]}…"
        table.add_column(Text(f"{word} %\n{name}"), justify="right")
    table.add_column("harm and\nvalid %" if joint else "intact\n%", justify="right")
    table.add_column("reward\nnats", justify="right")
    for entry in summary.line:
        rates = [entry.rates[judge.name] for judge in summary.judges]
        cells = [
            percent(rate) if wide or i == 0 else f"{100 * rate.rate:.1f}" for i, rate in enumerate(rates)
        ]
        intact = "–" if entry.utility is None else f"{100 * entry.utility.rate.rate:.1f}"
        cells.append(percent(entry.harm_and_valid) if joint else intact)
        reward = entry.mean_implied_reward
        cells.append("–" if reward is None else f"{reward:+.1f}")
        table.add_row(Text(entry.label), *map(Text, cells), style="bold" if entry is best else "")
    return table


def comparison_tables(summary: Summary) -> list[Table]:
    """What stands beside the sweep, where the run has it: mitigations, and the other conditions against the base."""
    tables = []
    if summary.mitigations:
        table = _table("mitigation", "worst α", "reversal, points", "left of it", "lost utility %")
        for row in summary.mitigations:
            table.add_row(
                Text(row.mitigation or "none"),
                row.alpha or "–",
                scaled(row.reversal, 100, sign="+"),
                scaled(row.left, 100, unit="%"),
                scaled(row.utility_loss, 100, ends=False),
            )
        tables.append(table)
    others = [entry for entry in summary.conditions if not entry.plain and not entry.mitigation]
    if others:
        table = _table("condition", "harm %", "less base, points", "p (Holm)")
        tests = {row.condition: row for row in summary.tests if row.against == "base"}
        for entry in others:
            test = tests[entry.name]
            p = "<0.001" if test.p_holm < 0.001 else f"{test.p_holm:.3f}"
            harm = percent(entry.rates[summary.harm_judge])
            table.add_row(Text(entry.label), harm, scaled(test.difference, 100, sign="+"), p)
        tables.append(table)
    return tables


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def scaled(
    found: Estimate | None, scale: float = 1, unit: str = "", sign: str = "", ends: bool = True
) -> str:
    """`+20.1 [12.0, 28.3]`: an estimate and its interval; an end that nothing bounds is ∞."""
    if found is None or found.value is None:
        return "–"
    low = "-∞" if found.low is None else f"{scale * found.low:.1f}"
    high = "∞" if found.high is None else f"{scale * found.high:.1f}"
    said = f"{scale * found.value:{sign}.1f}{unit}"
    return f"{said} [{low}, {high}]" if ends else said


def caption(summary: Summary) -> str:
    """What the table's figures are: how many completions, how sampled, which intervals."""
    said = summary.identity
    completions = sum(entry.completions for entry in summary.conditions)
    methods = {rate.method for entry in summary.conditions for rate in entry.rates.values()}
    how = "cluster bootstrap over prompts" if "cluster-bootstrap" in methods else "Wilson"
    return (
        f"{completions} completions: {summary.prompts} prompts, {said['samples']} each per condition; "
        f"temperature {said['temperature']:g}, top-p {said['top_p']:g}, "
        f"at most {said['max_new_tokens']} tokens, seed {said['seed']}. "
        f"Brackets: 95% intervals ({how}). Reward: mean log p_aligned − log p_base of a completion."
    )


def best_alpha(summary: Summary) -> ConditionSummary | None:
    """The condition of the headline α; None where there is none."""
    return summary.best


def interpretation(summary: Summary) -> str:
    """The table in one paragraph of plain words."""
    found = summary.headline
    said = (
        f"By the judge {found.judge}, {_words(found.aligned)} of the aligned model's completions are harmful, "
        f"and {_words(found.base)} of its base's."
    )
    if not summary.selection.candidates:
        return f"{said} No α above 0 was tried, so that nothing is said about reversal."
    if found.alpha is None:
        return f"{said} Nothing is said about reversal: {found.reason}.{_on_the_free(summary)}"
    return said + _on_reversal(found) + _on_validity(summary) + _on_the_free(summary) + _on_selection(summary)


def _on_reversal(found: Headline) -> str:
    harm, reversal, times = found.harm, found.reversal, found.ratio_to_base
    if harm is None or reversal is None or harm.value is None or reversal.value is None:
        return ""
    said = (
        f" Contrasting the two models, without any training, reaches {100 * harm.value:.1f}% "
        f"[{100 * (harm.low or 0):.1f}, {100 * (1 if harm.high is None else harm.high):.1f}] at α = {found.alpha}"
    )
    if reversal.value <= 0:
        return f"{said}: no α that was tried gives more harm than the base model alone."
    if times is not None and times.value is not None:
        said += f", {times.value:.1f} times the base's rate"
    said += f": a reversal of {scaled(reversal, 100, sign='+')} percentage points"
    return said + (
        "." if (reversal.low or 0) > 0 else ", which could be none: its interval reaches 0 or below."
    )


def _on_validity(summary: Summary) -> str:
    judge, best, valid = summary.validity_judge, best_alpha(summary), summary.headline.valid
    if judge is None or best is None or valid is None:
        return ""
    apart = "do not overlap" if valid.plain.low > valid.base.high else "overlap"
    said = (
        f" Counting only completions that are valid too (judge {judge}), it is {_words(valid.plain)} "
        f"at α = {best.alpha} against {_words(valid.base)} for the base; the intervals of the two {apart}."
    )
    last = max((e for e in summary.line if e.condition == "ed"), key=lambda entry: float(entry.alpha))
    if last is not best and last.rates[judge].high < best.rates[judge].low:
        left = f"only {100 * last.rates[judge].rate:.1f}% are" if last.rates[judge].flagged else "none is"
        said += (
            f" There {100 * best.rates[judge].rate:.1f}% of the completions are valid; at α = {last.alpha} {left}: "
            "too large an α makes babble."
        )
    return said


def _on_the_free(summary: Summary) -> str:
    """The α that has most harm whatever it costs, where that is another one."""
    found, free = summary.headline, summary.headline.unconstrained
    if free is None or free.alpha in (None, found.alpha) or free.harm is None or free.harm.value is None:
        return ""
    lost, bound = scaled(free.utility_loss, 100, unit="%", ends=False), 100 * (found.bound or 0.0)
    return (
        f" With no bound on lost utility (here {bound:g}%) it would be {100 * free.harm.value:.1f}% at "
        f"α = {free.alpha}, where {lost} of utility is lost."
    )


def _on_selection(summary: Summary) -> str:
    picked, plain = summary.selection, summary.headline.plain
    if picked.method == "none" or plain is None:
        return ""
    count = len(picked.admissible)
    said = f" The headline α, the best of {count} within the bound, was picked on other prompts than those"
    if abs(picked.optimism or 0.0) < 0.0005:
        return f"{said} that it is judged by."
    return f"{said} that it is judged by (cross-fitted); as its rate is seen plainly it is {100 * plain.rate:.1f}%."


def _words(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    return f"{100 * rate.rate:.1f}% [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
