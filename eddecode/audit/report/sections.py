"""The report in order: its sections with their paragraphs, tables and charts, before any markup.

A section whose figures the run does not have is left out. No section holds text of completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import TransferSummary
from eddecode.audit.conditions import ATTACKS
from eddecode.audit.mitigations import RELEASE_SIDE, meaning
from eddecode.audit.report.attacks_section import amplified_section, attacks_section
from eddecode.audit.report.benchmarks_section import benchmarks_section
from eddecode.audit.report.evidence import judge_free_section, judges_section, models_shown, tests_section
from eddecode.audit.report.harm_section import harm_section
from eddecode.audit.report.key_figures import limit_lines
from eddecode.audit.report.layout import Row, Section, Table
from eddecode.audit.report.release_section import categories_table, release_section
from eddecode.audit.report.run_section import limits_section, run_section
from eddecode.errors import ConfigError

if TYPE_CHECKING:
    from eddecode.audit.gate import Decision

_CATEGORIES = 60  # rows of the table at most: a longer one is unreadable, and the page stays small


def sections(
    summary: Summary, sessions: Sequence[Mapping[str, Any]] = (), decision: Decision | None = None
) -> list[Section]:
    """All sections that the run has figures for, in the report's order; the verdict goes before them.

    Args:
        summary: of the run.
        sessions: of the run, see `store_records.run_sessions`.
        decision: of the gate, whose limits are drawn in the chart.
    """
    found = (
        harm_section(summary, limit_lines(summary, decision)),
        release_section(summary),
        _categories(summary),
        attacks_section(summary),
        amplified_section(summary),
        _benign(summary),
        _beside(summary),
        benchmarks_section(summary),
        _mitigations(summary),
        _transfer(summary),
        judges_section(summary),
        tests_section(summary),
        judge_free_section(summary),
        run_section(summary, sessions),
        limits_section(summary),
    )
    return [section for section in found if section is not None]


def _categories(summary: Summary) -> Section | None:
    """Harm per category of prompt: aligned, base and the headline α."""
    best = summary.best
    parts = [
        entry.categories if entry is not None else {}
        for entry in (summary.find("aligned"), summary.find("base"), best)
    ]
    names = sorted({name for part in parts for name in part})
    if not names:
        return None
    rows = []
    for name in names:
        rates = [part.get(name) for part in parts]
        prompts = max((rate.prompts for rate in rates if rate), default=0)
        cells = (name, f"{prompts:,}", *(wording.format_rate(rate) for rate in rates))
        rows.append((rates[2], Row(cells, (rates[2], rates[1]))))
    rows.sort(key=lambda pair: -pair[0].rate if pair[0] else 0.0)
    left = len(rows) - _CATEGORIES
    after = (
        (f"And {left:,} categories more, with lower rates: summary.json has them all.",) if left > 0 else ()
    )
    label = best.label if best is not None else "headline α"
    table = Table(
        "Harm rate by category of the prompt",
        ("category", "prompts", "aligned", "base", label),
        tuple(row for _, row in rows[:_CATEGORIES]),
        (label, "base"),
        0.0,
    )
    several = categories_table(summary)
    tables = (table,) if several is None else (table, several)
    return Section("categories", "By category of prompt", tables=tables, after=after)


def _mitigations(summary: Summary) -> Section | None:
    """The reversal that remains under each mitigation, and the effect of changes to the release."""
    entries = summary.mitigations
    text = "The reversal that remains if an attacker gets no more than the mitigation lets through."
    if (worst := summary.release.worst_attack) is not None and any(entry.mitigation for entry in entries):
        text += f" It is that of ED. {wording.unlimited_attacks(worst)}"
    if not any(entry.mitigation for entry in entries):
        entries, text = (), "No limit on what an attacker sees of the aligned model was measured in this run."
    rows = []
    for entry in entries:
        name = entry.mitigation
        cells = (
            f"{name}: {_meaning(name)}" if name else "none: the attack as it is",
            wording.NONE if entry.alpha is None else entry.alpha,
            wording.format_rate(entry.harm),
            wording.format_points(entry.reversal),
            wording.format_points(entry.reduction) if name else wording.NONE,
            entry.note,
        )
        rows.append(Row(cells, (entry.reversal,), not name))
    heads = ("mitigation", "α", "harm rate", "reversal left, points", "taken away, points", "note")
    caption = "Reversal left under each mitigation, at the worst α within the bound on lost utility"
    table = Table(caption, heads, tuple(rows), ("reversal left",), 0.0)
    release = Table(
        "Changes to the release itself; not measured, because decoding this pair cannot measure them",
        ("change", "what it takes from an attacker, and what it leaves"),
        tuple(Row((entry.what, entry.effect)) for entry in RELEASE_SIDE),
    )
    return Section(
        "mitigations", "Mitigations", (text,), tables=((table.compact(),) if rows else ()) + (release,)
    )


def _meaning(name: str) -> str:
    """A mitigation in words, also one that this version does not know."""
    try:
        return meaning(name)
    except ConfigError:
        return "as the run calls it"


def _benign(summary: Summary) -> Section | None:
    """Refusals of harmless prompts, by each condition."""
    benign = summary.benign
    if benign is None or not benign.rows:
        return None
    rows = []
    for row in benign.rows:
        refused, harmful = row.rates.get(benign.judge), row.rates.get(summary.harm_judge)
        cells = (
            row.label,
            wording.format_rate(refused),
            wording.format_rate(harmful),
            f"{row.completions:,}",
        )
        rows.append(Row(cells, (refused,), row.name in ("aligned", "base")))
    heads = ("condition", f"refused ({benign.judge})", f"harm ({summary.harm_judge})", "completions")
    caption = "False refusals: completions of harmless prompts that refuse"
    text = (
        f"How each condition answers {wording.pluralize(benign.prompts, 'harmless prompt')}, which take no part in the "
        "harm rates. An alignment that refuses these too is safe and of little use; refusals that the attack takes "
        "away here are refusals that nobody misses."
    )
    table = Table(caption, heads, tuple(rows), ("refused",), 0.0)
    return Section("benign", "False refusals on harmless prompts", (text,), tables=(table,))


def _beside(summary: Summary) -> Section | None:
    """Other models beside the line of α: a model trained to be harmful, an ensemble of aligned models."""
    rest = [entry for entry in summary.conditions if entry.model and entry.condition not in ATTACKS]
    if not rest:
        return None
    shown = models_shown(summary)
    rows = []
    for entry in [*shown, *rest]:
        harm = summary.harm(entry)
        cells = (entry.label, wording.format_rate(harm), f"{entry.completions:,}")
        rows.append(Row(cells, (harm,), entry in shown))
    caption = "Harm rates of other models, beside those of the pair (in bold)"
    heads = ("condition", f"harm ({summary.harm_judge})", "completions")
    table = Table(caption, heads, tuple(rows), ("harm",), 0.0)
    return Section("beside", "Other models for comparison", tables=(table,))


def _transfer(summary: Summary) -> Section | None:
    """The effect of other prompts, templates and temperatures on base, aligned and ED."""
    rows = []
    for entry in summary.transfer:
        cells, uplifts = [_prompt_change(entry), entry.found_for or wording.NONE], []
        for part in (entry.base, entry.aligned, entry.ed):
            cells.append(wording.format_rate(part.rate if part else None))
            cells.append(wording.format_points(part.uplift if part else None))
            uplifts.append(part.uplift if part else None)
        rows.append(Row(tuple(cells), tuple(uplifts)))
    if not rows:
        return None
    heads = (
        "setting",
        "found for",
        "base",
        "base: uplift",
        "aligned",
        "aligned: uplift",
        "ED",
        "ED: uplift",
    )
    caption = (
        "Harm rate in other settings, and its uplift over the same model in the run's own setting, in points"
    )
    table = Table(caption, heads, tuple(rows), ("base", "aligned", "ED"), 0.0)
    return Section("transfer", "Other prompts, templates and sampling", tables=(table,))


def _prompt_change(entry: TransferSummary) -> str:
    """What was changed: a system prompt, a temperature, templates, or a transform of the prompt."""
    for what, name in (
        ("system prompt", entry.system),
        ("temperature", entry.temperature),
        ("templates", entry.template),
    ):
        if name:
            return f"{what} {name}"
    return str(entry.transform)
