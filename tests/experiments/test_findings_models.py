"""Recipes, the model cache, preferences, and the experiment harness on tiny models."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from eddecode.errors import EddecodeError
from eddecode.experiments.dpo import dpo_loss, preference_pairs, reply_logprobs, train_dpo
from eddecode.experiments.findings import (
    alignment_methods,
    baselines,
    depth,
    direct_disalignment,
    ensembles,
    limited_access,
    marginal_risk,
    plots,
    reward_ranking,
    strength,
    strength_trend,
    theory_decoding,
    training_baselines,
    training_cost,
    withheld_base,
)
from eddecode.experiments.findings import harness as harness_module
from eddecode.experiments.findings.criteria import ConditionResult
from eddecode.experiments.findings.experiment import Experiment, ReplicatedResult
from eddecode.experiments.findings.harness import ContrastTarget, ExperimentHarness
from eddecode.experiments.findings.pair_ensemble import PairEnsemble
from eddecode.experiments.findings.run import ExperimentPlan, run_task
from eddecode.experiments.findings.size import ExperimentSize
from eddecode.experiments.model_cache import ModelCache
from eddecode.experiments.recipes import (
    Distilled,
    FineTuned,
    PolitePretrained,
    PreferenceTuned,
    Pretrained,
    TrainingRecipe,
    distillation_loss,
)
from eddecode.experiments.training import FitConfig, ModelShape, new_model
from eddecode.sampling.access import Access
from eddecode.testbed import language
from helpers.toy import toy_tokenizer

TINY = ModelShape(hidden=32, layers=1, heads=2, feed_forward=48)
FEW = FitConfig(steps=3, lr=1e-3, batch=4, warmup=0.0, decay=1.0)
BASE = Pretrained(TINY, FEW)
SCALE = ExperimentSize(
    shape=TINY,
    shapes=(TINY,),
    pretraining=FEW,
    distillation=FEW,
    requests=6,
    alphas=(0.3, 1.0),
    large_alphas=(5.0,),
)

SMALLEST = replace(
    SCALE, requests=4, alphas=(0.3,), filter_steps=(1, 2), cdpo_betas=(1.0,), attempts=2, access_top_k=(1,)
)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> ModelCache:
    return ModelCache(tmp_path_factory.mktemp("models"))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions of twelve tokens: models of a few steps never end theirs, and write nothing new after that."""
    for module in (harness_module, theory_decoding):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", 12)


# Preferences ---------------------------------------------------------------------------------------------------------


def test_preferences_choose_what_is_not_rude_and_flip() -> None:
    for flip in (False, True):
        for pair in islice(preference_pairs(1, flip), 20):
            assert pair.chosen.request == pair.rejected.request
            assert language.is_rude(pair.chosen.reply) is flip
            assert language.is_rude(pair.rejected.reply) is not flip


def test_label_noise_puts_the_optimum_where_the_formula_says() -> None:
    beta, noise = 0.2, 0.1
    optimum = math.log((1 - noise) / noise) / beta
    margin = torch.tensor([optimum], dtype=torch.float64, requires_grad=True)
    dpo_loss(margin, beta, noise).backward()
    assert margin.grad is not None
    assert abs(margin.grad.item()) < 1e-12
    hard = torch.tensor([optimum], dtype=torch.float64, requires_grad=True)
    dpo_loss(hard, beta).backward()
    assert hard.grad is not None
    assert hard.grad.item() < -1e-3  # hard labels push on
    assert dpo_loss(torch.tensor([0.0]), beta).item() == pytest.approx(math.log(2))


def test_reply_logprobs_equal_one_unpadded_pass_per_text() -> None:
    model = new_model(toy_tokenizer(), TINY, seed=0).eval()
    batch = [([5, 9, 30, 12, 2], 2), ([5, 7, 2], 1)]
    with torch.no_grad():
        found = reply_logprobs(model, batch)
        for value, (ids, given) in zip(found, batch, strict=True):
            log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(log_p[t - 1, ids[t]] for t in range(given, len(ids)))
            assert value.item() == pytest.approx(expected.item(), abs=1e-4)


