"""The alternatives, written anew from their published descriptions, each as good as its design allows.

(a) The authors' release (README of ZHZisZZ/emulated-disalignment): one wrapper around both models that is itself a
model for `generate`; it composes the two log-probability distributions with one fixed α, so a sweep decodes once per α.
(b) What a user of today's transformers would write: `generate` of the base model with a logits processor that holds
the second model and its cache. α belongs to the processor, so here too a sweep decodes once per α.
(c) The floor: `generate` of the base model alone. A sweep is one batch here, since its rows do not differ.

All pad on the left, keep one DynamicCache per model, and request the logits of the last position only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from benchmarks.pairs import BenchPair
from benchmarks.tasks import Work

SCORING_ROWS = 8  # completions per forward pass when scoring: a usual batch size


def pad_left(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """(ids, mask), both (B, T) int64; the padding is id 0 and masked."""
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(text)) + list(text) for text in texts], device=device)
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts], device=device)
    return ids, mask


def positions(mask: Tensor) -> Tensor:
    """(B, T) int64: each text starts at 0, wherever its padding ends."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


class SecondModel:
    """The second model of a pair: it reads its own prompts, and then the tokens that `generate` chose."""

    def __init__(self, model: Any, texts: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.ids, self.mask = pad_left(texts, model.device)
        self.cache = DynamicCache(config=model.config)
        self.started = False

    def next_logits(self, newest: Tensor) -> Tensor:
        """(B, V) logits after `newest` (B, 1); the first call reads the prompts, and leaves `newest` alone."""
        ids = self.ids
        if self.started:
            ids = newest
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(newest), 1)], dim=1)
        self.started = True
        result = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions(self.mask)[:, -ids.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return result.logits[:, -1]  # type: ignore[no-any-return]


def generate(model: Any, texts: Sequence[Sequence[int]], work: Work, **kwargs: Any) -> list[list[int]]:
    """`transformers.generate` with everything off that is not the work: no EOS, no filters."""
    ids, mask = pad_left(texts, model.device)
    sampled = work.temperature > 0
    choice = {"temperature": work.temperature, "top_k": 0, "top_p": 1.0} if sampled else {}
    result = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=work.new_tokens,
        do_sample=sampled,
        eos_token_id=None,
        pad_token_id=0,
        **choice,
        **kwargs,
    )
    return result[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]


