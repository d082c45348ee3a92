"""AdaptiveSpeculator: which drafter is used in a step, and how many tokens it drafts.

The engine verifies a draft by sampling every position just as without one, and keeps what was sampled up to the first
difference. So there is nothing to correct for, and the tokens are the same, sampled or greedy, under any filters. This
is stricter than speculative sampling (Leviathan et al., ICML 2023, arXiv 2211.17192), which keeps the distribution
only. Its price is some acceptance: two distributions that overlap by 1 − ε agree on a shared random number a little
less often than that.

The number of drafted tokens follows from the acceptance so far, without a clock. A draft goes on while the share of
sequences that are likely to accept one more token exceeds the cost of that token, which the drafter estimates; as in
transformers' dynamic speculation, a draft ends at a token that the drafter is not confident in. A drafter whose
acceptance falls below its cost pauses, each time for twice as long. Where steps of a pair are captured, drafts are made
on the device instead (`eddecode.engine.speculative.planner`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from eddecode.engine.draft import Draft
from eddecode.engine.sequence import SequenceState
from eddecode.engine.speculative.drafters import BaseDrafter, Drafter, DraftTokens, NgramDrafter
from eddecode.engine.speculative.planner import DraftPlanner, planner_of
from eddecode.engine.speculative.stats import SpeculationStats
from eddecode.execution.runner import PairRunner

Mode = Literal["off", "auto", "base", "ngram"]

LOOKAHEAD = 11  # drafted tokens of a step at most


@dataclass(frozen=True)
class _Proposal:
    """A draft, and the sequences that it was made for, each with the length of its completion then."""

    drafter: Drafter
    tokens: list[DraftTokens]
    num_verified: int
    sequences: list[tuple[SequenceState, int]]


class AdaptiveSpeculator:
    """Proposes tokens by the first drafter that has something worth verifying; see `eddecode.engine.draft.Speculator`.

    Args:
        drafters: in the order of preference.
        stats: statistics of earlier engines.
        num_draft_tokens: draft this many tokens at every step, whether it pays or not; for tests and measurements.

    Attributes:
        planner: see `Speculator.planner`.
    """

    lookahead = LOOKAHEAD

    def __init__(
        self,
        drafters: Sequence[Drafter],
        stats: SpeculationStats | None = None,
        num_draft_tokens: int | None = None,
    ) -> None:
        self.drafters = tuple(drafters)
        self.stats = stats or SpeculationStats()
        self.num_draft_tokens = num_draft_tokens
        self.planner: DraftPlanner | None = planner_of(self.drafters, self.stats, num_draft_tokens)
        self._proposals: list[_Proposal] = []  # of the step in progress

    @classmethod
    def of(cls, mode: Mode) -> AdaptiveSpeculator | None:
        """With the drafters that a mode's name stands for."""
        drafters: dict[Mode, list[Drafter]] = {
            "auto": [NgramDrafter(), BaseDrafter()],  # the drafter without a forward pass first
            "base": [BaseDrafter()],
            "ngram": [NgramDrafter()],
        }
        return None if mode == "off" else cls(drafters[mode])

    def bind(self, runner: PairRunner, vocabulary: Tensor) -> AdaptiveSpeculator:
        """The same drafters for an engine with this runner and vocabulary; statistics are shared."""
        drafters = [drafter.bind(runner, vocabulary) for drafter in self.drafters]
        return type(self)(drafters, self.stats, self.num_draft_tokens)

    @property
    def token_bytes(self) -> int:
        """See `Speculator.token_bytes`."""
        return sum(drafter.token_bytes for drafter in self.drafters)

    def propose(self, sequences: Sequence[SequenceState], limit: int) -> Draft:
        """See `Speculator.propose`."""
        self._proposals = []
        for drafter in self.drafters:
            room = min(limit, drafter.room(sequences) - 1)
            if room < 1 or (self.num_draft_tokens is None and not self._may_draft(drafter, len(sequences))):
                continue
            proposal = self._draft(drafter, sequences, room)
            self._proposals.append(proposal)
            kept = proposal.tokens[: proposal.num_verified]
            known = [tokens.base_logits for tokens in proposal.tokens if tokens.base_logits is not None]
            if kept or known:
                return Draft([t.tokens for t in kept], torch.stack(known, dim=1) if known else None)
        return Draft()

    def _may_draft(self, drafter: Drafter, num_sequences: int) -> bool:
        return drafter.cost(num_sequences) < 1 and not self.stats.of(drafter.name).is_paused()

    def _draft(self, drafter: Drafter, sequences: Sequence[SequenceState], room: int) -> _Proposal:
        """Tokens of a drafter, for as long as one more is worth its cost."""
        most = min(room, self.num_draft_tokens or LOOKAHEAD)
        cost = drafter.cost(len(sequences))
        stats = self.stats.of(drafter.name)
        accepted = [1.0] * len(sequences)  # the chance that all drafted tokens so far are right
        proposed: list[DraftTokens] = []
        num_verified = 0
        for tokens in drafter.draft(sequences):
            proposed.append(tokens)
            if num_verified == most:  # of the base, whose logits after the last drafted token are needed
                break
            for i, (sequence, level) in enumerate(zip(sequences, tokens.levels, strict=True)):
                is_needed = len(sequence.tokens) + len(proposed) < sequence.request.params.max_new_tokens
                accepted[i] *= stats.rate(_key(sequence, level)).value if is_needed and level >= 0 else 0.0
            if self.num_draft_tokens is None and sum(accepted) <= cost * len(sequences):
                break
            num_verified += 1
            if num_verified == most and not drafter.is_base:
                break
        return _Proposal(drafter, proposed, num_verified, [(s, len(s.tokens)) for s in sequences])

    def update(self) -> None:
        """See `Speculator.update`: compare what was proposed, also what was not verified, with what was sampled."""
        for proposal in self._proposals:
            stats = self.stats.of(proposal.drafter.name)
            total = 0
            for i, (sequence, length) in enumerate(proposal.sequences):
                for j, sampled in enumerate(sequence.tokens[length : length + len(proposal.tokens)]):
                    drafted, level = proposal.tokens[j].tokens[i], proposal.tokens[j].levels[i]
                    is_right = drafted == sampled
                    if level >= 0:
                        stats.rate(_key(sequence, level)).add(is_right)
                    total += is_right
                    if j < proposal.num_verified and not _ended_at(sequence, length + j):
                        self.stats.verified += 1
                        self.stats.accepted += is_right
                    if not is_right:
                        break
            if proposal.tokens:
                outcome = total / (len(proposal.tokens) * len(proposal.sequences))
                stats.add_step(outcome, proposal.drafter.cost(len(proposal.sequences)))
        self._proposals = []

    def trim(self) -> None:
        """See `Speculator.trim`."""
        for drafter in self.drafters:
            drafter.trim()


def _key(sequence: SequenceState, level: int) -> Hashable:
    """Tokens of one α, temperature and confidence are about equally often right."""
    params = sequence.request.params
    return params.alpha, params.temperature, level


def _ended_at(sequence: SequenceState, position: int) -> bool:
    return sequence.finish_reason is not None and position == len(sequence.tokens) - 1