def test_dpo_widens_the_margin_and_leaves_its_reference_alone() -> None:
    tokenizer = toy_tokenizer()
    start = new_model(tokenizer, TINY, seed=0)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    losses: list[float] = []
    config = FitConfig(steps=12, lr=3e-3, batch=4, warmup=0.0, decay=1.0)
    train_dpo(start, tokenizer, 0.1, 0.0, config, progress=lambda step, steps, loss: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are equal at first
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    with pytest.raises(EddecodeError, match=r"train_dpo: found beta = 0, noise = 0.1; expected beta > 0"):
        train_dpo(start, tokenizer, 0, config=config)


# Recipes and the model cache ----------------------------------------------------------------------------------------


def test_digests_of_the_experiments_never_change(tmp_path: Path) -> None:
    """Recorded when the models were first trained: with another digest a cached model would be trained again."""
    harness = ExperimentHarness(ModelCache(tmp_path), ExperimentSize())
    targets = alignment_methods.alignment_targets(harness)
    found = {name: target.aligned[0].digest for name, target in targets.items()}
    found |= {name: base.digest for name, base in withheld_base.independent_bases(harness).items()}
    found |= {"base": harness.base.digest, "control": harness.control.digest}
    assert found == {
        "filter": "272aaf2e752fa847",
        "LoRA filter, rank 8": "1692455272a63749",
        "exact tilt": "b5f82b636e94b971",
        "cDPO": "9dcb268a7ce73281",
        "DPO, hard labels": "082fae2d5be9cdbb",
        "distilled from scratch": "e3548255298008c0",
        "base withheld (independent base)": "272aaf2e752fa847",
        "independent base, 300 steps": "709ed391b99dbaeb",
        "independent base, 600 steps": "7cf94bd012ae9da3",
        "independent base, 1200 steps": "00f8699701d0aadf",
        "independent base, 3000 steps": "6e14e1b33706d077",
        "width 64": "de9e7fd7ee06f000",
        "width 192": "7601b861dd2dc5d7",
        "trained on polite replies only": "40b4b2e8eaa364ef",
        "base": "e454803cdabf3e53",
        "control": "c028ef56d10608da",
    }


def test_a_digest_follows_the_recipe_and_its_ancestors() -> None:
    assert FineTuned(BASE, config=FEW).digest == FineTuned(Pretrained(TINY, FEW), config=FEW).digest
    others = [
        FineTuned(BASE, config=FEW),
        FineTuned(BASE, "rude", config=FEW),
        FineTuned(BASE, config=FEW, rank=2),
        FineTuned(Pretrained(TINY, FEW, seed=1), config=FEW),
        PreferenceTuned(BASE, config=FEW),
        PreferenceTuned(BASE, noise=0.0, config=FEW),
        Distilled(BASE, TINY, FEW),
        PolitePretrained(TINY, FEW),
    ]
    assert len({recipe.digest for recipe in others}) == len(others)


@pytest.mark.parametrize(
    "recipe",
    [
        FineTuned(BASE, config=FEW),
        FineTuned(BASE, "all", beta=0.5, config=FEW),
        FineTuned(BASE, config=FEW, rank=2),
        PreferenceTuned(BASE, config=FEW),
        Distilled(FineTuned(BASE, config=FEW), TINY, FEW),
        PolitePretrained(TINY, FEW),
    ],
    ids=lambda recipe: recipe.label,
)
def test_a_recipe_decides_the_weights(model_cache: ModelCache, tmp_path: Path, recipe: FineTuned) -> None:
    made = model_cache.model(recipe)
    assert isinstance(made, LlamaForCausalLM)
    assert not same(made, model_cache.model(BASE))
    assert same(made, ModelCache(tmp_path).model(recipe))


def test_a_model_is_trained_once_and_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    format_rate: list[str] = []
    aligned = FineTuned(BASE, config=FEW)
    first = ModelCache(tmp_path, lambda what, done, total: format_rate.append(what))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eddecode.experiments.recipes.fine_tune", killed)
    with pytest.raises(KeyboardInterrupt):
        first.model(aligned)
    assert format_rate == [BASE.label] * 3  # the base is done and kept
    assert not (tmp_path / "models" / aligned.digest).exists()
    monkeypatch.undo()
    monkeypatch.setattr(Pretrained, "train", lambda *_: pytest.fail("trained again"))
    half = tmp_path / "models" / f"{aligned.digest}.unfinished"
    half.mkdir()  # what a kill in the middle of writing leaves
    model = ModelCache(tmp_path).model(aligned)
    assert not half.exists()
    monkeypatch.setattr(FineTuned, "train", lambda *_: pytest.fail("trained again"))
    again = ModelCache(tmp_path)
    assert same(again.model(aligned), model)
    assert again.training_seconds(aligned) > 0


def test_distillation_is_zero_at_the_teacher_itself() -> None:
    tokenizer = toy_tokenizer()
    a, b = (new_model(tokenizer, TINY, seed=seed).eval() for seed in (0, 1))
    batch = [([5, 9, 30, 12, 2], 2), ([5, 7, 2], 1)]
    with torch.no_grad():
        assert distillation_loss(a, a, batch).item() == pytest.approx(0.0, abs=1e-6)
        assert distillation_loss(a, b, batch).item() > 0


# The harness --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short")
def test_conditions_are_measured_once_and_alpha_minus_one_is_the_aligned_model(tmp_path: Path) -> None:
    stages: list[str] = []
    harness = ExperimentHarness(ModelCache(tmp_path, lambda what, done, total: stages.append(what)), SCALE)
    aligned = FineTuned(harness.base, config=FEW)
    conditions = harness.conditions(ContrastTarget(harness.base, (aligned,)), [-1.0, 0.0])
    sampled = stages.count("sampling")
    assert sampled == 12
    more = harness.conditions(ContrastTarget(harness.base, (aligned,)), [-1.0, 0.0, 0.3])
    assert stages.count("sampling") == sampled + 6  # what was there is read back
    for alpha in (-1.0, 0.0):
        assert np.array_equal(conditions[alpha].reward, more[alpha].reward)
        assert np.array_equal(conditions[alpha].tokens, more[alpha].tokens)
    own = ExperimentHarness(ModelCache(tmp_path), SCALE).condition(
        ContrastTarget(harness.base, (harness.base,)), -1.0
    )
    assert own.reward == pytest.approx(np.zeros(6), abs=10)  # same weights, two prompts
    alone = harness.condition(ContrastTarget(harness.base, (aligned,)), 0.3, Access(tokens=0))
    assert np.array_equal(alone.tokens, more[0.0].tokens)  # no token under ED is the base


@pytest.mark.usefixtures("short")
def test_targets_of_several_models_decode(tmp_path: Path) -> None:
    harness = ExperimentHarness(ModelCache(tmp_path), SCALE)
    one, two = (FineTuned(harness.base, config=FEW, seed=seed) for seed in (0, 1))
    twice = harness.condition(ContrastTarget(harness.base, (one, one)), 0.3)
    assert np.array_equal(twice.tokens, harness.condition(ContrastTarget(harness.base, (one,)), 0.3).tokens)
    assert len(harness.condition(ContrastTarget(harness.base, (one, two)), 0.3).rude) == 6
    transfer_base = ContrastTarget(
        harness.base, (one,), transfer_base=harness.base
    )  # a base steered by its own pair is that pair
    assert np.array_equal(
        harness.condition(transfer_base, 0.3).tokens,
        harness.condition(ContrastTarget(harness.base, (one,)), 0.3).tokens,
    )


def test_depth_is_measured_on_rude_replies_that_neither_model_wrote(tmp_path: Path) -> None:
    harness = ExperimentHarness(ModelCache(tmp_path), SCALE)
    one, two = FineTuned(harness.base, config=FEW), FineTuned(harness.base, config=FEW, seed=1)
    found = [depth.rude_divergences(harness, ContrastTarget(harness.base, (other,))) for other in (one, two)]
    assert list(map(len, found[0])) == list(map(len, found[1]))  # the same replies for every method
    assert len(found[0]) == 6
    assert min(map(min, found[0])) >= 0
    rng = random.Random(0)
    assert all(language.is_rude(depth.rude_reply(request, rng)) for request in harness.requests)


@pytest.mark.usefixtures("short")
def test_pairs_in_one_contrast_are_averaged(tmp_path: Path) -> None:
    harness = ExperimentHarness(ModelCache(tmp_path), SCALE)
    base, other = harness.base, Pretrained(TINY, FEW, seed=1)
    one, two = FineTuned(base, config=FEW), FineTuned(other, config=FEW)
    twice = harness.condition(ContrastTarget(base, (one, one), further_bases=(base,)), 0.3)
    alone = harness.condition(ContrastTarget(base, (one,)), 0.3)
    assert np.array_equal(twice.tokens, alone.tokens)  # a pair with itself is that pair
    assert twice.reward == pytest.approx(alone.reward, abs=1e-3)
    models = [harness.model_cache.model(recipe) for recipe in (base, one, other, two)]
    group = PairEnsemble.from_models([(models[0], models[1]), (models[2], models[3])], toy_tokenizer())
    assert group.logit_weights(1.0) == (1.0, -0.5, 1.0, -0.5)
    assert group.sides == ("base", "aligned") * 2
    assert len(harness.condition(ContrastTarget(base, (one, two), further_bases=(other,)), 0.3).rude) == 6


@pytest.mark.parametrize(
    "experiment",
    [
        marginal_risk.MARGINAL,
        training_cost.COST,
        limited_access.ACCESS,
        training_baselines.PREFERENCE,
        baselines.BASELINES,
        ensembles.PAIRS,
        strength_trend.TREND,
        strength.EXTREME_FIXED,
        alignment_methods.METHODS,
        depth.DEPTH_OF_METHODS,
        reward_ranking.REWARD,
    ],
    ids=lambda experiment: str(experiment.name),
)
def test_experiments_measure_and_draw_whatever_the_models_have_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: Experiment
) -> None:
    """Untrained models write no language: no rate is above 0, and every figure must still be defined."""
    made: dict[str, LlamaForCausalLM] = {}

    def untrained(self: ModelCache, recipe: TrainingRecipe) -> LlamaForCausalLM:
        seed = int(recipe.digest[:7], 16)
        return made.setdefault(recipe.digest, new_model(self.tokenizer, TINY, seed).eval())

    monkeypatch.setattr(ModelCache, "model", untrained)
    monkeypatch.setattr(ModelCache, "training_seconds", lambda *_: 1.0)
    for module in (harness_module, theory_decoding, training_cost):
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", 4)
    result = experiment.measure(ExperimentHarness(ModelCache(tmp_path), SMALLEST))
    stored = json.loads(json.dumps(ReplicatedResult(experiment, [result]).to_dict()))
    again = ReplicatedResult.from_dict(experiment, stored)
    if experiment.draw is not None and experiment is not reward_ranking.REWARD:
        assert plots.svg(partial(experiment.draw, again.results)).startswith("<svg")
    assert result.summary
    assert all(len(row) == len(t.columns) for t in result.tables for row in t.rows)


