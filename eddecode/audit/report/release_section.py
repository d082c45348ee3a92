"""The section with the figures that a system card needs beside the headline, and the question that each answers."""

from __future__ import annotations

from collections.abc import Sequence

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.measures import measures
from eddecode.audit.analysis.release_parts import AttackFigures, NothingFound, Worst
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.layout import Row, Section, Table

_ROWS = 60  # of the table of categories at most: a longer one is unreadable, and the page stays small
_HEADS = ("aligned", "base", "attack", "α", "over base, points", "over aligned, points")


def release_section(summary: Summary) -> Section | None:
    """Harm of the attack in other measures; None in summaries of older releases."""
    found = measures(summary)
    if not found:
        return None
    rows = [_row(each.name, each.figures, strong=each.name == "harmful") for each in found]
    points = [f"{each.name[:1].upper()}{each.name[1:]}: {each.question}." for each in found]
    points += _nothing_found(summary, summary.release.nothing_found)
    text = (
        "The strongest attack within the bound on lost utility, by several measures of harm. Each row has its own "
        "α, the one with the highest value. What the attack adds is given over both models: a base that is published "
        "at the same time adds its own harm too, and then the uplift over the aligned model is what the release adds."
    )
    heads = ("measure", *_HEADS)
    table = Table("The strongest attack by measure of harm", heads, tuple(rows), ("over base",), 0.0)
    return Section("release", "For the system card", (text,), tables=(table,), points=tuple(points))


def _row(name: str, figures: AttackFigures, strong: bool = False) -> Row:
    cells = (
        name,
        wording.format_rate(figures.aligned),
        wording.format_rate(figures.base),
        wording.format_rate(figures.harm),
        wording.NONE if figures.alpha is None else figures.alpha,
        wording.format_points(figures.reversal),
        wording.format_points(figures.uplift_over_aligned),
    )
    return Row(cells, (figures.reversal,), strong)


def judges_table(summary: Summary) -> Table | None:
    """The strongest attack by each judge of harm, where there are several."""
    found = summary.release
    if len(found.judges) < 2:
        return None
    rows = [_row(row.judge, row, strong=_is(found.worst_judge, row.judge)) for row in found.judges]
    return _several("judge of harm", rows)


def categories_table(summary: Summary) -> Table | None:
    """The strongest attack in each category, the largest reversal first, where there are several."""
    found = summary.release
    if len(found.categories) < 2:
        return None
    ordered = sorted(found.categories, key=lambda row: -_value(row))
    rows = [
        _row(f"{row.category} ({row.prompts:,})", row, strong=_is(found.worst_category, row.category))
        for row in ordered[:_ROWS]
    ]
    return _several("category (prompts)", rows)


def _several(what: str, rows: Sequence[Row]) -> Table:
    """A table whose intervals hold at once; the row with the largest reversal is emphasized."""
    caption = f"The strongest attack by {what}, each at its own α; all intervals hold at once (Bonferroni)"
    return Table(caption, (what, *_HEADS), tuple(rows), ("over base",), 0.0)


def _is(worst: Worst | None, name: str) -> bool:
    return worst is not None and worst.name == name


def _value(row: AttackFigures) -> float:
    return -1.0 if row.reversal is None or row.reversal.value is None else row.reversal.value


def _nothing_found(summary: Summary, found: Sequence[NothingFound]) -> list[str]:
    """The rule of three, in one sentence for conditions with equally many prompts."""
    sentences = []
    for prompts in dict.fromkeys(each.prompts for each in found):
        same = [each for each in found if each.prompts == prompts]
        names = ", ".join(_label(summary, each.condition) for each in same)
        sentences.append(
            f"No completion of {names} is harmful: by the rule of three the rate is at most 3/{prompts} = "
            f"{wording.format_percent(same[0].high)} (95%, one-sided, counted in prompts)."
        )
    return sentences


def _label(summary: Summary, name: str) -> str:
    entry = summary.find(name)
    return name if entry is None else entry.label
