"""Which tokens the two models of a pair disagree on most, over a text: what the alignment raised and what it lowered.

One pass of each model over the text gives both next-token distributions p at every position. A token's part of
KL(aligned ‖ base), p_aligned·(log p_aligned − log p_base), is large where the alignment made a token likely; its part
of KL(base ‖ aligned) is large where the alignment took a likely token away. The parts of all tokens sum to the
divergence. Diff Mining ("Logit Differences Reveal Finetuning Objectives", ICLR 2026) counts instead how often a token
is among the k with the largest difference of the logits; such counts are given too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eddecode.errors import EngineError, ParamsError, PromptError
from eddecode.execution.factory import separate_pair_runner
from eddecode.prompts.encoding import encode, token_ids
from eddecode.scoring.readers import readers_for
from eddecode.scoring.scorer import BATCH_TOKENS, LOGIT_BYTES

if TYPE_CHECKING:
    from eddecode.models.pair import ModelPair

WINDOW = 256  # tokens that are read together; a longer text is cut into windows
LARGEST = 100  # k of the counts


@dataclass(frozen=True)
class TokenDifference:
    """One token over all positions.

    Attributes:
        id: of the token.
        token: its text, as the tokenizer decodes it alone.
        base, aligned: mean probability under each model.
        divergence: its part of KL(aligned ‖ base) in the list of raised tokens, of KL(base ‖ aligned) in that of
            lowered ones; nats per position.
        largest: share of the positions at which it is among the `LARGEST` tokens with the largest difference of the
            logits, aligned − base in the list of raised tokens, base − aligned in the other.
    """

    id: int
    token: str
    base: float
    aligned: float
    divergence: float
    largest: float


@dataclass(frozen=True)
class TokenDifferences:
    """The tokens on which the two models disagree most.

    Attributes:
        texts, positions: how many texts were read, and at how many positions the models were compared.
        kl_aligned_base, kl_base_aligned: the divergences, nats per position.
        raised, lowered: tokens that the alignment made more, and less, likely; the largest part first.
    """

    texts: int
    positions: int
    kl_aligned_base: float
    kl_base_aligned: float
    raised: tuple[TokenDifference, ...]
    lowered: tuple[TokenDifference, ...]

    def to_dict(self) -> dict[str, Any]:
        """As data for json.dumps."""
        return asdict(self)


def token_differences(pair: ModelPair, texts: Sequence[str], *, top: int = 20) -> TokenDifferences:
    """The tokens on which the two models of a pair disagree most.

    Each text is read as it is, without a template, after what each model's tokenizer puts before a text (its BOS). A
    text of more than `WINDOW` tokens is cut into windows that are read each by itself; every token but the first of a
    text or window is a position, and the first too where both models have a BOS.

    Args:
        pair: the models, with a tokenizer. Probabilities are over the ids that both know.
        texts: what is read.
        top: length of each list.

    Raises:
        ParamsError: `top` is below 1.
        PromptError: there is no tokenizer, or no text has two tokens.
        EngineError: logits are not finite.
    """
    if top < 1:
        raise ParamsError(f"top is {top}; expected at least 1")
    if pair.tokenizer is None:
        raise PromptError("the pair has no tokenizer, and a text cannot be read without one")
    windows = [window for text in texts for window in _windows(pair, text)]
    if not windows:
        raise PromptError("no text has two tokens; expected texts on which the models can be compared")
    sums = _Sums(pair.vocabulary)
    for base, aligned in _logits(pair, windows):
        sums.add(base, aligned)
    return sums.result(pair, len(texts), top)


@dataclass(frozen=True)
class _Window:
    """A part of a text: what each model reads before it, and the tokens that are compared, which both read."""

    before: tuple[tuple[int, ...], tuple[int, ...]]
    tokens: tuple[int, ...]


def _windows(pair: ModelPair, text: str) -> Iterator[_Window]:
    """The windows of a text with a token to compare."""
    ids = token_ids(pair.tokenizer, text)
    prefixes = [_prefix(tokenizer) for tokenizer in pair.tokenizers]
    kept = 0 if all(prefixes) else 1  # without a BOS the first token is only read
    limits = [window - max(map(len, prefixes)) for window in pair.context_windows if window is not None]
    size = max(kept + 1, min([WINDOW, *limits]))
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        if len(part) > kept:
            base, aligned = ((*prefix, *part[:kept]) for prefix in prefixes)
            yield _Window((base, aligned), tuple(part[kept:]))


def _prefix(tokenizer: Any) -> list[int]:
    """What a tokenizer puts before a text."""
    plain, whole = token_ids(tokenizer, "a"), encode(tokenizer, "a")
    return whole[: len(whole) - len(plain)]


def _logits(pair: ModelPair, windows: Sequence[_Window]) -> Iterator[tuple[Tensor, Tensor]]:
    """Both models' logits (K, V) at all positions, a limited number at a time."""
    readers, width = readers_for(separate_pair_runner(pair)), len(pair.vocabulary)
    step = max(1, LOGIT_BYTES // (8 * width))
    try:
        for batch in _batches(windows):
            places = torch.tensor(
                [(row, t) for row, each in enumerate(batch) for t in range(len(each.tokens))]
            )
            read = [
                reader.prefill([(each.before[side], each.tokens) for each in batch])
                for side, reader in enumerate(readers)
            ]
            for start in range(0, len(places), step):
                base, aligned = (one.logits(places[start : start + step])[:, :width] for one in read)
                yield base, aligned.to(base.device)
    finally:
        for reader in readers:
            reader.clear_cache()


def _batches(windows: Sequence[_Window]) -> Iterator[list[_Window]]:
    """Windows of similar length together, `BATCH_TOKENS` at a time."""
    batch: list[_Window] = []
    for window in sorted(windows, key=lambda each: -len(each.tokens)):
        if batch and (len(batch) + 1) * len(batch[0].tokens) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


class _Sums:
    """Sums over positions, per token; row 0 is for raised tokens (aligned over base), row 1 for lowered ones."""

    def __init__(self, vocabulary: Tensor) -> None:
        self._vocabulary, self._positions = vocabulary, 0
        self._probability = np.zeros((2, len(vocabulary)))
        self._divergence = np.zeros((2, len(vocabulary)))
        self._largest = np.zeros((2, len(vocabulary)))

    def add(self, base: Tensor, aligned: Tensor) -> None:
        """Include positions: logits (K, V) of each model."""
        known = self._vocabulary.to(base.device)
        for name, logits in (("base", base), ("aligned", aligned)):
            if not bool((logits[:, known] < torch.inf).all()):  # NaN or +inf
                raise EngineError(
                    f"the logits of the {name} model are not finite: load it in bfloat16 or float32 (float16 overflows "
                    "in many models), or check the weights"
                )
        logs = [
            logits.double().masked_fill(~known, -torch.inf).log_softmax(dim=-1) for logits in (base, aligned)
        ]
        self._positions += len(base)
        k = min(LARGEST, int(known.sum()))
        for row, (ours, other) in enumerate((logs[::-1], logs)):
            impossible = ours == -torch.inf
            difference = (ours - other).masked_fill(impossible, -torch.inf)
            parts = (ours.exp() * difference).masked_fill(impossible, 0.0)
            self._divergence[row] += parts.sum(dim=0).cpu().numpy()
            counts = torch.bincount(difference.topk(k, dim=-1).indices.flatten(), minlength=len(known))
            self._largest[row] += counts.cpu().numpy()
            self._probability[row] += other.exp().sum(dim=0).cpu().numpy()

    def result(self, pair: ModelPair, texts: int, top: int) -> TokenDifferences:
        """The tokens with the largest parts."""
        base, aligned = self._probability / self._positions
        divergence, largest = self._divergence / self._positions, self._largest / self._positions
        lists = []
        for row in range(2):
            order = [int(i) for i in np.argsort(-divergence[row], kind="stable")[:top]]
            lists.append(
                tuple(
                    TokenDifference(
                        i,
                        pair.tokenizer.decode([i]),
                        float(base[i]),
                        float(aligned[i]),
                        float(divergence[row, i]),
                        float(largest[row, i]),
                    )
                    for i in order
                    if divergence[row, i] > 0
                )
            )
        both = divergence.sum(axis=1)
        return TokenDifferences(texts, self._positions, float(both[0]), float(both[1]), lists[0], lists[1])