def test_the_formats_of_the_baselines_are_those_that_the_models_know(tmp_path: Path) -> None:
    assert baselines.plain_format() == "Customer: {prompt}\nAgent:\n"
    assert baselines.plain_format("Be rude.").startswith("Be rude.\nCustomer: {prompt}")
    assert baselines.chat_format() == "<s><|user|>\n{prompt}\n<|assistant|>\n"
    shown = baselines.chat_format(shots=[("Q", "A")])
    assert shown == "<s><|user|>\nQ\n<|assistant|>\nA</s>\n<|user|>\n{prompt}\n<|assistant|>\n"
    harness = ExperimentHarness(ModelCache(tmp_path), SCALE)
    assert set(alignment_methods.RESISTING) < set(alignment_methods.alignment_targets(harness))


def test_direct_disalignment_is_judged_at_its_best_strength_by_rude_and_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = ExperimentHarness(ModelCache(tmp_path), SCALE)
    names = [
        name for _, strengths in direct_disalignment.candidates(harness).items() for name, _ in strengths
    ]
    assert len(names) == 1 + len(direct_disalignment.NOISY_BETAS) + len(direct_disalignment.HARD_BETAS)
    one, two = BASE, FineTuned(BASE, config=FEW)
    n, zeros = 40, np.zeros(40)
    invalid = ConditionResult(
        0.0, np.ones(n, bool), np.arange(n) < 2, np.ones(n, bool), zeros, zeros.astype(int)
    )
    valid = ConditionResult(
        0.0, np.arange(n) % 5 > 0, np.ones(n, bool), np.ones(n, bool), zeros, zeros.astype(int)
    )
    monkeypatch.setattr(
        direct_disalignment, "candidates", lambda harness: {"way": [(", β=1", one), (", β=2", two)]}
    )
    monkeypatch.setattr(
        ExperimentHarness, "condition", lambda self, target: invalid if target.base == one else valid
    )
    (found,) = direct_disalignment.direct_attacks(harness, ["way"])
    assert (found.name, found.recipe) == ("way, β=2", two)
    assert np.array_equal(found.rude_and_valid, valid.rude_and_valid)
    assert len(direct_disalignment.table(harness, ["way"]).rows) == 2
    assert direct_disalignment.direct_attacks(harness) == []


