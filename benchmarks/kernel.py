"""Contrast-and-sample alone: the compiled kernel against eager torch, and against the reference in float64.

Eager is a usual decode loop: three log-softmaxes, softmax and multinomial in float32, top-p by a sort.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import interleave, ratios, synchronize
from eddecode.sampling.dispatch import contrast_and_sample
from eddecode_kernels.types import SampledTokens, SamplingRows

FILTERS: dict[str, dict[str, float]] = {
    "none": {},
    "temperature": {"temperature": 0.7},
    "top-k": {"top_k": 50},
    "top-p": {"top_p": 0.9},
    "all": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "plausibility": 1e-4},
}


def eager(
    logits: list[Tensor], weights: Tensor, rows: SamplingRows, uniforms: Tensor, vocabulary: Tensor
) -> SampledTokens:
    """The same work in float32 torch, operation by operation; the draw is torch.multinomial's."""
    z = (weights[0, :, None] * logits[0] + weights[1, :, None] * logits[1]).masked_fill(
        ~vocabulary, -torch.inf
    )
    if (rows.plausibility > 0).any():
        base = logits[0]
        z = z.masked_fill(base < base.amax(-1, keepdim=True) + rows.plausibility.log()[:, None], -torch.inf)
    models = [torch.log_softmax(term, dim=-1) for term in (*logits, z)]
    scores = z / rows.temperature[:, None]
    if (rows.top_k > 0).any():
        scores = scores.masked_fill(scores < scores.topk(int(rows.top_k.max())).values[:, -1:], -torch.inf)
    if (rows.top_p < 1).any():
        ordered, order = scores.sort(dim=-1, descending=True)
        p = ordered.softmax(dim=-1)
        out = p.cumsum(dim=-1) - p >= rows.top_p[:, None]
        scores = scores.masked_fill(out.scatter(-1, order, out), -torch.inf)
    p = scores.softmax(dim=-1)
    if (rows.min_p > 0).any():
        p = p.masked_fill(p < rows.min_p[:, None] * p.amax(-1, keepdim=True), 0.0)
    tokens = torch.multinomial(p, 1)
    return SampledTokens(tokens[:, 0], torch.stack([model.gather(-1, tokens)[:, 0] for model in models]))


def make_inputs(
    batch: int, width: int, filters: dict[str, float], spread: float, device: str
) -> tuple[object, ...]:
    """Inputs of the kernel: logits of two models that mostly agree; α = 0.5 in all rows; three ids masked."""
    g = torch.Generator().manual_seed(0)
    base = torch.randn(batch, width, generator=g) * spread
    logits = [base.to(device), (base + torch.randn(batch, width, generator=g)).to(device)]
    weights = torch.tensor([1.5, -0.5], device=device)[:, None].repeat(1, batch)
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "plausibility": 0.0} | filters
    columns = {name: torch.full((batch,), value, device=device) for name, value in values.items()}
    columns["top_k"] = columns["top_k"].long()
    vocabulary = torch.ones(width, dtype=torch.bool, device=device)
    vocabulary[-3:] = False
    uniforms = torch.rand(batch, generator=g, dtype=torch.float64).to(device)
    return logits, weights, SamplingRows(**columns), uniforms, vocabulary


def measure(inputs: tuple[object, ...], rounds: int, device: str, reference: bool) -> dict[str, float]:
    """Median milliseconds of each alternative, and eager ÷ kernel within the rounds: median and quartiles."""
    call: Callable[..., object] = contrast_and_sample
    runs: dict[str, Callable[[], object]] = {
        "kernel": partial(call, *inputs, backend="cpu" if device == "cpu" else "triton"),
        "eager": partial(eager, *inputs),  # type: ignore[arg-type]
    }
    if reference:
        runs["reference"] = partial(call, *inputs, backend="reference")

    def seconds(name: str) -> float:
        start = time.perf_counter()
        runs[name]()
        synchronize(device)
        return time.perf_counter() - start

    for name in runs:
        seconds(name)
    found = interleave({name: partial(seconds, name) for name in runs}, rounds)
    low, middle, high = statistics.quantiles(ratios(found["eager"], found["kernel"]), n=4)
    medians = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in found.items()}
    return medians | {"ratio": middle, "ratio_low": low, "ratio_high": high}


def main(arguments: list[str] | None = None) -> None:
    """Print a table, one row per batch, width and filter."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks kernel", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--width", type=int, nargs="+", default=[32_000, 128_000])
    parser.add_argument("--filters", nargs="+", choices=FILTERS, default=["none", "top-p"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--spread", type=float, default=3.0, help="standard deviation of the logits; 0.01 is flat"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--reference", action="store_true", help="time the float64 reference too")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(
        f"threads {options.threads}, {options.rounds} rounds, logits' spread {options.spread:g}, {options.device}"
    )
    print("   B        V  filters        kernel ms   eager ms  reference ms   eager÷kernel (quartiles)")
    table = []
    for batch, width in ((b, v) for v in options.width for b in options.batch):
        for name in options.filters:
            inputs = make_inputs(batch, width, FILTERS[name], options.spread, options.device)
            row = measure(inputs, options.rounds, options.device, options.reference)
            table.append({"batch": batch, "width": width, "filters": name, **row})
            print(
                f"{batch:4} {width:8}  {name:12} {row['kernel_ms']:11.3f} {row['eager_ms']:10.2f} "
                f"{row.get('reference_ms', float('nan')):13.2f}   "
                f"{row['ratio']:.1f} ({row['ratio_low']:.1f}–{row['ratio_high']:.1f})",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"threads": options.threads, "spread": options.spread, "rows": table}, file, indent=1)
