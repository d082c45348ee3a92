"""Groups of models in one contrast: against a naive weighted sum over plain forward passes, and against the pair."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from eddecode import ModelPair, RenderedPrompt, Sampler, SamplingParams
from eddecode.errors import PairError, PromptError
from eddecode.models.ensemble import Ensemble, LogitMixture, Transfer
from helpers import decoding, reference, tiny
from helpers.pairs import swap_tokens

ALPHAS = (-1.0, -0.4, 0.0, 0.5, 2.0)


def aligned_models(base: Any, count: int) -> list[Any]:
    return [tiny.tiny_aligned(base, seed=10 + i, amount=0.2 + 0.1 * i) for i in range(count)]


def ensemble(count: int = 3) -> Ensemble:
    base = tiny.tiny_model()
    return Ensemble.from_models(base, aligned_models(base, count))


def transfer() -> Transfer:
    """A GPT-NeoX base of three layers, steered by a small Llama pair."""
    large = tiny.tiny_model("gpt_neox", seed=5, num_hidden_layers=3)
    return Transfer.from_models(large, *tiny.tiny_pair_models())


# Written without a line of eddecode: the factors, and which text each model reads.
FACTORS: dict[str, Callable[[float], tuple[float, ...]]] = {
    "ensemble": lambda alpha: (1 + alpha, -alpha / 3, -alpha / 3, -alpha / 3),
    "transfer": lambda alpha: (1, alpha, -alpha),
}
READS_ALIGNED = {"ensemble": (False, True, True, True), "transfer": (False, False, True)}
GROUPS: dict[str, Callable[[], LogitMixture]] = {"ensemble": ensemble, "transfer": transfer}


def naive(kind: str, models: Sequence[Any], prompt: RenderedPrompt, alpha: float, count: int) -> list[Any]:
    """(token, log-probabilities of every model) of a greedy continuation, token by token without caches."""
    found: list[Any] = []
    for _ in range(count):
        ids = [token for token, _ in found]
        texts = [[*(prompt.aligned_ids if reads else prompt.base_ids), *ids] for reads in READS_ALIGNED[kind]]
        logits = [reference.next_logits(model, text) for model, text in zip(models, texts, strict=True)]
        token = int(reference.contrasted(logits, FACTORS[kind](alpha)).argmax())
        found.append((token, [float(reference.log_softmax(z)[token]) for z in logits]))
    return found


@pytest.mark.parametrize("kind", GROUPS)
def test_greedy_equals_a_naive_weighted_sum(kind: str) -> None:
    group = GROUPS[kind]()
    prompts = decoding.mixed_prompts(len(ALPHAS))
    params = [decoding.GREEDY.replace(alpha=alpha, logprobs=True) for alpha in ALPHAS]
    done = Sampler(group, max_slots=3).generate(prompts, params)
    for completion, prompt, alpha in zip(done, prompts, ALPHAS, strict=True):
        expected = naive(kind, group.models, prompt, alpha, 10)
        assert completion.token_ids == [token for token, _ in expected]
        # base: term 0; aligned: what the contrast weighs at α = −1
        aligned = [
            sum(w * p for w, p in zip(FACTORS[kind](-1.0), logprobs, strict=True)) for _, logprobs in expected
        ]
        assert completion.base_logprob == pytest.approx(sum(p[0] for _, p in expected), abs=1e-3)
        assert completion.aligned_logprob == pytest.approx(sum(aligned), abs=1e-3)
        assert completion.logprobs is not None
        assert [token.aligned for token in completion.logprobs] == pytest.approx(aligned, abs=1e-3)


def test_the_implied_reward_of_a_transfer_is_the_small_pairs() -> None:
    group, prompt = transfer(), decoding.prompt(3, 5, 7)
    [done] = Sampler(group).generate(prompt, decoding.GREEDY.replace(alpha=0.7))
    expected = naive("transfer", group.models, prompt, 0.7, 10)
    assert done.implied_reward == pytest.approx(sum(p[2] - p[1] for _, p in expected), abs=1e-3)


def test_alpha_zero_and_minus_one() -> None:
    """α = 0 is the first model alone, and α = −1 the mean of the aligned models: with one of them, that one."""
    prompt = decoding.prompt(1, 6, 9)
    for group in (ensemble(), transfer()):
        [done] = Sampler(group).generate(prompt, decoding.GREEDY.replace(alpha=0.0))
        assert done.token_ids == reference.hf_greedy(group.models[0], prompt.base_ids, 10)
    alone = ensemble(1)
    [done] = Sampler(alone).generate(prompt, decoding.GREEDY.replace(alpha=-1.0))
    assert done.token_ids == reference.hf_greedy(alone.models[1], prompt.aligned_ids, 10)


def test_an_ensemble_of_one_is_the_pair_to_the_bit() -> None:
    base, aligned = tiny.tiny_pair_models()
    params = [SamplingParams(alpha=alpha, max_new_tokens=8, n=2, top_p=0.9) for alpha in ALPHAS]
    prompts = decoding.mixed_prompts(len(ALPHAS))
    pair = Sampler(ModelPair.from_models(base, aligned)).generate(prompts, params)
    assert Sampler(Ensemble.from_models(base, [aligned])).generate(prompts, params) == pair


def test_an_ensemble_of_two_equal_models_is_the_pair() -> None:
    """Halves are exact in binary, so only the order of the sum differs."""
    base, aligned = tiny.tiny_pair_models()
    params = [SamplingParams(alpha=alpha, max_new_tokens=8, n=2) for alpha in ALPHAS]
    prompts = decoding.mixed_prompts(len(ALPHAS))
    pair = Sampler(ModelPair.from_models(base, aligned)).generate(prompts, params)
    twice = Sampler(Ensemble.from_models(base, [aligned, aligned])).generate(prompts, params)
    assert decoding.tokens(twice) == decoding.tokens(pair)
    for one, other in zip(twice, pair, strict=True):
        assert one.implied_reward == pytest.approx(other.implied_reward, abs=1e-3)


def test_a_transfer_onto_the_small_base_itself_is_the_pair() -> None:
    """With large = base the weights are (1 + α, −α), and the implied reward is the pair's."""
    base, aligned = tiny.tiny_pair_models()
    params = [SamplingParams(alpha=alpha, max_new_tokens=8, n=2) for alpha in ALPHAS]
    prompts = decoding.mixed_prompts(len(ALPHAS))
    pair = Sampler(ModelPair.from_models(base, aligned)).generate(prompts, params)
    same = Sampler(Transfer.from_models(base, base, aligned)).generate(prompts, params)
    assert decoding.tokens(same) == decoding.tokens(pair)


