"""The interface between the engine and speculative decoding: `Draft` and the protocol `Speculator`.

A speculator proposes tokens and the engine verifies them; neither calls the other back. The speculators are in
`eddecode.engine.speculative`, which the engine does not import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from eddecode.engine.sequence import SequenceState
from eddecode.execution.drafted_step import DraftPlan


@dataclass(frozen=True)
class Draft:
    """Tokens proposed to follow those of the running sequences.

    Attributes:
        tokens: k columns, each with one token id per sequence, in the order of the sequences; k may be 0.
        base_logits: (n, k + 1, V) float32, the base model's logits after the last token of each sequence and after
            each proposed token, if the base model has read the draft already; else None.
    """

    tokens: Sequence[Sequence[int]] = ()
    base_logits: Tensor | None = None


class Planner(Protocol):
    """Decides how tokens are drafted where the device drafts them, in captured steps."""

    def plan(self, num_sequences: int) -> DraftPlan:
        """How the next steps of that many sequences draft."""
        ...

    def count(self, plan: DraftPlan, right: Sequence[int]) -> None:
        """Learn from a step: for each sequence that goes on, how many of its drafted tokens were right."""
        ...


class Speculator(Protocol):
    """Proposes tokens.

    Attributes:
        lookahead: tokens of each sequence that it proposes at most in one step.
        token_bytes: bytes that it keeps for each token of a sequence, beside the keys and values of the models.
        planner: of drafts on the device; None where it needs the host.
    """

    @property
    def planner(self) -> Planner | None:
        """See above."""
        ...

    @property
    def lookahead(self) -> int:
        """See above."""
        ...

    @property
    def token_bytes(self) -> int:
        """See above."""
        ...

    def propose(self, sequences: Sequence[SequenceState], limit: int) -> Draft:
        """A draft of at most `limit` tokens for each of the running sequences, which stand in the order of slots."""
        ...

    def update(self) -> None:
        """Learn from the tokens that were sampled since the last `propose`."""
        ...

    def trim(self) -> None:
        """Release memory that it can do without."""
        ...
