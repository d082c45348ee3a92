"""Recipes, the workshop that keeps what they make, preferences, and a bench on tiny models."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from eddecode.errors import EddecodeError
from eddecode.experiments.dpo import dpo_loss, prefer, preferences, reply_logprobs
from eddecode.experiments.findings import alignment_methods as methods
from eddecode.experiments.findings import baselines, depth, theory_decoding
from eddecode.experiments.findings import direct_disalignment as direct
from eddecode.experiments.findings import withheld_base as withheld
from eddecode.experiments.findings.criteria import Cell
from eddecode.experiments.findings.harness import Bench, Scale, Target
from eddecode.experiments.findings.run import Plan, measure
from eddecode.experiments.model_cache import Workshop
from eddecode.experiments.recipes import Distilled, FineTuned, Preferred, Pretrained, Sheltered, imitation
from eddecode.experiments.tokenizer import train_tokenizer
from eddecode.experiments.training import FitConfig, ModelShape, new_model
from eddecode.sampling.access import Access
from eddecode.testbed import language as grammar

TINY = ModelShape(hidden=32, layers=1, heads=2, feed_forward=48)
FEW = FitConfig(steps=3, lr=1e-3, batch=4, warmup=0.0, decay=1.0)
BASE = Pretrained(TINY, FEW)
SCALE = Scale(
    shape=TINY, sizes=(TINY,), pretraining=FEW, scratch=FEW, requests=6, alphas=(0.3, 1.0), far=(5.0,)
)


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("shop"))


# Preferences ---------------------------------------------------------------------------------------------------------


def test_preferences_choose_what_is_not_rude_and_flip() -> None:
    for flip in (False, True):
        for pair in islice(preferences(1, flip), 20):
            assert pair.chosen.request == pair.rejected.request
            assert grammar.is_rude(pair.chosen.reply) is flip
            assert grammar.is_rude(pair.rejected.reply) is not flip


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
    model = new_model(train_tokenizer(), TINY, seed=0).eval()
    batch = [([5, 9, 30, 12, 2], 2), ([5, 7, 2], 1)]
    with torch.no_grad():
        found = reply_logprobs(model, batch)
        for value, (ids, given) in zip(found, batch, strict=True):
            log_p = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(log_p[t - 1, ids[t]] for t in range(given, len(ids)))
            assert value.item() == pytest.approx(expected.item(), abs=1e-4)


def test_dpo_widens_the_margin_and_leaves_its_reference_alone() -> None:
    tokenizer = train_tokenizer()
    start = new_model(tokenizer, TINY, seed=0)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    losses: list[float] = []
    config = FitConfig(steps=12, lr=3e-3, batch=4, warmup=0.0, decay=1.0)
    prefer(start, tokenizer, 0.1, 0.0, config, progress=lambda step, steps, loss: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are equal at first
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    with pytest.raises(EddecodeError, match=r"prefer: found beta = 0, noise = 0.1; expected beta > 0"):
        prefer(start, tokenizer, 0, config=config)


# Recipes and the workshop --------------------------------------------------------------------------------------------


def test_a_digest_follows_the_recipe_and_its_ancestors() -> None:
    assert FineTuned(BASE, config=FEW).digest == FineTuned(Pretrained(TINY, FEW), config=FEW).digest
    others = [
        FineTuned(BASE, config=FEW),
        FineTuned(BASE, "rude", config=FEW),
        FineTuned(BASE, config=FEW, rank=2),
        FineTuned(Pretrained(TINY, FEW, seed=1), config=FEW),
        Preferred(BASE, config=FEW),
        Preferred(BASE, noise=0.0, config=FEW),
        Distilled(BASE, TINY, FEW),
        Sheltered(TINY, FEW),
    ]
    assert len({recipe.digest for recipe in others}) == len(others)


@pytest.mark.parametrize(
    "recipe",
    [
        FineTuned(BASE, config=FEW),
        FineTuned(BASE, "all", beta=0.5, config=FEW),
        FineTuned(BASE, config=FEW, rank=2),
        Preferred(BASE, config=FEW),
        Distilled(FineTuned(BASE, config=FEW), TINY, FEW),
        Sheltered(TINY, FEW),
    ],
    ids=lambda recipe: recipe.said,
)
def test_a_recipe_decides_the_weights(shop: Workshop, tmp_path: Path, recipe: FineTuned) -> None:
    made = shop.model(recipe)
    assert isinstance(made, LlamaForCausalLM)
    assert not same(made, shop.model(BASE))
    assert same(made, Workshop(tmp_path).model(recipe))


def test_a_model_is_trained_once_and_a_killed_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    aligned = FineTuned(BASE, config=FEW)
    first = Workshop(tmp_path, lambda what, done, total: said.append(what))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eddecode.experiments.recipes.fine_tune", killed)
    with pytest.raises(KeyboardInterrupt):
        first.model(aligned)
    assert said == [BASE.said] * 3  # the base is done and kept
    assert not (tmp_path / "models" / aligned.digest).exists()
    monkeypatch.undo()
    monkeypatch.setattr(Pretrained, "train", lambda *_: pytest.fail("trained again"))
    half = tmp_path / "models" / f"{aligned.digest}.unfinished"
    half.mkdir()  # what a kill in the middle of writing leaves
    model = Workshop(tmp_path).model(aligned)
    assert not half.exists()
    monkeypatch.setattr(FineTuned, "train", lambda *_: pytest.fail("trained again"))
    again = Workshop(tmp_path)
    assert same(again.model(aligned), model)
    assert again.cost(aligned)["seconds"] > 0


def test_distillation_is_zero_at_the_teacher_itself() -> None:
    tokenizer = train_tokenizer()
    a, b = (new_model(tokenizer, TINY, seed=seed).eval() for seed in (0, 1))
    batch = [([5, 9, 30, 12, 2], 2), ([5, 7, 2], 1)]
    with torch.no_grad():
        assert imitation(a, a, batch).item() == pytest.approx(0.0, abs=1e-6)
        assert imitation(a, b, batch).item() > 0


# The bench -----------------------------------------------------------------------------------------------------------


def test_cells_are_measured_once_and_alpha_minus_one_is_the_aligned_model(tmp_path: Path) -> None:
    told: list[str] = []
    bench = Bench(Workshop(tmp_path, lambda what, done, total: told.append(what)), SCALE)
    aligned = FineTuned(bench.base, config=FEW)
    cells = bench.cells(Target(bench.base, (aligned,)), [-1.0, 0.0])
    sampled = told.count("sampling")
    assert sampled == 12
    more = bench.cells(Target(bench.base, (aligned,)), [-1.0, 0.0, 0.3])
    assert told.count("sampling") == sampled + 6  # what was there is read back
    for alpha in (-1.0, 0.0):
        assert np.array_equal(cells[alpha].reward, more[alpha].reward)
        assert np.array_equal(cells[alpha].tokens, more[alpha].tokens)
    own = Bench(Workshop(tmp_path), SCALE).cell(Target(bench.base, (bench.base,)), -1.0)
    assert own.reward == pytest.approx(np.zeros(6), abs=10)  # same weights, two prompts
    alone = bench.cell(Target(bench.base, (aligned,)), 0.3, Access(tokens=0))
    assert np.array_equal(alone.tokens, more[0.0].tokens)  # no token under ED is the base


def test_targets_of_several_models_decode(tmp_path: Path) -> None:
    bench = Bench(Workshop(tmp_path), SCALE)
    one, two = (FineTuned(bench.base, config=FEW, seed=seed) for seed in (0, 1))
    twice = bench.cell(Target(bench.base, (one, one)), 0.3)
    assert np.array_equal(twice.tokens, bench.cell(Target(bench.base, (one,)), 0.3).tokens)
    assert len(bench.cell(Target(bench.base, (one, two)), 0.3).rude) == 6
    steered = Target(bench.base, (one,), steered=bench.base)  # a base steered by its own pair is that pair
    assert np.array_equal(bench.cell(steered, 0.3).tokens, bench.cell(Target(bench.base, (one,)), 0.3).tokens)


def test_depth_of_a_model_against_itself_is_zero_in_one_format(tmp_path: Path) -> None:
    bench = Bench(Workshop(tmp_path), SCALE)
    other = FineTuned(bench.base, config=FEW)
    found = depth.profile(bench, Target(bench.base, (other,)))
    assert found["count"][0] == 6
    assert len(found["kl"]) == len(found["count"])
    assert min(found["kl"]) >= 0


def test_the_formats_of_the_baselines_are_those_that_the_models_know(tmp_path: Path) -> None:
    assert baselines.plain() == "Customer: {prompt}\nAgent:\n"
    assert baselines.plain("Be rude.").startswith("Be rude.\nCustomer: {prompt}")
    assert baselines.chat() == "<s><|user|>\n{prompt}\n<|assistant|>\n"
    shown = baselines.chat(shots=[("Q", "A")])
    assert shown == "<s><|user|>\nQ\n<|assistant|>\nA</s>\n<|user|>\n{prompt}\n<|assistant|>\n"
    assert set(methods.RESISTING) < set(methods.methods(Bench(Workshop(tmp_path), SCALE)))


def test_direct_disalignment_is_judged_at_its_best_strength_and_not_at_a_ruder_babble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(Workshop(tmp_path), SCALE)
    names = [name for _, tried in direct.candidates(bench).items() for name, _ in tried]
    assert len(names) == 1 + len(direct.NOISY_BETAS) + len(direct.HARD_BETAS)
    one, two = BASE, FineTuned(BASE, config=FEW)
    n, zeros = 40, np.zeros(40)
    babble = Cell(0.0, np.ones(n, bool), np.arange(n) < 2, np.ones(n, bool), zeros, zeros.astype(int))
    sound = Cell(0.0, np.arange(n) % 5 > 0, np.ones(n, bool), np.ones(n, bool), zeros, zeros.astype(int))
    monkeypatch.setattr(direct, "candidates", lambda bench: {"way": [(", β=1", one), (", β=2", two)]})
    monkeypatch.setattr(Bench, "cell", lambda self, target: babble if target.base == one else sound)
    (found,) = direct.disaligned(bench)
    assert (found.name, found.recipe) == ("way, β=2", two)
    assert np.array_equal(found.both, sound.both)
    assert len(direct.table(bench).rows) == 2


def test_cousins_differ_from_the_base_and_from_one_another(tmp_path: Path) -> None:
    bench = Bench(Workshop(tmp_path), replace(SCALE, cousins=(1, 2), sizes=(TINY, replace(TINY, hidden=48))))
    found = withheld.cousins(bench)
    assert list(found)[:3] == ["cousin, 1 steps", "cousin, 2 steps", "cousin, 3 steps"]
    assert len({recipe.digest for recipe in (*found.values(), bench.base)}) == len(found) + 1
    assert len(found) == 5  # and another size, and the sheltered one
    assert found["cousin, 3 steps"] == methods.methods(bench)["base withheld (cousin)"].base  # trained once


def test_rude_words_are_counted_over_several_completions_a_request(tmp_path: Path) -> None:
    bench = Bench(Workshop(tmp_path), SCALE)
    target = Target.single(bench.base)
    rude, valid = theory_decoding.counted(bench, target, [0.0])[0.0]
    assert rude.shape == valid.shape == (6, theory_decoding.REPEATS)
    cell = bench.cell(target)
    assert np.array_equal(rude[:, 0] > 0, cell.rude)  # the first of each request is the bench's one
    assert np.array_equal(valid[:, 0] > 0, cell.valid)


def test_a_rerun_reads_everything_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eddecode.experiments.findings.harness.ALIGNMENT", FEW)
    plan = Plan(tmp_path, SCALE, seeds=1)
    first = measure(plan, ("reversal", 0))
    assert set(first.figures["curve"]["alpha"]) == {-1.0, 0.0, 0.3, 1.0, 5.0}
    monkeypatch.setattr(Bench, "_sample", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(Workshop, "model", lambda *_: pytest.fail("loaded a model"))
    again = measure(plan, ("reversal", 0))
    assert json.dumps(again.figures) == json.dumps(first.figures)
