"""Scheduler: which sequences run, which wait, and which prefixes are kept for those that wait.

It decides and keeps the lists; the engine runs the models. Batching is continuous: sequences of any lengths and any α
share a step, a finished one leaves its slot at once and a waiting one takes it. A text that several waiting sequences
begin with (every α and every sample of a prompt) is prefilled once per model. If memory runs out, half of the sequences
wait again; since the random numbers of a sequence belong to its request and position, its tokens stay the same.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from eddecode.engine.sequence import Prompts, Request, SequenceState
from eddecode.execution.interfaces import PrefillResult
from eddecode.models.sizes import PREFILL_TOKENS


class PrefixCache:
    """Prefilled texts by model, each kept as long as a waiting sequence begins with it."""

    def __init__(self) -> None:
        self._results: dict[tuple[int, tuple[int, ...]], PrefillResult] = {}
        self._num_waiting: Counter[tuple[int, tuple[int, ...]]] = Counter()

    def __len__(self) -> int:
        return len(self._results)

    def expect(self, sequences: Iterable[SequenceState]) -> None:
        """Count the texts of sequences that will wait."""
        for sequence in sequences:
            self._num_waiting.update(enumerate(sequence.input_ids()))

    def add(self, model: int, results: Iterable[PrefillResult]) -> None:
        """Keep what a model has prefilled."""
        for result in results:
            self._results[model, result.ids] = result

    def take(self, sequence: SequenceState) -> list[PrefillResult]:
        """The prefilled texts of a sequence that waits no longer, one per model."""
        keys = list(enumerate(sequence.input_ids()))
        results = [self._results[key] for key in keys]
        for key in keys:
            self._num_waiting[key] -= 1
            if self._num_waiting[key] <= 0:
                del self._num_waiting[key], self._results[key]
        return results

    def missing(self, model: int, texts: Iterable[Prompts]) -> list[list[tuple[int, ...]]]:
        """The texts that one model has not prefilled, similar lengths together in one batch."""
        new = {text[model] for text in texts if (model, text[model]) not in self._results}
        return prefill_batches(sorted(new, key=lambda ids: (len(ids), ids)))

    def clear(self) -> None:
        """Drop everything."""
        self._results.clear()
        self._num_waiting.clear()


class Scheduler:
    """Assigns slots to sequences.

    Args:
        max_slots: most sequences that run together.
        memory_budget: bytes that the keys and values of all models may take; None is no limit.
        lookahead: positions that a sequence may need beyond its last token, for a draft.
        rows_held: rows that the models' buffers have for that many sequences; None: as many.

    Attributes:
        waiting: sequences without a slot, in the order of admission.
        running: the sequence in slot i is `running[i]`.
        prefixes: prefilled texts that waiting sequences begin with.
        token_bytes: keys and values of one position in all models; None before the first prefill.
    """

    def __init__(
        self,
        *,
        max_slots: int,
        memory_budget: int | None,
        lookahead: int = 0,
        rows_held: Callable[[int], int] | None = None,
    ) -> None:
        self.max_slots = max_slots
        self.memory_budget = memory_budget
        self.lookahead = lookahead
        self._rows_held = rows_held or int
        self.waiting: deque[SequenceState] = deque()
        self.running: list[SequenceState] = []
        self.prefixes = PrefixCache()
        self.token_bytes: float | None = None
        self._finished: list[SequenceState] = []
        self._step_size = 0  # sequences that the step in progress is meant to run together

    def add(self, requests: Sequence[Request]) -> list[SequenceState]:
        """Queue requests: equal prompts together, and long prompts first, so that a batch has little padding."""
        sequences = [SequenceState(request) for request in requests]
        groups: dict[Prompts, list[SequenceState]] = {}
        for sequence in sequences:
            groups.setdefault(sequence.request.prompts, []).append(sequence)
        for prompts in sorted(groups, key=lambda prompts: -max(map(len, prompts))):
            self.waiting.extend(groups[prompts])
        self.prefixes.expect(sequences)
        return sequences

    def next(self) -> list[SequenceState]:
        """Waiting sequences to admit in this step: as many as slots and memory allow, at least one if none runs.

        They stay in `waiting` until `admit`.
        """
        chosen: list[SequenceState] = []
        longest = max(map(_num_positions, self.running), default=0)
        for sequence in itertools.islice(self.waiting, max(self.max_slots - len(self.running), 0)):
            longest = max(longest, _num_positions(sequence))
            together = len(self.running) + len(chosen) + 1
            if together > 1 and not self._is_affordable(self._rows_held(together) * longest):
                break
            chosen.append(sequence)
        self._step_size = len(self.running) + len(chosen)
        return chosen

    def _is_affordable(self, positions: int) -> bool:
        if self.memory_budget is None:
            return True
        # The bytes of a position are known after the first prefill: until then one sequence runs alone.
        return self.token_bytes is not None and positions * self.token_bytes <= self.memory_budget

    def max_positions(self, sequences: Sequence[SequenceState]) -> list[int]:
        """Per model, the most positions that one of these sequences, with a draft, may fill."""
        requests = [sequence.request for sequence in sequences]
        lengths = zip(
            *([len(ids) + r.params.max_new_tokens for ids in r.prompts] for r in requests), strict=True
        )
        return [max(column) + self.lookahead for column in lengths]

    def cached_lengths(self) -> list[list[int]]:
        """Per model, the tokens of each running sequence that are in its cache: all but the last one."""
        lengths = ([len(ids) + len(s.tokens) - 1 for ids in s.request.prompts] for s in self.running)
        return [list(column) for column in zip(*lengths, strict=True)]

    def admit(self) -> bool:
        """Move the first waiting sequence into the next slot, or out if it is finished; whether it takes a slot."""
        sequence = self.waiting.popleft()
        takes_slot = sequence.finish_reason is None
        (self.running if takes_slot else self._finished).append(sequence)
        return takes_slot

    def retire(self) -> list[int]:
        """Remove finished sequences from their slots, and return these slots in the order of removal.

        The last sequence moves into the slot of a removed one, as in the runner.
        """
        slots = [i for i, s in reversed(list(enumerate(self.running))) if s.finish_reason is not None]
        for slot in slots:
            self._finished.append(self._free_slot(slot))
        return slots

    def preempt(self) -> list[int]:
        """Halve the sequences that run together, and return the slots that were freed, in the order of removal.

        Their sequences wait again, and keep the tokens that they have. All prefixes are dropped.
        """
        self.max_slots = max(1, self._step_size // 2)
        slots = list(range(len(self.running) - 1, self.max_slots - 1, -1))
        for slot in slots:
            self.waiting.appendleft(self._free_slot(slot))
        self._finished += [s for s in self.waiting if s.finish_reason is not None]
        self.waiting = deque(s for s in self.waiting if s.finish_reason is None)
        self.prefixes.clear()
        self.prefixes.expect(self.waiting)
        return slots

    def take_finished(self) -> list[SequenceState]:
        """The sequences that finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _free_slot(self, slot: int) -> SequenceState:
        sequence = self.running[slot]
        self.running[slot] = self.running[-1]
        self.running.pop()
        return sequence


def _num_positions(sequence: SequenceState) -> int:
    """Positions that a sequence may fill in the model with the longest prompt."""
    return max(map(len, sequence.request.prompts)) + sequence.request.params.max_new_tokens


def prefill_batches(texts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Split texts, sorted by length, into batches of at most PREFILL_TOKENS tokens with their padding."""
    batches: list[list[tuple[int, ...]]] = []
    for text in texts:
        if batches and len(text) * (len(batches[-1]) + 1) <= PREFILL_TOKENS:
            batches[-1].append(text)
        else:
            batches.append([text])
    return batches
