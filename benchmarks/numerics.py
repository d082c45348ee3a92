"""Rounding errors of the contrast, by α: logits of the engine's float32 head against logits in bf16.

A pair with bf16 weights runs once over completions that its own base model sampled. At every position three sets of
logits are computed from the same hidden states: by a head in float64 (the true value), by the engine's head (float32),
and rounded to bf16, as a bf16 model returns them. A fourth set comes from the whole model in float64 with the same
weights. It shows the error of the hidden states themselves, which are bf16 in every engine.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from transformers.utils import logging

from benchmarks.pairs import BUNDLED, SIZES, build, bundled_present
from benchmarks.tables import make_console, make_table
from eddecode.execution.patching import Float32LMHead
from eddecode.sampler import Sampler
from eddecode.sampling.contrast import contrast, pair_weights
from eddecode.sampling.params import SamplingParams

ALPHAS = (0.3, 1.0, 2.0)
ROUNDINGS = ("float32 head", "bf16 logits")
Logits = dict[str, Tensor]  # how they were computed → (positions, V)
Record = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table per pair, and write the figures as JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks numerics", description=__doc__)
    sizes = [BUNDLED, *SIZES]
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=[BUNDLED, "10M"])
    parser.add_argument("--prompts", type=int, default=32, help="completions per pair (default 32)")
    parser.add_argument("--tokens", type=int, default=32, help="tokens per completion (default 32)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    console, results = make_console(), []
    for size in options.sizes:
        if size == BUNDLED and not bundled_present():
            console.print("the bundled pair is not in this checkout: left out")
            continue
        records = measure(size, options.prompts, options.tokens)
        console.print(table(size, records))
        results += records
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(size: str, prompts: int, tokens: int) -> list[Record]:
    """One record per α and way of rounding; every figure is over all positions of all completions."""
    bench_pair = build(size, "bf16")
    pair = bench_pair.model_pair()
    done = Sampler(pair).generate(
        list(bench_pair.prompts(prompts)), SamplingParams(max_new_tokens=tokens, seed=0, ignore_eos=True)
    )
    sides = [
        gather(
            model,
            [(p.ids[side], c.token_ids) for p, c in zip(bench_pair.prompts(prompts), done, strict=True)],
        )
        for side, model in enumerate(pair.models)
    ]
    ids = torch.tensor([token for completion in done for token in completion.token_ids])
    records = []
    for alpha in ALPHAS:
        combined = {name: combine([side[name] for side in sides], alpha) for name in sides[0]}
        for rounding in ROUNDINGS:
            for truth in ("float64 head", "float64 model"):
                record = compare(combined[rounding], combined[truth], ids)
                records.append({"pair": size, "alpha": alpha, "logits": rounding, "against": truth, **record})
    return records


def gather(model: Any, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Logits:
    """The logits before each token of the completions, computed in each of the four ways."""
    exact = copy.deepcopy(model).double()
    parts: dict[str, list[Tensor]] = {}
    for prompt, completion in texts:
        ids = torch.tensor([[*prompt, *completion[:-1]]])
        wanted = torch.arange(len(prompt) - 1, ids.shape[1])[None]
        with torch.inference_mode():
            with hidden_states(model) as hidden, Float32LMHead(model).selecting(wanted):
                float32 = model(input_ids=ids, use_cache=False).logits[0]
            head = exact.get_output_embeddings()
            found = {
                "float32 head": float32,
                "float64 head": head(hidden[0][0, wanted[0]].double()),
                "bf16 logits": model(input_ids=ids, use_cache=False).logits[0, wanted[0]],
                "float64 model": exact(input_ids=ids, use_cache=False).logits[0, wanted[0]],
            }
        for name, logits in found.items():
            parts.setdefault(name, []).append(logits)
    return {name: torch.cat(logits) for name, logits in parts.items()}


@contextmanager
def hidden_states(model: Any) -> Iterator[list[Tensor]]:
    """Within the block, the inputs of the model's head are collected."""
    inputs: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    try:
        yield inputs
    finally:
        hook.remove()


def combine(logits: Sequence[Tensor], alpha: float) -> Tensor:
    """(positions, V) float64 log-probabilities: the engine's contrast, or in float64 what it approximates."""
    if logits[0].dtype == torch.float64:
        return ((1 + alpha) * logits[0] - alpha * logits[1]).log_softmax(-1)
    weights = pair_weights(alpha)[:, None].expand(2, logits[0].shape[0])
    return contrast(logits, weights).double().log_softmax(-1)


def compare(found: Tensor, truth: Tensor, ids: Tensor) -> Record:
    """Errors of log-probabilities (positions, V): of the sampled tokens in nats, and in total variation."""
    nats = (found - truth).gather(-1, ids[:, None])[:, 0].abs()
    variation = 0.5 * (found.exp() - truth.exp()).abs().sum(-1)
    return {
        "positions": len(ids),
        "nats_mean": float(nats.mean()),
        "nats_max": float(nats.max()),
        "tv_mean": float(variation.mean()),
        "tv_max": float(variation.max()),
        "favourite_changed": float((found.argmax(-1) != truth.argmax(-1)).double().mean()),
    }


def table(size: str, records: Sequence[Record]) -> Table:
    """The records of a pair as a table."""
    title = f"{size}, bf16 weights, {records[0]['positions']} positions"
    columns = ("logits", "against", "α", "nats, mean", "max", "TV, mean", "max", "greedy")
    found = make_table(title, columns, text_columns=2)
    found.caption = (
        "error of the token's log-probability (nats); total variation; share of changed greedy tokens"
    )
    for r in records:
        found.add_row(
            r["logits"],
            r["against"],
            f"{r['alpha']:g}",
            *(f"{r[key]:.2g}" for key in ("nats_mean", "nats_max", "tv_mean", "tv_max")),
            f"{r['favourite_changed']:.2%}",
        )
    return found
