"""The report in order: its sections with their paragraphs, tables and charts, before any markup.

A section whose figures the run does not have is left out. No section holds text of completions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.finding import Figure, Finding
from eddecode.audit.mitigations import RELEASE_SIDE, meaning
from eddecode.audit.report import charts
from eddecode.audit.report.evidence import judge_free_section, judges_section, tests_section
from eddecode.audit.report.layout import Row, Section, Table
from eddecode.errors import ConfigError

_CATEGORIES = 60  # shown: more would be no table to read, and the page stays small


def sections(finding: Finding) -> list[Section]:
    """All sections that the run has figures for, in the report's order; the verdict goes before them."""
    makers: tuple[Callable[[Finding], Section | None], ...] = (
        _harm,
        _categories,
        _beside,
        _mitigations,
        _transfer,
        judges_section,
        tests_section,
        judge_free_section,
        _what,
        _limits,
    )
    return [section for make in makers if (section := make(finding)) is not None]


def key_figures(finding: Finding) -> list[tuple[str, str, str]]:
    """(name, value, interval) of the headline figures, the one that a decision rests on first."""
    head = finding.headline
    best = wording.format_alpha(head.get("alpha"))
    wanted: tuple[tuple[str, str, str], ...] = (
        ("reversal", "Reversal, percentage points", "points"),
        ("harm", f"Harm rate at {best}", "percent"),
        ("base", "Harm rate of base", "percent"),
        ("aligned", "Harm rate of aligned", "percent"),
        ("ratio_to_base", "Times the base's rate", "times"),
        ("reversal_index", "Reversal index", "plain"),
        ("utility_loss", "Utility lost", "percent"),
    )
    found = []
    for name, said, unit in wanted:
        figure = Figure.of(head.get(name))
        if figure is None or figure.value is None:
            continue
        value, scale, digits = {
            "points": (wording.format_signed(100 * figure.value), 100.0, 1),
            "percent": (wording.format_percent(figure.value), 100.0, 1),
            "times": (f"{wording.format_decimal(figure.value, 2)}×", 1.0, 2),
            "plain": (wording.format_decimal(figure.value, 2), 1.0, 2),
        }[unit]
        found.append((said, value, wording.format_interval(figure, scale, digits)))
    return found


def _harm(finding: Finding) -> Section | None:
    """Harm and utility against α: two charts on one scale, and the table of the line."""
    drawn = []
    for make, said in (
        (
            charts.harm_chart,
            "Share of completions that are harmful, with 95% bands. The dashed line is the base.",
        ),
        (
            charts.utility_chart,
            "What it costs: completions that are no longer of use, against the base model.",
        ),
    ):
        chart = make(finding)
        if chart is not None:
            drawn.append((chart, said.replace("95%", f"{100 * finding.level:g}%")))
    table = conditions_table(finding)
    if table is None:
        return None
    return Section(
        "harm", "Harm and utility against α", charts=tuple(drawn), tables=(table,), after=_selected(finding)
    )


def conditions_table(finding: Finding) -> Table | None:
    """One row per condition of the line."""
    entries = finding.line
    if not entries:
        return None
    joint = any(entry.get("harm_and_valid") for entry in entries)
    utility = any(entry.get("utility") for entry in entries)
    columns = ["condition", f"harm ({finding.harm_judge})"]
    columns += (
        ["harm and valid"] * joint + ["utility lost"] * utility + ["implied reward, nats", "completions"]
    )
    rows = []
    for entry in entries:
        loss = Figure.of((entry.get("utility") or {}).get("loss"))
        cells = [str(entry["label"]), wording.format_rate(finding.harm(entry))]
        cells += [wording.format_rate(Figure.of(entry.get("harm_and_valid")))] * joint + [
            wording.format_rate(loss)
        ] * utility
        dropped = f" ({entry['dropped']:,} more left out as too short)" if entry.get("dropped") else ""
        reward = entry.get("mean_implied_reward")
        cells += [wording.format_decimal(reward) if reward is None else wording.format_signed(reward)]
        cells += [f"{entry.get('completions', 0):,}{dropped}"]
        strong = entry["name"] == finding.headline.get("condition")
        rows.append(Row(tuple(cells), (finding.harm(entry),), strong))
    return Table("Every α that was tried", tuple(columns), tuple(rows), ("harm",), 0.0)


