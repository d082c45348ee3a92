"""Engine: the decode loop. Requests wait, take slots, are decoded together, stop, and free their slots.

`Engine.step` is the algorithm. `eddecode.engine.scheduler` decides which sequences run, and `eddecode.engine.sequence`
samples their tokens; on a GPU steps are launched ahead of the host where they can be (`eddecode.engine.pipeline`).
Speculative decoding is part of the loop: drafted tokens are read by the models together with the last sampled one,
every position is sampled as without a draft, and a sequence keeps what was sampled up to the first position that
differs from its draft. A token belongs to its logits and to the random number of its position, so a draft changes how
many tokens a step gives, never which.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from einops import rearrange
from torch import Tensor

from eddecode.engine.draft import Draft, Speculator
from eddecode.engine.pipeline import Pipeline
from eddecode.engine.scheduler import Scheduler
from eddecode.engine.sequence import (
    Partial,
    Prompts,
    Request,
    SamplingBatch,
    SequenceState,
    checked_sample,
    sample,
)
from eddecode.errors import ContextError, EngineError
from eddecode.execution.interfaces import PrefillResult
from eddecode.execution.pair_loop import CaptureError, captured_loop
from eddecode.execution.runner import PairRunner
from eddecode.models.sizes import PREFILL_TOKENS
from eddecode.utils.memory import is_out_of_memory, release_memory, trim_heap
from eddecode.utils.model_passes import MODEL_PASSES
from eddecode_kernels.types import SampledTokens

NO_DRAFT = Draft()
ENTERING_TOKENS = 4 * PREFILL_TOKENS  # of prompts whose rows enter in one launch


class Engine:
    """Decodes requests over the slots of a runner.

    Args:
        runner: the models.
        vocabulary: (V,) bool, ids that may be sampled.
        windows: per model, the longest text it can read; None where there is no limit.
        max_slots: most sequences that are decoded together.
        memory_budget: bytes that keys and values of all models may take; None is no limit.
        speculator: proposes tokens for speculative decoding; None decodes one token per step.
        partial_vocabularies: which models have a weight → other ids that may be sampled there.
    """

    def __init__(
        self,
        runner: PairRunner,
        vocabulary: Tensor,
        *,
        windows: Sequence[int | None],
        max_slots: int = 64,
        memory_budget: int | None = None,
        speculator: Speculator | None = None,
        partial_vocabularies: Partial | None = None,
    ) -> None:
        self.runner = runner
        self.vocabulary, self.partial_vocabularies = vocabulary, partial_vocabularies
        self.windows = tuple(windows)
        self.speculator = speculator
        self.scheduler = Scheduler(
            max_slots=max_slots,
            memory_budget=memory_budget,
            lookahead=0 if speculator is None else speculator.lookahead,
            rows_held=runner.rows_held,
        )
        self._draft_bytes = 0 if speculator is None else speculator.token_bytes
        if runner.adds_together and runner.token_bytes is not None:  # what moves rows on a GPU costs graphs
            self.scheduler.token_bytes = self._draft_bytes + runner.token_bytes
        self._next_batch: SamplingBatch | None = (
            None  # of the running sequences, if they are as in the last step
        )
        self._in_a_step = False
        planner = None if speculator is None else speculator.planner
        loop = None
        if speculator is None or planner is not None:
            loop = captured_loop(runner, vocabulary, drafts=speculator is not None)
        self.pipeline = None if loop is None else Pipeline(loop, partial_vocabularies, planner)

    def submit(self, requests: Sequence[Request]) -> list[SequenceState]:
        """Queue requests.

        Raises:
            ContextError: a request is longer than what one of the models can read. Nothing is queued then.
        """
        for request in requests:
            self._check_fits(request)
        return self.scheduler.add(requests)

    @property
    def busy(self) -> bool:
        """Whether anything is left to decode."""
        return bool(self.scheduler.waiting or self.scheduler.running)

    def step(self) -> list[SequenceState]:
        """Decode one token for every sequence that has a slot, or several with a draft; return those that finished.

        Raises:
            EngineError: logits are not finite, memory is short for one sequence, or a step before did not end.
        """
        if self._in_a_step:
            raise EngineError(
                "a step of this batch was interrupted, by Ctrl-C or an error, and its next tokens could be wrong; "
                "decode its requests anew"
            )
        with MODEL_PASSES:
            self._in_a_step = True
            self._step()
            self._in_a_step = False
        return self.scheduler.take_finished()

    def _step(self) -> None:
        try:
            admitted = self._admissible()
            if admitted:
                self._prefill(admitted)
            running = self.scheduler.running
            if running and self.pipeline is not None and self.pipeline.serves(running):
                self._decode_ahead(self.pipeline)
            elif running:
                draft = self._propose()
                logits = self._forward(draft)
                batch = self._sampling_batch(draft)
                sampled = self._sample(batch, logits)
                self._append(batch, sampled, draft)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._preempt(error)
        self._retire()

    # The parts of a step, in order

    def _prefill(self, admitted: Sequence[SequenceState]) -> None:
        """Prefill new texts, each once per model, sample the first token after each, and fill the slots."""
        scheduler = self.scheduler
        together = [*scheduler.running, *admitted]
        positions = scheduler.max_positions(together)
        for group in self._entering_together(admitted):
            results = self._prefilled(group)
            self.runner.reserve(len(together), positions)
            self._fill_slots(group, results)
            del results  # before the next group is read
        self._next_batch = None
        if not scheduler.waiting and self.runner.device.type == "cpu":  # of the last prefill, which is over
            trim_heap()

    def _entering_together(self, admitted: Sequence[SequenceState]) -> Iterator[list[SequenceState]]:
        """All of them, but on a GPU no more than a few passes over prompts read.

        Rows enter there together, so that until then their states take memory twice.
        """
        group, texts, total = list[SequenceState](), set[Prompts](), 0
        for sequence in admitted:
            ids = sequence.input_ids()
            new = 0 if ids in texts else max(map(len, ids))
            if group and self.runner.adds_together and total + new > ENTERING_TOKENS:
                yield group
                group, texts, total, new = [], set(), 0, max(map(len, ids))
            group.append(sequence)
            texts.add(ids)
            total += new
        yield group

    def _prefilled(self, group: Sequence[SequenceState]) -> list[list[PrefillResult]]:
        """Prefill the texts of a group, and sample its first tokens; the results of each sequence, one per model."""
        scheduler, prefixes = self.scheduler, self.scheduler.prefixes
        texts = [sequence.input_ids() for sequence in group]
        for model in range(len(self.runner.names)):
            for batch_of_texts in prefixes.missing(model, texts):
                prefixes.add(model, self.runner.prefill(model, batch_of_texts))
        results = [prefixes.take(sequence) for sequence in group]
        if scheduler.token_bytes is None:
            scheduler.token_bytes = self._draft_bytes + sum(
                result.nbytes / result.length for result in results[0]
            )
        batch = SamplingBatch.next_tokens(group, self.runner.device)
        logits = [torch.stack([r.logits for r in column]) for column in zip(*results, strict=True)]
        self._append(batch, self._sample(batch, logits), NO_DRAFT)
        return results

    def _fill_slots(self, group: Sequence[SequenceState], results: list[list[PrefillResult]]) -> None:
        if self.runner.adds_together:
            self.runner.add_all([r for s, r in zip(group, results, strict=True) if s.finish_reason is None])
            for _ in group:
                self.scheduler.admit()
            return
        results.reverse()
        for sequence in group:
            of_each_model = results.pop()  # frees what no later sequence begins with
            if sequence.finish_reason is None:
                self.runner.add(of_each_model)
            self.scheduler.admit()

    def _admissible(self) -> list[SequenceState]:
        """Waiting sequences to admit now; what is in flight is read first."""
        admitted = self.scheduler.next()
        if admitted and self.pipeline is not None and not self.pipeline.idle:
            self._collect_all(self.pipeline)
            self._retire()
            admitted = self.scheduler.next()
        return admitted

    def _decode_ahead(self, pipeline: Pipeline) -> None:
        """Launch a step, then read the one before it; once a sequence has finished, read all that was launched."""
        running = self.scheduler.running
        if pipeline.idle:
            # To the end of these rows: after memory ran out their buffers are as short as they can be, and growing step
            # by step, to powers of two, takes more.
            self.runner.reserve(len(running), self.scheduler.max_positions(running))
            try:
                pipeline.start(running, self.scheduler.cached_lengths())
            except CaptureError as error:
                self._do_without(error, with_drafts=pipeline.drafts)
                return
        pipeline.launch_ahead()
        self._collect(pipeline)
        if any(sequence.finish_reason is not None for sequence in running):
            self._collect_all(pipeline)
        self._next_batch = None

    def _do_without(self, error: CaptureError, *, with_drafts: bool) -> None:
        """From now on run the models' own steps, with the host between them; nothing was launched.

        with_drafts: whether the step that cannot be captured has drafts; the one without may still be.
        """
        self.pipeline = None
        drafts = " with drafts" if with_drafts else ""
        message = (
            f"the step of {' and '.join(self.runner.names)}{drafts} cannot be captured as one ({error}); the models' "
            "steps are launched one after the other instead, which gives the same and is slower"
        )
        (self.runner.draft_failures if with_drafts else self.runner.step_failures).append(message)
        warnings.warn(message, stacklevel=2)

    def _collect_all(self, pipeline: Pipeline) -> None:
        while not pipeline.idle:
            self._collect(pipeline)

    def _collect(self, pipeline: Pipeline) -> None:
        """Append what the oldest step in flight sampled."""
        for places, raw in pipeline.collect():
            sampled = checked_sample(places, raw, self.vocabulary.shape[0], self.runner.names)
            tokens, logprobs = sampled.tokens.tolist(), sampled.logprobs.T.tolist()
            for (sequence, _), token, values in zip(places, tokens, logprobs, strict=True):
                self._check_finite(sequence, values)
                sequence.append(token, values)

    def _propose(self) -> Draft:
        """A draft, if there is a speculator; at most as long as every model's context window has room for."""
        if self.speculator is None:
            return NO_DRAFT
        room = [
            window - max(lengths) - 1
            for window, lengths in zip(self.windows, self.scheduler.cached_lengths(), strict=True)
            if window is not None
        ]
        return self.speculator.propose(self.scheduler.running, min([self.speculator.lookahead, *room]))

    def _forward(self, draft: Draft) -> list[Tensor]:
        """Per model (n · (k + 1), V) float32: the logits after the last token and after k drafted ones."""
        last = [sequence.tokens[-1] for sequence in self.scheduler.running]
        tokens = torch.tensor([last, *draft.tokens]).T  # (n, k + 1)
        lengths = self.scheduler.cached_lengths()
        if draft.base_logits is None:
            logits = self.runner.forward(tokens, lengths)
        else:
            others = range(1, len(lengths))
            logits = [draft.base_logits, *(self.runner.forward_model(i, tokens, lengths[i]) for i in others)]
        return [rearrange(z, "n t v -> (n t) v") for z in logits]

    def _sampling_batch(self, draft: Draft) -> SamplingBatch:
        """The sampling inputs of every position that `_forward` returns logits for."""
        if not draft.tokens:
            return self._next_batch or SamplingBatch.next_tokens(self.scheduler.running, self.runner.device)
        # Beyond the end of a completion its last position stands in: what is sampled there is dropped.
        positions = [
            (sequence, min(len(sequence.tokens) + i, sequence.request.params.max_new_tokens - 1))
            for sequence in self.scheduler.running
            for i in range(len(draft.tokens) + 1)
        ]
        batch = SamplingBatch.from_positions(positions, self.runner.device)
        if not batch.penalized:
            return batch
        columns = list(zip(*draft.tokens, strict=True))  # per sequence
        return replace(batch, drafted=[column[:i] for column in columns for i in range(len(column) + 1)])

    def _sample(self, batch: SamplingBatch, logits: Sequence[Tensor]) -> SampledTokens:
        return sample(batch, logits, self.vocabulary, self.runner.names, self.partial_vocabularies)

    def _append(self, batch: SamplingBatch, sampled: SampledTokens, draft: Draft) -> None:
        """Append what was sampled, up to the first token that is not the drafted one."""
        tokens, logprobs = sampled.tokens.tolist(), sampled.logprobs.T.tolist()
        width = len(draft.tokens) + 1
        for row in range(0, len(tokens), width):
            sequence = batch.positions[row][0]
            for i in range(width):
                self._check_finite(sequence, logprobs[row + i])
                sequence.append(tokens[row + i], logprobs[row + i])
                is_last = i == width - 1 or sequence.finish_reason is not None
                if is_last or draft.tokens[i][row // width] != tokens[row + i]:
                    break
        self._next_batch = None if draft.tokens else batch.advanced()
        if self.speculator is not None:
            self.speculator.update()

    def _retire(self) -> None:
        """Free the slots of finished sequences."""
        for slot in self.scheduler.retire():
            self.runner.remove(slot)
            self._next_batch = None

    def _preempt(self, error: BaseException) -> None:
        """After memory ran out: let half of the sequences wait again, so that the others fit."""
        if self.pipeline is not None:
            self.pipeline.drop()
        self._retire()
        if self.scheduler.max_slots <= 1:
            raise EngineError(
                "not enough memory to decode even one request: use shorter prompts, fewer max_new_tokens, a smaller "
                f"dtype or a larger device ({str(error).splitlines()[0]})"
            ) from error
        for slot in self.scheduler.preempt():
            self.runner.remove(slot)
        self._next_batch = None
        self.runner.trim()
        if self.speculator is not None:
            self.speculator.trim()
        release_memory()

    # Checks

    def _check_fits(self, request: Request) -> None:
        error = context_error(self.runner.names, request.prompts, self.windows, request.params.max_new_tokens)
        if error is not None:
            error.prompt_index, error.sample = request.prompt_index, request.sample
            raise error

    def _check_finite(self, sequence: SequenceState, logprobs: list[float]) -> None:
        # A NaN or +inf anywhere in a model's logits makes its normalizer, hence every log-probability, NaN.
        for name, value in zip(self.runner.names, logprobs, strict=False):
            if math.isnan(value):
                raise EngineError(
                    "the logits of {model} are not finite: load it in bfloat16 or float32 (float16 overflows in many "
                    "models), or check the weights",
                    model=name,
                    prompt_index=sequence.request.prompt_index,
                    sample=sequence.request.sample,
                    position=len(sequence.tokens),
                )


def context_error(
    names: Sequence[str], prompts: Sequence[Sequence[int]], windows: Sequence[int | None], max_new_tokens: int
) -> ContextError | None:
    """The error of a prompt that is longer, with its completion, than one of the models reads; None if it fits.

    Args:
        names: of the models.
        prompts: token ids for each model.
        windows: longest text of each model, in tokens; None: no limit.
        max_new_tokens: longest completion.
    """
    for name, ids, window in zip(names, prompts, windows, strict=True):
        needed = len(ids) + max_new_tokens
        if window is not None and needed > window:
            rest = window - len(ids)
            lower = f" or lower max_new_tokens to {rest}" if rest > 0 else ""
            return ContextError(
                f"the {name} model reads at most {window} tokens, but the prompt has {len(ids)} "
                f"and max_new_tokens={max_new_tokens} asks for {needed} in all; shorten the prompt{lower}"
            )
    return None
