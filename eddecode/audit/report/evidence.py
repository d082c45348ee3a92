"""The sections that a finding rests on: judges and their agreement, paired tests, and what needs no judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.finding import Figure, Finding
from eddecode.audit.report import charts
from eddecode.audit.report.layout import Row, Section, Table


def judges_section(finding: Finding) -> Section | None:
    """What each judge says of the three conditions that matter, and how far the judges agree."""
    if not finding.judges:
        return None
    shown = [
        entry for entry in (finding.condition("aligned"), finding.condition("base"), finding.best) if entry
    ]
    rows = [
        Row(
            (
                str(judge.get("name")),
                str(judge.get("role")),
                *(
                    wording.format_rate(Figure.of((entry.get("rates") or {}).get(judge.get("name"))))
                    for entry in shown
                ),
            ),
            strong=judge.get("name") == finding.harm_judge,
        )
        for judge in finding.judges
    ]
    rows += [
        Row((f"{name}, corrected by human labels", "harm", *cells))
        for name, cells in _corrections(shown).items()
    ]
    heads = ("judge", "role", *(str(entry["label"]) for entry in shown))
    tables = [Table("Completions that each judge flags", heads, tuple(rows))]
    agreement = _agreement(finding)
    if agreement is not None:
        tables.append(agreement)
    said = "A flag of a judge of harm is bad, one of a judge of validity good, one of a judge of refusal neither."
    return Section("judges", "Judges", (said,), tables=tuple(tables))


def _corrections(shown: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names = {str(name) for entry in shown for name in entry.get("corrected") or {}}
    return {
        name: [wording.format_rate(Figure.of((entry.get("corrected") or {}).get(name))) for entry in shown]
        for name in sorted(names)
    }


def _agreement(finding: Finding) -> Table | None:
    rows = []
    for entry in finding.part("agreement"):
        kappa = Figure(entry.get("kappa"), entry.get("low"), entry.get("high"))
        cells = (
            f"{entry.get('first')} and {entry.get('second')}",
            wording.format_number(kappa),
            wording.format_percent(entry.get("agreement")),
            wording.format_percent(entry.get("expected")),
            f"{entry.get('n', 0):,}",
        )
        rows.append(Row(cells, (kappa,)))
    if not rows:
        return None
    heads = ("judges", "Cohen's κ", "they agree on", "by chance alone", "completions")
    return Table(
        "Agreement: κ is 1 for full agreement, 0 for what chance gives", heads, tuple(rows), ("κ",), 0.0
    )


def tests_section(finding: Finding) -> Section | None:
    """Paired tests: which conditions differ from base or aligned on the same prompts."""
    rows = []
    for entry in finding.part("tests"):
        condition = finding.condition(entry.get("condition"))
        difference = Figure.of(entry.get("difference"))
        cells = (
            f"{condition['label'] if condition else entry.get('condition')} against {entry.get('against')}",
            wording.format_points(difference),
            f"{entry.get('up', 0):,} / {entry.get('down', 0):,}",
            _p_value(entry.get("p")),
            _p_value(entry.get("p_holm")),
        )
        rows.append(Row(cells, (difference,)))
    if not rows:
        return None
    heads = ("comparison", "difference, points", "prompts with more / less harm", "p", "p (Holm)")
    table = Table(
        "Paired on the same prompts; Holm's correction within each family of tests",
        heads,
        tuple(rows),
        ("difference",),
        0.0,
    )
    methods = sorted({str(entry.get("method", "")) for entry in finding.part("tests")} - {""})
    said = f"Two-sided, by the prompts' own differences ({', '.join(methods)}; see docs/statistics.md)."
    return Section("tests", "Paired tests", (said,) if methods else (), tables=(table,))


def judge_free_section(finding: Finding) -> Section | None:
    """Implied reward along α, KL between the models, and the depth profile."""
    free = finding.group("judge_free")
    rows = []
    for entry in free.get("implied_reward") or []:
        condition = finding.condition(entry.get("condition"))
        whole, token = Figure.of(entry.get("completion")), Figure.of(entry.get("token"))
        label = str(condition["label"] if condition else entry.get("condition"))
        rows.append(Row((label, wording.format_number(whole, 1), wording.format_number(token, 3)), (whole,)))
    chart = charts.depth_chart(finding)
    kl = free.get("kl") or {}
    forward, back = Figure.of(kl.get("aligned_base")), Figure.of(kl.get("base_aligned"))
    said = []
    if forward is not None and forward.value is not None:
        said.append(
            f"How far the alignment moved the model, KL(aligned ‖ base): {wording.format_number(forward, 1)} nats "
            f"a completion; the other way, KL(base ‖ aligned): {wording.format_number(back, 1)}."
        )
    elif kl.get("note"):
        said.append(f"{kl['note']}")
    if not rows and chart is None and not said:
        return None
    heads = ("condition", "nats per completion", "nats per token")
    tables = (
        Table(
            "Implied reward: log p_aligned − log p_base",
            heads,
            tuple(rows),
            ("per completion",),
            0.0,
            percent=False,
        ),
    )
    caption = "Where in the completion the alignment acts: above zero the aligned model favours a token more."
    return Section(
        "judge-free",
        "What needs no judge",
        tuple(said),
        ((chart, caption),) if chart is not None else (),
        tables if rows else (),
    )


def _p_value(value: Any) -> str:
    if not isinstance(value, int | float):
        return wording.NONE
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"
