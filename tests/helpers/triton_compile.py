"""Compiles the Triton kernels that models launch, for GPUs that are not there; run as a script, see `main`.

Layers of the shapes of real models are run on tensors of the "meta" device, which have sizes and no values. What they
launch is compiled, as it would be on the GPU, and not run: so arguments have the types, the alignment and the
constants of a real step.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction, KernelInterface

from eddecode_kernels import (
    experts_triton,
    joined_triton,
    layers_triton,
    norm_triton,
    sample_triton,
    triton_tiles,
)
from eddecode_kernels.decoder_layer import (
    DecoderLayerWeights,
    ExpertWeights,
    ForwardContext,
    KVPointers,
    LinearWeights,
)
from eddecode_kernels.decoder_triton import TritonDecoderLayers
from eddecode_kernels.types import EVERY_FILTER, Filters, SampleInputs, SamplingRows

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model's layers; `experts`: how many, of a token, and numbers of one."""

    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int = 32_000
    bias: bool = False
    head_norms: int = 0  # 1: of each head, 2: of all
    gemma: bool = False
    experts: tuple[int, int, int] | None = None
    rank: int = 0
    dtype: torch.dtype = torch.bfloat16


SHAPES = {
    "llama-2-7b": Shape(4096, 11008, 32, 32, 128),
    "llama-3-70b": Shape(8192, 28672, 64, 8, 128, 128_256),
    "qwen2.5-0.5b": Shape(896, 4864, 14, 2, 64, 151_936, bias=True, rank=64),
    "gemma-2-9b": Shape(3584, 14336, 16, 8, 256, 256_000, gemma=True),
    "llama in float32": Shape(4096, 11008, 32, 32, 128, dtype=torch.float32),
    "olmo-2-7b": Shape(4096, 11008, 32, 32, 128, 100_352, head_norms=2),
    "qwen2-moe": Shape(2048, 5632, 16, 16, 128, 151_936, head_norms=1, experts=(60, 4, 1408)),
}


# What a launch becomes --------------------------------------------------------------------------------------------


class AbsentDriver:
    """A driver of a GPU that is not there, of which Triton's compiler only asks what to compile for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_for(
    capability: int, launched: Callable[[JITFunction, Any, dict[str, Any]], None]
) -> Iterator[None]:
    """Within the block kernels are given to `launched` (kernel, arguments, options) in the place of being launched."""

    def launcher(kernel: Any, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **options: launched(kernel, arguments, {**options, "grid": grid})

    def shared(_: torch.device) -> int:
        return SHARED_BYTES[capability]

    driver.set_active(AbsentDriver(capability))
    with (
        patch.object(KernelInterface, "__getitem__", launcher),
        patch.object(layers_triton, "shared_memory", shared),
        patch.object(experts_triton, "shared_memory", shared),
    ):
        triton_tiles.tile_for.cache_clear()
        yield
    triton_tiles.tile_for.cache_clear()


# What is launched -------------------------------------------------------------------------------------------------


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    """A tensor without values."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def longs(*shape: int) -> Tensor:
    return meta(*shape, dtype=torch.int64)


def weights_of(shape: Shape) -> DecoderLayerWeights:
    """A layer without values."""
    rank = shape.rank

    def own(*sizes: int) -> Tensor:
        return meta(*sizes, dtype=shape.dtype)

    def linear(rows: int, columns: int, bias: bool = False) -> LinearWeights:
        low = (own(rank, columns), own(rows, rank)) if rank else (None, None)
        return LinearWeights(own(rows, columns), own(rows) if bias else None, *low)

    d, wide, narrow = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    linears = {
        "query": linear(wide, d, shape.bias),
        "key": linear(narrow, d, shape.bias),
        "value": linear(narrow, d, shape.bias),
        "output": linear(d, wide),
    }
    experts = None
    f = shape.feed_forward
    dense = {"gate": linear(f, d), "up": linear(f, d), "down": linear(d, f)} if f else {}
    if shape.experts is not None:
        count, top_k, size = shape.experts
        experts = ExpertWeights(own(count, 2 * size, d), own(count, d, size), top_k, True, True)
        linears["router"] = LinearWeights(own(count, d))
        dense |= {"shared_gate": LinearWeights(own(1, d))} if dense else {}
    sizes = {0: (0, 0), 1: (shape.head_dim, shape.head_dim), 2: (wide, narrow)}[shape.head_norms]
    norms = [own(size) if size else None for size in sizes]
    after = own(d) if shape.gemma else None
    return DecoderLayerWeights(
        linears | dense, own(d), own(d), *norms, 1e-6, shape.gemma, "gelu_tanh" if shape.gemma else "silu",
        shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5, 50.0 if shape.gemma else 0.0,
        after, after, 1.0, shape.gemma, True, experts,
    )  # fmt: skip


