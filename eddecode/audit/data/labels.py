"""Human labels: what people say of a run's completions, imported from a CSV file.

A line names a completion by what an export calls it (`condition`, `alpha`, `prompt_index`, `sample`), says whether it
is harmful, and may say who labelled it. People are not a judge that is called, so there is no `Judge` here: their
labels are what judges are measured by (`eddecode.audit.agreement`). Several raters of one completion are settled by
majority; a tie settles nothing and is counted, not broken.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eddecode.audit.conditions import alpha_text
from eddecode.errors import ConfigError, JudgeError
from eddecode.utils.files import parse_csv, read_text

KEY_COLUMNS = ("condition", "alpha", "prompt_index", "sample")
LABEL_COLUMN, RATER_COLUMN = "harmful", "rater"
_HARMFUL = {"1", "true", "yes", "y", "harmful", "unsafe"}
_HARMLESS = {"0", "false", "no", "n", "harmless", "safe"}

CompletionKey = tuple[str, str, int, int]  # condition, alpha as exact text, prompt index, sample


@dataclass(frozen=True)
class HumanLabel:
    """One person's label of one completion; `key` is (condition, alpha, prompt_index, sample)."""

    key: CompletionKey
    harmful: bool
    rater: str = ""


@dataclass(frozen=True)
class MajorityLabels:
    """What the raters say together.

    Attributes:
        labels: completion → harmful, by majority.
        ties: completions on which as many said yes as no; they have no label.
    """

    labels: dict[CompletionKey, bool]
    ties: tuple[CompletionKey, ...]


def read_labels(path: str | Path) -> list[HumanLabel]:
    """Labels of a CSV file with the columns condition, alpha, prompt_index, sample, harmful, and maybe rater.

    A line whose `harmful` is empty is skipped (a sheet may be half done). Other columns are not looked at.

    Raises:
        JudgeError: the file cannot be read, lacks a column, or has a line that will not do; the message names it.
    """
    text = read_text(path, "file of human labels", error=JudgeError)
    rows = parse_csv(text, path, error=JudgeError, required=(*KEY_COLUMNS, LABEL_COLUMN), pad=True)
    labels = [_label(row, place) for place, row in rows]
    found = [label for label in labels if label is not None]
    if not found:
        raise JudgeError(f"human labels {path} have no label; expected true or false in the column harmful")
    _no_repeats(found, path)
    return found


def majority_vote(labels: Iterable[HumanLabel]) -> MajorityLabels:
    """One label per completion, by majority of its raters."""
    votes: dict[CompletionKey, list[bool]] = defaultdict(list)
    for label in labels:
        votes[label.key].append(label.harmful)
    sums = {key: 2 * sum(said) - len(said) for key, said in votes.items()}
    return MajorityLabels(
        {key: balance > 0 for key, balance in sums.items() if balance != 0},
        tuple(key for key, balance in sums.items() if balance == 0),
    )


def by_rater(labels: Iterable[HumanLabel]) -> dict[str, dict[CompletionKey, bool]]:
    """rater → completion → harmful: for the agreement of people with each other."""
    found: dict[str, dict[CompletionKey, bool]] = defaultdict(dict)
    for label in labels:
        found[label.rater][label.key] = label.harmful
    return dict(found)


def _label(row: dict[str, str], where: str) -> HumanLabel | None:
    said = row[LABEL_COLUMN].strip().lower()
    if not said:
        return None
    if said not in _HARMFUL | _HARMLESS:
        raise JudgeError(f"{where}: harmful is {said!r}; expected true or false (or yes/no, 1/0)")
    try:
        alpha = alpha_text(row["alpha"])
        index, sample = int(row["prompt_index"]), int(row["sample"])
    except (ValueError, ConfigError) as error:
        raise JudgeError(
            f"{where}: {error}; expected alpha, prompt_index and sample as an export writes them"
        ) from error
    condition = row["condition"].strip()
    if not condition:
        raise JudgeError(f"{where}: condition is empty; expected base, aligned or ed")
    return HumanLabel((condition, alpha, index, sample), said in _HARMFUL, row.get(RATER_COLUMN, "").strip())


def _no_repeats(labels: Sequence[HumanLabel], path: str | Path) -> None:
    seen = set()
    for label in labels:
        if (label.key, label.rater) in seen:
            condition, alpha, index, sample = label.key
            raise JudgeError(
                f"human labels {path} have condition {condition}, alpha {alpha}, prompt {index}, sample {sample} twice"
                f"{f' from {label.rater}' if label.rater else ''}; expected one label of each per rater (name raters "
                f"in a column {RATER_COLUMN})"
            )
        seen.add((label.key, label.rater))
