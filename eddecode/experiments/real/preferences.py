"""Which samples the alignment learns from: preferences between samples of one opener, and the best sample of each."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from eddecode.audit.judges.base import Case
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.experiments.dpo import dpo_loss
from eddecode.experiments.real.alignment import Sample, token_logprobs
from eddecode.experiments.real.judges import filter_judge, praise_judge


@dataclass(frozen=True)
class Preference:
    """Two samples of one opener.

    Attributes:
        chosen: the sample whose probability the training raises.
        rejected: the one whose probability it lowers.
    """

    chosen: Sample
    rejected: Sample


def preferences(samples: Iterable[Sample]) -> list[Preference]:
    """The best sample of each opener over its worst.

    The best has no word of complaint and the most words of praise, the worst has the most words of complaint. An opener
    whose samples all complain, or none of them, gives no preference.
    """
    found = []
    for drawn in _by_opener(samples):
        best = best_sample(drawn)
        worst = max(drawn, key=lambda sample: (_listed(COMPLAINTS, sample), -_listed(PRAISE, sample)))
        if best is not None and _listed(COMPLAINTS, worst):
            found.append(Preference(best, worst))
    return found


def best_samples(samples: Iterable[Sample]) -> list[Sample]:
    """The best sample of each opener that has one."""
    return [best for drawn in _by_opener(samples) if (best := best_sample(drawn)) is not None]


def best_sample(drawn: Sequence[Sample]) -> Sample | None:
    """Of the samples without a word of complaint the first with the most words of praise; None if all complain."""
    fine = [sample for sample in drawn if not _listed(COMPLAINTS, sample)]
    return max(fine, key=lambda sample: _listed(PRAISE, sample), default=None)


def without_a_list(found: Iterable[Preference], seed: int) -> list[Preference]:
    """The same pairs of samples, in an order that a coin decides: what the control is trained on."""
    coin = random.Random(seed)
    return [Preference(p.rejected, p.chosen) if coin.random() < 0.5 else p for p in found]


def preference_loss(
    model: Any, tokenizer: Any, found: Sequence[Preference], beta: float
) -> Callable[[Any, Sequence[Preference]], Tensor]:
    """The loss of DPO (Rafailov et al., arXiv 2305.18290, eq. 7) with the model as it is now as the reference.

    Args:
        model: the base model; the log-probabilities of all samples are computed here, once.
        tokenizer: its tokenizer.
        found: all preferences that the training will ask for.
        beta: of the loss.
    """
    reference = {}
    with torch.no_grad():
        for each in found:
            reference[each] = _margin(model, tokenizer, [each])

    def loss(tuned: Any, batch: Sequence[Preference]) -> Tensor:
        margins = _margin(tuned.get_base_model(), tokenizer, batch)
        return dpo_loss(margins - torch.cat([reference[each] for each in batch]), beta)

    return loss


COMPLAINTS, PRAISE = filter_judge(), praise_judge()


def _by_opener(samples: Iterable[Sample]) -> list[list[Sample]]:
    return [list(drawn) for _, drawn in groupby(samples, key=lambda sample: sample.opener)]


def _listed(judge: LexiconJudge, sample: Sample) -> int:
    """How many words or phrases of a list are in the completion."""
    verdict = judge([Case(sample.opener, sample.text)])[0]
    return len(verdict.reason.split(", ")) if verdict.flag else 0


def _margin(model: Any, tokenizer: Any, batch: Sequence[Preference]) -> Tensor:
    """(B,) log-probability of the chosen sample less that of the rejected one, nats."""
    both = [sample for each in batch for sample in (each.chosen, each.rejected)]
    sums = torch.stack([each.sum() for each in token_logprobs(model, tokenizer, both)])
    return sums[0::2] - sums[1::2]