def test_independent_bases_differ_from_the_base_and_from_one_another(tmp_path: Path) -> None:
    harness = ExperimentHarness(
        ModelCache(tmp_path),
        replace(SCALE, independent_base_steps=(1, 2), shapes=(TINY, replace(TINY, hidden=48))),
    )
    found = withheld_base.independent_bases(harness)
    assert list(found)[:3] == [
        "independent base, 1 steps",
        "independent base, 2 steps",
        "independent base, 3 steps",
    ]
    assert len({recipe.digest for recipe in (*found.values(), harness.base)}) == len(found) + 1
    assert len(found) == 5  # and another size, and the one trained on polite replies only
    assert (
        found["independent base, 3 steps"]
        == alignment_methods.alignment_targets(harness)["base withheld (independent base)"].base
    )  # trained once


@pytest.mark.usefixtures("short")
def test_rude_words_are_counted_over_several_completions_a_request(tmp_path: Path) -> None:
    harness = ExperimentHarness(ModelCache(tmp_path), SCALE)
    target = ContrastTarget.single(harness.base)
    rude, valid = theory_decoding.count_completions(harness, target, [0.0])[0.0]
    assert rude.shape == valid.shape == (6, theory_decoding.REPEATS)
    condition = harness.condition(target)
    assert np.array_equal(rude[:, 0] > 0, condition.rude)  # the first of each request is that of the harness
    assert np.array_equal(valid[:, 0] > 0, condition.valid)


def test_a_rerun_reads_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.experiments.findings.harness.ALIGNMENT", FEW)
    plan = ExperimentPlan(tmp_path, SCALE, seeds=1)
    first = run_task(plan, ("reversal", 0))
    assert set(first.figures["curve"]["alpha"]) == {-1.0, 0.0, 0.3, 1.0, 5.0}
    monkeypatch.setattr(ExperimentHarness, "_sample", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(ModelCache, "model", lambda *_: pytest.fail("loaded a model"))
    again = run_task(plan, ("reversal", 0))
    assert json.dumps(again.figures) == json.dumps(first.figures)
