"""Long prompts: the time of a step against what it must read, and memory against what must be held."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from benchmarks.gpu_check.context import Context, Figures
from benchmarks.gpu_check.pair_stages import params_of, step_bytes
from benchmarks.pairs import BenchPair, texts_of
from benchmarks.roofline import all_weights, position_bytes
from eddecode import Sampler

LENGTH, NEW, ROWS = 2000, 24, 64
KV_HEADS = 8  # of the pair with grouped heads: a quarter of the keys and values
FITS = 0.45  # of the free memory: half of it is what a sampler uses for keys and values


def long(context: Context, found: Figures) -> None:
    """The large pair, every head with keys of its own: 64 rows are 134 GB, so as many as fit, a power of two."""
    _measure(context, found, context.pair, context.sampler, ROWS)


def grouped(context: Context, found: Figures) -> None:
    """A pair of the same widths with 8 heads of keys and values, as newer models have: 64 rows are 34 GB."""
    if context.brief:
        return
    context.drop_pair()
    pair = context.built(context.shape if context.dry else replace(context.shape, kv_heads=KV_HEADS))
    _measure(context, found, pair, context.captured(Sampler(pair.model_pair())), ROWS)


def _measure(context: Context, found: Figures, pair: BenchPair, sampler: Sampler, rows: int) -> None:
    length, new = (4, 4) if context.dry else (LENGTH, NEW)
    per_row = 2 * position_bytes(pair.base) * (length + new)
    sampler.runner.trim()
    context.release()
    if context.device.type == "cuda":
        most = int(FITS * torch.cuda.mem_get_info(context.device)[0] / per_row)
        rows = min(rows, 1 << (max(most, 1).bit_length() - 1))
    found["rows"], found["positions of each"] = rows, length
    prompts = list(texts_of(1 if context.dry else rows, length, context.shape.vocabulary))
    sampler.generate(prompts[:1], params_of(2, 0.0))  # compiles what it needs
    sampler.runner.trim()
    context.release()
    arrived: dict[int, float] = {}  # tokens of each row → when the last row had so many
    counts = [0] * len(prompts)
    start = time.perf_counter()
    for piece in sampler.stream(prompts, params_of(new, 0.0)):
        counts[piece.prompt_index] += 1
        arrived[min(counts)] = time.perf_counter()
    found["prompts, s"] = arrived[1] - start
    # Without the first, which capture, and the last, after which nothing is launched.
    first, last = (1, 3) if context.dry else (new // 4, new - 3)
    step = (arrived[last] - arrived[first]) / (last - first)
    found["ms a step"] = 1e3 * step
    read = step_bytes(pair) + 2 * position_bytes(pair.base) * len(prompts) * (length + (first + last) // 2)
    found["share of the read bandwidth"] = context.share(read, step)
    held = all_weights(pair.base) + all_weights(pair.aligned) + len(prompts) * per_row
    peak = torch.cuda.max_memory_allocated(context.device) if context.device.type == "cuda" else held
    found["peak memory, GB"], found["weights and used cache, GB"] = peak / 1e9, held / 1e9
    found["peak memory ÷ weights and used cache"] = peak / held