class PairInsideGenerate(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # transformers ships no types
    """A model for `generate` whose logits are (1+α)·log p_base − α·log p_aligned."""

    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, base: Any, aligned: Any, alpha: float, aligned_texts: Sequence[Sequence[int]]) -> None:
        super().__init__(copy.deepcopy(base.config))
        self.generation_config = copy.deepcopy(base.generation_config)
        self.base, self.alpha = base, alpha
        self.second = SecondModel(aligned, aligned_texts)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_to_keep: int = 1,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Both models, one after the other; `input_ids` is what the base has not read yet."""
        result = self.base(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        base = result.logits[:, -1].float().log_softmax(-1)
        aligned = self.second.next_logits(input_ids[:, -1:]).float().log_softmax(-1)
        composed = (1 + self.alpha) * base - self.alpha * aligned
        return CausalLMOutputWithPast(logits=composed[:, None], past_key_values=result.past_key_values)


class PairProcessor(LogitsProcessor):  # type: ignore[misc]
    """Turns the base's logits into the contrast with those of a second model."""

    def __init__(self, aligned: Any, alpha: float, aligned_texts: Sequence[Sequence[int]]) -> None:
        self.alpha = alpha
        self.second = SecondModel(aligned, aligned_texts)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) contrast; the normalisers cancel in the softmax to come, so logits do."""
        return (1 + self.alpha) * scores - self.alpha * self.second.next_logits(input_ids[:, -1:]).float()


class AuthorsWrapper:
    """(a): see the module."""

    def __init__(self, pair: BenchPair) -> None:
        self.pair = pair

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """One `generate` of the wrapper per α."""
        base_texts, aligned_texts = sides(work)

        def run(alpha: float) -> list[list[int]]:
            wrapper = PairInsideGenerate(self.pair.base, self.pair.aligned, alpha, aligned_texts)
            return generate(wrapper, base_texts, work)

        return by_alpha(work, run)

    @torch.inference_mode()
    def score(self, work: Work) -> list[list[float]]:
        """Both models run again for every α, for the wrapper holds only one."""
        scores = []
        for alpha in work.alphas:
            row: list[float] = []
            for batch in batches(work):
                base = completion_logits(self.pair.base, work, batch, 0).log_softmax(-1)
                aligned = completion_logits(self.pair.aligned, work, batch, 1).log_softmax(-1)
                row += chosen((1 + alpha) * base - alpha * aligned, work, batch)
            scores.append(row)
        return scores


class ProcessorPair:
    """(b): see the module."""

    def __init__(self, pair: BenchPair) -> None:
        self.pair = pair

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """One `generate` of the base per α."""
        base_texts, aligned_texts = sides(work)

        def run(alpha: float) -> list[list[int]]:
            processors = LogitsProcessorList([PairProcessor(self.pair.aligned, alpha, aligned_texts)])
            return generate(self.pair.base, base_texts, work, logits_processor=processors)

        return by_alpha(work, run)

    @torch.inference_mode()
    def score(self, work: Work) -> list[list[float]]:
        """Both models run once per batch; every α contrasts and normalises the whole vocabulary."""
        scores: list[list[float]] = [[] for _ in work.alphas]
        for batch in batches(work):
            base = completion_logits(self.pair.base, work, batch, 0)
            aligned = completion_logits(self.pair.aligned, work, batch, 1)
            for alpha, row in zip(work.alphas, scores, strict=True):
                row += chosen((1 + alpha) * base - alpha * aligned, work, batch)
        return scores


class BaseAlone:
    """(c): see the module."""

    def __init__(self, pair: BenchPair) -> None:
        self.pair = pair

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """One `generate` of the base for all rows."""
        torch.manual_seed(work.seed)
        return generate(self.pair.base, sides(work)[0] * len(work.alphas), work)

    @torch.inference_mode()
    def score(self, work: Work) -> list[list[float]]:
        """One pass of the base model; the scores are those of α = 0, whatever the α."""
        row: list[float] = []
        for batch in batches(work):
            row += chosen(completion_logits(self.pair.base, work, batch, 0), work, batch)
        return [row] * len(work.alphas)


def by_alpha(work: Work, run: Callable[[float], list[list[int]]]) -> list[list[int]]:
    """The rows of one run per α, drawn from the seed of the work."""
    torch.manual_seed(work.seed)
    return [row for alpha in work.alphas for row in run(alpha)]


def sides(work: Work) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(base prompts, aligned prompts)."""
    return [prompt.base_ids for prompt in work.prompts], [prompt.aligned_ids for prompt in work.prompts]


def batches(work: Work) -> list[slice]:
    """The given completions, a few at a time."""
    return [slice(start, start + SCORING_ROWS) for start in range(0, len(work.completions), SCORING_ROWS)]


def completion_logits(model: Any, work: Work, batch: slice, side: int) -> Tensor:
    """(B, T, V) float32: the logits that predict each token of the completions, after one side's prompts."""
    texts = [
        (*prompt, *completion)
        for prompt, completion in zip(sides(work)[side][batch], work.completions[batch], strict=True)
    ]
    ids, mask = pad_left(texts, model.device)
    result = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions(mask),
        use_cache=False,
        logits_to_keep=work.new_tokens + 1,
    )
    return result.logits[:, :-1].float()  # type: ignore[no-any-return]


def chosen(logits: Tensor, work: Work, batch: slice) -> list[float]:
    """Log-probability of each completion of a batch, nats, from (B, T, V) logits."""
    ids = torch.tensor(work.completions[batch], device=logits.device)
    logprobs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return logprobs.sum(-1).tolist()
