"""A large aligned model, steered by what an alignment did to a smaller pair: weak-to-strong jailbreaking.

Zhao et al. (arXiv 2401.17256) add a·(log p_unsafe − log p_safe) of two small models to the log-probabilities of a
large aligned one. There the small unsafe model is trained to be so; here it is the small pair's base, which needs no
training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from eddecode.errors import PairError
from eddecode.models.ensemble import LoadOptions, LogitMixture, load_pairs
from eddecode.models.load_group import CheckpointRef
from eddecode.models.pair import ModelPair


class WeakToStrong(LogitMixture):
    """A pair whose aligned model is steered by the difference of a smaller pair: weights (0, 1, a, −a) at α = −1.

    Each model reads the text of its side. The large base has no weight: it tells how likely the completions are, as for
    all attacks; at α = 0 it is what is sampled from.

    The models are named "base", "aligned", "weak base" and "weak aligned".
    """

    sides = ("base", "aligned", "base", "aligned")

    def __init__(self, strong: ModelPair, weak: ModelPair, across: ModelPair, strength: float) -> None:
        """strong, weak: the two pairs. across: the strong aligned model with the weak one. strength: a."""
        if across.models != (strong.aligned, weak.aligned):
            raise PairError("the pair across is not of the two aligned models; expected these")
        self.strength = strength
        pairs = [(strong, (0, 1)), (weak, (2, 3)), (across, (1, 3))]
        super().__init__(pairs, ("base", "aligned", "weak base", "weak aligned"))

    def logit_weights(self, alpha: float) -> tuple[float, ...]:
        """(1 + α, −α, −α·a, α·a)."""
        return 1.0 + alpha, -alpha, -alpha * self.strength, alpha * self.strength

    @classmethod
    def load(
        cls,
        base: str | Path,
        aligned: str | Path,
        weak_base: str | Path,
        weak_aligned: str | Path,
        *,
        strength: float,
        **options: Unpack[LoadOptions],
    ) -> WeakToStrong:
        """Load both pairs; either aligned side may be a PEFT adapter over its base.

        options: see `LoadOptions`. PairError as in `ModelPair.load`.
        """
        refs = [
            CheckpointRef(base, "base"),
            CheckpointRef(aligned, "aligned", adapter_base=0),
            CheckpointRef(weak_base, "weak base"),
            CheckpointRef(weak_aligned, "weak aligned", adapter_base=2),
        ]
        (strong, weak, across), notes = load_pairs(refs, [(0, 1), (2, 3), (1, 3)], **options)
        group = cls(strong, weak, across, strength)
        group._add_notes(notes)
        return group

    @classmethod
    def from_models(cls, strong: ModelPair, weak: ModelPair, *, strength: float) -> WeakToStrong:
        """Of two pairs that are in memory already."""
        across = ModelPair.from_models(
            strong.aligned, weak.aligned, strong.aligned_tokenizer, weak.aligned_tokenizer
        )
        return cls(strong, weak, across, strength)
