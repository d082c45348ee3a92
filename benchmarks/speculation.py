"""What speculation gains on a large pair, and how often guesses are right on the bundled one.

    python -m benchmarks speculation                      # gains, at two distances between base and aligned model
    python -m benchmarks speculation --guesser assistant  # the same with a small model that guesses
    python -m benchmarks speculation --bundled            # how often each guesser is right, over α

The large pair: a random-weight Llama of 134M parameters in bf16, and the same with noise of `--change` times each
tensor's deviation on it: the smaller the change, the more often the base guesses right. One prompt, 128 tokens, greedy,
with and without guesses in turn; the tokens must be the same. For the assistant all layers but two hardly do anything,
and it is those two, so that it guesses as a small model of the same family might.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from eddecode import ModelPair, RenderedPrompt, Sampler, SamplingParams
from eddecode.engine.speculative.cost_model import Record
from eddecode.engine.speculative.drafters import BaseGuesser, Guesser, NgramGuesser
from eddecode.engine.speculative.factory import assistant_for
from eddecode.engine.speculative.speculator import Speculation
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
    change: float, guesser: str, rounds: int, rows: int, params: SamplingParams
) -> dict[str, float | str | int]:
    """Median and range of plain seconds over seconds with guesses, the first of each left out."""
    models, small = large_pair(change, damped=guesser == "assistant")
    samplers = {
        "off": Sampler(models),
        "on": Sampler(models, speculation=small if guesser == "assistant" else guesser),
    }
    prompts = [RenderedPrompt(ids, ids) for ids in (tuple(range(5 + i, 37 + i)) for i in range(rows))]
    seconds: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(rounds + 1):
        made = []
        for name, sampler in samplers.items():
            start = time.perf_counter()
            made.append([c.token_ids for c in sampler.generate(prompts, params)])
            seconds[name].append(time.perf_counter() - start)
        if made[0] != made[1]:
            raise SystemExit("speculation changed the tokens")
    found = [off / on for off, on in zip(seconds["off"][1:], seconds["on"][1:], strict=True)]
    record = samplers["on"]._speculation.record  # type: ignore[union-attr]
    per_token = statistics.median(seconds["off"]) / params.max_new_tokens
    return {
        "change": change,
        "guesser": guesser,
        "rows": rows,
        "alpha": params.alpha,
        "temperature": params.temperature,
        "first": seconds["off"][0] / seconds["on"][0],
        "gain": statistics.median(found),
        "least": min(found),
        "most": max(found),
        "plain_ms": 1e3 * per_token,
        "read": record.guessed,
        "right": record.right / max(1, record.guessed),
        "acceptance": acceptance(samplers["off"], BaseGuesser(), prompts, params)
        if guesser == "base"
        else 0.0,
    }


def acceptance(
    sampler: Sampler, guesser: Guesser, prompts: Any, params: SamplingParams, length: int = 2
) -> float:
    """The share of guesses that are right, where `length` tokens are read at every step."""
    record = Record()
    before = sampler._speculation
    sampler._speculation = Speculation([guesser], record, always=length)
    sampler.generate(prompts, params)
    sampler._speculation = before
    return record.right / max(1, record.guessed)


def bundled(count: int = 16) -> list[dict[str, float | str]]:
    """Acceptance on the bundled pair by α; the aligned model as an assistant stands for a model that is neither."""
    ours = bundled_pair()
    pair = ModelPair.load(ours.base, ours.aligned, dtype="float32")
    sampler = Sampler(pair, base_template=ours.base_template)
    lines = ours.prompts.read_text(encoding="utf-8").splitlines()[:count]
    prompts = [json.loads(line)["prompt"] for line in lines]
    guessers: dict[str, Guesser] = {
        "base": BaseGuesser(),
        "ngram": NgramGuesser(),
        "assistant": assistant_for(pair, pair.aligned),
    }
    rows: list[dict[str, float | str]] = []
    for name, guesser in guessers.items():
        for alpha in ALPHAS:
            params = SamplingParams(alpha=alpha, max_new_tokens=48, seed=1)
            right = acceptance(sampler, guesser, prompts, params)
            rows.append({"guesser": name, "alpha": alpha, "right": right})
    return rows


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--change", type=float, nargs="+", default=[0.004, 0.02])
    options.add_argument("--guesser", default="base", choices=["base", "ngram", "auto", "assistant"])
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
            print(f"{row['guesser']:10} α {row['alpha']}: right {row['right']:.3f}")
    else:
        results = []
        for change in given.change:
            row = gains(change, given.guesser, given.rounds, given.rows, params)
            results.append(dict(row))
            print(
                f"{row['guesser']}, change {change}: gain {row['gain']:.2f} ({row['least']:.2f}–{row['most']:.2f}; "
                f"first {row['first']:.2f}), right {row['right']:.2f} of {row['read']} that were read; one at a time: "
                f"{row['plain_ms']:.1f} ms per token, base right {row['acceptance']:.2f}"
            )
    if given.out is not None:
        with given.out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in results)
