"""Several pairs in one contrast: the logits of several bases and of their aligned models, averaged.

`Ensemble` has one base, because a release has one. An attacker who holds several public pairs over one vocabulary can
average the pairs themselves: where `Ensemble` averages out the noise of the aligned models, this averages out that of
the bases too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eddecode.models.ensemble import LogitMixture
from eddecode.models.pair import ModelPair


class PairEnsemble(LogitMixture):
    """n pairs with weights (1+α)/n on each base and −α/n on each aligned model.

    α = 0 is the normalized geometric mean of the bases, α = −1 that of the aligned models.
    """

    def __init__(self, pairs: Sequence[ModelPair]) -> None:
        """pairs: at least one; the base of the first is checked against the aligned model of each other."""
        self.sides = ("base", "aligned") * len(pairs)
        names = [f"{side} {i}" for i in range(1, len(pairs) + 1) for side in ("base", "aligned")]
        checked = [(pair, (2 * i, 2 * i + 1)) for i, pair in enumerate(pairs)]
        first = pairs[0]
        checked += [
            (
                ModelPair.from_models(first.base, pair.aligned, first.base_tokenizer, pair.aligned_tokenizer),
                (0, 2 * i + 1),
            )
            for i, pair in enumerate(pairs[1:], start=1)
        ]
        super().__init__(checked, names)

    def logit_weights(self, alpha: float) -> tuple[float, ...]:
        """((1 + α)/n, −α/n) for each pair."""
        count = len(self.models) // 2
        return ((1.0 + alpha) / count, -alpha / count) * count

    @classmethod
    def from_models(cls, pairs: Sequence[tuple[Any, Any]], tokenizer: Any) -> PairEnsemble:
        """From (base, aligned) models in memory that share one tokenizer."""
        return cls([ModelPair.from_models(*pair, tokenizer, tokenizer) for pair in pairs])
