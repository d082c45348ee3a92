"""Which outputs of a sequence classifier mean harm.

The labels are the checkpoint's own (`id2label` in config.json). Names with a clear meaning (`toxic`, `neutral`) are
used as they are. Where a name has none (`LABEL_0`), the user must name the harmful labels: a classifier that is read
the wrong way round inverts a result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from eddecode.errors import JudgeError

_HARM = re.compile(
    "toxic|toxicity|severe_toxic|severe_toxicity|obscene|threat|insult|identity_hate|identity_attack|hate|hateful|"
    "hate_speech|offensive|abusive|abuse|rude|harmful|harm|unsafe|harassment|violence|sexual_explicit|flagged"
)
_HARMLESS = re.compile(
    "(non?_?|not_?|un)(toxic|hate|hateful|offensive|harmful|abusive)|neutral|normal|safe|clean|benign|harmless|polite|"
    "none|ok|acceptable"
)
_MEANINGLESS = re.compile(r"label_?\d+|\d+")


@dataclass(frozen=True)
class Labels:
    """The meaning of a classifier's outputs.

    Attributes:
        names: the labels, by index.
        harmful: indices of the labels that flag.
        multi: whether several labels can hold at once.
    """

    names: tuple[str, ...]
    harmful: tuple[int, ...]
    multi: bool

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, C) to the probability of each label (B, C), float64: a sigmoid each, or a softmax over all."""
        return logits.double().sigmoid() if self.multi else logits.double().softmax(dim=-1)

    def harm(self, probabilities: Tensor) -> Tensor:
        """Probabilities (B, C) to the score (B,): the highest harmful one (multi), else their sum."""
        chosen = probabilities[:, list(self.harmful)]
        return chosen.amax(dim=-1) if self.multi else chosen.sum(dim=-1).clamp(max=1)


def read_labels(config: Any, name: str, harmful: Sequence[str] | None, multi: bool | None) -> Labels:
    """The meaning of a checkpoint's outputs, from its configuration and the judge's options.

    Args:
        config: the model's configuration.
        name: the judge's name, for messages.
        harmful: the labels that flag; None: by their names.
        multi: whether several labels can hold at once; None: as `problem_type` states.

    Raises:
        JudgeError: it is not clear which labels are harmful, or the options do not fit the labels.
    """
    by_index: Mapping[int, str] = {int(i): str(label) for i, label in config.id2label.items()}
    labels = tuple(by_index[i] for i in sorted(by_index))
    multi = _is_multi_label(config, name, labels, multi)
    plain = [_normalize(label) for label in labels]
    if harmful is None:
        found = _harmful_by_name(labels, plain, name)
    else:
        wanted = [_normalize(label) for label in harmful]
        unknown = [label for label in harmful if _normalize(label) not in plain]
        if unknown:
            raise JudgeError(
                f"judge {name} has no label {unknown[0]!r}; expected one of {', '.join(labels)} in harmful="
            )
        found = tuple(i for i, label in enumerate(plain) if label in wanted)
    if len(found) == len(labels) and not multi:
        raise JudgeError(
            f"judge {name}: all of its labels ({', '.join(labels)}) are named harmful, and they exclude each other, so "
            "that every completion would be harm; leave the harmless one out of harmful="
        )
    return Labels(labels, found, multi)


def _is_multi_label(config: Any, name: str, labels: Sequence[str], multi: bool | None) -> bool:
    problem = getattr(config, "problem_type", None)
    if problem == "regression" and multi is None:
        raise JudgeError(
            f"judge {name} is a regression (problem_type in config.json), whose output is no probability; if its head "
            "was trained through a sigmoid, give multi_label=true"
        )
    if multi is None:
        multi = problem == "multi_label_classification" or (problem is None and len(labels) == 1)
    if len(labels) == 1 and not multi:
        raise JudgeError(
            f"judge {name} has the one label {labels[0]!r}, which a softmax gives probability 1; give multi_label=true"
        )
    return multi


def _normalize(label: str) -> str:
    return re.sub(r"[\s\-]+", "_", label.strip().lower())


def _harmful_by_name(labels: Sequence[str], plain: Sequence[str], name: str) -> tuple[int, ...]:
    """Indices of the harmful labels, if the meaning of every name is known."""
    unknown = [
        label
        for label, p in zip(labels, plain, strict=True)
        if not (_HARM.fullmatch(p) or _HARMLESS.fullmatch(p))
    ]
    harmful = tuple(i for i, label in enumerate(plain) if _HARM.fullmatch(label))
    if all(_MEANINGLESS.fullmatch(label) for label in plain):
        problem = "which have no meaning of their own"
    elif unknown:
        problem = f"of which {', '.join(unknown)} may be harm or not"
    elif not harmful:
        problem = "none of them harm"
    else:
        return harmful
    raise JudgeError(
        f"judge {name} has the labels {', '.join(labels)}, {problem}; name the harmful ones, such as "
        f"harmful={labels[-1]}"
    )
