"""Stages that need no model: the device, its bandwidth, sampling, products and attention."""

from __future__ import annotations

import os
from typing import Any

import torch

from benchmarks.gpu_check.context import Context
from benchmarks.kernel import FILTERS, make_inputs
from benchmarks.measure import Bandwidth
from eddecode.sampling.dispatch import contrast_and_sample
from eddecode_kernels import layers_triton, triton_trial
from eddecode_kernels.sample_triton import launch
from eddecode_kernels.types import Filters, SampleInputs

OPS: Any = torch.ops.eddecode


def environment(context: Context) -> dict[str, Any]:
    """Versions and the device."""
    import transformers

    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError as error:
        found["triton"] = f"not installed: {error}"
    found["device"] = str(context.device)
    if context.device.type == "cuda":
        properties = torch.cuda.get_device_properties(context.device)
        found |= {
            "name": properties.name,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(context.device))),
            "multiprocessors": properties.multi_processor_count,
            "memory, GB": properties.total_memory / 1e9,
            "shared memory, bytes": getattr(properties, "shared_memory_per_block_optin", None),
            "cuda": torch.version.cuda,
            "gpus": torch.cuda.device_count(),
        }
    found["processors"] = os.cpu_count()
    return found


def trial(context: Context) -> dict[str, Any]:
    """Whether the kernels run and a row keeps its bits in any batch, by dtype."""
    dtypes = [torch.float32] if context.dry else [torch.bfloat16, torch.float16, torch.float32]
    failures = {}
    for dtype in dtypes:
        if not layers_triton.available(context.device, dtype):
            failures[str(dtype)] = "not available"
        else:
            failures[str(dtype)] = triton_trial.run_trial(context.device, dtype) or "passed"
            if not context.dry:  # many rows, for the interpreter
                experts = triton_trial.run_experts_trial(context.device, dtype) or "passed"
                failures[f"{dtype}, experts"] = experts
    if (
        set(failures.values()) != {"passed"} and not context.dry
    ):  # numpy's products depend on the number of rows
        raise RuntimeError(f"the kernels cannot be used: {failures}")
    return failures


def bandwidth(context: Context) -> dict[str, Any]:
    """What the memory gives: a plain read."""
    if context.dry:
        context.bandwidth = 1e10
        return {"read, TB/s": 0.01}
    context.bandwidth = Bandwidth(context.device.type).measure()
    torch.cuda.empty_cache()
    return {"read, TB/s": context.bandwidth / 1e12}


def sampling(context: Context) -> dict[str, Any]:
    """Contrast and sampling by themselves, µs in a graph; exactness against the reference in float64."""
    found: dict[str, Any] = {}
    for width in (300,) if context.dry else (32_000, 128_000):
        for batch in (2,) if context.dry else (1, 64):
            for name in ("none", "all") if context.dry else ("none", "top-p", "all"):
                given: Any = make_inputs(batch, width, FILTERS[name], 3.0, str(context.device))
                logits, weights, rows, uniforms, vocabulary = given
                inputs = SampleInputs(tuple(logits), weights, rows, uniforms, vocabulary, (), width)
                used = Filters(
                    top_k="top_k" in FILTERS[name],
                    top_p="top_p" in FILTERS[name],
                    plausibility="plausibility" in FILTERS[name],
                )
                fast = contrast_and_sample(
                    logits, weights, rows, uniforms, vocabulary, backend="triton", filters=used
                )
                slow = contrast_and_sample(logits, weights, rows, uniforms, vocabulary, backend="reference")
                if int((fast.tokens != slow.tokens).sum()) > 1:
                    raise RuntimeError(f"{batch}×{width}, {name}: tokens differ from the reference")
                alone = [z[-1:] for z in logits]
                last = type(rows)(**{key: value[-1:] for key, value in vars(rows).items()})
                one = contrast_and_sample(
                    alone, weights[:, -1:].contiguous(), last, uniforms[-1:], vocabulary, backend="triton"
                )
                if int(one.tokens[0]) != int(fast.tokens[-1]):
                    raise RuntimeError(f"{batch}×{width}, {name}: a row depends on its batch")
                ms = context.device_ms(lambda i=inputs, u=used: launch(i, filters=u))  # type: ignore[misc]
                found[f"{batch} × {width}, {name}, µs"] = 1e3 * ms
    return found