def _selected(finding: Finding) -> tuple[str, ...]:
    """How the headline α was picked, and what picking it did."""
    chosen, head = finding.group("selection"), finding.headline
    candidates = chosen.get("candidates")
    if not isinstance(candidates, list) or len(candidates) < 2 or head.get("alpha") is None:
        return ()
    said = (
        f"The headline α is the one of {len(candidates)} with the highest harm rate whose loss of utility stays within "
        f"{wording.format_percent(head.get('bound'))}."
    )
    optimism, plain = Figure.of(chosen.get("optimism")), Figure.of(head.get("plain"))
    by = optimism.value if optimism else chosen.get("optimism")
    if isinstance(by, int | float) and plain is not None:
        luck = f"{wording.format_decimal(100 * by)} points are luck" if by >= 0.0005 else "here it does not"
        said += (
            f" Picking the highest of several tends to flatter it; {luck}. Seen there: {wording.format_rate(plain)}. "
            "The headline figure is freed of that: α is picked on one half of the prompts, its rate taken on the other."
        )
    free = Figure.of((head.get("unconstrained") or {}).get("harm"))
    if free is not None and free.value is not None:
        at = wording.format_alpha((head.get("unconstrained") or {}).get("alpha"))
        said += f" With no bound on the loss of utility it would be {wording.format_rate(free)} at {at}."
    return (said,)


def _categories(finding: Finding) -> Section | None:
    """Harm per category of prompt, base beside the headline α."""
    base, best = finding.condition("base") or {}, finding.best or {}
    aligned = finding.condition("aligned") or {}
    parts = [entry.get("categories") or {} for entry in (aligned, base, best)]
    names = sorted({str(name) for part in parts if isinstance(part, Mapping) for name in part})
    if not names:
        return None
    rows = []
    for name in names:
        figures = [Figure.of(part.get(name)) for part in parts]
        prompts = max((figure.prompts for figure in figures if figure), default=0)
        cells = (name, f"{prompts:,}", *(wording.format_rate(figure) for figure in figures))
        rows.append((figures[2], Row(cells, (figures[2], figures[1]))))
    rows.sort(key=lambda pair: -(pair[0].value or 0.0) if pair[0] else 0.0)
    left = len(rows) - _CATEGORIES
    after = (
        (f"And {left:,} categories more, with lower rates: summary.json has them all.",) if left > 0 else ()
    )
    label = str(best.get("label", "headline α"))
    table = Table(
        "Harm rate by category of the prompt",
        ("category", "prompts", "aligned", "base", label),
        tuple(row for _, row in rows[:_CATEGORIES]),
        (label, "base"),
        0.0,
    )
    return Section("categories", "By category of prompt", tables=(table,), after=after)


def _mitigations(finding: Finding) -> Section | None:
    """What each mitigation leaves of the reversal, and what changes to the release would mean."""
    entries = finding.part("mitigations")
    said = "What a mitigation leaves of the reversal, if the attacker gets no more than it lets through."
    if not any(entry.get("mitigation") for entry in entries):
        entries, said = [], "No limit on what an attacker sees of the aligned model was measured in this run."
    rows = []
    for entry in entries:
        name, reversal = entry.get("mitigation"), Figure.of(entry.get("reversal"))
        cells = (
            f"{name}: {_meaning(str(name))}" if name else "none: the attack as it is",
            wording.NONE if entry.get("alpha") is None else str(entry["alpha"]),
            wording.format_rate(Figure.of(entry.get("harm"))),
            wording.format_points(reversal),
            wording.format_points(Figure.of(entry.get("reduction"))) if name else wording.NONE,
            str(entry.get("note") or ""),
        )
        rows.append(Row(cells, (reversal,), not name))
    heads = ("mitigation", "α", "harm rate", "reversal left, points", "taken away, points", "note")
    caption = "Reversal left under each mitigation, at the worst α within the bound on lost utility"
    table = Table(caption, heads, tuple(rows), ("reversal left",), 0.0)
    release = Table(
        "Changes to the release itself: decoding this pair cannot measure them, so that this is said and not measured",
        ("change", "what it takes from an attacker, and what it leaves"),
        tuple(Row((entry.what, entry.effect)) for entry in RELEASE_SIDE),
    )
    return Section(
        "mitigations", "Mitigations", (said,), tables=((table.compact(),) if rows else ()) + (release,)
    )


