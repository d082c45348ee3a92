"""The stage with drafts: one row of the large pair, plain and with drafts in the captured step."""

from __future__ import annotations

from benchmarks.gpu_check.context import Context, Figures, StageError
from benchmarks.gpu_check.pair_stages import params_of, prompts_of
from eddecode.engine.speculative.drafters import BaseDrafter, NgramDrafter
from eddecode.engine.speculative.speculator import AdaptiveSpeculator

# The models of the pair are random and unrelated: the base's tokens are those of the contrast at a small α only.
ALPHAS = (0.02, 0.5)


def _ways(brief: bool) -> dict[str, AdaptiveSpeculator | None]:
    if brief:
        return {"plain": None, "base, 1 drafted": AdaptiveSpeculator([BaseDrafter()], num_draft_tokens=1)}
    return {
        "plain": None,
        "base, 1 drafted": AdaptiveSpeculator([BaseDrafter()], num_draft_tokens=1),
        "base, 3 drafted": AdaptiveSpeculator([BaseDrafter()], num_draft_tokens=3),
        "text, 7 drafted": AdaptiveSpeculator([NgramDrafter()], num_draft_tokens=7),
        "auto": AdaptiveSpeculator.of("auto"),
    }


def speculation(context: Context, found: Figures) -> None:
    """Tokens a second by `Sampler.generate`, and drafted tokens that were right; the tokens must be those without."""
    new, prompts = 2 if context.dry else 96, prompts_of(context, 1)
    sampler, different = context.sampler, 0
    for alpha in ALPHAS[:1] if context.brief else ALPHAS:
        params, plain = params_of(new, 0.0, alpha), list[int]()
        for name, speculator in _ways(context.brief).items():
            sampler.speculator = speculator
            try:
                tokens = sampler.generate(prompts, params)[0].token_ids  # captures what it needs
                seconds = context.seconds(lambda p=params: sampler.generate(prompts, p), 1)  # type: ignore[misc]
            finally:
                sampler.speculator = None
            found[f"α {alpha} · {name}, tokens a second"] = new / seconds
            plain = plain or tokens
            if speculator is not None:
                stats = speculator.stats
                found[f"α {alpha} · {name}, right"] = f"{stats.accepted} of {stats.verified} drafted"
                different += sum(a != b for a, b in zip(tokens, plain, strict=True))
    found["tokens that differ with drafts"] = different
    if sampler.runner.draft_failures:
        raise StageError(f"drafts are not in the captured step: {sampler.runner.draft_failures[0]}")
    if different:
        raise StageError("tokens with drafts are not those without")
