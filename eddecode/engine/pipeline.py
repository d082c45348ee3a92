"""Pipeline: steps that are launched before the host has read the last one's tokens.

The host reads the tokens of a step, looks for stops and keeps what was sampled while the device decodes the next step.
A row that stopped is decoded once more than it had to be; what it gave is dropped. When a row enters or leaves, or
drafts are to be made in another way, the steps in flight are read first, and the rows are written to the device anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from eddecode.engine.draft import Planner
from eddecode.engine.sequence import (
    Partial,
    SamplingBatch,
    SequenceState,
    active_models,
    penalized_text,
)
from eddecode.execution.cuda_graph import bucket
from eddecode.execution.drafted_step import DROPPED, DraftPlan
from eddecode.execution.pair_loop import NO_DRAFTS, Flight, PairLoop
from eddecode.execution.pair_step import RowState
from eddecode.sampling.device import FORBIDDEN, MAX_FORBIDDEN, DeviceRows
from eddecode_kernels.types import RawSample

FOREVER = 1 << 62
PLAN_STEPS = 32
"""How often it is asked whether drafts are to be made in another way: a change costs a step's time."""
Places = list[tuple[SequenceState, int]]
"""Sequences, and the positions of their completions that were sampled."""


class Pipeline:
    """Decodes sequences one step ahead of the host.

    Args:
        loop: launches the steps.
        partial: see `Engine`.
        planner: how tokens are drafted; None drafts none.
    """

    def __init__(
        self, loop: PairLoop, partial: Partial | None = None, planner: Planner | None = None
    ) -> None:
        self._loop, self._partial, self._planner = loop, partial or {}, planner
        self._in_flight: list[Flight] = []
        self._sequences: list[SequenceState] = []  # of the steps in flight
        self._plan, self._launches = NO_DRAFTS, 0

    @property
    def idle(self) -> bool:
        """Whether no step is in flight."""
        return not self._in_flight

    @property
    def drafts(self) -> bool:
        """Whether the steps that were begun last have drafts."""
        return self._plan.length > 0

    def serves(self, sequences: Sequence[SequenceState]) -> bool:
        """Whether all of these sequences can be sampled on the device."""
        return all(map(self._is_served, sequences))

    def _is_served(self, sequence: SequenceState) -> bool:
        return sequence.request.params.access is None and len(forbidden_ids(sequence)) <= MAX_FORBIDDEN

    def start(self, sequences: Sequence[SequenceState], lengths: list[list[int]]) -> None:
        """Launch the first step of these sequences, of which the models have read `lengths` tokens."""
        self._sequences, self._launches = list(sequences), 0
        self._plan = self._wanted_plan()
        state = row_state(sequences, lengths)
        state.allowed = self._allowed()
        self._loop.begin(state, self._plan)
        self._launch()

    def _wanted_plan(self) -> DraftPlan:
        needs_plain_steps = (
            s.request.params.penalizes or active_models(s) in self._partial for s in self._sequences
        )
        if self._planner is None or any(needs_plain_steps):
            return NO_DRAFTS
        return self._planner.plan(len(self._sequences))

    def _allowed(self) -> Tensor | None:
        """(n, V) bool, the ids that each sequence may sample, if not all may sample the same."""
        own = [self._partial.get(active_models(s)) for s in self._sequences]
        if all(ids is None for ids in own):
            return None
        together = self._loop.vocabulary
        width = max(map(len, (together, *self._partial.values())))
        found = together.new_zeros(len(own), width)
        for row, ids in enumerate(own):
            chosen = together if ids is None else ids
            found[row, : len(chosen)] = chosen
        return found

    def launch_ahead(self) -> None:
        """Launch one more step, unless all sequences end with those in flight, the buffers end, or the plan changes."""
        ahead = len(self._in_flight)  # each step adds a token at least
        ends = (len(s.tokens) + ahead >= s.request.params.max_new_tokens for s in self._sequences)
        if not self._loop.fits_next() or all(ends):
            return
        if self._launches % PLAN_STEPS == 0 and self._wanted_plan() != self._plan:
            return
        self._launch()

    def _launch(self) -> None:
        self._in_flight.append(self._loop.launch())
        self._launches += 1

    def collect(self) -> Iterator[tuple[Places, RawSample]]:
        """What the oldest step in flight sampled, position by position, for the sequences that go on to it."""
        raw, width = self._in_flight.pop(0).wait(), self._plan.length + 1
        before = [len(sequence.tokens) for sequence in self._sequences]
        live = [i for i, sequence in enumerate(self._sequences) if sequence.finish_reason is None]
        going = live
        for ahead in range(width):
            going = [
                i for i in going
                if self._sequences[i].finish_reason is None and raw.tokens[i * width + ahead] != DROPPED
            ]  # fmt: skip
            at = torch.tensor(going, dtype=torch.int64) * width + ahead
            yield (
                [(self._sequences[i], before[i] + ahead) for i in going],
                RawSample(raw.tokens[at], raw.logprobs[:, at], raw.status[at]),
            )
        if self._planner is not None:
            added = [len(s.tokens) - n for s, n in zip(self._sequences, before, strict=True)]
            self._planner.count(
                self._plan, [added[i] - 1 for i in live if self._sequences[i].finish_reason is None]
            )

    def drop(self) -> None:
        """Forget what is in flight, once it is over; the next `start` decodes it again."""
        while self._in_flight:  # the graphs of these steps may be freed next
            self._in_flight.pop().wait()


def forbidden_ids(sequence: SequenceState) -> list[tuple[int, int]]:
    """(id, position before which it is forbidden) of a sequence: what `SequenceState.forbidden` says, position-free."""
    request, params = sequence.request, sequence.request.params
    found = [(i, FOREVER) for i in params.suppress_tokens]
    if params.suppress_eos:
        found += [(i, FOREVER) for i in request.eos_ids]
    if params.min_new_tokens:
        found += [(i, params.min_new_tokens) for i in (*request.eos_ids, *params.stop_token_ids)]
    return found


def row_state(sequences: Sequence[SequenceState], lengths: list[list[int]]) -> RowState:
    """What the device must know of sequences to decode them."""
    batch = SamplingBatch.next_tokens(sequences, torch.device("cpu"))
    forbidden = [forbidden_ids(sequence) for sequence in sequences]
    most = max(map(len, forbidden))
    room = bucket(most, FORBIDDEN) if most else 0
    ids, until = (
        [[pair[column] for pair in some] + [-1] * (room - len(some)) for some in forbidden]
        for column in (0, 1)
    )

    def longs(values: Sequence[object]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64)

    keys = np.stack([sequence.request.rng_key for sequence in sequences]).astype(np.int64)
    rows = DeviceRows(
        active=longs([1] * len(sequences)),
        counter=longs([len(sequence.tokens) for sequence in sequences]),
        keys=torch.from_numpy(keys),
        weights=batch.weights,
        rows=batch.sampling,
        forbidden_ids=longs(ids),
        forbidden_until=longs(until),
    )
    texts = [(*s.request.prompts[0], *s.tokens) for s in sequences]
    # The token that is sampled last need not be read, but has a position: a step in flight may read it.
    limits = [
        [len(s.request.prompts[model]) + s.request.params.max_new_tokens - 1 for s in sequences]
        for model in range(len(lengths))
    ]
    penalized = [penalized_text(s) for s in sequences] if batch.penalized else []
    return RowState(texts, lengths, limits, rows, batch.filters, room, penalized)
