"""The sections on the evidence: judges and their agreement, paired tests, and the figures without a judge."""

from __future__ import annotations

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import ConditionSummary
from eddecode.audit.report import charts
from eddecode.audit.report.layout import Row, Section, Table
from eddecode.audit.report.release_section import judges_table
from eddecode.audit.stats.estimates import Estimate

_CLEAR = 0.05  # p after Holm's correction
_NAMED = 6  # comparisons that a sentence names


def models_shown(summary: Summary) -> list[ConditionSummary]:
    """The three conditions that matter most: aligned, base, and ED at the headline α; those that the run has."""
    wanted = (summary.find("aligned"), summary.find("base"), summary.best)
    return [entry for entry in wanted if entry is not None]


def judges_section(summary: Summary) -> Section | None:
    """The flags of each judge under the three conditions that matter, and how far the judges agree."""
    if not summary.judges:
        return None
    shown = models_shown(summary)
    rows = [
        Row(
            (
                judge.name,
                judge.role,
                *(wording.format_rate(entry.rates.get(judge.name)) for entry in shown),
            ),
            strong=judge.name == summary.harm_judge,
        )
        for judge in summary.judges
    ]
    for name in sorted({name for entry in shown for name in entry.corrected}):
        rates = (wording.format_rate(entry.corrected.get(name)) for entry in shown)
        rows.append(Row((f"{name}, corrected by human labels", "harm", *rates)))
    heads = ("judge", "role", *(entry.label for entry in shown))
    tables = [Table("Completions that each judge flags", heads, tuple(rows))]
    several = judges_table(summary)
    if several is not None:
        tables.append(several)
    agreement = _agreement(summary)
    if agreement is not None:
        tables.append(agreement)
    text = "A flag of a harm judge is bad, of a validity judge good, of a refusal judge neither."
    corrected = summary.headline.corrected_reversal
    if corrected is not None and corrected.value is not None:
        text += (
            f" With both rates corrected by human labels the reversal is {wording.format_points(corrected)} percentage "
            "points."
        )
    return Section("judges", "Judges", (text,), tables=tuple(tables))


def _agreement(summary: Summary) -> Table | None:
    rows = []
    for entry in summary.agreement:
        kappa = Estimate(entry.kappa, entry.low, entry.high)
        cells = (
            f"{entry.first} and {entry.second}",
            wording.format_number(kappa),
            wording.format_percent(entry.agreement),
            wording.format_percent(entry.expected),
            f"{entry.n:,}",
        )
        rows.append(Row(cells, (kappa,)))
    if not rows:
        return None
    heads = ("judges", "Cohen's κ", "agree on", "expected by chance", "completions")
    caption = "Agreement: κ is 1 for full agreement, 0 for the agreement expected by chance"
    return Table(caption, heads, tuple(rows), ("κ",), 0.0)


def tests_section(summary: Summary) -> Section | None:
    """Paired tests: which conditions differ from base or aligned on the same prompts."""
    rows = []
    for test in summary.tests:
        cells = (
            f"{_label(summary, test.condition)} against {test.against}",
            wording.format_points(test.difference),
            f"{test.up:,} / {test.down:,}",
            _p_value(test.p),
            _p_value(test.p_holm),
        )
        rows.append(Row(cells, (test.difference,)))
    if not rows:
        return None
    heads = ("comparison", "difference, points", "prompts with more / less harm", "p", "p (Holm)")
    caption = "Paired on the same prompts; Holm's correction within each family of tests"
    table = Table(caption, heads, tuple(rows), ("difference",), 0.0)
    methods = sorted({test.method for test in summary.tests} - {""})
    text = f"Two-sided, by the prompts' own differences ({', '.join(methods)}; eddecode docs statistics)."
    texts = (_clear(summary), *((text,) if methods else ()))
    return Section("tests", "Paired tests", texts, tables=(table,))


def _clear(summary: Summary) -> str:
    """How many of the comparisons are clear, and which are not."""
    unclear = [test for test in summary.tests if test.p_holm >= _CLEAR]
    clear = len(summary.tests) - len(unclear)
    text = f"{clear} of {wording.pluralize(len(summary.tests), 'comparison')} show a difference that is clear of chance"
    text += f" (p < {_CLEAR:g} after Holm's correction)."
    if unclear:
        names = ", ".join(
            f"{_label(summary, test.condition)} against {test.against}" for test in unclear[:_NAMED]
        )
        more = len(unclear) - _NAMED
        text += f" Not clear: {names}{f' and {more} more' if more > 0 else ''}."
    return text


def judge_free_section(summary: Summary) -> Section | None:
    """Implied reward along α, KL between the models, and the depth profile."""
    rows = []
    for entry in summary.judge_free.implied_reward:
        token = wording.format_decimal(entry.token, 3)
        cells = (_label(summary, entry.condition), wording.format_number(entry.completion, 1), token)
        rows.append(Row(cells, (entry.completion,)))
    chart = charts.depth_chart(summary)
    text = _divergence(summary)
    if not rows and chart is None and not text:
        return None
    table = Table(
        "Implied reward: log p_aligned − log p_base",
        ("condition", "nats per completion", "nats per token"),
        tuple(rows),
        ("per completion",),
        0.0,
        percent=False,
    )
    caption = "Implied reward by position: above zero the aligned model gives a token more probability than the base."
    return Section(
        "judge-free",
        "Figures without a judge",
        (text,) if text else (),
        ((chart, caption),) if chart is not None else (),
        (table,) if rows else (),
    )


def _divergence(summary: Summary) -> str:
    """The two KL divergences, or why there are none."""
    kl = summary.judge_free.kl
    if kl.aligned_base is None or kl.aligned_base.value is None:
        return kl.note
    return (
        f"Distance of the aligned model from the base, KL(aligned ‖ base): {wording.format_number(kl.aligned_base, 1)} "
        f"nats per completion; the other way, KL(base ‖ aligned): {wording.format_number(kl.base_aligned, 1)}."
    )


def _label(summary: Summary, name: str) -> str:
    """What people call a condition."""
    entry = summary.find(name)
    return name if entry is None else entry.label


def _p_value(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
