"""Prompts as the inputs of `model.generate`: the base model's padded on the left, the aligned model's as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from eddecode.prompts.types import Prompt
    from eddecode.sampler import Sampler


def prompts_for_generate(
    sampler: Sampler, prompts: Sequence[Prompt], alpha: float
) -> tuple[dict[str, Any], list[list[int]]]:
    """What `pair.base.generate` is called with, and what the aligned model reads beside it.

    Args:
        sampler: renders the prompts.
        prompts: as `Sampler.generate` takes them.
        alpha: of the contrast; it decides which models' EOS ids end a completion.

    Returns:
        The inputs: `input_ids` and `attention_mask` (B, L) int64, `eos_token_id` and `pad_token_id`; and the aligned
        model's ids of each prompt.

    Raises:
        PromptError: a prompt cannot be rendered.
    """
    pair = sampler.pair
    rendered = [sampler.render(prompt) for prompt in prompts]
    weights = pair.logit_weights(alpha)
    ends = [eos for weight, eos in zip(weights, pair.eos_ids, strict=True) if weight != 0]
    eos = sorted(frozenset().union(*ends))
    pad = eos[0] if eos else 0
    longest = max(len(prompt.base_ids) for prompt in rendered)
    rows = [[pad] * (longest - len(prompt.base_ids)) + list(prompt.base_ids) for prompt in rendered]
    mask = [[0] * (longest - len(p.base_ids)) + [1] * len(p.base_ids) for p in rendered]
    inputs = {
        "input_ids": torch.tensor(rows, device=pair.device),
        "attention_mask": torch.tensor(mask, device=pair.device),
        "eos_token_id": eos or None,
        "pad_token_id": pad,
    }
    return inputs, [list(prompt.aligned_ids) for prompt in rendered]