def run_layers(shape: Shape, layers: TritonDecoderLayers, rows: int, tokens: int, capacity: int) -> None:
    """One pass over `tokens` of each row; capacity 0: they are the prompts of a packed pass."""
    tiles = longs(-(-tokens // layers.tile_tokens), 3) if capacity == 0 else None
    angles = [meta(rows, tokens, shape.head_dim, dtype=shape.dtype) for _ in range(2)]
    places = [longs(rows, tokens) for _ in range(3)]
    lora = slice(0, None, 2) if shape.rank else None
    context = ForwardContext(*angles, *places, lora, capacity or tokens, tiles)
    sizes = rows, shape.kv_heads, capacity or tokens, shape.head_dim
    buffers = [meta(*sizes, dtype=shape.dtype) for _ in range(2)]
    caches = KVPointers([(buffers[0], buffers[1])] * len(layers))
    layers(meta(rows, tokens, shape.hidden, dtype=shape.dtype), [context] * len(layers), caches)


def sample(shape: Shape, rows: int, filters: Filters = EVERY_FILTER) -> None:
    """A token for each row, from two models' logits."""
    floats = [meta(rows, dtype=torch.float32) for _ in range(4)]
    parameters = SamplingRows(floats[0], longs(rows), *floats[1:])
    uniforms = meta(rows, dtype=torch.float64)
    torch.ops.eddecode.philox_uniforms(longs(rows, 2), longs(rows), uniforms)
    logits = tuple(meta(rows, shape.vocabulary, dtype=torch.float32) for _ in range(2))
    weights, vocabulary = meta(2, rows, dtype=torch.float32), meta(shape.vocabulary, dtype=torch.bool)
    inputs = SampleInputs(logits, weights, parameters, uniforms, vocabulary, (), shape.vocabulary)
    forbidden = sample_triton.ForbiddenIds(longs(rows, 32), longs(rows, 32), longs(rows))
    sample_triton.launch(inputs, forbidden, filters)


def layers_of(shape: Shape) -> TritonDecoderLayers:
    """A layer of a shape."""
    joined_triton._known_joins.clear()  # by address, and nothing here has one
    return TritonDecoderLayers([weights_of(shape)])


def run_model(shape: Shape, passes: tuple[tuple[int, int, int], ...]) -> None:
    """Layers and head: for each (rows, tokens, capacity) a pass of `run_layers`, and the logits of one token a row."""
    layers = layers_of(shape)
    for rows, tokens, capacity in passes:
        run_layers(shape, layers, rows, tokens, capacity)
        states, head = ((n, shape.hidden) for n in (rows, shape.vocabulary))
        norm_triton.float32_linear(meta(*states, dtype=shape.dtype), meta(*head, dtype=shape.dtype))


# Reports ----------------------------------------------------------------------------------------------------------


PASSES = ((1, 300, 0), (8, 1, 1024))  # rows, tokens, capacity: see `run_layers`
MORE_PASSES = ((1, 100, 0), (1, 40, 0), (8, 1, 256))
CASES = (
    *((90, name) for name in ("llama-2-7b", "qwen2.5-0.5b", "gemma-2-9b", "olmo-2-7b", "qwen2-moe")),
    *((80, "llama-3-70b"), (89, "gemma-2-9b"), (89, "llama in float32"), (100, "llama-3-70b")),
)
BY_DEVICE = ("linear", "expert_linear", "attend", "attend_tile")  # of the others one GPU tells enough


def stack_bytes(cubin: bytes) -> int:
    """Bytes that each thread spills, or else keeps in memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [TOOLS / "cuobjdump", "-res-usage", file.name]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", found))


def report(capability: int, name: str, seen: set[Any]) -> None:
    """Compile what a model launches, and print a line for each kernel that was not seen before."""

    def launched(kernel: JITFunction, arguments: Any, options: dict[str, Any]) -> None:
        label = kernel.fn.__name__
        if capability != 90 and label not in BY_DEVICE:
            return
        built = kernel.warmup(*arguments, **options)
        key = capability, label, built.hash
        if key in seen:
            return
        seen.add(key)
        shared, spilled = built.metadata.shared, stack_bytes(built.asm["cubin"])
        fits = "fits" if shared <= SHARED_BYTES[capability] else "DOES NOT FIT"
        print(
            name.replace(" ", "-"),
            capability,
            label,
            f"{shared} shared",
            f"{spilled} spilled",
            fits,
            flush=True,
        )

    with compiled_for(capability, launched):
        run_model(SHAPES[name], PASSES)
        if name == "llama-2-7b":
            run_model(SHAPES[name], MORE_PASSES)
            sample(SHAPES[name], 8)
            sample(SHAPES[name], 8, Filters(False, False, False))
            for itemsize in (2, 16):
                torch.ops.eddecode.copy_blocks(longs(4, 6), 32, 4096, itemsize)


def kernels_of_a_pair() -> dict[str, int]:
    """How many kernels a 7B-shaped pair compiles, by name, whatever the numbers of rows and positions."""
    found: dict[str, set[str]] = {}
    shape = SHAPES["llama-2-7b"]

    def compiled(kernel: JITFunction, *arguments: Any, **_: Any) -> None:
        found.setdefault(kernel.fn.__name__, set()).add(repr(arguments))

    def launched(kernel: JITFunction, arguments: Any, options: dict[str, Any]) -> None:
        kernel.warmup(*arguments, **options)

    passes = (
        *((1, tokens, 0) for tokens in (1, 7, 16, 40, 64, 100, 256, 300, 2048)),
        *((rows, 1, capacity) for rows in (1, 3, 16, 64) for capacity in (128, 256, 512, 2048, 4096)),
        *((rows, 4, 1024) for rows in (1, 8, 64)),
    )
    with compiled_for(90, launched), patch.object(JITFunction, "_do_compile", compiled):
        run_model(shape, passes)
        for rows in (1, 2, 16, 64):
            sample(shape, rows)
    return {name: len(keys) for name, keys in sorted(found.items())}


def widths_of_copies() -> dict[int, list[int]]:
    """Bytes that a thread loads and stores at once, by the size of the numbers that are copied."""
    found: dict[int, list[int]] = {}

    def launched(kernel: JITFunction, arguments: Any, options: dict[str, Any]) -> None:
        code = kernel.warmup(*arguments, **options).asm["ptx"]
        moved = re.findall(r"(?:ld|st)\.global(?:\.v(\d))?\.b(16|32) ", code)
        found[options["BYTES"]] = sorted({int(count or 1) * int(bits) // 8 for count, bits in moved})

    with compiled_for(90, launched):
        for itemsize in (2, 4, 16):
            torch.ops.eddecode.copy_blocks(longs(4, 6), 32, 4096, itemsize)
    return found


def main(arguments: list[str]) -> None:
    """A line of `kernels_of_a_pair`. Without `count`: also one of `widths_of_copies`, and one for each kernel."""
    print(kernels_of_a_pair())  # first: what is compiled already would not be counted
    if arguments != ["count"]:
        print(widths_of_copies())
        seen: set[Any] = set()
        for capability, name in CASES:
            report(capability, name, seen)


if __name__ == "__main__":
    main(sys.argv[1:])
