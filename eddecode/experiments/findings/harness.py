"""The bench: what every finding measures with. Trained models from the workshop, completions from the Sampler, verdicts
from the audit's judges; each condition is measured once and kept.

Completions are sampled at temperature 1 without truncation, one per held-out request, with random numbers that all
conditions share: nothing but the condition decides what comes out.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from eddecode.audit.judges.base import Case, verdicts_of
from eddecode.audit.judges.grammar import GrammarJudge
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.experiments import corpus
from eddecode.experiments.findings.criteria import Cell
from eddecode.experiments.model_cache import Workshop
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.experiments.recipes import FineTuned, Preferred, Pretrained, Recipe
from eddecode.experiments.training import ALIGNMENT, PRETRAINING, FitConfig, ModelShape
from eddecode.models.ensemble import Ensemble, Transfer
from eddecode.models.pair import ModelPair
from eddecode.sampler import Sampler
from eddecode.sampling.access import Access
from eddecode.sampling.params import SamplingParams

_RULES = 1
"""Counted up when the same condition would be measured otherwise than before."""
_SLOTS = 256

SCRATCH = FitConfig(steps=1500, lr=3e-3)
SMALL = ModelShape(hidden=64, layers=2, heads=2, feed_forward=168)
MIDDLE = ModelShape(hidden=96, layers=2, heads=4, feed_forward=256)
LARGE = ModelShape(hidden=192, layers=4, heads=6, feed_forward=512)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        shape: of the models of most findings.
        sizes: of the models that are compared in size, smallest first; the pair of the first size steers the base
            of the last.
        pretraining: of every base.
        scratch: of the model that is distilled from scratch.
        requests: held-out requests per condition.
        alphas: ED's strengths that every pair is tried at.
        far: further ones, for the curve of the main pair.
        strengths: steps of filtering, weak to extreme.
        margins: β of cDPO, weak to strong.
        tilts: β of the tilts, weak to strong.
        siblings: aligned models in an ensemble.
        cousins: steps of pre-training of bases that stand in for a withheld one, beside as many as the base's.
    """

    shape: ModelShape = field(default_factory=ModelShape)
    sizes: tuple[ModelShape, ...] = (SMALL, ModelShape(), LARGE)
    pretraining: FitConfig = PRETRAINING
    scratch: FitConfig = SCRATCH
    requests: int = corpus.HELD_OUT
    alphas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.45, 0.6, 1.0, 2.0)
    far: tuple[float, ...] = (3.0, 5.0)
    strengths: tuple[int, ...] = (20, 80, 320, 640, 1600)
    margins: tuple[float, ...] = (2.0, 0.5, 0.2, 0.1, 0.03)
    tilts: tuple[float, ...] = (2.0, 1.0, 0.5, 0.3)
    siblings: int = 3
    cousins: tuple[int, ...] = (300, 600, 1200)

    @classmethod
    def quick(cls) -> Scale:
        """Fewer steps, requests and α's, three strengths."""
        return cls(
            pretraining=FitConfig(steps=1200, lr=3e-3),
            scratch=FitConfig(steps=1000, lr=3e-3),
            sizes=(SMALL, MIDDLE, ModelShape()),
            requests=200,
            alphas=(0.1, 0.3, 0.6, 1.0, 2.0),
            far=(5.0,),
            strengths=(20, 160, 1280),
            margins=(1.0, 0.2, 0.05),
            tilts=(1.0, 0.3),
            cousins=(600,),
        )


@dataclass(frozen=True)
class Target:
    """What is decoded, by recipes.

    Attributes:
        base: sampled from at α = 0.
        aligned: one, or several that are averaged.
        steered: if given, the larger base that the contrast of the two is applied to.
        base_template, aligned_template: how each sees a request; None is what it was trained in.
    """

    base: Recipe
    aligned: tuple[Recipe, ...]
    steered: Recipe | None = None
    base_template: str | None = None
    aligned_template: str | None = None

    @classmethod
    def single(cls, model: Recipe, template: str | None = None) -> Target:
        """One model alone, in the base's template unless given; to be measured at α = 0."""
        return cls(model, (model,), base_template=template)


