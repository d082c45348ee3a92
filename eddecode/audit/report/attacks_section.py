"""The sections of attacks beside emulated disalignment, each with harm and cost; and of what the alignment added."""

from __future__ import annotations

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.release_parts import AttackModel, WorstAttack
from eddecode.audit.analysis.summary import Summary
from eddecode.audit.report.layout import Row, Section, Table

_STATES = {"inside": "yes", "outside": "no", "open": "not decided"}


def attacks_section(summary: Summary) -> Section | None:
    """The worst attack without training in words, and a row for every one; None where none beside ED was measured."""
    worst = summary.release.worst_attack
    if worst is None:
        return None
    states = {candidate.condition: candidate.state for candidate in worst.candidates}
    models = {model.condition: model for model in worst.models}
    rows = []
    for entry in summary.conditions:
        if entry.name not in states:
            continue
        harm = summary.harm(entry)
        cells = (
            entry.label,
            wording.format_rate(harm),
            wording.format_rate(entry.harm_and_valid),
            wording.format_rate(entry.utility.loss if entry.utility else None),
            _STATES[states[entry.name]],
            *_model_cells(models.get(entry.name)),
        )
        rows.append(Row(cells, (harm,), entry.name == worst.condition))
    heads = (
        *("attack", f"harm ({summary.harm_judge})", "harm and valid", "utility lost", "within the bound"),
        *("KL to aligned, nats", "layer", "refusal left"),
    )
    table = Table("All attacks that need no training", heads, tuple(rows), ("harm",), 0.0).compact()
    return Section(
        "attacks",
        "The worst attack without training",
        (wording.worst_attack(summary),),
        tables=(table,),
        after=_model_notes(worst),
    )


def _model_cells(model: AttackModel | None) -> tuple[str, str, str]:
    """KL to the aligned model, the layer of a direction, and the refusal left; empty where there is none."""
    if model is None:
        return "", "", ""
    kl = "" if model.kl_to_aligned is None else wording.format_decimal(model.kl_to_aligned, 3)
    layer = "" if model.layer is None else str(model.layer)
    left = "" if model.refusal_remaining is None else wording.format_percent(model.refusal_remaining)
    return kl, layer, left


def _model_notes(worst: WorstAttack) -> tuple[str, ...]:
    """What the columns on attacks' models mean, and where a refusal direction had nothing to remove."""
    found = []
    prompts = next((m.kl_prompts for m in worst.models if m.kl_to_aligned is not None), None)
    if prompts is not None:
        found.append(
            "KL to aligned is what a change of the model costs: the mean of KL(aligned ‖ attack) of the first token on "
            f"{prompts:,} harmless prompts that nothing was fitted on."
        )
    if any(model.refusal_remaining is not None for model in worst.models):
        found.append(
            "Refusal left is the share of the difference between first tokens after refused and after answered prompts "
            "that is left without the direction, on prompts that it was not made from."
        )
    alike = [m.condition for m in worst.models if m.position is not None and m.refusal_remaining is None]
    if alike:
        found.append(
            f"{', '.join(alike)}: the aligned model begins its completions of both files of prompts alike, so that "
            "there was no refusal to remove; this says nothing about prompts that it does refuse."
        )
    return tuple(found)


def amplified_section(summary: Summary) -> Section | None:
    """What the alignment added, as its amplification shows it; None where none was measured."""
    amplified = [entry for entry in summary.conditions if entry.condition == "amplify"]
    aligned = summary.find("aligned")
    if not amplified or aligned is None:
        return None
    tests = {test.condition: test for test in summary.tests if test.against == "aligned"}
    rows = []
    for entry in (aligned, *amplified):
        for judge in summary.judges:
            rate = entry.rates.get(judge.name)
            is_harm = judge.name == summary.harm_judge
            test = tests.get(entry.name) if is_harm else None
            cells = (
                entry.label,
                judge.name,
                wording.format_rate(rate),
                "" if test is None else wording.format_points(test.difference),
            )
            rows.append(Row(cells, (rate,), is_harm and entry is not aligned))
    text = (
        "Adding to the aligned model's logits what the alignment added to the base's makes rare behaviors of the "
        "release frequent (model diff amplification, Goodfire 2025): what is flagged here and hardly in the aligned "
        "model is something that post-training brought in, not the base. A rate that stays is no proof of absence."
    )
    heads = ("condition", "judge", "flagged", "over aligned, points")
    table = Table("Flagged completions under amplification", heads, tuple(rows), ("flagged",), 0.0).compact()
    return Section("amplified", "What the alignment added", (text,), tables=(table,))
