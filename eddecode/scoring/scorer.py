"""Log-probabilities of given completions under base model, aligned model, and the contrast at any number of α's.

Each model processes every completion once, and a prompt once for all of its completions; after that an α costs one sum
over the vocabulary per token (`eddecode_kernels.score`). Logits exist for a block of positions at a time. The same pass
measures how far the two models diverge at each position of the completion: how many tokens deep the alignment goes (Qi
et al., ICLR 2025, arXiv 2406.05946, §2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from eddecode.errors import ContextError, EngineError, ParamsError
from eddecode.models.sizes import kv_bytes_per_token
from eddecode.sampling.contrast import widened
from eddecode.scoring.readers import readers_for
from eddecode.scoring.scores import DepthProfile, Floats, Score, Scores, TokenScores
from eddecode.utils.memory import is_out_of_memory, release_memory
from eddecode_kernels.score import score_rows

if TYPE_CHECKING:
    from eddecode.execution.runner import PairRunner
    from eddecode.prompts.types import RenderedPrompt
    from eddecode.scoring.inputs import CompletionInput

BATCH_TOKENS = 1024  # completion tokens per batch, padding included; larger batches are no faster
LOGIT_BYTES = 64 << 20  # of both models' logits at a time; exceeded only where a single position needs more


@dataclass(frozen=True)
class _Item:
    """A completion with its prompt. index: its place in the results."""

    index: int
    prompt: RenderedPrompt
    completion: CompletionInput

    @property
    def length(self) -> int:
        """Tokens of the completion."""
        return len(self.completion.ids)


class Scorer:
    """Scores completions with the models of a runner.

    Args:
        runner: the two models.
        vocabulary: (V,) bool, ids that may be sampled.
        partial_vocabularies: which models have a weight → other ids that may be sampled there.
        logit_weights: α → the weights of the logits of (base, aligned).
        memory_budget: bytes that keys and values of one model may take.
        batch_tokens, logit_bytes: see BATCH_TOKENS and LOGIT_BYTES.
    """

    def __init__(
        self,
        runner: PairRunner,
        vocabulary: Tensor,
        logit_weights: Callable[[float], tuple[float, ...]],
        *,
        partial_vocabularies: Mapping[tuple[bool, ...], Tensor] | None = None,
        memory_budget: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        logit_bytes: int = LOGIT_BYTES,
    ) -> None:
        if len(runner.names) != 2:
            raise ParamsError(
                f"score compares two models, and this group has {len(runner.names)} ({', '.join(runner.names)}); "
                "score the pairs of the group one by one"
            )
        self.runner, self.logit_weights, self.windows = runner, logit_weights, runner.windows
        self._partial = partial_vocabularies or {}
        self._width = max(len(ids) for ids in (vocabulary, *self._partial.values()))
        every = bool(vocabulary.all()) and not self._partial
        self.vocabulary = None if every else self._padded(vocabulary)
        self._largest_ids = [int(model.get_input_embeddings().weight.shape[0]) - 1 for model in runner.models]
        self.memory_budget, self.batch_tokens, self.logit_bytes = memory_budget, batch_tokens, logit_bytes
        self.readers = readers_for(runner)
        self._logit_widths = [int(model.get_output_embeddings().weight.shape[0]) for model in runner.models]
        self._token_bytes = [kv_bytes_per_token(model) or 0 for model in runner.models]

    def score(
        self,
        prompts: Sequence[RenderedPrompt],
        completions: Sequence[CompletionInput],
        alphas: Sequence[float],
        keep_tokens: bool,
    ) -> Scores:
        """Score completions, in the given order; each names its prompt. See `Sampler.score`."""
        items = [_Item(i, prompts[text.prompt_index], text) for i, text in enumerate(completions)]
        for item in items:
            self._check_context(item)
        weights = torch.tensor([self.logit_weights(alpha) for alpha in alphas]).reshape(len(alphas), 2)
        scores: dict[int, Score] = {}
        depth = _DepthStatistics()
        try:
            for batch, values in self._score_in_batches(items, weights):
                for item, value in zip(batch, values, strict=True):
                    self._check_finite(item.completion, value, alphas)
                    scores[item.index] = _score(item.completion, value, tuple(alphas), keep_tokens)
                    both_read = _num_readable(item.completion.ids, min(self._largest_ids))
                    depth.add(value[:2, :both_read])
        finally:
            for reader in self.readers:
                reader.clear_cache()
        return Scores(tuple(scores[i] for i in range(len(items))), depth.profile())

    # Batches -----------------------------------------------------------------------------------------------------

    def _score_in_batches(
        self, items: Sequence[_Item], weights: Tensor
    ) -> Iterator[tuple[list[_Item], list[Floats]]]:
        """Batches with their values, until all are done; batches get smaller where memory does not suffice."""
        waiting = _in_batching_order(items)
        while waiting:
            batch = waiting[: self._batch_size(waiting)]
            try:
                values = self._score_batch(batch, weights)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_batches(len(batch), error)
                continue
            yield batch, values
            del waiting[: len(batch)]

    def _check_context(self, item: _Item) -> None:
        for name, ids, window in zip(self.runner.names, item.prompt.ids, self.windows, strict=True):
            needed = len(ids) + item.length
            if window is not None and needed - 1 > window:  # no model reads the last token
                raise ContextError(
                    f"{item.completion.name}: the {name} model reads at most {window} tokens, but prompt ({len(ids)}) "
                    f"and completion ({item.length}) have {needed} together; shorten one of them"
                )

    def _batch_size(self, waiting: Sequence[_Item]) -> int:
        """How many of the waiting completions, from the first, make a batch: at least one."""
        longest, prefixes = 0, [0, 0]
        for count, item in enumerate(waiting):
            longest = max(longest, item.length)
            prefixes = [max(prefix, len(ids)) for prefix, ids in zip(prefixes, item.prompt.ids, strict=True)]
            rows = count + 1
            # The padding too must stay within the context window: some models have an embedding per position.
            fits = rows * longest <= self.batch_tokens and all(
                (window is None or prefix + longest - 1 <= window)
                and (
                    self.memory_budget is None
                    or rows * (prefix + longest) * token_bytes <= self.memory_budget
                )
                for prefix, window, token_bytes in zip(prefixes, self.windows, self._token_bytes, strict=True)
            )
            if count and not fits:
                return count
        return len(waiting)

    def _halve_batches(self, rows: int, error: BaseException) -> None:
        if rows <= 1:
            raise EngineError(
                "not enough memory to score even one completion: use shorter texts, a smaller dtype or a larger "
                f"device ({str(error).splitlines()[0]})"
            ) from error
        self.batch_tokens = max(1, self.batch_tokens // 2)
        release_memory()

    # Values ------------------------------------------------------------------------------------------------------

    def _score_batch(self, batch: Sequence[_Item], weights: Tensor) -> list[Floats]:
        """Per completion (4 + 2·A, T): both divergences, both models' log-probabilities, the contrasts', and whether
        a token is the most likely one under each contrast (1 or 0).
        """
        lengths = [item.length for item in batch]
        targets = torch.tensor([i for item in batch for i in item.completion.ids], dtype=torch.int64)
        values = torch.empty(4 + 2 * len(weights), len(targets), dtype=torch.float64)
        nonempty = [item for item in batch if item.length]
        if nonempty:
            places = [(row, t) for row, item in enumerate(nonempty) for t in range(item.length)]
            positions = torch.tensor(places)  # (K, 2), in the order of the targets
            models = [
                reader.prefill([(item.prompt.ids[side], self._readable(item, side)) for item in nonempty])
                for side, reader in enumerate(self.readers)
            ]
            step = max(1, self.logit_bytes // (4 * sum(self._logit_widths)))
            for start in range(0, len(targets), step):
                block = slice(start, start + step)
                logits = [model.logits(positions[block]) for model in models]
                self._score_block(logits, targets[block], weights, values[:, block])
        found = [part.numpy() for part in torch.split(values, lengths, dim=1)]
        for item, value in zip(batch, found, strict=True):
            self._rule_out_unreadable(item.completion.ids, value, weights)
        return found

    def _padded(self, vocabulary: Tensor) -> Tensor:
        return F.pad(vocabulary, (0, self._width - len(vocabulary))).to(self.runner.device)

    def _readable(self, item: _Item, side: int) -> tuple[int, ...]:
        """The completion with another id for those that a model has no embedding for."""
        largest = self._largest_ids[side]
        return tuple(min(i, largest) for i in item.completion.ids)

    def _rule_out_unreadable(self, ids: Sequence[int], values: Floats, weights: Tensor) -> None:
        """After a token that a model cannot read, it and its contrasts give nothing a probability."""
        for side, largest in enumerate(self._largest_ids):
            after = _num_readable(ids, largest)
            if after < len(ids):
                involved = (weights[:, side] != 0).numpy()
                values[:2, after:] = np.nan
                values[2 + side, after:] = -np.inf
                values[4 : 4 + len(weights)][involved, after:] = -np.inf
                values[4 + len(weights) :][involved, after:] = 0

    def _score_block(self, logits: list[Tensor], targets: Tensor, weights: Tensor, out: Tensor) -> None:
        """Score K positions: logits (K, V_i) of both models into `out` (4 + 2·A, K)."""
        device, count = self.runner.device, len(weights)
        groups: dict[tuple[bool, ...], list[int]] = {
            (): []
        }  # models with a weight, where their ids differ → α's
        for i, active in enumerate((weights != 0).tolist()):
            groups.setdefault(tuple(active) if tuple(active) in self._partial else (), []).append(i)
        here, targets = [z.to(device) for z in logits], targets.to(device)
        if self._partial:
            here = [widened(z, self._width) for z in here]
        for active, alphas in groups.items():
            vocabulary = self._padded(self._partial[active]) if active else self.vocabulary
            found = score_rows(here, targets, weights[alphas], vocabulary)
            if not active:
                out[0], out[1] = found.divergences[1], found.divergences[0]
                out[2:4] = found.own
            out[4 : 4 + count][alphas] = found.contrasts.to(out)
            out[4 + count :][alphas] = found.greedy.to(out)

    def _check_finite(self, completion: CompletionInput, values: Floats, alphas: Sequence[float]) -> None:
        for name, row in zip(self.runner.names, values[2:4], strict=True):
            if np.isnan(row).any():
                raise EngineError(
                    f"{completion.name}, after {int(np.isnan(row).argmax())} tokens: the logits of the {name} model "
                    "are not finite: load it in bfloat16 or float32 (float16 overflows in many models), or check the "
                    "weights"
                )
        for alpha, row in zip(alphas, values[4 : 4 + len(alphas)], strict=True):
            if np.isnan(row).any():
                raise EngineError(
                    f"{completion.name}: the contrast at alpha={alpha:g} is out of float32's range; use a smaller "
                    "|alpha|"
                )


def _num_readable(ids: Sequence[int], largest: int) -> int:
    """How many tokens follow nothing but ids of up to `largest`."""
    return next((at + 1 for at, i in enumerate(ids) if i > largest), len(ids))


def _in_batching_order(items: Sequence[_Item]) -> list[_Item]:
    """Completions of one prompt together, by length; prompts by their longest completion: this keeps padding small."""
    groups: dict[tuple[tuple[int, ...], ...], list[_Item]] = {}
    for item in items:
        groups.setdefault(item.prompt.ids, []).append(item)
    for members in groups.values():
        members.sort(key=lambda item: -item.length)
    ordered = sorted(groups, key=lambda ids: (-groups[ids][0].length, -max(map(len, ids))))
    return [item for ids in ordered for item in groups[ids]]


def _score(text: CompletionInput, values: Floats, alphas: tuple[float, ...], keep_tokens: bool) -> Score:
    end = 4 + len(alphas)
    base, aligned, *contrasts = values[2:end].sum(axis=1).tolist()
    greedy = values[end:] == 1
    kept = None
    if keep_tokens:
        kept = TokenScores(values[2], values[3], values[4:end], values[0], values[1], greedy)
    return Score(
        text.prompt_index,
        text.sample,
        text.ids,
        base,
        aligned,
        alphas,
        tuple(contrasts),
        kept,
        tuple(greedy.all(axis=1).tolist()),
    )


class _DepthStatistics:
    """KL(aligned ‖ base) and KL(base ‖ aligned) by position, over completions."""

    def __init__(self) -> None:
        self._values: list[Floats] = []

    def add(self, values: Floats) -> None:
        """Include a completion: (2, T)."""
        self._values.append(values)

    def profile(self) -> DepthProfile:
        """Means and standard errors over all completions."""
        longest = max((values.shape[1] for values in self._values), default=0)
        count = np.zeros(longest, np.int64)
        for values in self._values:
            count[: values.shape[1]] += 1
        mean, error = np.zeros((2, longest)), np.zeros((2, longest))
        for values in self._values:
            mean[:, : values.shape[1]] += values
        mean /= count
        with np.errstate(invalid="ignore", divide="ignore"):
            for values in self._values:
                error[:, : values.shape[1]] += (values - mean[:, : values.shape[1]]) ** 2
            error = np.sqrt(error / np.where(count > 1, count - 1, np.nan) / count)
        return DepthProfile(count, mean[0], error[0], mean[1], error[1])
