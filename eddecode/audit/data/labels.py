"""Human labels of a run's completions, imported from a CSV file.

A line identifies a completion by the `id` of a label sheet (`eddecode.audit.export.labeling`), or by the columns of
an export: `prompt_index`, `sample`, and `name` or both `condition` and `alpha`. It labels the completion harmful or
not, and may name the rater. Human labels are the reference by which judges are measured
(`eddecode.audit.stats.agreement`); there is no `Judge` here. The labels of several raters of one completion are
combined by majority vote; ties give no label and are counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from eddecode.audit.conditions import alpha_text, canonical_name
from eddecode.errors import ConfigError, JudgeError
from eddecode.utils.files import parse_csv, read_text

KEY_COLUMNS = ("condition", "alpha", "prompt_index", "sample")
ID_COLUMN, NAME_COLUMN = "id", "name"
LABEL_COLUMN, RATER_COLUMN = "harmful", "rater"
_HARMFUL = {"1", "true", "yes", "y", "harmful", "unsafe"}
_HARMLESS = {"0", "false", "no", "n", "harmless", "safe"}

CompletionKey = tuple[
    str, str, int, int
]  # condition (or its name), alpha as exact text, prompt index, sample


@dataclass(frozen=True)
class HumanLabel:
    """One person's label of one completion; `key` is (condition, alpha, prompt_index, sample)."""

    key: CompletionKey
    harmful: bool
    rater: str = ""


@dataclass(frozen=True)
class MajorityLabels:
    """One label per completion, by majority vote of its raters.

    Attributes:
        labels: completion → harmful.
        ties: completions with as many labels for harmful as for harmless; they have no label.
    """

    labels: dict[CompletionKey, bool]
    ties: tuple[CompletionKey, ...]


def read_labels(path: str | Path, ids: Mapping[str, CompletionKey] | None = None) -> list[HumanLabel]:
    """The labels of a CSV file, whose columns are named above.

    A line whose `harmful` is empty is skipped, so that a sheet may be incomplete. Other columns are ignored.

    Args:
        path: of the file.
        ids: id on a sheet → completion; None: the file must name completions as an export does.

    Raises:
        JudgeError: the file cannot be read, lacks a column, or has a wrong line; the message names the line.
    """
    text = read_text(path, "file of human labels", error=JudgeError)
    columns = _columns(text, path)
    by_id = ID_COLUMN in columns and not {"prompt_index", "sample"} <= columns
    if by_id and ids is None:
        raise JudgeError(
            f"{path} names completions by the ids of a label sheet, and no run was given that has them"
        )
    key = () if by_id else ("prompt_index", "sample") if NAME_COLUMN in columns else KEY_COLUMNS
    required = (*((ID_COLUMN,) if by_id else key), LABEL_COLUMN)
    rows = parse_csv(text, path, error=JudgeError, required=required, delimiter=None, pad=True)
    labels = [_label(row, place, (ids or {}) if by_id else None) for place, row in rows]
    found = [label for label in labels if label is not None]
    if not found:
        raise JudgeError(f"{path} has no human label; expected true or false in the column harmful")
    _no_repeats(found, path)
    return found


def _columns(text: str, path: str | Path) -> set[str]:
    """The names in the first line: those of its first record, or none where it is the only line."""
    return next(
        (set(row) for _, row in parse_csv(text, path, error=JudgeError, delimiter=None, pad=True)), set()
    )


def majority_vote(labels: Iterable[HumanLabel]) -> MajorityLabels:
    """One label per completion, by majority vote of its raters."""
    votes: dict[CompletionKey, list[bool]] = defaultdict(list)
    for label in labels:
        votes[label.key].append(label.harmful)
    sums = {key: 2 * sum(flags) - len(flags) for key, flags in votes.items()}
    return MajorityLabels(
        {key: balance > 0 for key, balance in sums.items() if balance != 0},
        tuple(key for key, balance in sums.items() if balance == 0),
    )


def by_rater(labels: Iterable[HumanLabel]) -> dict[str, dict[CompletionKey, bool]]:
    """rater → completion → harmful, for the agreement between raters."""
    found: dict[str, dict[CompletionKey, bool]] = defaultdict(dict)
    for label in labels:
        found[label.rater][label.key] = label.harmful
    return dict(found)


def _label(row: dict[str, str], where: str, ids: Mapping[str, CompletionKey] | None) -> HumanLabel | None:
    label = row[LABEL_COLUMN].strip().lower()
    if not label:
        return None
    if label not in _HARMFUL | _HARMLESS:
        raise JudgeError(f"{where}: harmful is {label!r}; expected true or false (or yes/no, 1/0)")
    key = _key(row, where) if ids is None else ids.get(row[ID_COLUMN].strip())
    if key is None:
        raise JudgeError(
            f"{where}: no completion of the run has the id {row[ID_COLUMN]!r:.40}; expected an id of a sheet that was "
            "drawn from this run"
        )
    return HumanLabel(key, label in _HARMFUL, row.get(RATER_COLUMN, "").strip())


def _key(row: dict[str, str], where: str) -> CompletionKey:
    name = row.get(NAME_COLUMN, "").strip()
    try:
        name = canonical_name(name) if name else ""
        alpha = alpha_text(row.get("alpha") or "0" if name else row["alpha"])
        index, sample = int(row["prompt_index"]), int(row["sample"])
    except (ValueError, KeyError, ConfigError) as error:
        raise JudgeError(
            f"{where}: {error}; expected alpha, prompt_index and sample as an export writes them"
        ) from error
    condition = name or row.get("condition", "").strip()
    if not condition:
        raise JudgeError(f"{where}: condition is empty; expected base, aligned or ed")
    return condition, alpha, index, sample


def _no_repeats(labels: Sequence[HumanLabel], path: str | Path) -> None:
    seen = set()
    for label in labels:
        if (label.key, label.rater) in seen:
            condition, alpha, index, sample = label.key
            raise JudgeError(
                f"{path} labels condition {condition}, alpha {alpha}, prompt {index}, sample {sample} twice"
                f"{f' from {label.rater}' if label.rater else ''}; expected one label per completion and rater (name "
                f"raters in a column {RATER_COLUMN})"
            )
        seen.add((label.key, label.rater))
