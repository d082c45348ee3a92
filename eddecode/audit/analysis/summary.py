"""The finding of a run as data: what `audit` returns, what `summary.json` holds, what tables and pictures show.

It depends on what is in the store and on nothing else (no clock, no order of arrival), so that a run that was
killed and resumed ends in the same table as one that was left alone. The schema is versioned and documented in
docs/statistics.md. How a summary is made from a store is in `summarise`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddecode.audit.analysis.headline import Headline
from eddecode.audit.conditions import alpha_text
from eddecode.audit.stats.proportions import LEVEL, Estimate, Rate
from eddecode.utils.files import atomic_write

if TYPE_CHECKING:
    pass

FILE = "summary.json"
SCHEMA = "eddecode.summary/2"


@dataclass(frozen=True)
class UtilitySummary:
    """Whether the completions of one condition still are text.

    Attributes:
        kind: `validity` (a judge says so) or `composite` (they lie in the range of the base's own).
        rate: of intact completions.
        loss: 1 − rate/rate of base, on the same prompts; None for base itself.
        within: whether the loss keeps the run's bound.
        perplexity: geometric mean over completions of the perplexity per token under the base.
        distinct_1, distinct_2, repetition: means over completions.
        too_short: share of completions under 8 tokens of text.
    """

    kind: str
    rate: Rate
    loss: Estimate | None
    within: bool
    perplexity: float | None
    distinct_1: float | None
    distinct_2: float | None
    repetition: float | None
    too_short: float | None


@dataclass(frozen=True)
class ConditionSummary:
    """What one condition came to.

    Attributes:
        name, label: its key, and what people call it.
        condition, alpha: which side of the contrast, and α as exact text.
        system, transform, mitigation, model: what is changed about it; None: nothing.
        completions, dropped: how many count, and how many were left out as too short.
        rates: judge name → rate of flagged completions.
        harm_and_valid: rate of completions that the harm judge and every judge of validity flag; None without one.
        categories: category of the prompts → harm rate.
        corrected: judge name → harm rate corrected by human labels, as data.
        utility: whether it still is text.
        mean_tokens: length of a completion, EOS included.
        mean_implied_reward: log p_aligned − log p_base of a completion, nats, to the thousandth; None if not finite.
        finish_reasons: reason → completions.
    """

    name: str
    label: str
    condition: str
    alpha: str
    system: str | None
    transform: str | None
    mitigation: str | None
    model: str | None
    completions: int
    dropped: int
    rates: dict[str, Rate]
    harm_and_valid: Rate | None
    categories: dict[str, Rate]
    corrected: dict[str, dict[str, Any]]
    utility: UtilitySummary
    mean_tokens: float
    mean_implied_reward: float | None
    finish_reasons: dict[str, int]

    @property
    def plain(self) -> bool:
        """Whether it is the pair itself, with nothing changed: the conditions of the curve."""
        return not (self.system or self.transform or self.mitigation or self.model)


@dataclass(frozen=True)
class Summary:
    """The finding of one run.

    Attributes:
        identity: what decides the run's completions and verdicts.
        digest: of the identity.
        prompts, distinct_prompts: how many; the distinct ones are the clusters of the intervals.
        judges: name, role and identity of each; the first judges harm.
        conditions: one entry per condition: aligned, base, ED with α from low to high, then the others.
        headline: the figures that a decision rests on.
        selection, tests, mitigations, transfer, agreement, judge_free: as docs/statistics.md says.
        notes: what a reader of the figures has to know.
        folder: where the run is.
    """

    identity: dict[str, Any]
    digest: str
    prompts: int
    distinct_prompts: int
    judges: tuple[dict[str, str], ...]
    conditions: tuple[ConditionSummary, ...]
    headline: Headline
    selection: dict[str, Any]
    tests: tuple[dict[str, Any], ...]
    mitigations: tuple[dict[str, Any], ...]
    transfer: tuple[dict[str, Any], ...]
    agreement: tuple[dict[str, Any], ...]
    judge_free: dict[str, Any]
    notes: tuple[str, ...]
    folder: Path = field(default=Path())

    @property
    def harm_judge(self) -> str:
        """Name of the judge that harm rates are by."""
        return self.judges[0]["name"]

    @property
    def validity_judge(self) -> str | None:
        """Name of the first judge of validity, if there is one."""
        return next((judge["name"] for judge in self.judges if judge["role"] == "validity"), None)

    @property
    def line(self) -> tuple[ConditionSummary, ...]:
        """The conditions of the pair itself: aligned, base, and ED along α."""
        return tuple(entry for entry in self.conditions if entry.plain)

    def named(self, name: str) -> ConditionSummary:
        """The entry of that name, such as `ed@0.3+topk5`.

        Raises:
            KeyError: the run has no such condition.
        """
        for entry in self.conditions:
            if entry.name == name:
                return entry
        raise KeyError(f"no condition {name}; the run has {self._names()}")

    def condition(self, kind: str, alpha: str | float | None = None) -> ConditionSummary:
        """The entry of `base`, of `aligned`, or of `ed` at an α, with nothing changed about it.

        Raises:
            KeyError: the run has no such condition.
        """
        for entry in self.line:
            if entry.condition == kind and (alpha is None or entry.alpha == alpha_text(alpha)):
                return entry
        raise KeyError(f"no condition {kind} {'' if alpha is None else alpha}; the run has {self._names()}")

    def harm_rate(self, kind: str, alpha: str | float | None = None) -> Rate:
        """The harm rate of a condition, with its interval.

        Raises:
            KeyError: the run has no such condition.
        """
        return self.condition(kind, alpha).rates[self.harm_judge]

    def to_dict(self) -> dict[str, Any]:
        """The content of summary.json."""
        return {
            "schema": SCHEMA,
            "digest": self.digest,
            "identity": self.identity,
            "prompts": self.prompts,
            "distinct_prompts": self.distinct_prompts,
            "level": LEVEL,
            "judges": list(self.judges),
            "harm_judge": self.harm_judge,
            "conditions": _plain(self.conditions),
            "headline": _plain(self.headline),
            "selection": _plain(self.selection),
            "tests": _plain(self.tests),
            "mitigations": _plain(self.mitigations),
            "transfer": _plain(self.transfer),
            "agreement": _plain(self.agreement),
            "judge_free": _plain(self.judge_free),
            "notes": list(self.notes),
        }

    def write(self) -> Path:
        """Write summary.json into the run's folder, whole or not at all.

        Raises:
            StoreError: the folder cannot be written.
        """
        path = self.folder / FILE
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=True, allow_nan=False) + "\n"
        return atomic_write(path, text, hint="the completions are safe")

    def _names(self) -> str:
        return ", ".join(entry.name for entry in self.conditions)


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as JSON data; a field that begins with an underscore is not for files."""
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value


__all__ = ["FILE", "SCHEMA", "ConditionSummary", "Summary", "UtilitySummary"]
