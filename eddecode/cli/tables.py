"""A run on a terminal: its tables, their caption, and the result in one paragraph.

Only rates and intervals are printed, never the text of a completion. The tables fit 80 columns.
"""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import ConditionSummary, Headline
from eddecode.audit.analysis.wording import NONE, attempts, format_percent, format_points, format_rate
from eddecode.audit.stats.estimates import Rate
from eddecode.cli.table_style import make_table

_MAX_NAME = 12  # characters of a judge's name, where there are many judges


def format_cell(rate: Rate | None) -> str:
    """`32.3 [27.1, 37.9]`: a rate and its interval in percent, in at most 17 characters: three fit in a line."""
    if rate is None:
        return NONE
    value, low, high = (f"{100 * x:.1f}".replace("100.0", "100") for x in (rate.rate, rate.low, rate.high))
    return f"{value} [{low}, {high}]"


def rates_table(summary: Summary) -> Table:
    """One row per condition of the pair itself: harm, the other judges, harm and validity together, reward.

    Without a judge of validity, the share of intact completions takes the place of harm and validity. With more judges
    than fit, only harm has its interval; `summary.json` has all of them.
    """
    joint = summary.validity_judge is not None
    wide = len(summary.judges) + joint <= 3  # whether every judge has room for its intervals
    headings = []
    for judge in summary.judges:
        name = judge.name if wide or len(judge.name) <= _MAX_NAME else f"{judge.name[: _MAX_NAME - 1]}…"
        headings.append(f"{'valid' if judge.role == 'validity' else judge.role} %\n{name}")
    headings += ["harm and\nvalid %" if joint else "intact\n%", "reward\nnats"]
    table = make_table("condition", *map(Text, headings))
    table.columns[0].no_wrap = True
    reversal = summary.headline.reversal
    best = summary.best if reversal is not None and (reversal.value or 0) > 0 else None
    for entry in summary.line:
        rates = [entry.rates[judge.name] for judge in summary.judges]
        cells = [
            format_cell(rate) if wide or i == 0 else f"{100 * rate.rate:.1f}" for i, rate in enumerate(rates)
        ]
        intact = NONE if entry.utility is None else f"{100 * entry.utility.rate.rate:.1f}"
        reward = entry.mean_implied_reward
        cells += [format_cell(entry.harm_and_valid) if joint else intact]
        cells += [NONE if reward is None else f"{reward:+.1f}"]
        table.add_row(Text(entry.label), *map(Text, cells), style="bold" if entry is best else "")
    return table


def comparison_tables(summary: Summary) -> list[Table]:
    """The tables beside the sweep, where a run has such conditions: mitigations, and others against the base."""
    tables = []
    if summary.mitigations:
        table = make_table("mitigation", "worst α", "reversal, points", "remaining", "utility loss")
        for row in summary.mitigations:
            loss = None if row.utility_loss is None else row.utility_loss.value
            table.add_row(
                Text(row.mitigation or "none"),
                row.alpha or NONE,
                Text(format_points(row.reversal)),
                Text(format_rate(row.left)),
                format_percent(loss),
            )
        tables.append(table)
    others = [entry for entry in summary.conditions if not entry.plain and not entry.mitigation]
    if others:
        table = make_table("condition", "harm %", "minus base, points", "p (Holm)")
        tests = {row.condition: row for row in summary.tests if row.against == "base"}
        for entry in others:
            test = tests[entry.name]
            table.add_row(
                Text(entry.label),
                Text(format_cell(entry.rates[summary.harm_judge])),
                Text(format_points(test.difference)),
                "<0.001" if test.p_holm < 0.001 else f"{test.p_holm:.3f}",
            )
        tables.append(table)
    return tables


def benign_table(summary: Summary) -> Table:
    """Refusals of harmless prompts by the conditions of the pair itself; the run has a benign set."""
    benign = summary.benign
    assert benign is not None
    line = {entry.name for entry in summary.line}
    heads = [f"false refusals %\n{benign.judge}", f"harm on benign %\n{summary.harm_judge}"]
    table = make_table("condition", *map(Text, heads), "completions")
    for row in benign.rows:
        if row.name in line:
            cells = [format_cell(row.rates.get(name)) for name in (benign.judge, summary.harm_judge)]
            table.add_row(Text(row.label), *map(Text, cells), f"{row.completions:,}")
    return table


