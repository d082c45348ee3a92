"""Stages with the large pair: building it, entering of rows, steps, tasks, bits, profile."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.gpu_check.context import Context, Figures, StageError
from benchmarks.pairs import random_prompts, texts_of
from benchmarks.registry import Eddecode
from benchmarks.roofline import bytes_to_read, position_bytes, step_weights
from benchmarks.tasks import TASKS, Work
from eddecode import SamplingParams
from eddecode.engine.pipeline import row_state
from eddecode.engine.sequence import Request, SequenceState
from eddecode.execution.pair_loop import captured_loop
from eddecode.sampling.rng import stream_key


def build(context: Context, found: Figures) -> None:
    """The pair in memory, and how its models are run."""
    nbytes = step_bytes(context.pair)
    found["weights read by a step, GB"] = nbytes / 1e9
    if context.bandwidth:
        found["floor of a step, ms"] = 1e3 * nbytes / context.bandwidth
    runner: Any = context.sampler.runner
    for execution in context.sampler.execution:
        found[execution.model] = (
            f"{execution.compiled_layers} compiled layers, {'captured' if execution.captured else 'LAUNCHED'}"
            f"{', ' + execution.reason if execution.reason else ''}"
        )
    if not all(each.layers.stack is not None for each in runner.model_runners):
        raise StageError("the layers of the pair are not compiled")


def step_bytes(pair: Any) -> int:
    """Bytes of weights that a step of both models reads."""
    return step_weights(pair.base) + step_weights(pair.aligned)


def params_of(new: int, temperature: float, alpha: float = 0.5) -> SamplingParams:
    """So many tokens, whatever they are."""
    return SamplingParams(alpha=alpha, temperature=temperature, max_new_tokens=new, seed=3, ignore_eos=True)


def prompts_of(context: Context, count: int) -> list[Any]:
    """Prompts of 24 to 64 random ids, longer ones for the aligned model; in a dry run of 3."""
    count = context.few(count)
    if context.dry:
        return list(texts_of(count, 3, context.shape.vocabulary))
    return list(random_prompts(count, context.shape.vocabulary))


def entering(context: Context, found: Figures) -> None:
    """Milliseconds to enter rows, all models, after their prompts were read; and to read these."""
    runner = context.sampler.runner.clone_empty()
    texts = [prompt.ids for prompt in prompts_of(context, 64)]

    def read() -> list[Any]:
        return [runner.prefill(model, [text[model] for text in texts]) for model in range(2)]

    rows = list(zip(*read(), strict=True))
    runner.reserve(len(rows), [128, 128])
    times = []
    for _ in range(1 if context.dry else 6):
        times.append(context.seconds(lambda: runner.add_all(rows), 1))
        while runner.model_runners[0].occupied:
            runner.remove(runner.model_runners[0].occupied - 1)
    found["64 rows enter, ms"] = 1e3 * sorted(times)[len(times) // 2]
    found["their prompts are read, ms"] = 1e3 * context.seconds(read)


def steps(context: Context, found: Figures) -> None:
    """Milliseconds of a captured step: the pair with contrast and sampling, and one of its models without."""
    for count in (64,) if context.brief else (1, 8, 64):
        prompts = prompts_of(context, count)
        lengths = [[len(prompt.ids[m]) for prompt in prompts] for m in range(2)]
        runner = context.sampler.runner.clone_empty()
        read = [runner.prefill(m, [prompt.ids[m] for prompt in prompts]) for m in range(2)]
        runner.reserve(len(prompts), [256, 256])
        runner.add_all(list(zip(*read, strict=True)))
        loop = captured_loop(runner, context.sampler.pair.vocabulary)
        if loop is None:
            raise StageError("the pair's step is not captured")
        sequences = [_sequence(context, i, prompt) for i, prompt in enumerate(prompts)]
        loop.begin(row_state(sequences, lengths))
        repeats, rounds = (
            (1, 1) if context.dry else (15, 4)
        )  # 60 steps: they fit into the positions of one capture

        def launch(loop: Any = loop, repeats: int = repeats) -> None:
            for _ in range(repeats):
                loop.launch()

        pair_ms = 1e3 * context.seconds(launch, rounds) / repeats
        one: Any = runner.model_runners[0]
        one.truncate(lengths[0])
        one.forward(torch.zeros(len(prompts), 1, dtype=torch.int64))  # captures its step
        model_ms = context.replay_ms(next(reversed(one.buffers.steps.values())).replay)
        name = f"{count} row{'s' if count > 1 else ''}"
        found[f"{name} · pair, ms"] = pair_ms
        found[f"{name} · one model, same kernels, ms"] = model_ms
        found[f"{name} · pair ÷ one model"] = pair_ms / model_ms
        grown = 0 if context.dry else repeats * rounds // 2
        positions = sum(sum(each) + grown * len(prompts) for each in lengths)
        nbytes = step_bytes(context.pair) + position_bytes(context.pair.base) * positions
        found[f"{name} · share of the read bandwidth"] = context.share(nbytes, pair_ms / 1e3)
        del loop, runner, one


def _sequence(context: Context, index: int, prompt: Any) -> SequenceState:
    params = params_of(512, 1.0)
    weights = context.sampler.pair.logit_weights(params.alpha)
    request = Request(index, 0, prompt.ids, params, weights, frozenset(), stream_key(3, prompt.digest, 0))
    return SequenceState(request, [1], [])


def work_of(context: Context, task: str, new: int | None = None) -> Work:
    """A task on the pair, with fewer tokens if that is said; in a dry run a little of it."""
    work = TASKS[task].work(context.pair)
    if context.dry:
        return Work(tuple(prompts_of(context, 2)), work.alphas[:1], 2, work.temperature)
    return work if new is None else work.shorter(new)


def tasks(context: Context, found: Figures) -> None:
    """T1 to T3 by `Sampler.generate` from end to end: tokens a second, and the share of the read bandwidth."""
    ours = Eddecode(context.pair, lambda _: context.sampler)
    for task in ("T2",) if context.brief else ("T1", "T2", "T3"):
        work = work_of(context, task)
        ours.complete(work)  # captures what it needs
        seconds = context.seconds(lambda w=work: ours.complete(w))  # type: ignore[misc]
        found[f"{task} · tokens a second"] = work.tokens / seconds
        found[f"{task} · ms a step, all told"] = 1e3 * seconds / work.new_tokens
        found[f"{task} · share of the read bandwidth"] = context.share(
            bytes_to_read(context.pair, work, 2), seconds
        )
    if context.device.type == "cuda":
        found["peak memory since the process began, GB"] = (
            torch.cuda.max_memory_allocated(context.device) / 1e9
        )


def bits(context: Context, found: Figures) -> None:
    """Completions that are equal alone and among 64, sampled and greedy, and in another number of slots."""
    few, new = (1, 3) if context.dry else (32, 32)
    wrong = False
    kinds = (("sampled", 1.0), ("greedy", 0.0))
    for kind, temperature in kinds[:1] if context.brief else kinds:
        prompts, params = prompts_of(context, 64), params_of(new, temperature)
        together = [c.token_ids for c in context.sampler.generate(prompts, params)]
        alone = [context.sampler.generate([prompt], params)[0].token_ids for prompt in prompts[:few]]
        context.sampler.max_slots, before = 5, context.sampler.max_slots
        try:
            other = [c.token_ids for c in context.sampler.generate(prompts[:few], params)]
        finally:
            context.sampler.max_slots = before
        for name, found_tokens in (("alone", alone), ("5 slots", other)):
            same = sum(a == b for a, b in zip(together, found_tokens, strict=False))
            found[f"{kind} · {name} = {'among 64' if name == 'alone' else '64 slots'}, of 32"] = same
            wrong = wrong or same != few
    if wrong:
        raise StageError("a completion depends on its batch")


def profile(context: Context, found: Figures) -> None:
    """T1 and 64 rows, 12 tokens: milliseconds by the clock and on the device, and the largest kernels."""
    if context.device.type != "cuda":
        return
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    for count in (1, 64):
        prompts, params = prompts_of(context, count), params_of(12, 0.0)
        context.sampler.generate(prompts, params)
        context.synchronize()
        with profiler(activities=[ProfilerActivity.CUDA]) as record:
            start = time.perf_counter()
            context.sampler.generate(prompts, params)
            context.synchronize()
            clock = 1e3 * (time.perf_counter() - start)
        kernels: dict[str, list[float]] = {}
        for event in record.events() or []:
            if str(event.device_type).endswith("CUDA"):
                kernels.setdefault(event.name[:40], []).append(event.device_time_total / 1e3)
        found[f"{count} rows · by the clock, ms"] = clock
        found[f"{count} rows · kernels, ms (two streams overlap)"] = sum(map(sum, kernels.values()))
        for name, times in sorted(kernels.items(), key=lambda item: -sum(item[1]))[:8]:
            found[f"{count} rows · {name}"] = f"{sum(times):.2f} ms in {len(times)}"
