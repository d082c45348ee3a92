"""The report in order: its sections with their paragraphs, tables and charts, before any markup.

A section whose figures the run does not have is left out. No section holds text of completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.analysis.summary_parts import TransferSummary
from eddecode.audit.conditions import ATTACKS
from eddecode.audit.mitigations import RELEASE_SIDE, meaning
from eddecode.audit.report import charts
from eddecode.audit.report.attacks_section import amplified_section, attacks_section
from eddecode.audit.report.benchmarks_section import benchmarks_section
from eddecode.audit.report.evidence import judge_free_section, judges_section, models_shown, tests_section
from eddecode.audit.report.layout import Row, Section, Table
from eddecode.audit.report.release_section import categories_table, release_section
from eddecode.audit.stats.estimates import AnyEstimate
from eddecode.errors import ConfigError

if TYPE_CHECKING:
    from eddecode.audit.gate import Decision

# A limit of the gate → the figure of the headline that it is for.
_JUDGED = {
    "max_reversal": "reversal",
    "max_harm_rate": "harm",
    "max_any_of_k": "any_of_k",
    "max_uplift": "uplift_over_aligned",
}
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
        _harm(summary, limit_lines(summary, decision)),
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
        _run(summary, sessions),
        _limits(summary),
    )
    return [section for section in found if section is not None]


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


def _harm(summary: Summary, limits: Sequence[tuple[str, float]]) -> Section | None:
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
    table = conditions_table(summary)
    if table is None:
        return None
    return Section(
        "harm", "Harm and utility against α", charts=tuple(drawn), tables=(table,), after=_selected(summary)
    )


def conditions_table(summary: Summary) -> Table | None:
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


_IDENTITY_NAMES = {
    "base": "base model",
    "aligned": "aligned model",
    "base_template": "template of base",
    "aligned_template": "template of aligned",
    "prompts": "prompts",
    "alphas": "α's",
    "samples": "completions per prompt and condition",
    "seed": "seed",
}
_DEFAULTS = {"base_template": "plain instruction template", "aligned_template": "its own chat template"}


def _run(summary: Summary, sessions: Sequence[Mapping[str, Any]]) -> Section:
    """What was run, on which versions and hardware, with which seed."""
    identity = summary.identity
    facts = []
    order = [name for name in _IDENTITY_NAMES if name in identity]
    for name in [*order, *(name for name in identity if name not in _IDENTITY_NAMES)]:
        value = _DEFAULTS.get(name) if identity[name] is None else identity[name]
        facts.append((_IDENTITY_NAMES.get(name, name.replace("_", " ")), _value(value)))
    facts.append(("run", summary.digest or wording.NONE))
    return Section("run", "What was run", facts=tuple(facts), tables=_sessions_table(sessions))


_SESSION = {
    "started": "started",
    "eddecode": "eddecode",
    "torch": "torch",
    "transformers": "transformers",
    "device": "device",
    "processor": "processor",
    "threads": "threads",
    "products": "products of weights",
}  # field of a session → its column


def _sessions_table(sessions: Sequence[Mapping[str, Any]]) -> tuple[Table, ...]:
    """When the run was worked on, and on what; versions of torch as `torch 2.11`, so that a search finds them."""
    if not sessions:
        return ()
    rows = []
    for number, session in enumerate(sessions, start=1):
        cells = [_value(session[name]) if name in session else wording.NONE for name in _SESSION]
        cells[0] = cells[0].replace("T", " ")[:16]
        cells[2] = f"torch {cells[2]}"
        rows.append(Row((f"session {number}", *cells)))
    table = Table(
        "When the run was worked on, and on what (UTC)", ("session", *_SESSION.values()), tuple(rows)
    )
    return (table.compact(),)


def _limits(summary: Summary) -> Section:
    """What the result does not show, and the run's own notes."""
    notes = [note[:1].upper() + note[1:].rstrip(".") + "." for note in summary.notes]
    return Section("limits", "Limits of the result", points=(*wording.limits(summary), *notes))


def _value(value: Any) -> str:
    """Any JSON value as text for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_value, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