def test_a_completion_does_not_depend_on_its_batch() -> None:
    prompts, params = decoding.mixed_prompts(6), SamplingParams(alpha=0.6, max_new_tokens=8)
    for group in (ensemble(2), transfer()):
        together = Sampler(group).generate(prompts, params)
        alone = [Sampler(group, max_slots=1).generate([prompt], params)[0] for prompt in prompts]
        assert decoding.tokens(together) == decoding.tokens(alone)


def test_weights_sum_to_one() -> None:
    """At every α, for an ensemble as for a pair; for a transfer too."""
    for group in (ensemble(3), transfer()):
        for alpha in ALPHAS:
            assert sum(group.logit_weights(alpha)) == pytest.approx(1.0, abs=1e-12)


# What ends a completion, and what may be sampled -----------------------------------------------------------------


def test_a_completion_ends_at_an_eos_of_any_model_with_nonzero_weight() -> None:
    large, (base, aligned) = tiny.tiny_model(seed=7), tiny.tiny_pair_models()
    for model, eos in ((large, 11), (base, 12), (aligned, 13)):
        model.generation_config.eos_token_id = eos
    group = Transfer.from_models(large, base, aligned)
    assert group.eos_ids == ({11}, {12}, {13})
    sampler = Sampler(group)
    prompts = decoding.mixed_prompts(6)
    for alpha, expected in ((0.0, {11}), (0.5, {11, 12, 13})):
        params = SamplingParams(alpha=alpha, max_new_tokens=60, n=4, temperature=3.0)
        ends = {
            done.token_ids[-1] for done in sampler.generate(prompts, params) if done.finish_reason == "eos"
        }
        assert ends
        assert ends <= expected


def test_only_ids_that_all_models_and_tokenizers_know_can_be_sampled() -> None:
    base = tiny.tiny_model(vocab=310)
    wide, narrow = tiny.tiny_model(vocab=320, seed=1), tiny.tiny_model(vocab=305, seed=2)
    plain, more = tiny.tiny_tokenizer(), tiny.tiny_tokenizer(extra=("<|a|>", "<|b|>"))
    group = Ensemble.from_models(base, [wide, narrow], more, [more, plain])
    assert group.vocabulary.tolist() == [True] * 300 + [False] * 5
    done = Sampler(group).generate(decoding.mixed_prompts(4), SamplingParams(alpha=1.0, temperature=5.0))
    assert max(max(completion.token_ids) for completion in done) < 300
    assert any(note.component == "aligned 2" and "5 of 305 logits" in note.message for note in group.notes)


def test_errors_about_tokenizers_use_the_group_s_names(tmp_path: Path) -> None:
    base, first = tiny.save_pair(tmp_path / "a")
    other, second = tiny.save_pair(tmp_path / "b")
    swap_tokens(second, (40, 41))
    swap_tokens(other, (42, 43))
    with pytest.raises(PairError, match=r"id 40 is 'C' in base and 'D' in aligned 2, .*The same id"):
        Ensemble.load(base, [first, second])
    with pytest.raises(PairError, match=r"id 42 is 'E' in large and 'F' in aligned,"):
        Transfer.load(base, other, other)


# Loading ---------------------------------------------------------------------------------------------------------


