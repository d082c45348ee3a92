"""The stage with drafts: one row of the large pair, plain and with drafts in the captured step."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.family_stages import StageError
from benchmarks.pairs import random_prompts, texts_of
from eddecode import SamplingParams
from eddecode.engine.speculative.drafters import BaseDrafter, NgramDrafter
from eddecode.engine.speculative.speculator import AdaptiveSpeculator

# The models of the pair are random and unrelated: the base's tokens are those of the contrast at a small α only.
ALPHAS = (0.02, 0.5)


def _ways(dry: bool) -> dict[str, AdaptiveSpeculator | None]:
    if dry:
        return {"plain": None, "base, 1 drafted": AdaptiveSpeculator([BaseDrafter()], num_draft_tokens=1)}
    return {
        "plain": None,
        "base, 1 drafted": AdaptiveSpeculator([BaseDrafter()], num_draft_tokens=1),
        "base, 3 drafted": AdaptiveSpeculator([BaseDrafter()], num_draft_tokens=3),
        "text, 7 drafted": AdaptiveSpeculator([NgramDrafter()], num_draft_tokens=7),
        "auto": AdaptiveSpeculator.of("auto"),
    }


def speculation(context: Context) -> dict[str, Any]:
    """Tokens a second by `Sampler.generate`, and drafted tokens that were right; the tokens must be those without."""
    new = 2 if context.dry else 96
    make = (
        texts_of(1, 3, context.shape.vocabulary)
        if context.dry
        else random_prompts(1, context.shape.vocabulary)
    )
    sampler, found, differing = context.sampler, dict[str, Any](), []
    for alpha in ALPHAS[:1] if context.dry else ALPHAS:
        params = SamplingParams(alpha=alpha, temperature=0.0, max_new_tokens=new, ignore_eos=True)
        plain: list[int] = []
        for name, speculator in _ways(context.dry).items():
            sampler.speculator = speculator
            try:
                tokens = sampler.generate(list(make), params)[0].token_ids  # captures what it needs
                seconds = context.seconds(lambda p=params: sampler.generate(list(make), p), 2)  # type: ignore[misc]
            finally:
                sampler.speculator = None
            found[f"α {alpha} · {name}, tokens a second"] = new / seconds
            plain = plain or tokens
            if speculator is not None:
                stats = speculator.stats
                found[f"α {alpha} · {name}, right"] = f"{stats.accepted} of {stats.verified} drafted"
                differing += [] if tokens == plain else [f"{name} at α {alpha}"]
    found["tokens equal"] = "yes" if not differing else f"not with {', '.join(differing)}"
    if differing or sampler.runner.draft_failures:
        raise StageError("drafts in the captured step are not what they should be", found)
    return found
