"""Pipeline: steps that are launched before the host has read the last one's tokens.

The host reads the tokens of a step, looks for stops and keeps what was sampled while the device decodes the next step.
A row that stopped is decoded once more than it had to be; what it gave is dropped. When a row enters or leaves, the
steps in flight are read first, and the rows are written to the device anew.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from eddecode.engine.sequence import Partial, SamplingBatch, SequenceState
from eddecode.execution.pair_step import Flight, PairLoop, RowState
from eddecode.sampling.device import MAX_FORBIDDEN, DeviceRows
from eddecode_kernels.types import RawSample

_log = logging.getLogger(__name__)
FOREVER = 1 << 62
Places = list[tuple[SequenceState, int]]  # sequences, and the positions that a step samples


@dataclass(frozen=True)
class _Launched:
    places: Places
    flight: Flight


class Pipeline:
    """Decodes sequences one step ahead of the host.

    Args:
        loop: launches the steps.
        partial: see `Engine`: sequences with another vocabulary are not served.
    """

    def __init__(self, loop: PairLoop, partial: Partial | None = None) -> None:
        self._loop, self._partial = loop, partial or {}
        self._in_flight: list[_Launched] = []
        self._newest: Places = []

    @property
    def idle(self) -> bool:
        """Whether no step is in flight."""
        return not self._in_flight

    def serves(self, sequences: Sequence[SequenceState]) -> bool:
        """Whether all of these sequences can be sampled on the device."""
        if any(sequence.request.params.penalizes for sequence in sequences):
            _warn_of_penalties()
        return all(map(self._is_served, sequences))

    def _is_served(self, sequence: SequenceState) -> bool:
        request = sequence.request
        active = tuple(weight != 0 for weight in request.weights)
        return (
            request.params.access is None
            and not request.params.penalizes
            and active not in self._partial
            and len(forbidden_ids(sequence)) <= MAX_FORBIDDEN
        )

    def start(self, sequences: Sequence[SequenceState], lengths: list[list[int]]) -> None:
        """Launch the first step of these sequences, of which the models have read `lengths` tokens."""
        self._loop.begin(row_state(sequences, lengths, self._loop.vocabulary.device))
        self._launch([(sequence, len(sequence.tokens)) for sequence in sequences])

    def launch_ahead(self) -> None:
        """Launch one more step, unless the one in flight is the last of all sequences, or the buffers end."""
        ends = (position + 1 >= s.request.params.max_new_tokens for s, position in self._newest)
        if self._loop.fits_next() and not all(ends):
            self._launch([(sequence, position + 1) for sequence, position in self._newest])

    def _launch(self, places: Places) -> None:
        self._in_flight.append(_Launched(places, self._loop.launch()))
        self._newest = places

    def collect(self) -> tuple[Places, RawSample]:
        """What the oldest step in flight sampled, for the sequences that had not finished before it."""
        launched = self._in_flight.pop(0)
        raw = launched.flight.wait()
        live = [i for i, (sequence, _) in enumerate(launched.places) if sequence.finish_reason is None]
        at = torch.tensor(live, dtype=torch.int64)
        return [launched.places[i] for i in live], RawSample(
            raw.tokens[at], raw.logprobs[:, at], raw.status[at]
        )

    def drop(self) -> None:
        """Forget what is in flight; the next `start` decodes it again."""
        self._in_flight.clear()


@cache
def _warn_of_penalties() -> None:
    _log.warning(
        "repetition, presence and frequency penalties are computed between two steps: batches with them are decoded "
        "without steps that are launched ahead, more slowly"
    )


def forbidden_ids(sequence: SequenceState) -> list[tuple[int, int]]:
    """(id, position before which it is forbidden) of a sequence: what `SequenceState.forbidden` says, position-free."""
    request, params = sequence.request, sequence.request.params
    found = [(i, FOREVER) for i in params.suppress_tokens]
    if params.suppress_eos:
        found += [(i, FOREVER) for i in request.eos_ids]
    if params.min_new_tokens:
        found += [(i, params.min_new_tokens) for i in (*request.eos_ids, *params.stop_token_ids)]
    return found


def row_state(sequences: Sequence[SequenceState], lengths: list[list[int]], device: torch.device) -> RowState:
    """What the device must know of sequences to decode them."""
    batch = SamplingBatch.next_tokens(sequences, device)
    forbidden = [forbidden_ids(sequence) for sequence in sequences]
    ids, until = (
        [[pair[column] for pair in some] + [-1] * (MAX_FORBIDDEN - len(some)) for some in forbidden]
        for column in (0, 1)
    )

    def longs(values: object) -> Tensor:
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
    last = [sequence.tokens[-1] for sequence in sequences]
    return RowState(last, lengths, rows, batch.filters, any(forbidden))