def products(context: Context) -> dict[str, Any]:
    """Products of a layer: GB/s of weights against torch's, and the bits of a row alone and in batches."""
    shape = context.shape
    d, f = shape.hidden, shape.feed_forward
    matrices = {
        "qkv": (3 * d, d),
        "output": (d, d),
        "gate+up": (2 * f, d),
        "down": (d, f),
        "head": (shape.vocabulary, d),
    }
    found: dict[str, Any] = {}
    for name, (columns, depth) in matrices.items():
        copies = (
            1 if context.dry else max(1, -(-(400 << 20) // (2 * columns * depth)))
        )  # more than a cache holds
        weights = [
            torch.randn(columns, depth, device=context.device, dtype=context.dtype) for _ in range(copies)
        ]
        x = torch.randn(300, depth, device=context.device, dtype=context.dtype)
        alone = layers_triton.product(x[7:8], weights[0])
        for rows in (1, 8) if context.dry else (1, 8, 64, 300):
            batch = layers_triton.product(x[7 : 7 + rows], weights[0])
            if not torch.equal(batch[:, :1], alone):
                raise RuntimeError(f"{name}: a row alone differs from itself among {rows}")
            if rows == 300:
                continue
            some = x[:rows].contiguous()

            def ours(some: Any = some, weights: Any = weights) -> None:
                for weight in weights:
                    layers_triton.product(some, weight)

            def library(some: Any = some, weights: Any = weights) -> None:
                for weight in weights:
                    torch.nn.functional.linear(some, weight)

            size = copies * weights[0].nbytes / 1e6
            found[f"{name} {columns}×{depth}, {rows} rows, GB/s (torch)"] = (
                f"{size / context.device_ms(ours):.0f} ({size / context.device_ms(library):.0f})"
            )
        del weights
    return found


def attention(context: Context) -> dict[str, Any]:
    """Attention of one query per row: GB/s of keys and values, and the bits alone and in batches, packed and not."""
    heads, size = context.shape.heads, context.shape.hidden // context.shape.heads
    found: dict[str, Any] = {}
    for rows, length in ((2, 70),) if context.dry else ((1, 1000), (64, 130), (64, 1000)):
        for kv_heads in {heads, max(1, heads // 4)}:
            capacity = -(-length // 256) * 256
            make: Any = {"device": context.device, "dtype": context.dtype}
            query = torch.randn(rows, heads, size, **make)
            keys, values = (torch.randn(rows, kv_heads, capacity, size, **make) for _ in range(2))
            end = torch.full((rows, 1), length, device=context.device)
            start, out = torch.zeros_like(end), torch.empty_like(query)
            given = (query, keys, values, start, end, out, capacity, size**-0.5, 0.0)

            def call(given: Any = given) -> None:
                OPS.attend(*given)

            call()
            one = torch.empty_like(query[:1])
            OPS.attend(
                query[-1:], keys[-1:], values[-1:], start[-1:], end[-1:], one, 4 * capacity, size**-0.5, 0.0
            )
            if not torch.equal(one, out[-1:]):
                raise RuntimeError(f"{rows} rows of {length} keys: a row depends on its batch")
            tiles = torch.tensor([[0, 1, 0]], device=context.device)
            packed = torch.empty_like(one)
            OPS.attend_packed(
                query[-1:], keys[-1:], values[-1:], start[-1:], end[-1:], tiles, packed, size**-0.5, 0.0
            )
            if not torch.equal(one, packed):
                raise RuntimeError(f"{length} keys: a packed pass differs from a decode step")
            read = 2 * rows * kv_heads * length * size * keys.element_size()
            found[f"{rows} rows × {length} keys, {kv_heads} of {heads} heads, GB/s"] = (
                read / context.device_ms(call) / 1e6
            )
    return found
