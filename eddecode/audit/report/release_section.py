"""The section with the figures that a system card needs beside the headline, and the question that each answers."""

from __future__ import annotations

from collections.abc import Sequence

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.release_parts import AttackFigures, NothingFound, Worst
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.layout import Row, Section, Table

_ROWS = 60  # of the table of categories at most: a longer one is unreadable, and the page stays small
_HEADS = ("aligned", "base", "attack", "α", "over base, points", "over aligned, points")


def release_section(summary: Summary) -> Section | None:
    """Harm of the attack in other measures; None in summaries of older releases."""
    rows, points = _measures(summary)
    if not rows:
        return None
    text = (
        "The strongest attack within the bound on lost utility, by several measures of harm. Each row has its own "
        "α, the one with the highest value. What the attack adds is given over both models: a base that is published "
        "at the same time adds its own harm too, and then the uplift over the aligned model is what the release adds."
    )
    heads = ("measure", *_HEADS)
    table = Table("The strongest attack by measure of harm", heads, tuple(rows), ("over base",), 0.0)
    return Section("release", "For the system card", (text,), tables=(table,), points=tuple(points))


def _measures(summary: Summary) -> tuple[list[Row], list[str]]:
    """The rows of the first table, and one sentence per row on the question that it answers."""
    found, head = summary.release, summary.headline
    parts: list[tuple[str, AttackFigures | None, str]] = [
        (
            "harmful",
            AttackFigures(
                **{name: getattr(head, name) for name in ("alpha", "condition", "harm", "reversal")},
                uplift_over_aligned=head.uplift_over_aligned,
                base=wording.as_estimate(head.base),
                aligned=wording.as_estimate(head.aligned),
            )
            if found.score is not None
            else None,
            "how likely one attempt gives a harmful completion",
        ),
        ("harmful and valid", found.valid, "the same, where the completion must also be a useful text"),
        (
            "mean score",
            found.score,
            f"how harmful completions are on average, by the score of {summary.harm_judge}",
        ),
        *((f"any of {row.k}", row, _any_of(row.k)) for row in found.any_of_k if row.k > 1),
    ]
    if found.any_alpha is not None:
        every = found.any_alpha
        name = f"any of {every.attempts}: all α's"
        alphas = ", ".join(every.alphas)
        text = f"how many prompts give a harmful completion if every α within the bound is used ({alphas})"
        parts.append((name, AttackFigures(harm=every.harm), text))
    if found.settings is not None:
        settings = found.settings
        text = (
            f"the strongest of {settings.settings} settings of prompt and sampling, against both models with plain "
            f"ones; the base alone reaches {wording.format_rate(settings.strongest_base)} ({settings.base_condition})"
        )
        name = (
            "strongest setting" if settings.condition is None else f"strongest setting ({settings.condition})"
        )
        parts.append((name, settings, text))
    parts += _worst_rows(summary)
    kept = [(name, figures, text) for name, figures, text in parts if figures is not None]
    rows = [_row(name, figures, strong=name == "harmful") for name, figures, _ in kept]
    points = [f"{name[:1].upper()}{name[1:]}: {text}." for name, _, text in kept]
    return rows, [*points, *_nothing_found(summary, found.nothing_found)]


def _any_of(k: int) -> str:
    return f"how many prompts give at least one harmful completion in {k} attempts"


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


def _worst_rows(summary: Summary) -> list[tuple[str, AttackFigures | None, str]]:
    """The worst judge and the worst category; the interval over the base is that of the largest of all."""
    found = summary.release
    parts: list[tuple[str, AttackFigures | None, str]] = []
    judges = {row.judge: row for row in found.judges}
    categories = {row.category: row for row in found.categories}
    for what, worst, rows in (
        ("judge", found.worst_judge, judges),
        ("category", found.worst_category, categories),
    ):
        if worst is None or worst.name not in rows:
            continue
        figures = AttackFigures(**{**dict(rows[worst.name]), "reversal": worst.reversal})
        text = f"the largest reversal of {len(rows)}, with intervals that hold for all of them at once (Bonferroni)"
        parts.append((f"worst {what}: {worst.name}", figures, text))
    return parts


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
