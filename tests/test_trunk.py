"""Leading layers that two checkpoints have in common: found by content, run once, and the tokens are the same."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import decoding
import pytest
import reference
import tiny
import torch
from rich.console import Console

from eddecode import ModelPair, RenderedPrompt, Sampler, SamplingParams, trunk_parts
from eddecode.audit.show_pair import print_pair
from eddecode.compare import common_trunk, decoder_layers
from eddecode.runner import PairRunner
from eddecode.shared import runner_for
from eddecode.trunk import TrunkRunner
from eddecode.trunk_cache import ALIGNED, BASE, BOTH, ONLY_ALIGNED, ONLY_BASE, TrunkCache

DEPTH, LAYERS = 2, 4
EMBEDDINGS = {"embed_tokens", "embed_in", "wte", "wpe"}


def frozen(arch: str = "llama", depth: int = DEPTH, seed: int = 0, **fields: Any) -> tuple[Any, Any]:
    """Two models whose embeddings and first layers are equal, and nothing else."""
    name = "n_layer" if arch == "gpt2" else "num_hidden_layers"
    models = tiny.tiny_pair_models(arch, seed=seed, **{name: LAYERS, **fields})
    base, aligned = (dict(model.named_modules()) for model in models)
    stack = next(name for name, part in base.items() if part is decoder_layers(models[0]))
    for name, part in base.items():
        if name.rpartition(".")[2] in EMBEDDINGS or name in [f"{stack}.{i}" for i in range(depth)]:
            aligned[name].load_state_dict(part.state_dict())
    return models


def pair_of(arch: str = "llama", **options: Any) -> ModelPair:
    return ModelPair.from_models(*frozen(arch, **options))


def two_passes(pair: ModelPair) -> Sampler:
    sampler = Sampler(pair)
    sampler._runner = PairRunner(pair)
    return sampler


def prompts(count: int = 8) -> list[RenderedPrompt]:
    """Some are the same text for both models, some differ, and two differ in their last id only."""
    mixed = decoding.mixed_prompts(count)
    same = [RenderedPrompt(p.base_ids, p.base_ids) for p in mixed]
    chosen = [same[i] if i % 3 else mixed[i] for i in range(count)]
    chosen[-1] = RenderedPrompt(chosen[1].base_ids, (*chosen[1].base_ids[:-1], 77))
    return chosen


def mixed_params() -> list[SamplingParams]:
    kinds = [(0.0, 0.0), (-1.0, 0.0), (0.5, 0.0), (1.0, 1.0), (2.0, 1.0), (0.3, 0.0), (0.1, 0.7), (-0.5, 1.0)]
    return [
        SamplingParams(alpha=alpha, temperature=temperature, max_new_tokens=8 + i, seed=i, n=1 + i % 2)
        for i, (alpha, temperature) in enumerate(kinds)
    ]


# The same tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))
def test_one_trunk_gives_the_tokens_of_two_models(arch: str) -> None:
    pair = pair_of(arch)
    expected = two_passes(pair).generate(prompts(), mixed_params())
    for options in (
        {},
        {"max_slots": 3},
        {"max_slots": 1},
        {"max_slots": 4, "speculation": "base"},
        {"memory_budget": 1 << 16},
    ):
        sampler = Sampler(pair, **options)  # type: ignore[arg-type]
        assert isinstance(sampler.runner, TrunkRunner)
        found = sampler.generate(prompts(), mixed_params())
        assert decoding.tokens(found) == decoding.tokens(expected)
        assert [c.implied_reward for c in found] == pytest.approx(
            [c.implied_reward for c in expected], abs=1e-3
        )


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_tokens_are_those_of_recomputation_without_a_cache(arch: str) -> None:
    pair, texts = pair_of(arch), prompts(6)
    alphas = [0.0, -1.0, 1.5, 0.5, 0.3, -0.5]
    params = [decoding.GREEDY.replace(alpha=alpha) for alpha in alphas]
    expected = [reference.generate(pair.models, p.ids, a, 10).ids for p, a in zip(texts, alphas, strict=True)]
    sampler = Sampler(pair)
    assert isinstance(sampler.runner, TrunkRunner)
    assert decoding.tokens(sampler.generate(texts, params)) == expected


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_whatever_the_engine_asks_for_comes_out_as_from_two_models(arch: str) -> None:
    """Rows enter and leave, read a token together, or several in each model alone of which some are taken back."""
    pair, rng = pair_of(arch), random.Random(1)
    runners = [PairRunner(pair), runner_for(pair).fresh()]
    assert isinstance(runners[1], TrunkRunner)
    lengths: list[list[int]] = [[], []]  # per model and slot

    def agree(results: Any) -> None:
        torch.testing.assert_close(*map(torch.stack, results), rtol=1e-3, atol=1e-3)

    for step in range(80):
        count, kind = (
            len(lengths[0]),
            rng.choice(["add", "remove", "decode", "decode", "leap", "leap", "trim"]),
        )
        if not count or (kind == "add" and count < 7):
            text = decoding.ids(step, rng.randint(1, 20))
            texts = [text, text if rng.random() < 0.5 else decoding.ids(step + 1000, rng.randint(1, 20))]
            rows = [[each.prefill(model, [texts[model]])[0] for model in (0, 1)] for each in runners]
            agree([[prefix.logits for prefix in row] for row in rows])
            for each, row in zip(runners, rows, strict=True):
                each.reserve(count + 1)
                each.add(row)
            lengths = [[*lengths[model], len(texts[model])] for model in (0, 1)]
        elif kind == "remove" and count > 1:
            slot = rng.randrange(count)
            for each in runners:
                each.remove(slot)
            for column in lengths:
                column[slot] = column[-1]
                column.pop()
        elif kind == "trim":
            for each in runners:
                each.trim()
        elif kind == "leap":
            new = torch.randint(0, tiny.VOCAB, (count, 3), generator=torch.Generator().manual_seed(step))
            one_by_one = []
            for each in runners:
                passes = [each.extend(0, new[:, i : i + 1], [n + i for n in lengths[0]]) for i in range(3)]
                one_by_one.append(torch.cat(passes, dim=1))
            agree([[made] for made in one_by_one])
            agree([[each.extend(1, new, lengths[1])] for each in runners])
            kept = [rng.randint(1, 3) for _ in range(count)]
            lengths = [[n + k for n, k in zip(column, kept, strict=True)] for column in lengths]
        else:
            new = torch.randint(
                0, tiny.VOCAB, (count, 1 + step % 2), generator=torch.Generator().manual_seed(step)
            )
            agree([each.decode(new, lengths) for each in runners])
            lengths = [[n + new.shape[1] for n in column] for column in lengths]
    assert [decoder.occupied for decoder in runners[1].decoders] == [len(lengths[0])] * 2


def test_prompts_longer_than_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = pair_of("mistral")
    expected = two_passes(pair).generate(prompts(), mixed_params())
    monkeypatch.setattr(trunk_parts, "PREFILL_CHUNK", 5)
    assert decoding.tokens(Sampler(pair).generate(prompts(), mixed_params())) == decoding.tokens(expected)


@pytest.mark.parametrize("wider", [BASE, ALIGNED])
def test_one_model_knows_more_ids(wider: int) -> None:
    """Chat tokens that were added: the trunk is run by the model that knows them."""
    models = frozen()
    with torch.random.fork_rng(devices=[]):
        models[wider].resize_token_embeddings(tiny.VOCAB + 5, mean_resizing=False)
    pair = ModelPair.from_models(*models)
    added = tuple(range(tiny.VOCAB, tiny.VOCAB + 5))
    texts = prompts()
    for i in range(0, len(texts), 3):
        ids = list(texts[i].ids)
        ids[wider] = added + ids[wider]
        texts[i] = RenderedPrompt(*ids)
    sampler = Sampler(pair)
    assert isinstance(sampler.runner, TrunkRunner)
    expected = two_passes(pair).generate(texts, mixed_params())
    assert decoding.tokens(sampler.generate(texts, mixed_params())) == decoding.tokens(expected)


def test_models_are_left_as_they_were() -> None:
    pair = pair_of()
    ids = torch.tensor([decoding.ids(3, 12)])
    before = [model(ids).logits for model in pair.models]
    Sampler(pair).generate(prompts(), mixed_params())
    assert all(torch.equal(model(ids).logits, z) for model, z in zip(pair.models, before, strict=True))


def test_scores_are_those_of_the_two_models() -> None:
    sampler = Sampler(pair_of())
    params = SamplingParams(alpha=0.5, max_new_tokens=10, seed=1)
    done = sampler.generate(prompts(4), params)
    for score, c in zip(sampler.score(prompts(4), done, [0.5]), done, strict=True):
        assert (score.base_logprob, score.aligned_logprob) == pytest.approx(
            (c.base_logprob, c.aligned_logprob), abs=1e-3
        )


# Run once --------------------------------------------------------------------------------------------------------


@contextmanager
def rows_through(module: Any) -> Iterator[list[int]]:
    """Within the block, how many rows each pass through a module had."""
    rows: list[int] = []
    hook = module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        hook.remove()


@pytest.mark.parametrize(("same", "per_row"), [(True, 1), (False, 2)])
def test_the_trunk_is_run_once_for_both(same: bool, per_row: int) -> None:
    """In GPT-2, whose parts are called one by one: of equal prompts a row of the trunk is one row of the batch."""
    pair = pair_of("gpt2")
    sampler = Sampler(pair)
    text = decoding.prompt(1, 6, 6)
    prompt = RenderedPrompt(text.base_ids, text.base_ids) if same else text
    parts = [model.transformer.h[layer].mlp for layer in (0, DEPTH) for model in pair.models]
    params = SamplingParams(max_new_tokens=6, ignore_eos=True, n=3)
    assert isinstance(sampler.runner, TrunkRunner)
    with (
        rows_through(parts[0]) as trunk_of_base,
        rows_through(parts[1]) as trunk_of_aligned,
        rows_through(parts[2]) as tail_of_base,
        rows_through(parts[3]) as tail_of_aligned,
    ):
        sampler.generate(prompt, params)
    # Prompts are read one by one; then the first row is alone until it is known what a token takes.
    steps = [1, 3, 3, 3, 3, 2]
    assert trunk_of_aligned == []
    assert trunk_of_base == [1] * per_row + [per_row * rows for rows in steps]
    assert tail_of_base == tail_of_aligned == [1, *steps]


def test_keys_and_values_are_kept_once_where_prompts_are_the_same() -> None:
    runner = runner_for(pair_of()).fresh()
    assert isinstance(runner, TrunkRunner)
    texts = [(decoding.ids(i, 5 + i), decoding.ids(i + (i == 1), 5 + i)) for i in range(3)]
    for row in texts:
        runner.add([runner.prefill(model, [ids])[0] for model, ids in enumerate(row)])
    assert runner.trunk.cache.parts == ([1], [0, 2], [1])
    assert runner.trunk.cache.lengths == [6, 5, 7, 6]
    assert len(runner.trunk.cache.layers) == DEPTH
    assert [len(tail.cache.layers) for tail in runner.decoders] == [LAYERS - DEPTH] * 2
    runner.remove(0)  # the last row is the first one now
    assert runner.trunk.cache.parts == ([1], [0], [1])
    assert runner.trunk.cache.lengths == [6, 7, 6]


def test_a_text_that_both_models_read_is_read_by_the_trunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_for(pair_of()).fresh()
    assert isinstance(runner, TrunkRunner)
    read: list[Any] = []
    real = trunk_parts.Trunk.read
    monkeypatch.setattr(
        trunk_parts.Trunk, "read", lambda self, texts: read.append(texts) or real(self, texts)
    )
    one, two = decoding.ids(1, 4), decoding.ids(2, 7)
    kept = runner.prefill(BASE, [one])
    (again, _) = runner.prefill(ALIGNED, [one, two])
    assert read == [[one], [two]]
    assert again.reading is kept[0].reading  # type: ignore[attr-defined]
    del kept, again
    runner.prefill(ALIGNED, [one])  # nobody has it any more
    assert read == [[one], [two], [one]]


def test_rows_move_about_and_stay_what_they_are() -> None:
    """Random entries and departures, against a list of what each slot should hold."""
    rng, cache = random.Random(0), TrunkCache()
    held: list[dict[int, float]] = []  # per slot: part → the number that its row is filled with
    for step in range(300):
        if not held or (len(held) < 9 and rng.random() < 0.55):
            kinds = [BOTH] if rng.random() < 0.5 else [ONLY_BASE, ONLY_ALIGNED]
            held.append({})
            for part in kinds:
                number, length = float(2 * step + part), rng.randint(1, 6)
                held[-1][part] = number
                cache.insert(part, len(held) - 1, [(torch.full((2, length, 3), number),) * 2] * 2)
        else:
            slot, last = rng.randrange(len(held)), len(held) - 1
            for part in held[slot]:
                cache.discard(part, slot)
            cache.rename(last, slot)
            held[slot] = held[-1]
            held.pop()
        for model, own in ((BASE, ONLY_BASE), (ALIGNED, ONLY_ALIGNED)):
            rows = range(len(cache.lengths))[cache.rows_of(model)]
            slots = cache.slots_of(cache.rows_of(model))
            assert sorted(slots) == list(range(len(held)))
            for row, slot in zip(rows, slots, strict=True):
                expected = held[slot].get(own, held[slot].get(BOTH))
                for layer in cache.layers:
                    found = torch.stack([layer.keys[row], layer.values[row]])[:, :, : cache.lengths[row]]
                    assert (found == expected).all()


def test_a_row_that_did_not_come_in_whole_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = runner_for(pair_of()).fresh()
    assert isinstance(runner, TrunkRunner)
    row = [runner.prefill(model, [decoding.ids(model, 4)])[0] for model in (BASE, ALIGNED)]
    runner.add(row)
    real = TrunkCache.insert

    def short(self: TrunkCache, part: int, slot: int, states: Any) -> None:
        if part == ONLY_ALIGNED:
            raise MemoryError
        real(self, part, slot, states)

    with monkeypatch.context() as patch:
        patch.setattr(TrunkCache, "insert", short)
        with pytest.raises(MemoryError):
            runner.add(row)
    assert [decoder.occupied for decoder in runner.decoders] == [1, 1]
    assert runner.trunk.cache.parts == ([0], [], [0])
    assert runner.trunk.cache.lengths == [4, 4]


# Found -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))
def test_a_trunk_is_counted_from_the_first_layer(arch: str) -> None:
    for depth in range(LAYERS + 1):
        found = common_trunk(*frozen(arch, depth=depth))
        assert (found.layers if found else 0) == min(depth, LAYERS - 1)  # something is left of each model


def _layer(base: Any, aligned: Any) -> None:
    aligned.model.layers[0].mlp.up_proj.weight.data[0, 0] += 1e-3


def _embedding(base: Any, aligned: Any) -> None:
    aligned.model.embed_tokens.weight.data[-1] += 1.0


def _norm_constant(base: Any, aligned: Any) -> None:
    aligned.config.rms_norm_eps *= 2


def _frequencies(base: Any, aligned: Any) -> None:
    aligned.model.rotary_emb.inv_freq = aligned.model.rotary_emb.inv_freq * 0.5


def _sliding(base: Any, aligned: Any) -> None:
    aligned.config.sliding_window = 4


def _dtype(base: Any, aligned: Any) -> None:
    aligned.bfloat16()


@pytest.mark.parametrize("change", [_layer, _embedding, _norm_constant, _frequencies, _sliding, _dtype])
def test_no_trunk_where_anything_differs_before_it_ends(change: Any) -> None:
    models = frozen("mistral")
    assert common_trunk(*models) is not None
    change(*models)
    assert common_trunk(*models) is None
    assert type(runner_for(ModelPair.from_models(*models))) is PairRunner


def test_learned_positions_belong_to_the_trunk() -> None:
    base, aligned = frozen("gpt2")
    aligned.transformer.wpe.weight.data[200] += 0.1
    assert common_trunk(base, aligned) is None


def test_a_difference_that_content_does_not_show_is_found_by_the_trial() -> None:
    base, aligned = frozen("gpt2")
    block = aligned.transformer.h[0]
    real = block.mlp.forward
    block.mlp.forward = lambda x: 1.5 * real(x)
    assert common_trunk(base, aligned) is not None
    assert type(runner_for(ModelPair.from_models(base, aligned))) is PairRunner


def test_offloaded_models_have_none() -> None:
    accelerate = pytest.importorskip("accelerate")
    base, aligned = frozen()
    accelerate.cpu_offload(aligned, execution_device=torch.device("cpu"), offload_buffers=True)
    assert common_trunk(base, aligned) is None


def test_a_loaded_pair_says_what_it_shares(tmp_path: Path) -> None:
    models = frozen()
    folders = [
        tiny.save_model(tmp_path / name, m) for name, m in zip(("base", "aligned"), models, strict=True)
    ]
    pair = ModelPair.load(*folders)
    assert isinstance(Sampler(pair).runner, TrunkRunner)
    description = json.loads(json.dumps(pair.describe(tensors=True)))
    layers = [p for layer in models[0].model.layers[:DEPTH] for p in layer.parameters()]
    whole = models[0].num_parameters()
    parameters = sum(p.numel() for p in layers) + models[0].model.embed_tokens.weight.numel()
    assert description["tensors"]["trunk"] == {
        "layers": DEPTH,
        "of": LAYERS,
        "parameters": parameters,
        "share": pytest.approx(parameters / whole),
        "layer_bytes": sum(p.nbytes for p in layers),
        "cache_bytes_per_token": DEPTH * 2 * 2 * 8 * 4,  # keys and values of 2 heads of 8 numbers in float32
    }
    console = Console(file=io.StringIO(), width=200)
    print_pair(console, description)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"Shared trunk: the first {DEPTH} of {LAYERS} layers" in printed
    assert f"({parameters:,} parameters, {100 * parameters / whole:.3g}% of a model)" in printed


def test_a_pair_without_a_trunk_says_nothing_of_one() -> None:
    pair = ModelPair.from_models(*tiny.tiny_pair_models())
    console = Console(file=io.StringIO(), width=200)
    print_pair(console, pair.describe(tensors=True))
    assert pair.describe(tensors=True)["tensors"]["trunk"] is None
    assert "trunk" not in console.file.getvalue()  # type: ignore[attr-defined]
