"""How likely given completions are under the base model, the aligned model, and the contrast at any number of α's.

Each model reads every completion once, and a prompt once however many completions it has; after that an α costs one
sum over the vocabulary per token (`eddecode_kernels.score`). Logits exist for a block of positions at a time. The
same pass measures how far the two models diverge at each depth of the completion: how many tokens deep the alignment
goes (Qi et al., ICLR 2025, arXiv 2406.05946, §2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eddecode.errors import ContextError, EngineError, ParamsError
from eddecode.scoring.readers import Reader, reader_for
from eddecode.scoring.scores import DepthProfile, Floats, Score, Scores, TokenScores
from eddecode.utils.memory import is_out_of_memory, release_memory
from eddecode_kernels.score import score_rows

if TYPE_CHECKING:
    from eddecode.execution.pair_runner import PairRunner
    from eddecode.prompts.types import RenderedPrompt
    from eddecode.scoring.inputs import Given

BATCH_TOKENS = 1024  # completion tokens, padding included, that a model reads together: more is no faster
LOGIT_BYTES = (
    64 << 20
)  # logits of both models that exist at a time; more only where a single position takes more


class Scorer:
    """Scores completions with the models of a runner.

    Args:
        runner: the two models.
        vocabulary: (V,) bool, ids that may be sampled.
        weights: the weights of (base, aligned) at an α.
        memory_budget: bytes that keys and values of one model may take.
        batch_tokens, logit_bytes: see BATCH_TOKENS and LOGIT_BYTES.
    """

    def __init__(
        self,
        runner: PairRunner,
        vocabulary: Tensor,
        weights: Callable[[float], tuple[float, ...]],
        *,
        memory_budget: int | None = None,
        batch_tokens: int = BATCH_TOKENS,
        logit_bytes: int = LOGIT_BYTES,
    ) -> None:
        if len(runner.names) != 2:
            raise ParamsError(
                f"score compares two models, and this group has {len(runner.names)} ({', '.join(runner.names)}); "
                "score the pairs of the group one by one"
            )
        self.runner, self.weights, self.windows = runner, weights, runner.windows
        self.vocabulary = None if bool(vocabulary.all()) else vocabulary.to(runner.device)
        self.memory_budget, self.batch_tokens, self.logit_bytes = memory_budget, batch_tokens, logit_bytes
        self.readers: list[Reader] = [
            reader_for(decoder, name)
            for decoder, name in zip(runner.separate_runners, runner.names, strict=True)
        ]
        models = [decoder.model for decoder in runner.separate_runners]
        self._logit_widths = [int(model.get_output_embeddings().weight.shape[0]) for model in models]
        self._token_bytes = [_cache_bytes(model) for model in models]

    def score(
        self,
        prompts: Sequence[RenderedPrompt],
        given: Sequence[Given],
        alphas: Sequence[float],
        keep_tokens: bool,
    ) -> Scores:
        """Score completions; `given` in the order wanted, each naming its prompt. See `Sampler.score`."""
        for text in given:
            self._check_fits(text, prompts[text.prompt_index])
        weights = torch.tensor([self.weights(alpha) for alpha in alphas]).reshape(len(alphas), 2)
        done: dict[int, Score] = {}
        depth = _Depth()
        try:
            for batch, values in self._batches(prompts, given, weights):
                self._check_finite([given[i] for i in batch], values, alphas)
                for i, value in zip(batch, values, strict=True):
                    done[i] = _score(given[i], value, tuple(alphas), keep_tokens)
                    depth.add(value[:2])
        finally:
            for reader in self.readers:
                reader.forget()
        return Scores(tuple(done[i] for i in range(len(given))), depth.profile())

    def _batches(
        self, prompts: Sequence[RenderedPrompt], given: Sequence[Given], weights: Tensor
    ) -> Iterator[tuple[list[int], list[Floats]]]:
        """Which texts, and what came of them, until all are done; smaller batches where memory does not suffice."""
        waiting = _in_reading_order(prompts, given)
        while waiting:
            batch = waiting[: self._fitting(prompts, given, waiting)]
            try:
                values = self._batch(
                    [prompts[given[i].prompt_index] for i in batch], [given[i] for i in batch], weights
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._shrink(len(batch), error)
                continue
            yield batch, values
            del waiting[: len(batch)]

    # What goes together

    def _check_fits(self, text: Given, prompt: RenderedPrompt) -> None:
        for name, ids, window in zip(self.runner.names, prompt.ids, self.windows, strict=True):
            needed = len(ids) + len(text.ids)
            if window is not None and needed > window:
                raise ContextError(
                    f"{text.name}: the {name} model reads at most {window} tokens, but prompt ({len(ids)}) and "
                    f"completion ({len(text.ids)}) have {needed} together; shorten one of them"
                )

    def _fitting(
        self, prompts: Sequence[RenderedPrompt], given: Sequence[Given], waiting: Sequence[int]
    ) -> int:
        """How many of the waiting texts, from the first, make a batch: one at least."""
        longest, stems = 0, [0, 0]
        for count, i in enumerate(waiting):
            longest = max(longest, len(given[i].ids))
            ids = prompts[given[i].prompt_index].ids
            stems = [max(stem, len(side)) for stem, side in zip(stems, ids, strict=True)]
            held = [(stem + longest) * (count + 1) for stem in stems]
            # Padding must not reach beyond a model's last position either: some have an embedding for each.
            fits = (count + 1) * longest <= self.batch_tokens and all(
                (window is None or stem + longest <= window)
                and (self.memory_budget is None or positions * size <= self.memory_budget)
                for stem, window, positions, size in zip(
                    stems, self.windows, held, self._token_bytes, strict=True
                )
            )
            if count and not fits:
                return count
        return len(waiting)

    def _shrink(self, count: int, error: BaseException) -> None:
        if count <= 1:
            raise EngineError(
                "not enough memory to score even one completion: use shorter texts, a smaller dtype or a larger "
                f"device ({str(error).splitlines()[0]})"
            ) from error
        self.batch_tokens = max(1, self.batch_tokens // 2)
        release_memory()

    # What is computed

    def _batch(
        self, prompts: Sequence[RenderedPrompt], given: Sequence[Given], weights: Tensor
    ) -> list[Floats]:
        """Per text (4 + A, T): both divergences, both models' log-probabilities, then the contrasts'."""
        lengths = [len(text.ids) for text in given]
        places = torch.tensor(
            [(row, t) for row, length in enumerate(lengths) for t in range(length)]
        ).reshape(-1, 2)
        targets = torch.tensor([token for text in given for token in text.ids], dtype=torch.int64)
        full = [row for row, length in enumerate(lengths) if length]
        values = torch.empty(4 + len(weights), len(targets), dtype=torch.float64)
        if full:
            places[:, 0] = torch.searchsorted(torch.tensor(full), places[:, 0].contiguous())
            readings = [
                reader.read([(prompts[row].ids[side], given[row].ids) for row in full])
                for side, reader in enumerate(self.readers)
            ]
            step = max(1, self.logit_bytes // (4 * sum(self._logit_widths)))
            for at in range(0, len(targets), step):
                block = slice(at, at + step)
                self._block(
                    [r.logits(places[block]) for r in readings], targets[block], weights, values[:, block]
                )
        return [part.numpy() for part in torch.split(values, lengths, dim=1)]

    def _block(self, logits: list[Tensor], targets: Tensor, weights: Tensor, out: Tensor) -> None:
        """Score K positions: logits (K, V_i) of both models into `out` (4 + A, K)."""
        device = self.runner.device
        found = score_rows([z.to(device) for z in logits], targets.to(device), weights, self.vocabulary)
        out[0], out[1] = found.divergences[1], found.divergences[0]
        out[2:4] = found.own
        out[4:] = found.contrasts

    def _check_finite(
        self, given: Sequence[Given], values: Sequence[Floats], alphas: Sequence[float]
    ) -> None:
        for text, value in zip(given, values, strict=True):
            for name, row in zip(self.runner.names, value[2:4], strict=True):
                if np.isnan(row).any():
                    raise EngineError(
                        f"{text.name}, after {int(np.isnan(row).argmax())} tokens: the logits of the {name} model are "
                        "not finite: load it in bfloat16 or float32 (float16 overflows in many models), or check the "
                        "weights"
                    )
            for alpha, row in zip(alphas, value[4:], strict=True):
                if np.isnan(row).any():
                    raise EngineError(
                        f"{text.name}: the contrast at alpha={alpha:g} is beyond float32; use a smaller |alpha|"
                    )


def _in_reading_order(prompts: Sequence[RenderedPrompt], given: Sequence[Given]) -> list[int]:
    """Completions of one prompt behind each other by length, prompts by their longest completion: little padding."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for i, text in enumerate(given):
        groups.setdefault(prompts[text.prompt_index].ids, []).append(i)
    for members in groups.values():
        members.sort(key=lambda i: -len(given[i].ids))
    ordered = sorted(groups, key=lambda ids: (-len(given[groups[ids][0]].ids), -max(map(len, ids))))
    return [i for ids in ordered for i in groups[ids]]


def _score(text: Given, values: Floats, alphas: tuple[float, ...], keep_tokens: bool) -> Score:
    base, aligned, *contrasts = values[2:].sum(axis=1).tolist()
    kept = TokenScores(values[2], values[3], values[4:], values[0], values[1]) if keep_tokens else None
    return Score(text.prompt_index, text.sample, text.ids, base, aligned, alphas, tuple(contrasts), kept)


class _Depth:
    """Counts, sums and sums of squares by position, of KL(aligned ‖ base) and KL(base ‖ aligned)."""

    def __init__(self) -> None:
        self._values: list[Floats] = []

    def add(self, values: Floats) -> None:
        """Count a completion in: (2, T)."""
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


def _cache_bytes(model: Any) -> int:
    """Bytes of one position in the keys and values of a model."""
    from eddecode.models.sizes import kv_bytes_per_token

    return kv_bytes_per_token(model) or 0


__all__ = ["DepthProfile", "Score", "Scorer", "Scores", "TokenScores"]
