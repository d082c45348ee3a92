"""Stages with the large pair: first call, entering of rows, steps, tasks, bits, profile, long prompts, alternatives."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.alternatives import BaseAlone, ProcessorPair
from benchmarks.compiled import StaticProcessorPair
from benchmarks.gpu_check.context import Context
from benchmarks.gpu_check.family_stages import StageError
from benchmarks.pairs import build as build_pair
from benchmarks.pairs import random_prompts, texts_of
from benchmarks.registry import Eddecode
from benchmarks.roofline import bytes_to_read, position_bytes, step_weights
from benchmarks.tasks import TASKS, Work
from eddecode import SamplingParams
from eddecode.engine.pipeline import row_state
from eddecode.engine.sequence import Request, SequenceState
from eddecode.execution.pair_loop import captured_loop
from eddecode.sampling.rng import stream_key

POSITIONS = 4096  # that the pair may read


def build(context: Context) -> dict[str, Any]:
    """The pair in memory."""
    dtype = "float32" if context.dry else "bf16"
    context.pair = build_pair(context.shape, dtype, "full", str(context.device))
    for model in (context.pair.base, context.pair.aligned):
        model.config.max_position_embeddings = POSITIONS
    found: dict[str, Any] = {"weights read by a step, GB": _step_bytes(context) / 1e9}
    if context.bandwidth:
        found["floor of a step, ms"] = 1e3 * _step_bytes(context) / context.bandwidth
    return found


def first(context: Context) -> dict[str, Any]:
    """Seconds to make the runners (self-checks, compiling) and of the first completion; how the models are run."""
    start = time.perf_counter()
    runners: list[Any] = context.sampler.runner.model_runners
    made = time.perf_counter() - start
    _generate(context, 1, 4, 0.0)
    found: dict[str, Any] = {"make, s": made, "make and first completion, s": time.perf_counter() - start}
    for name, runner in zip(context.sampler.runner.names, runners, strict=True):
        found[name] = f"{type(runner).__name__}, {runner.layers.num_layers} compiled layers, {_kind(runner)}"
    if not all(runner.layers.stack is not None for runner in runners):
        raise StageError("the layers of the pair are not compiled", found)
    return found


def _kind(runner: Any) -> str:
    return "one call" if runner.layers.stack is not None else "layer by layer"


def _step_bytes(context: Context) -> int:
    pair = context.bench_pair
    return step_weights(pair.base) + step_weights(pair.aligned)


def _params(new: int, temperature: float, alpha: float = 0.5) -> SamplingParams:
    return SamplingParams(alpha=alpha, temperature=temperature, max_new_tokens=new, seed=3, ignore_eos=True)


def _prompts(context: Context, count: int) -> list[Any]:
    if context.dry:
        return list(texts_of(count, 3, context.shape.vocabulary))
    return list(random_prompts(count, context.shape.vocabulary))


def _generate(context: Context, count: int, new: int, temperature: float) -> list[list[int]]:
    done = context.sampler.generate(_prompts(context, count), _params(new, temperature))
    return [completion.token_ids for completion in done]


def entering(context: Context) -> dict[str, Any]:
    """Milliseconds to enter rows, all models, after their prompts were read; and to read these."""
    count = 2 if context.dry else 64
    runner = context.sampler.runner.clone_empty()
    texts = [prompt.ids for prompt in _prompts(context, count)]

    def read() -> list[Any]:
        return [runner.prefill(model, [text[model] for text in texts]) for model in range(2)]

    rows = list(zip(*read(), strict=True))
    runner.reserve(count, [128, 128])

    def enter() -> None:
        runner.add_all(rows)

    enter()
    while runner.model_runners[0].occupied:
        runner.remove(runner.model_runners[0].occupied - 1)
    found = {f"enter {count} rows, ms": 1e3 * context.seconds(enter, 1)}
    found["read their prompts, ms"] = 1e3 * context.seconds(read)
    return found


def steps(context: Context) -> dict[str, Any]:
    """Milliseconds of a captured step on the device: the pair with contrast and sampling, and one of its models."""
    found: dict[str, Any] = {}
    repeats = 1 if context.dry else 20
    for count in (2,) if context.dry else (1, 8, 64):
        prompts = _prompts(context, count)
        sequences = [_sequence(context, i, prompt) for i, prompt in enumerate(prompts)]
        runner = context.sampler.runner.clone_empty()
        read = [runner.prefill(m, [prompt.ids[m] for prompt in prompts]) for m in range(2)]
        runner.reserve(count, [256, 256])
        runner.add_all(list(zip(*read, strict=True)))
        loop = captured_loop(runner, context.sampler.pair.vocabulary)
        if loop is None:
            raise RuntimeError("the pair's step is not captured")
        lengths = [[len(prompt.ids[m]) for prompt in prompts] for m in range(2)]
        loop.begin(row_state(sequences, lengths, context.device))
        pair_ms = 1e3 * context.seconds(lambda lp=loop: _launch(lp, repeats)) / repeats  # type: ignore[misc]
        one: Any = runner.model_runners[0]
        tokens = torch.zeros(count, 1, dtype=torch.int64)
        one.truncate(lengths[0])
        one.forward(tokens)
        model_ms = 1e3 * context.seconds(lambda o=one, t=tokens: _forward(o, t, repeats)) / repeats  # type: ignore[misc]
        read_bytes = _step_bytes(context) + sum(
            position_bytes(context.bench_pair.base) * sum(lengths[m]) for m in range(2)
        )
        found[f"{count} rows · pair, ms"] = pair_ms
        found[f"{count} rows · base alone, same kernels, ms"] = model_ms
        found[f"{count} rows · pair ÷ base"] = pair_ms / model_ms
        if context.bandwidth:
            found[f"{count} rows · share of the read bandwidth"] = (
                read_bytes / context.bandwidth / (pair_ms / 1e3)
            )
        del loop, runner, one
    return found


def _launch(loop: Any, repeats: int) -> None:
    for _ in range(repeats):
        loop.launch()


def _forward(runner: Any, tokens: torch.Tensor, repeats: int) -> None:
    for _ in range(repeats):
        runner.forward(tokens)


def _sequence(context: Context, index: int, prompt: Any) -> SequenceState:
    params = _params(512, 1.0)
    weights = context.sampler.pair.logit_weights(params.alpha)
    request = Request(index, 0, prompt.ids, params, weights, frozenset(), stream_key(3, prompt.digest, 0))
    return SequenceState(request, [1], [])


def _work(context: Context, task: str) -> Work:
    work = TASKS[task].work(context.bench_pair)
    if context.dry:
        prompts = tuple(_prompts(context, min(2, len(work.prompts))))
        return Work(prompts, work.alphas[:1], 2, work.temperature)
    return work


def tasks(context: Context) -> dict[str, Any]:
    """T1 to T3 by `Sampler.generate` from end to end: tokens a second, and the share of the read bandwidth."""
    found: dict[str, Any] = {}
    ours = Eddecode(context.bench_pair, lambda _: context.sampler)
    for task in ("T2",) if context.dry else ("T1", "T2", "T3"):
        work = _work(context, task)
        ours.complete(work)  # captures what it needs
        seconds = context.seconds(lambda w=work: ours.complete(w))  # type: ignore[misc]
        found[f"{task} · tokens a second"] = work.tokens / seconds
        found[f"{task} · ms a step"] = 1e3 * seconds / work.new_tokens
        if context.bandwidth:
            read = bytes_to_read(context.bench_pair, work, 2)
            found[f"{task} · share of the read bandwidth"] = read / context.bandwidth / seconds
    if context.device.type == "cuda":
        found["peak memory, GB"] = torch.cuda.max_memory_allocated(context.device) / 1e9
    return found


def bits(context: Context) -> dict[str, Any]:
    """Completions that are equal alone and among 64, sampled and greedy, and in another number of slots."""
    count, few, new = (2, 1, 3) if context.dry else (64, 32, 32)
    found: dict[str, Any] = {}
    equal = True
    kinds = (("sampled", 1.0), ("greedy", 0.0))
    for kind, temperature in kinds[:1] if context.dry else kinds:
        prompts, params = _prompts(context, count), _params(new, temperature)
        together = [c.token_ids for c in context.sampler.generate(prompts, params)]
        alone = [context.sampler.generate([prompt], params)[0].token_ids for prompt in prompts[:few]]
        same = sum(a == b for a, b in zip(together, alone, strict=False))
        context.sampler.max_slots, before = 5, context.sampler.max_slots
        other = [c.token_ids for c in context.sampler.generate(prompts[:few], params)]
        context.sampler.max_slots = before
        slots = sum(a == b for a, b in zip(together, other, strict=False))
        found[f"{kind}, alone = among {count}"] = f"{same} of {few}"
        found[f"{kind}, 5 slots = {count} slots"] = f"{slots} of {few}"
        equal = equal and same == slots == few
    if not equal:
        raise StageError("a completion depends on its batch", found)
    return found


def profile(context: Context) -> dict[str, Any]:
    """T1 and 64 rows, 12 tokens: milliseconds by the clock and on the device, and the largest kernels."""
    if context.device.type != "cuda":
        return {"profile": "on a GPU only"}
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    found: dict[str, Any] = {}
    for count in (1, 64):
        _generate(context, count, 12, 0.0)
        context.synchronize()
        with profiler(activities=[ProfilerActivity.CUDA]) as record:
            start = time.perf_counter()
            _generate(context, count, 12, 0.0)
            context.synchronize()
            clock = 1e3 * (time.perf_counter() - start)
        kernels: dict[str, list[float]] = {}
        for event in record.events() or []:
            if str(event.device_type).endswith("CUDA"):
                kernels.setdefault(event.name[:50], []).append(event.device_time_total / 1e3)
        total = sum(map(sum, kernels.values()))
        found[f"{count} rows · by the clock, ms"] = clock
        found[f"{count} rows · kernels, ms (two streams overlap)"] = total
        for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:8]:
            found[f"{count} rows · {name}"] = f"{sum(times):.2f} ms in {len(times)} launches"
    return found


def long(context: Context) -> dict[str, Any]:
    """Long prompts, as many rows as fit: step time against what it must read, and memory against what it must hold."""
    length, new, rows = (4, 2, 1) if context.dry else (2000, 24, 64)
    pair = context.bench_pair
    per_row = 2 * position_bytes(pair.base) * (length + new)
    if context.device.type == "cuda":
        torch.cuda.empty_cache()
        rows = min(rows, int(0.45 * torch.cuda.mem_get_info(context.device)[0] / per_row))
        torch.cuda.reset_peak_memory_stats(context.device)
    prompts = list(texts_of(rows, length, context.shape.vocabulary))
    found: dict[str, Any] = {"rows": rows, "positions": length}
    start = time.perf_counter()
    context.sampler.generate(prompts, _params(1, 0.0))
    context.synchronize()
    found["prompts, s"] = time.perf_counter() - start
    start = time.perf_counter()
    context.sampler.generate(prompts, _params(new, 0.0))
    context.synchronize()
    whole = time.perf_counter() - start
    found["prompts and tokens, s"] = whole
    step = (whole - found["prompts, s"]) / (new - 1)
    found["ms a step (difference of the two)"] = 1e3 * step
    if context.bandwidth:
        read = _step_bytes(context) + 2 * position_bytes(pair.base) * rows * length
        found["share of the read bandwidth"] = read / context.bandwidth / step
    if context.device.type == "cuda":
        held = sum(p.nbytes for m in (pair.base, pair.aligned) for p in m.parameters()) + rows * per_row
        found["peak memory ÷ weights and cache"] = torch.cuda.max_memory_allocated(context.device) / held
    return found


def alternatives(context: Context) -> dict[str, Any]:
    """The same work by transformers, interleaved with ours: (b) the pair, (c) one of its models alone."""
    found: dict[str, Any] = {}
    pair = context.bench_pair
    ours = Eddecode(pair, lambda _: context.sampler)
    others: dict[str, Any] = {
        "(b) two models, eager": ProcessorPair(pair),
        "(c) base alone, eager": BaseAlone(pair),
    }
    amounts = (("T1", 32), ("T3", 16), ("T2", 32))
    for task, new in amounts[:1] if context.dry else amounts:
        work = _work(context, task).shorter(new)
        ours.complete(work)
        for name, other in others.items():
            _compare(context, found, f"{task}, {work.new_tokens} tokens", work, ours, name, other)
    return found


def compiled(context: Context) -> dict[str, Any]:
    """As `alternatives`, against the pair compiled by torch: compiling takes most of the stage."""
    if context.dry:
        return {"compiled": "on a GPU only"}
    found: dict[str, Any] = {}
    pair, work = context.bench_pair, _work(context, "T1")
    ours, theirs = Eddecode(pair, lambda _: context.sampler), StaticProcessorPair(pair)
    theirs.complete(work)
    ours.complete(work)
    _compare(context, found, "T1", work, ours, "(e) two models, compiled", theirs)
    return found


def _compare(
    context: Context, found: dict[str, Any], task: str, work: Work, ours: Any, name: str, other: Any
) -> None:
    """Seconds of both, one after the other in each of two rounds."""
    times: dict[str, list[float]] = {"ours": [], name: []}
    for _ in range(1 if context.dry else 2):
        for who, what in (("ours", ours), (name, other)):
            times[who].append(context.seconds(lambda w=what: w.complete(work), 1))  # type: ignore[misc]
    ratio = min(times[name]) / min(times["ours"])
    found[f"{task} · {name} ÷ ours"] = f"{ratio:.2f} ({min(times[name]):.2f} s ÷ {min(times['ours']):.2f} s)"
