"""Stages that need no model: the device, its bandwidth, sampling, products and attention."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import torch

import eddecode
from benchmarks.gpu_check.context import CACHE_BYTES, Context, Figures, StageError
from benchmarks.kernel import FILTERS, make_inputs
from benchmarks.measure import Bandwidth
from benchmarks.pairs import Shape
from eddecode.sampling.dispatch import contrast_and_sample
from eddecode_kernels import layers_triton, triton_trial
from eddecode_kernels.sample_triton import launch
from eddecode_kernels.types import Filters, SampleInputs

OPS: Any = torch.ops.eddecode
ATTENTION = ((8, 2, 64, 0.0), (32, 32, 128, 0.0), (16, 8, 256, 50.0))  # heads, of keys, their size, soft cap
WIDTHS = (32_000, 128_000)
DRAWN = ("none", "top-p", "all")  # of FILTERS


def environment(context: Context, found: Figures) -> None:
    """Versions and the device."""
    import transformers

    found["eddecode"] = f"{eddecode.__version__}{_commit()}"
    found["python"] = platform.python_version()
    found["torch"], found["transformers"] = torch.__version__, transformers.__version__
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError as error:
        found["triton"] = f"not installed: {error}"
    found["processors"] = os.cpu_count()
    found["device"] = str(context.device)
    if context.device.type != "cuda":
        return
    if not torch.cuda.is_available():
        raise StageError(f"torch {torch.__version__} sees no CUDA device")
    properties: Any = torch.cuda.get_device_properties(context.device)
    found["name"] = properties.name
    found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(context.device)))
    found["multiprocessors"] = properties.multi_processor_count
    found["memory, GB"] = properties.total_memory / 1e9
    found["free memory, GB"] = torch.cuda.mem_get_info(context.device)[0] / 1e9
    found["shared memory, bytes"] = getattr(properties, "shared_memory_per_block_optin", None)
    found["cuda"], found["gpus"] = torch.version.cuda, torch.cuda.device_count()
    found["driver, compute mode"] = _driver()


def _commit() -> str:
    """Of the checkout, if git says it."""
    command = ["git", "-C", os.path.dirname(__file__), "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" ({done.stdout.strip()})" if done.returncode == 0 else ""


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,compute_mode", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else "unknown"


def trial(context: Context, found: Figures) -> None:
    """Whether the kernels run and a row keeps its bits in any batch, by dtype."""
    for dtype in [torch.float32] if context.dry else [torch.bfloat16, torch.float16, torch.float32]:
        if not layers_triton.available(context.device, dtype):
            found[str(dtype)] = "not available"
            continue
        found[str(dtype)] = _tried(triton_trial.run_trial, context, dtype)
        if not context.dry:  # many rows, for the interpreter
            found[f"{dtype}, experts"] = _tried(triton_trial.run_experts_trial, context, dtype)
            for heads in ATTENTION if dtype == torch.bfloat16 else ATTENTION[:1]:
                found[f"{dtype}, attention {heads}"] = _tried(_attention(heads), context, dtype)
    # In a dry run rows may differ: numpy's products depend on how many there are.
    if set(found.values()) != {"passed"} and not context.dry:
        raise StageError("the kernels cannot be used")


def _attention(heads: tuple[int, int, int, float]) -> Callable[[torch.device, torch.dtype], str | None]:
    return lambda device, dtype: triton_trial.run_attention_trial(device, dtype, *heads)


def _tried(
    run: Callable[[torch.device, torch.dtype], str | None], context: Context, dtype: torch.dtype
) -> str:
    try:
        return run(context.device, dtype) or "passed"
    except Exception as error:  # the other dtypes are still to be tried
        return f"{type(error).__name__}: {error}"[:300]


def bandwidth(context: Context, found: Figures) -> None:
    """What the memory gives: a plain read."""
    context.bandwidth = 1e10 if context.dry else Bandwidth(context.device.type).measure()
    context.release()
    found["read, TB/s"] = context.bandwidth / 1e12


def _draws(context: Context) -> Iterator[tuple[str, Any, Filters]]:
    """Name, inputs as of `make_inputs`, and the filters in use, for each width, number of rows and kind of filters."""
    for width in WIDTHS[:1] if context.brief else WIDTHS:
        for rows in (64,) if context.brief else (1, 64):
            for kind in ("none", "all") if context.brief else DRAWN:
                used = FILTERS[kind]
                actual = 300 if context.dry else width
                given = make_inputs(context.few(rows), actual, used, 3.0, str(context.device))
                filters = Filters(
                    top_k="top_k" in used, top_p="top_p" in used, plausibility="plausibility" in used
                )
                yield f"{width} ids × {rows} row{'s' if rows > 1 else ''}, {kind}", given, filters


def draws(context: Context, found: Figures) -> None:
    """Whether sampled tokens are those of the reference in float64, and whether a row depends on its batch."""
    wrong = 0
    for name, (logits, weights, rows, uniforms, vocabulary), filters in _draws(context):
        fast = contrast_and_sample(
            logits, weights, rows, uniforms, vocabulary, backend="triton", filters=filters
        )
        slow = contrast_and_sample(logits, weights, rows, uniforms, vocabulary, backend="reference")
        other = int((fast.tokens != slow.tokens).sum())
        last = type(rows)(**{key: value[-1:] for key, value in vars(rows).items()})
        one = contrast_and_sample(
            [z[-1:] for z in logits],
            weights[:, -1:].contiguous(),
            last,
            uniforms[-1:],
            vocabulary,
            backend="triton",
        )
        alone = int(one.tokens[0]) == int(fast.tokens[-1])
        # A uniform at the border of two tokens may fall on either side in another order of sums: once, not twice.
        wrong += other > 1 or not alone
        found[name] = f"{other} of {len(fast.tokens)} differ; a row {'is' if alone else 'IS NOT'} as alone"
    if wrong:
        raise StageError("tokens differ from the reference, or a row depends on its batch")


def sampling(context: Context, found: Figures) -> None:
    """Contrast and sampling by themselves, µs in a graph; the logits are in the cache, where the head leaves them."""
    for name, (logits, weights, rows, uniforms, vocabulary), filters in _draws(context):
        inputs = SampleInputs(tuple(logits), weights, rows, uniforms, vocabulary, (), vocabulary.shape[0])
        ms = context.device_ms(lambda i=inputs, f=filters: launch(i, filters=f))  # type: ignore[misc]
        found[f"{name}, µs"] = 1e3 * ms


def _matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    d, f = shape.hidden, shape.feed_forward
    return {
        "qkv": (3 * d, d),
        "output": (d, d),
        "gate+up": (2 * f, d),
        "down": (d, f),
        "head": (shape.vocabulary, d),
    }


def products(context: Context, found: Figures) -> None:
    """Products of a layer: GB/s of weights against torch's, and the bits of a row alone and in batches."""
    make: Any = {"device": context.device, "dtype": context.dtype}
    for name, (columns, depth) in _matrices(context.shape).items():
        copies = 1 if context.dry else max(1, -(-CACHE_BYTES // (2 * columns * depth)))
        weights = [torch.randn(columns, depth, **make) for _ in range(copies)]
        x = torch.randn(300, depth, **make)
        alone = layers_triton.product(x[7:8], weights[0])
        for rows in (1, 8) if context.brief else (1, 8, 64, 257):
            actual = min(rows, 8) if context.dry else rows
            batch = layers_triton.product(x[7 : 7 + actual], weights[0])
            if not torch.equal(batch[:, :1], alone):
                raise StageError(f"{name}: a row alone differs from itself among {rows}")
            if rows > 64:
                continue
            some = x[:actual].contiguous()

            def ours(some: Any = some, weights: Any = weights) -> None:
                for weight in weights:
                    layers_triton.product(some, weight)

            def library(some: Any = some, weights: Any = weights) -> None:
                for weight in weights:
                    torch.nn.functional.linear(some, weight)

            size = copies * weights[0].nbytes / 1e6
            speeds = [size / context.device_ms(each) for each in (ours, library)]
            found[f"{name} {columns}×{depth}, {rows} rows, GB/s (torch's)"] = (
                f"{speeds[0]:.0f} ({speeds[1]:.0f})"
            )


def attention(context: Context, found: Figures) -> None:
    """Attention of one query per row: GB/s of keys and values, and the bits alone and in batches, packed and not."""
    heads = context.shape.heads
    for rows, length in ((64, 130),) if context.brief else ((1, 1000), (64, 130), (64, 1000)):
        for kv_heads in sorted({heads, max(1, heads // 4)}):
            speed = _attend(context, context.few(rows), 70 if context.dry else length, kv_heads)
            found[f"{rows} rows × {length} keys, {kv_heads} of {heads} heads, GB/s"] = speed


def _attend(context: Context, rows: int, length: int, kv_heads: int) -> float:
    """GB/s of keys and values. They are read from as many copies as do not fit into the device's cache."""
    heads, size = context.shape.heads, context.shape.hidden // context.shape.heads
    capacity, scale = -(-length // 256) * 256, size**-0.5
    make: Any = {"device": context.device, "dtype": context.dtype}
    read = 2 * rows * kv_heads * length * size * context.dtype.itemsize
    copies = 1 if context.dry else max(1, -(-CACHE_BYTES // read))
    query = torch.randn(rows, heads, size, **make)
    caches = [torch.randn(2, rows, kv_heads, capacity, size, **make) for _ in range(copies)]
    end = torch.full((rows, 1), length, device=context.device)
    start, out = torch.zeros_like(end), torch.empty_like(query)

    def call() -> None:
        for keys, values in caches:
            OPS.attend(query, keys, values, start, end, out, capacity, scale, 0.0)

    call()
    keys, values = (each[-1:] for each in caches[-1])
    one, packed = torch.empty_like(query[:1]), torch.empty_like(query[:1])
    OPS.attend(query[-1:], keys, values, start[-1:], end[-1:], one, 4 * capacity, scale, 0.0)
    if not torch.equal(one, out[-1:]):
        raise StageError(f"{rows} rows of {length} keys: a row depends on its batch")
    tiles = torch.tensor([[0, 1, 0]], device=context.device)
    OPS.attend_packed(query[-1:], keys, values, start[-1:], end[-1:], tiles, packed, scale, 0.0)
    if not torch.equal(one, packed):
        raise StageError(f"{length} keys: a packed pass differs from a decode step")
    return copies * read / context.device_ms(call) / 1e6