def caption(summary: Summary) -> str:
    """How many completions the figures are from, how they were sampled, and which intervals these are."""
    settings = summary.identity
    completions = sum(entry.completions for entry in summary.conditions)
    methods = {rate.method for entry in summary.conditions for rate in entry.rates.values()}
    method = (
        "prompts as clusters" if methods - {"wilson"} else "Wilson"
    )  # other methods: also of older summaries
    return (
        f"{completions} completions: {summary.prompts} prompts, {settings['samples']} each per condition; "
        f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}, "
        f"at most {settings['max_new_tokens']} tokens, seed {settings['seed']}. "
        f"Brackets: 95% intervals ({method}). Reward: mean log p_aligned − log p_base of a completion."
    )


# The result in words ---------------------------------------------------------------------------------------------


def interpretation(summary: Summary) -> str:
    """The result in one paragraph."""
    headline = summary.headline
    rates = (
        f"Judge {headline.judge}: {format_rate(headline.aligned)} of the aligned model's completions are harmful, "
        f"and {format_rate(headline.base)} of the base's."
    )
    if not summary.selection.candidates:
        return f"{rates} No α above 0 was measured, so nothing can be concluded about reversal."
    if headline.alpha is None:
        return f"{rates} Nothing can be concluded about reversal: {headline.reason}.{_unconstrained(summary)}"
    parts = (_reversal(headline), attempts(headline), _validity(summary), _unconstrained(summary))
    return rates + "".join(parts) + _selection(summary)


def _reversal(headline: Headline) -> str:
    harm, reversal, ratio = headline.harm, headline.reversal, headline.ratio_to_base
    if harm is None or reversal is None or harm.value is None or reversal.value is None:
        return ""
    text = f" The contrast of the two models, without any training, reaches {format_rate(harm)} at α = {headline.alpha}"
    if reversal.value <= 0:
        return f"{text}: no measured α gives more harm than the base model alone."
    if ratio is not None and ratio.value is not None:
        text += f", {ratio.value:.1f} times the base's rate"
    text += f": a reversal of {format_points(reversal)} percentage points"
    if reversal.low is None:
        return f"{text}. No α is clearly within the bound on lost utility, so the interval has no lower end."
    return text + ("." if reversal.low > 0 else ", which may be none: its interval reaches 0 or below.")


def _validity(summary: Summary) -> str:
    judge, best, valid = summary.validity_judge, summary.best, summary.headline.valid
    if judge is None or best is None or valid is None:
        return ""
    overlap = "do not overlap" if valid.plain.low > valid.base.high else "overlap"
    text = (
        f" Counting only completions that are valid too (judge {judge}), the rate is {format_rate(valid.plain)} "
        f"at α = {best.alpha} and {format_rate(valid.base)} for the base; the two intervals {overlap}."
    )
    return text + _degeneration(summary, best, judge)


def _degeneration(summary: Summary, best: ConditionSummary, judge: str) -> str:
    """On the largest α, where fewer of its completions are valid than at the headline α."""
    last = max((e for e in summary.line if e.condition == "ed"), key=lambda entry: float(entry.alpha))
    there, here = last.rates[judge], best.rates[judge]
    if last is best or there.high >= here.low:
        return ""
    left = f"only {format_percent(there.rate)} are" if there.flagged else "none is"
    return (
        f" There {format_percent(here.rate)} of the completions are valid; at α = {last.alpha} {left}: too large an α "
        "makes text unintelligible."
    )


def _unconstrained(summary: Summary) -> str:
    """The α with most harm whatever its loss of utility, if it is not the headline α."""
    headline, free = summary.headline, summary.headline.unconstrained
    if free is None or free.alpha in (None, headline.alpha) or free.harm is None or free.harm.value is None:
        return ""
    text = (
        f" Without the bound on lost utility ({100 * (headline.bound or 0.0):g}%) the harm rate would be "
        f"{format_percent(free.harm.value)} at α = {free.alpha}"
    )
    if free.utility_loss is None or free.utility_loss.value is None:
        return f"{text}."
    return f"{text}, where {format_percent(free.utility_loss.value)} of utility is lost."


def _selection(summary: Summary) -> str:
    selection, plain = summary.selection, summary.headline.plain
    if selection.method == "none" or plain is None:
        return ""
    text = (
        f" The headline α, the best of {len(selection.admissible)} within the bound, was selected on other prompts "
        "than those that it is measured on (cross-fitting)"
    )
    if abs(selection.optimism or 0.0) < 0.0005:
        return f"{text}."
    return f"{text}; without cross-fitting its rate is {format_percent(plain.rate)}."
