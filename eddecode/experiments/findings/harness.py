"""The experiment harness: trained models from the model cache, completions from the Sampler, verdicts from the judges.

Every experiment measures through this class, and each condition is measured once and kept. Completions are sampled at
temperature 1 without truncation, one per held-out request, with random numbers that all conditions share: two
conditions differ in nothing but what is compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np

from eddecode.audit.judges.base import Case, verdicts_of
from eddecode.audit.judges.grammar import GrammarJudge
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.experiments import corpus
from eddecode.experiments.findings.criteria import ConditionResult
from eddecode.experiments.findings.pair_ensemble import PairEnsemble
from eddecode.experiments.findings.size import ExperimentSize
from eddecode.experiments.model_cache import ModelCache
from eddecode.experiments.pair_metrics import MAX_NEW_TOKENS
from eddecode.experiments.recipes import FineTuned, PreferenceTuned, Pretrained, TrainingRecipe
from eddecode.experiments.training import ALIGNMENT, FitConfig, ModelShape
from eddecode.models.ensemble import Ensemble, Transfer
from eddecode.models.pair import ModelPair
from eddecode.sampler import Sampler
from eddecode.sampling.access import Access
from eddecode.sampling.params import SamplingParams

_MEASUREMENT_VERSION = 1
"""To be raised when the same condition would be measured in another way than before."""
_SLOTS = 256


@dataclass(frozen=True)
class ContrastTarget:
    """The models of a contrast, by their recipes.

    Attributes:
        base: the base model, sampled from at α = 0.
        aligned: the aligned model, or several whose logits are averaged.
        transfer_base: if given, the larger base to whose logits the contrast of the pair is added.
        further_bases: if given, the bases of the second and later aligned models: several pairs in one contrast.
        base_template, aligned_template: prompt formats; None is the format that the model was trained with.
    """

    base: TrainingRecipe
    aligned: tuple[TrainingRecipe, ...]
    transfer_base: TrainingRecipe | None = None
    further_bases: tuple[TrainingRecipe, ...] = ()
    base_template: str | None = None
    aligned_template: str | None = None

    @classmethod
    def single(cls, model: TrainingRecipe, template: str | None = None) -> ContrastTarget:
        """One model alone, to be measured at α = 0; in the format of the base unless a template is given."""
        return cls(model, (model,), base_template=template)


class ExperimentHarness:
    """Measures conditions.

    Args:
        model_cache: where models and measurements are kept.
        size: how much is measured.
        seed: of every recipe and of the completions.
    """

    def __init__(self, model_cache: ModelCache, size: ExperimentSize, seed: int = 0) -> None:
        self.model_cache, self.size, self.seed = model_cache, size, seed
        self.requests = corpus.held_out_requests()[: size.requests]
        self._judges = LexiconJudge.bundled(), GrammarJudge()
        self._samplers: dict[ContrastTarget, Sampler] = {}

    # Recipes that several experiments share -------------------------------------------------------------------------

    @cached_property
    def base(self) -> Pretrained:
        """The base model."""
        return self.base_with_shape(self.size.shape)

    def base_with_shape(self, shape: ModelShape) -> Pretrained:
        """A base model of another size."""
        return Pretrained(shape, self.size.pretraining, self.seed)

    @property
    def control(self) -> FineTuned:
        """Fine-tuned like the aligned model, but on unfiltered replies: nothing is aligned."""
        return FineTuned(self.base, "all", seed=self.seed)

    @property
    def aligned(self) -> FineTuned:
        """The aligned model of most experiments: fine-tuned on polite replies."""
        return self.filtered(ALIGNMENT.steps)

    def filtered(self, steps: int, base: TrainingRecipe | None = None) -> FineTuned:
        """Fine-tuned on polite replies for a number of steps."""
        config = FitConfig(steps=steps, lr=ALIGNMENT.lr, warmup=0.0, decay=1.0)
        return FineTuned(base or self.base, config=config, seed=self.seed)

    def preferred(self, beta: float, noise: float = 0.1) -> PreferenceTuned:
        """Aligned by cDPO (noise 0: DPO), starting from the control, which was trained with the chat template."""
        return PreferenceTuned(self.control, beta, noise, seed=self.seed)

    def tilted(self, beta: float) -> FineTuned:
        """Fine-tuned on samples of base · exp(−rude words/β), drawn by rejection."""
        return FineTuned(self.base, "all", beta, seed=self.seed)

    @property
    def main_target(self) -> ContrastTarget:
        """The pair of most experiments."""
        return ContrastTarget(self.base, (self.aligned,))

    # Measuring ------------------------------------------------------------------------------------------------------

    def sampler(self, target: ContrastTarget) -> Sampler:
        """A sampler over the models of a target, in float32. The last one is kept."""
        if target not in self._samplers:
            sampler = Sampler(
                self._load(target),
                base_template=target.base_template or corpus.BASE_TEMPLATE,
                aligned_template=target.aligned_template,
                max_slots=_SLOTS,
            )
            self._samplers = {target: sampler}  # one at a time: each model is small, but there are many
        return self._samplers[target]

    def _load(self, target: ContrastTarget) -> Any:
        tokenizer, model = self.model_cache.tokenizer, self.model_cache.model
        base, aligned = model(target.base), [model(recipe) for recipe in target.aligned]
        if target.transfer_base is not None:
            larger = model(target.transfer_base)
            return Transfer.from_models(larger, base, aligned[0], tokenizer, tokenizer, tokenizer)
        if target.further_bases:
            bases = [base, *(model(recipe) for recipe in target.further_bases)]
            return PairEnsemble.from_models(list(zip(bases, aligned, strict=True)), tokenizer)
        if len(aligned) > 1:
            return Ensemble.from_models(base, aligned, tokenizer, [tokenizer] * len(aligned))
        return ModelPair.from_models(base, aligned[0], tokenizer, tokenizer)

    def conditions(
        self, target: ContrastTarget, alphas: Sequence[float], access: Access | None = None
    ) -> dict[float, ConditionResult]:
        """One result per α; a condition that was measured before is read from the cache."""
        keys = {float(alpha): self._key(target, float(alpha), access) for alpha in alphas}
        missing = [alpha for alpha, key in keys.items() if key not in self.model_cache]
        if missing:
            for alpha, data in self._sample(target, missing, access).items():
                self.model_cache.store(keys[alpha], data)
        return {alpha: _condition(self.model_cache.load(key)) for alpha, key in keys.items()}

    def condition(
        self, target: ContrastTarget, alpha: float = 0.0, access: Access | None = None
    ) -> ConditionResult:
        """The result of one α."""
        return self.conditions(target, [alpha], access)[alpha]

    def sweep(self, target: ContrastTarget, large: bool = False) -> dict[float, ConditionResult]:
        """The aligned model (−1), the base (0), and ED at every α of the size; with `large` at the large α's too."""
        large_alphas = self.size.large_alphas if large else ()
        return self.conditions(target, (-1.0, 0.0, *self.size.alphas, *large_alphas))

    def key(self, *facts: Any) -> str:
        """The key of a measurement: a digest of everything that decides it."""
        judges = (judge.identity for judge in self._judges)
        known = [_MEASUREMENT_VERSION, self.seed, self.size.requests, *judges, *facts]
        return hashlib.blake2b(json.dumps(known).encode(), digest_size=12).hexdigest()

    def _key(self, target: ContrastTarget, alpha: float, access: Access | None) -> str:
        larger = target.transfer_base
        digests = [recipe.digest for recipe in (target.base, *target.aligned, *([larger] if larger else []))]
        templates = [target.base_template, target.aligned_template]
        further = (
            [["bases", *(recipe.digest for recipe in target.further_bases)]] if target.further_bases else []
        )
        return self.key(
            "cell", digests, larger is not None, templates, repr(alpha), access and repr(access), *further
        )  # "cell" was the name of a condition when the first measurements were stored

    def _sample(
        self, target: ContrastTarget, alphas: Sequence[float], access: Access | None
    ) -> dict[float, dict[str, Any]]:
        prompts = [request.text for _ in alphas for request in self.requests]
        params = [
            SamplingParams(alpha=alpha, max_new_tokens=MAX_NEW_TOKENS, seed=self.seed, access=access)
            for alpha in alphas
            for _ in self.requests
        ]
        done: list[Any] = [None] * len(prompts)
        counter = count(1)
        for completion in self.sampler(target).as_completed(prompts, params):
            done[completion.prompt_index] = completion
            if self.model_cache.report is not None:
                self.model_cache.report("sampling", next(counter), len(prompts))
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


def _condition(data: dict[str, Any]) -> ConditionResult:
    rude, valid, ended = (np.array(data[name], dtype=bool) for name in ("rude", "valid", "ended"))
    return ConditionResult(
        data["alpha"], rude, valid, ended, np.array(data["reward"]), np.array(data["tokens"])
    )