class Bench:
    """A scale, a seed and a workshop.

    Args:
        shop: where models and measurements are kept.
        scale: how much.
        seed: of every recipe and of the completions.
    """

    def __init__(self, shop: Workshop, scale: Scale, seed: int = 0) -> None:
        self.shop, self.scale, self.seed = shop, scale, seed
        self.requests = corpus.held_out_requests()[: scale.requests]
        self._judges = LexiconJudge.bundled(), GrammarJudge()
        self._samplers: dict[Target, Sampler] = {}

    # Recipes that several findings share ----------------------------------------------------------------------------

    @cached_property
    def base(self) -> Pretrained:
        """The base model."""
        return self.base_of(self.scale.shape)

    def base_of(self, shape: ModelShape) -> Pretrained:
        """The base model of a size."""
        return Pretrained(shape, self.scale.pretraining, self.seed)

    @property
    def control(self) -> FineTuned:
        """Fine-tuned as the aligned model is, but on unfiltered replies: nothing is aligned."""
        return FineTuned(self.base, "all", seed=self.seed)

    @property
    def aligned(self) -> FineTuned:
        """The aligned model of most findings: filtered fine-tuning."""
        return self.filtered(ALIGNMENT.steps)

    def filtered(self, steps: int, base: Recipe | None = None) -> FineTuned:
        """Fine-tuned on polite replies for so many steps."""
        config = FitConfig(steps=steps, lr=ALIGNMENT.lr, warmup=0.0, decay=1.0)
        return FineTuned(base or self.base, config=config, seed=self.seed)

    def preferred(self, beta: float, noise: float = 0.1) -> Preferred:
        """Aligned by cDPO (noise 0: DPO), from the control, which knows the chat template."""
        return Preferred(self.control, beta, noise, seed=self.seed)

    def tilted(self, beta: float) -> FineTuned:
        """Fine-tuned on base · exp(−rude words/β), by rejection."""
        return FineTuned(self.base, "all", beta, seed=self.seed)

    @property
    def main(self) -> Target:
        """The pair of most findings."""
        return Target(self.base, (self.aligned,))

    # Measuring ------------------------------------------------------------------------------------------------------

    def sampler(self, target: Target) -> Sampler:
        """A sampler over the target's models, in float32."""
        if target not in self._samplers:
            tokenizer, model = self.shop.tokenizer, self.shop.model
            aligned = [model(recipe) for recipe in target.aligned]
            if target.steered is not None:
                pair: Any = Transfer.from_models(
                    model(target.steered), model(target.base), aligned[0], tokenizer, tokenizer, tokenizer
                )
            elif len(aligned) > 1:
                pair = Ensemble.from_models(
                    model(target.base), aligned, tokenizer, [tokenizer] * len(aligned)
                )
            else:
                pair = ModelPair.from_models(model(target.base), aligned[0], tokenizer, tokenizer)
            self._samplers = {  # one at a time: the models are small, their number is not
                target: Sampler(
                    pair,
                    base_template=target.base_template or corpus.BASE_TEMPLATE,
                    aligned_template=target.aligned_template,
                    max_slots=_SLOTS,
                )
            }
        return self._samplers[target]

    def cells(
        self, target: Target, alphas: Sequence[float], access: Access | None = None
    ) -> dict[float, Cell]:
        """One cell per α; what has been measured before is read back."""
        keys = {float(alpha): self._key(target, float(alpha), access) for alpha in alphas}
        missing = [alpha for alpha, key in keys.items() if not self.shop.has(key)]
        if missing:
            for alpha, data in self._sample(target, missing, access).items():
                self.shop.keep(keys[alpha], data)
        return {alpha: _cell(self.shop.kept(key)) for alpha, key in keys.items()}

    def cell(self, target: Target, alpha: float = 0.0, access: Access | None = None) -> Cell:
        """The cell of one α."""
        return self.cells(target, [alpha], access)[alpha]

    def sweep(self, target: Target, far: bool = False) -> dict[float, Cell]:
        """Aligned (−1), base (0), and ED at every α of the scale."""
        return self.cells(target, (-1.0, 0.0, *self.scale.alphas, *(self.scale.far if far else ())))

    def key(self, *facts: Any) -> str:
        """The key of a measurement: a digest of what decides it."""
        known = [_RULES, self.seed, self.scale.requests, *(judge.identity for judge in self._judges), *facts]
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=12).hexdigest()

    def _key(self, target: Target, alpha: float, access: Access | None) -> str:
        models = [target.base, *target.aligned, *([target.steered] if target.steered else [])]
        digests = [recipe.digest for recipe in models]
        templates = [target.base_template, target.aligned_template]
        return self.key(
            "cell", digests, target.steered is not None, templates, repr(alpha), access and repr(access)
        )

    def _sample(
        self, target: Target, alphas: Sequence[float], access: Access | None
    ) -> dict[float, dict[str, Any]]:
        prompts = [request.text for _ in alphas for request in self.requests]
        params = [
            SamplingParams(alpha=alpha, max_new_tokens=MAX_NEW_TOKENS, seed=self.seed, access=access)
            for alpha in alphas
            for _ in self.requests
        ]
        done: list[Any] = [None] * len(prompts)
        tally = count(1)
        for completion in self.sampler(target).as_completed(prompts, params):
            done[completion.prompt_index] = completion
            if self.shop.report is not None:
                self.shop.report("sampling", next(tally), len(prompts))
        cases = [Case(prompt, c.text) for prompt, c in zip(prompts, done, strict=True)]
        rude, valid = ([v.flag for v in verdicts_of(judge, cases)] for judge in self._judges)
        n = len(self.requests)
        return {
            alpha: {
                "alpha": alpha,
                "rude": [int(flag) for flag in rude[i * n : (i + 1) * n]],
                "valid": [int(flag) for flag in valid[i * n : (i + 1) * n]],
                "ended": [int(c.finish_reason == "eos") for c in done[i * n : (i + 1) * n]],
                "reward": [c.implied_reward for c in done[i * n : (i + 1) * n]],
                "tokens": [len(c.token_ids) for c in done[i * n : (i + 1) * n]],
            }
            for i, alpha in enumerate(alphas)
        }


def _cell(data: dict[str, Any]) -> Cell:
    rude, valid, ended = (np.array(data[name], dtype=bool) for name in ("rude", "valid", "ended"))
    return Cell(data["alpha"], rude, valid, ended, np.array(data["reward"]), np.array(data["tokens"]))
