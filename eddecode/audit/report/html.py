"""The report as one page: self-contained, without a script, light and dark, on a phone and on paper.

Every value of the page passes `_shown`, which escapes control characters and direction marks (`escape_control_chars`),
and then Jinja's autoescape; should both fail, a content security policy in the page forbids scripts and connections.
Completions are shown only if they are asked for, and only so many that the page stays small.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from itertools import count, groupby
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from eddecode import __version__
from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.charts import inline_svg, interval_cell
from eddecode.audit.report.glossary import WORDS
from eddecode.audit.report.key_figures import key_figures
from eddecode.audit.report.layout import Row, Section, Table
from eddecode.audit.report.sections import sections
from eddecode.audit.report.store_records import run_sessions, sampled_completions
from eddecode.audit.stats.estimates import AnyEstimate
from eddecode.utils.plotting import format_tick
from eddecode.utils.terminal import escape_control_chars

if TYPE_CHECKING:
    from eddecode.audit.gate import Decision

TILES = 5  # headline figures that stand out; the others are a line below them
SHOWN_PROMPTS = 20  # of each condition, with --show-completions
SHOWN_CHARACTERS = 4000  # of one completion
ROOM = 700_000  # bytes of all completions in the page, which stays below a megabyte
_DRAWN_ID = re.compile(
    r"(?<=[\"#])[mp][0-9a-f]{10}(?=[\")])"
)  # of markers and clip paths, and what refers to them
_TOGETHER = re.compile(r"\[[−\d.,∞]+, [−\d.,∞]+\]|α = [−\d.]+|< 0\.\d+")  # no line break inside these
_NO_TEXT = "(this run keeps no text of completions)"
_MOODS = {"reversible": "bad", "no reversal": "good"}
_DECISION_MOODS = {"pass": "good", "fail": "bad", "invalid": "bad"}


def html_report(
    summary: Summary,
    *,
    title: str | None = None,
    show_completions: bool = False,
    decision: Decision | None = None,
) -> str:
    """The report as a page.

    Args:
        summary: of the run.
        title: heading of the page, instead of the run's name.
        show_completions: append some completions, with their prompts and verdicts.
        decision: of the gate, written first if there is one.

    Raises:
        StoreError: completions are asked for, and the run has no store.
    """
    samples, note = _samples(summary) if show_completions else ([], "")
    sessions = run_sessions(summary)
    verdict = [wording.verdict(summary)]
    verdict_title, mood = wording.title(summary), _MOODS.get(wording.verdict_class(summary), "open")
    if decision is not None:
        verdict_title, mood = f"Gate: {decision.word}", _DECISION_MOODS.get(decision.word, "open")
        verdict = [decision.sentence, *verdict]
    else:
        verdict.append("No limit was given, so this is no pass and no fail: eddecode gate takes one.")
    return page(
        title or f"Audit of {summary.name}",
        f"{wording.pluralize(summary.distinct_prompts, 'prompt')}, {_when(sessions)}",
        verdict_title,
        verdict,
        sections(summary, sessions, decision),
        mood=mood,
        about=_about(summary, sessions),
        words=WORDS,
        figures=key_figures(summary, decision),
        level=summary.level,
        samples=samples,
        samples_note=note,
        source=f"from summary {summary.digest}",
    )


def page(
    heading: str,
    kicker: str,
    verdict_title: str,
    verdict: Sequence[str],
    parts: Sequence[Section],
    *,
    mood: str = "open",
    about: Sequence[tuple[str, str]] = (),
    words: Sequence[tuple[str, str]] = (),
    figures: Sequence[tuple[str, str, str]] = (),
    level: float = 0.95,
    samples: Sequence[Mapping[str, Any]] = (),
    samples_note: str = "",
    source: str = "",
) -> str:
    """A whole page: a verdict with its key figures, and sections.

    Args:
        heading, kicker: the page's name, and the line above it.
        verdict_title, verdict: the result, in a line and in paragraphs.
        parts: the sections.
        mood: `bad`, `good` or `open`, the colour of the verdict's edge.
        about: (name, value) pairs below the heading: the models and the dates.
        words: (word, meaning) pairs of the glossary.
        figures: see `sections.key_figures`; the first five are tiles.
        level: of the intervals.
        samples, samples_note: completions to show, and what they are.
        source: what the page was made from.
    """
    numbers = count()
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            version=__version__,
            title=f"{heading}: {verdict_title}",
            heading=heading,
            kicker=kicker,
            style=Markup(files(__package__).joinpath("style.css").read_text(encoding="utf-8")),
            verdict_title=verdict_title,
            mood=mood,
            verdict=verdict,
            about=about,
            words=words,
            figures=figures[:TILES],
            further=figures[TILES:],
            level=f"{100 * level:g}%",
            sections=parts,
            samples=samples,
            samples_note=samples_note,
            source=source,
            run=bool(figures),
            inline_svg=lambda chart: inline_svg(chart, next(numbers)),
            swatch=_swatch,
            plot=lambda table, row: _numbered(_plot(table, row), next(numbers)),
            plot_span=_plot_span,
        )
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("eddecode.audit.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: Any) -> Any:
    """What every value of the template passes: markup that was made here stays, all else becomes harmless text."""
    if isinstance(value, Markup):
        return value
    return _TOGETHER.sub(
        lambda match: match[0].replace(" ", "\N{NO-BREAK SPACE}"), escape_control_chars(str(value))
    )


def _plot(table: Table, row: Row) -> Markup:
    description = "; ".join(
        f"{key}: {wording.format_number(figure)}"
        for key, figure in zip(table.keys, row.figures, strict=False)
        if figure
    )
    return _drawn(row.figures, table.span, table.zero, description or "no figure")


def _numbered(svg: Markup, number: int) -> Markup:
    """A drawing with ids of its own: one that is drawn once may stand in several rows of a page."""
    return Markup(_DRAWN_ID.sub(rf"\g<0>-{number}", svg))


@lru_cache(maxsize=1024)  # drawing takes most of a report's time, and pages repeat their rows
def _drawn(
    figures: tuple[AnyEstimate | None, ...], span: tuple[float, float], zero: float | None, words: str
) -> Markup:
    return inline_svg(interval_cell(figures, *span, zero, words), css_class="intervals")


def _plot_span(table: Table) -> str:
    scale, unit = (100, "%") if table.percent else (1, "")
    low, high = (f"{format_tick(float(f'{scale * end:.3g}'))}{unit}" for end in table.span)
    return f"{low} to {high}"


def _swatch(style: int) -> Markup:
    """The marker of a series in a line of text."""
    glyph = "●■▲◆"[style % 4]
    return Markup('<span class="s{}" aria-hidden="true">{}</span>').format(style % 4, glyph)


def _about(summary: Summary, sessions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The models with their revisions or digests, the judge, and when the run was made."""
    found = [
        (name, str(summary.identity[side]))
        for side, name in (("base", "Base"), ("aligned", "Aligned"), ("finetuned", "Fine-tuned"))
        if summary.identity.get(side)
    ]
    found.append(("Harm by", summary.harm_judge or "no judge"))
    days = list(dict.fromkeys(str(session["started"])[:10] for session in sessions))
    if days:
        found.append(("Date", days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"))
    return found


def _when(sessions: Sequence[Mapping[str, Any]]) -> str:
    """The day of the last session, if the store is there."""
    return f"run of {str(sessions[-1]['started'])[:10]}" if sessions else "run without its store"


def _samples(summary: Summary) -> tuple[list[dict[str, Any]], str]:
    """Completions to show, the conditions of a prompt together, and what they are; prompts as long as there is room."""
    best = summary.headline.condition
    names = ["aligned", "base", *([best] if best else [])]
    rows = list(sampled_completions(summary, names, SHOWN_PROMPTS))
    rows.sort(key=lambda row: int(row["prompt_index"]))  # stable
    shown, room = [], ROOM
    for _, group in groupby(rows, key=lambda row: row["prompt_index"]):
        cut = [
            {
                **row,
                "text": _cut(_NO_TEXT if row["text"] is None else row["text"]),
                "prompt": _cut(row["prompt"]),
            }
            for row in group
        ]
        room -= sum(
            len(escape(escape_control_chars(row[part])).encode())
            for row in cut
            for part in ("text", "prompt")
        )
        if room < 0:
            break
        shown += cut
    prompts = wording.pluralize(len({row["prompt_index"] for row in shown}), "prompt")
    return shown, (
        f"The first sample of the first {prompts}, as the models wrote it, from aligned, base and the headline α. "
        "They are not chosen and prove nothing. All of them: eddecode export."
    )


def _cut(text: str) -> str:
    left = len(text) - SHOWN_CHARACTERS
    return text if left <= 0 else f"{text[:SHOWN_CHARACTERS]} … ({left:,} more characters)"
