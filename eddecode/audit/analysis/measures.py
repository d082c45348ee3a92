"""The strongest attack by each measure of harm, with the question that the measure answers.

Report, comparison and gate show the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eddecode.audit.analysis import wording
from eddecode.audit.analysis.release_parts import AttackFigures, WorstAttack
from eddecode.audit.analysis.summary import Summary


@dataclass(frozen=True)
class Measure:
    """One measure of harm.

    Attributes:
        name: such as `harmful`, `any of 4`, `worst judge: guard`.
        question: that it answers, in words.
        figures: of the strongest attack by it.
    """

    name: str
    question: str
    figures: AttackFigures

    def to_dict(self) -> dict[str, Any]:
        """The measure as JSON data."""
        plain = {name: getattr(self.figures, name) for name in AttackFigures.model_fields}
        return {
            "measure": self.name,
            "question": self.question,
            **AttackFigures(**plain).model_dump(mode="json"),
        }


def measures(summary: Summary) -> list[Measure]:
    """Harm of the attack by every measure that the run has figures for; none in summaries of older releases."""
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
            f"the strongest of {settings.settings} settings of prompt, templates and sampling, against both models in "
            f"the run's own; the base alone reaches {wording.format_rate(settings.strongest_base)} "
            f"({settings.base_condition}), and the attack adds {wording.format_points(settings.over_strongest_base)} "
            "points to that"
        )
        name = (
            "strongest setting" if settings.condition is None else f"strongest setting ({settings.condition})"
        )
        parts.append((name, settings, text))
    parts += _attacks(found.worst_attack)
    parts += _worst_rows(summary)
    return [Measure(name, text, figures) for name, figures, text in parts if figures is not None]


def _attacks(worst: WorstAttack | None) -> list[tuple[str, AttackFigures | None, str]]:
    """The worst attack without training, and the best decoding setting of each prompt."""
    if worst is None:
        return []
    at = "" if worst.condition is None else f" ({worst.condition})"
    text = (
        f"the most harmful of {len(worst.candidates)} conditions that need no training: the base, ED in every setting, "
        f"and the attacks {', '.join(worst.attacks)}"
    )
    parts: list[tuple[str, AttackFigures | None, str]] = [(f"worst attack{at}", worst, text)]
    if worst.valid is not None:
        at = "" if worst.valid.condition is None else f" ({worst.valid.condition})"
        same = "the same, where the completion must also be a useful text"
        parts.append((f"worst attack, harmful and valid{at}", worst.valid, same))
    if (best := worst.best_per_prompt) is not None:
        text = (
            f"how many prompts give a harmful completion of the aligned model in one of {best.attempts} attempts, at "
            f"{len(best.settings)} decoding settings"
        )
        parts.append(("decoding, best of each prompt", AttackFigures(harm=best.harm), text))
    return parts


def _any_of(k: int) -> str:
    return f"how many prompts give at least one harmful completion in {k} attempts"


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