def folders(tmp_path: Path, count: int) -> list[Path]:
    """A base and its aligned models on disk."""
    base = tiny.tiny_model()
    saved = [tiny.save_model(tmp_path / "base", base, tiny.tiny_tokenizer(chat=False))]
    for i, model in enumerate(aligned_models(base, count)):
        saved.append(tiny.save_model(tmp_path / f"aligned-{i}", model, tiny.tiny_tokenizer()))
    return saved


def test_an_ensemble_from_disk_decodes_as_one_in_memory(tmp_path: Path) -> None:
    base, *aligned = folders(tmp_path, 3)
    loaded = Ensemble.load(base, aligned, dtype="float32")
    params = SamplingParams(alpha=0.5, max_new_tokens=6)
    prompts = ["How do I return a lamp?", decoding.prompt(2, 4, 8)]
    done = Sampler(loaded).generate(prompts, params)
    assert done[1].token_ids == Sampler(ensemble()).generate(prompts[1], params)[0].token_ids
    assert done[0].text
    assert loaded.names == ("base", "aligned 1", "aligned 2", "aligned 3")
    described = json.loads(json.dumps(loaded.describe()))
    assert described["models"]["aligned 2"]["source"] == str(aligned[1])
    assert described["sides"] == ["base", "aligned", "aligned", "aligned"]
    assert len(set(loaded.digests())) == 4
    assert loaded.digests()[:2] == ModelPair.load(base, aligned[0]).digests()


def test_a_transfer_from_disk(tmp_path: Path) -> None:
    base, aligned = tiny.save_pair(tmp_path)
    large = tiny.save_model(
        tmp_path / "large", tiny.tiny_model("gpt_neox", seed=5, num_hidden_layers=3), tiny.tiny_tokenizer()
    )
    loaded, prompt = Transfer.load(large, base, aligned), decoding.prompt(2, 4, 8)
    params = decoding.GREEDY.replace(alpha=1.0)
    assert decoding.tokens(Sampler(loaded).generate(prompt, params)) == decoding.tokens(
        Sampler(transfer()).generate(prompt, params)
    )
    assert loaded.names == ("large", "base", "aligned")
    assert loaded.describe()["models"]["large"]["architecture"] == "GPTNeoXForCausalLM"
    assert loaded.input_ids(prompt) == (prompt.base_ids, prompt.base_ids, prompt.aligned_ids)


def test_members_may_be_adapters_and_share_their_base(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base, full = folders(tmp_path, 1)
    adapted = peft.get_peft_model(
        tiny.tiny_model(),
        peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    group = Ensemble.load(base, [full, tmp_path / "adapter"], dtype="float32")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(group.models[2](ids).logits, adapted.eval()(ids).logits)
    memory = group.describe()["memory"]
    moved = sum(p.nbytes for name, p in group.models[2].named_parameters() if "q_proj" in name)
    whole = sum(p.nbytes for p in group.models[2].parameters())
    assert memory["shared_bytes"] == pytest.approx(whole - moved, abs=64)
    assert any(note.component == "memory" and "held once" in note.message for note in group.notes)
    with pytest.raises(PairError, match=r"the large checkpoint .* is an adapter; expected full weights"):
        Transfer.load(tmp_path / "adapter", base, full)


def test_different_chat_templates_are_noted(tmp_path: Path) -> None:
    base = tiny.tiny_model()
    first, second = tiny.tiny_tokenizer(), tiny.tiny_tokenizer()
    second.chat_template = "{{ messages[0]['content'] }}!"
    group = Ensemble.from_models(base, aligned_models(base, 2), first, [first, second])
    assert any("aligned 1, aligned 2 have different chat templates" in note.message for note in group.notes)
    assert group.aligned_tokenizer is first


def test_invalid_groups_are_refused(tmp_path: Path) -> None:
    base, aligned = tiny.tiny_pair_models()
    with pytest.raises(PairError, match=r"an ensemble was given no aligned model; expected at least one"):
        Ensemble.from_models(base, [])
    with pytest.raises(PairError, match=r"aligned is 'x'; expected a list of checkpoints"):
        Ensemble.load(tmp_path, "x")
    pairs = [ModelPair.from_models(base, aligned), ModelPair.from_models(tiny.tiny_model(), aligned)]
    with pytest.raises(PairError, match=r"different bases; expected one base"):
        Ensemble(pairs)
    with pytest.raises(PairError, match=r"have different aligned models; expected the same in both"):
        Transfer(pairs[0], ModelPair.from_models(aligned, base))
    group = Ensemble.from_models(base, [aligned, tiny.tiny_model(vocab=290)])
    with pytest.raises(PromptError, match=r"^id 295 is beyond the 290 embeddings of the aligned 2 model"):
        group.check_prompt(RenderedPrompt([1], [295]))
    with pytest.raises(PromptError, match=r"^prompt 0: id 295 is beyond the 290 embeddings of the aligned 2"):
        Sampler(group).generate(RenderedPrompt([1], [295]))