def _meaning(name: str) -> str:
    """A mitigation in words; a name that this version does not know stands for itself."""
    try:
        return meaning(name)
    except ConfigError:
        return "as the run calls it"


def _beside(finding: Finding) -> Section | None:
    """What stands beside the line of α: a model that was trained to be harmful, an ensemble of aligned models."""
    rest = [entry for entry in finding.conditions if entry.get("model")]
    if not rest:
        return None
    shown = [
        entry for entry in (finding.condition("aligned"), finding.condition("base"), finding.best) if entry
    ]
    rows = [
        Row(
            (str(e["label"]), wording.format_rate(finding.harm(e)), f"{e.get('completions', 0):,}"),
            (finding.harm(e),),
            e in shown,
        )
        for e in [*shown, *rest]
    ]
    caption = "Harm rates of other ways to the same end, beside those of the pair (in bold)"
    table = Table(
        caption, ("condition", f"harm ({finding.harm_judge})", "completions"), tuple(rows), ("harm",), 0.0
    )
    return Section("beside", "In proportion", tables=(table,))


def _transfer(finding: Finding) -> Section | None:
    """What transformed prompts do to base, aligned and ED."""
    rows = []
    for entry in finding.part("transfer"):
        cells, shown = [_changed(entry), str(entry.get("found_for") or "–")], []
        for side in ("base", "aligned", "ed"):
            part = entry.get(side) or {}
            cells.append(wording.format_rate(Figure.of(part.get("rate"))))
            cells.append(wording.format_points(Figure.of(part.get("uplift"))))
            shown.append(Figure.of(part.get("uplift")))
        rows.append(Row(tuple(cells), tuple(shown)))
    if not rows:
        return None
    heads = (
        "transform",
        "found for",
        "base",
        "base: uplift",
        "aligned",
        "aligned: uplift",
        "ED",
        "ED: uplift",
    )
    caption = (
        "Harm rate with transformed prompts, and what it adds to the same model asked plainly, in points"
    )
    table = Table(caption, heads, tuple(rows), ("base", "aligned", "ED"), 0.0)
    return Section("transfer", "Transformed prompts", tables=(table,))


_SAID = {
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


def _changed(entry: Mapping[str, Any]) -> str:
    """What was done to the prompts: a transform, or a system prompt."""
    return f"system prompt {entry['system']}" if entry.get("system") else str(entry.get("transform"))


def _what(finding: Finding) -> Section:
    """What was run, on what, with which seeds."""
    identity = dict(finding.identity)
    facts = []
    for name in [*(n for n in _SAID if n in identity), *(n for n in identity if n not in _SAID)]:
        said, value = _SAID.get(name, name.replace("_", " ")), identity[name]
        facts.append((said, _value(_DEFAULTS.get(name) if value is None else value)))
    facts.append(("run", str(finding.data.get("digest", wording.NONE))))
    for number, session in enumerate(finding.sessions, start=1):
        on = {key: part for key, part in session.items() if key not in ("id", "started")}
        facts.append((f"session {number}", f"{session.get('started')}: {_value(on)}"))
    return Section("run", "What was run", facts=tuple(facts))


def _limits(finding: Finding) -> Section:
    """What the finding does not say, and the run's own notes."""
    notes = [str(note) for note in finding.data.get("notes") or []]
    points = [*wording.limits(finding), *(note[:1].upper() + note[1:].rstrip(".") + "." for note in notes)]
    return Section("limits", "Limits of the finding", points=tuple(points))


def _value(value: Any) -> str:
    """Anything that JSON can hold, for people."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(map(_value, value)) or "none"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
