"""What speculative decoding gains on a large pair, and how often drafted tokens are accepted on the bundled one.

    python -m benchmarks speculation                      # gains, at two distances between base and aligned model
    python -m benchmarks speculation --drafter assistant  # the same with a small model that drafts
    python -m benchmarks speculation --bundled            # acceptance of each drafter, over α

The large pair: a random-weight Llama of 134M parameters in bf16, and the same with noise of `--change` times each
tensor's deviation on it: the smaller the change, the higher the acceptance of the base's tokens. One prompt, 128
tokens, greedy, with and without drafts in turn; the tokens must be the same. For the assistant all layers but two are
damped to almost nothing, and the assistant is those two, so that it drafts as a small model of the same family might.
"""

from __future__ import annotations

import argparse
import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import interleave, ratios, spread, timed
from eddecode import ModelPair, RenderedPrompt, Sampler, SamplingParams
from eddecode.engine.speculative.drafters import BaseDrafter, Drafter, NgramDrafter
from eddecode.engine.speculative.factory import assistant_for, speculator_for
from eddecode.engine.speculative.speculator import AdaptiveSpeculator
from eddecode.lab import bundled_pair

ALPHAS = (0.1, 0.3, 0.6, 1.0, 2.0)
SMALL, DAMPED = 2, 0.03  # layers of the assistant, and what is left of the others


def large_pair(change: float, damped: bool) -> tuple[ModelPair, Any]:
    """Base and aligned model, equal but for the change; and a model of the base's first layers."""
    config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=12,
        num_key_value_heads=12, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config).eval()
    if damped:
        for layer in base.model.layers[SMALL:]:
            layer.self_attn.o_proj.weight.data *= DAMPED
            layer.mlp.down_proj.weight.data *= DAMPED
    aligned, small = copy.deepcopy(base), copy.deepcopy(base)
    small.model.layers = small.model.layers[:SMALL]
    small.config.num_hidden_layers = SMALL
    generator = torch.Generator().manual_seed(1)
    for tensor in aligned.parameters():
        tensor.data += change * tensor.data.std() * torch.randn(tensor.shape, generator=generator)
    return ModelPair.from_models(base.bfloat16(), aligned.bfloat16()), small.bfloat16()


def gains(
    change: float, drafter: str, rounds: int, rows: int, params: SamplingParams
) -> dict[str, float | str | int]:
    """Median and range of plain seconds over seconds with drafts, the first of each left out."""
    models, small = large_pair(change, damped=drafter == "assistant")
    speculator = speculator_for(models, small if drafter == "assistant" else drafter)
    assert speculator is not None
    stats = speculator.stats
    samplers = {"off": Sampler(models), "on": Sampler(models, speculation=speculator)}
    prompts = [RenderedPrompt(ids, ids) for ids in (tuple(range(5 + i, 37 + i)) for i in range(rows))]
    tokens: dict[str, list[list[int]]] = {}

    def timer(name: str) -> float:
        seconds, completions = timed(lambda: samplers[name].generate(prompts, params))
        tokens[name] = [completion.token_ids for completion in completions]
        return seconds

    seconds = interleave({name: partial(timer, name) for name in samplers}, rounds + 1)
    if tokens["off"] != tokens["on"]:
        raise SystemExit("speculation changed the tokens")
    first, *others = ratios(seconds["off"], seconds["on"])
    gain = spread(others)
    base = acceptance(samplers["off"], BaseDrafter(), prompts, params) if drafter == "base" else 0.0
    return {
        "change": change,
        "drafter": drafter,
        "rows": rows,
        "alpha": params.alpha,
        "temperature": params.temperature,
        "first": first,
        "gain": gain["median"],
        "least": gain["min"],
        "most": gain["max"],
        "plain_ms": 1e3 * spread(seconds["off"])["median"] / params.max_new_tokens,
        "verified": stats.verified,
        "accepted": stats.accepted / max(1, stats.verified),
        "acceptance": base,
    }


def acceptance(
    sampler: Sampler, drafter: Drafter, prompts: Any, params: SamplingParams, length: int = 1
) -> float:
    """The share of drafted tokens that are accepted, where `length` tokens are drafted at every step."""
    speculator = AdaptiveSpeculator([drafter], num_draft_tokens=length)
    sampler.speculator, before = speculator, sampler.speculator
    sampler.generate(prompts, params)
    sampler.speculator = before
    return speculator.stats.accepted / max(1, speculator.stats.verified)


def bundled(count: int = 16) -> list[dict[str, float | str]]:
    """Acceptance on the bundled pair by α; the aligned model as an assistant stands for a model that is neither."""
    ours = bundled_pair()
    pair = ModelPair.load(ours.base, ours.aligned, dtype="float32")
    sampler = Sampler(pair, base_template=ours.base_template)
    lines = ours.prompts.read_text(encoding="utf-8").splitlines()[:count]
    prompts = [json.loads(line)["prompt"] for line in lines]
    drafters: dict[str, Drafter] = {
        "base": BaseDrafter(),
        "ngram": NgramDrafter(),
        "assistant": assistant_for(pair, pair.aligned),
    }
    rows: list[dict[str, float | str]] = []
    for name, drafter in drafters.items():
        for alpha in ALPHAS:
            params = SamplingParams(alpha=alpha, max_new_tokens=48, seed=1)
            rate = acceptance(sampler, drafter, prompts, params)
            rows.append({"drafter": name, "alpha": alpha, "accepted": rate})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a line per distance or drafter, and write the figures if asked to."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks speculation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("--change", type=float, nargs="+", default=[0.004, 0.02])
    options.add_argument("--drafter", default="base", choices=["base", "ngram", "auto", "assistant"])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--rows", type=int, default=1)
    options.add_argument("--alpha", type=float, default=0.3)
    options.add_argument("--temperature", type=float, default=0.0)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--bundled", action="store_true", help="acceptance on the bundled pair")
    options.add_argument("--out", type=Path, help="add the results to this file, a line of JSON each")
    given = options.parse_args(arguments)
    torch.set_num_threads(given.threads)
    params = SamplingParams(
        alpha=given.alpha, temperature=given.temperature, max_new_tokens=128, ignore_eos=True
    )
    results: list[dict[str, Any]]
    if given.bundled:
        results = [dict(row) for row in bundled()]
        for row in results:
            print(f"{row['drafter']:10} α {row['alpha']}: accepted {row['accepted']:.3f}")
    else:
        results = []
        for change in given.change:
            row = gains(change, given.drafter, given.rounds, given.rows, params)
            results.append(dict(row))
            print(
                f"{row['drafter']}, change {change}: gain {row['gain']:.2f} ({row['least']:.2f}–{row['most']:.2f}; "
                f"first {row['first']:.2f}), accepted {row['accepted']:.2f} of {row['verified']} verified; without: "
                f"{row['plain_ms']:.1f} ms per token, acceptance of the base {row['acceptance']:.2f}"
            )
    if given.out is not None:
        with given.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in results)
