"""A trial of the Triton kernels on a device, once per process: do they run, and does a row keep its bits in any batch?

The tiles of a product differ with the number of rows. On the GPUs where it was measured (H200) the order of a sum is
fixed by SPLIT alone, whichever instructions multiply the tiles; a GPU on which that is not so uses one kind of tile.

Kernels take time to compile. So what is tried here is, as far as it can be, what a model needs anyway: products of
shapes that divide by all tiles, and attention with the model's own heads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from eddecode_kernels import experts_triton, triton_tiles
from eddecode_kernels import layers_triton as kernels
from eddecode_kernels.launching import compile_ahead, launching

_log = logging.getLogger(__name__)

ROWS = (1, 16, 40, 100, 300)  # one per kind of tile, and one alone
COLUMNS, DEPTH = 512, 1024
# Of sums of 1,024 products of size about 1: float32 sums are off by 1e-5, those of tensor cores, which cut off instead
# of rounding, by up to 4e-4, and TF32 products by 1e-2.
TOLERANCE = 2e-3
EXPERTS = 3
EXPERT_ROWS = (1, 20, 70, 300, 1300)  # alone, and for each kind of tile
KEYS = 300  # more than a chunk


@cache
def failure(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels are not used on a device; None if they pass."""
    return _outcome(run_trial, "kernels", device, dtype)


@cache
def attention_failure(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, size: int, softcap: float
) -> str | None:
    """Why attention is not used on a device for heads of that number and size; None if it passes its trial."""

    def trial(device: torch.device, dtype: torch.dtype) -> str | None:
        return run_attention_trial(device, dtype, heads, kv_heads, size, softcap)

    return _outcome(trial, "attention", device, dtype)


@cache
def experts_failure(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels of a mixture of experts are not used on a device where the others are; None if they pass."""
    return _outcome(run_experts_trial, "kernels of experts", device, dtype)


def _outcome(
    trial: Callable[[torch.device, torch.dtype], str | None],
    name: str,
    device: torch.device,
    dtype: torch.dtype,
) -> str | None:
    """What a trial finds, or the error that it ends with; None without a trial on a CPU."""
    if device.type != "cuda":
        return None
    try:
        with launching():
            return trial(device, dtype)
    except (
        Exception
    ) as error:  # whatever a compiler or a driver raises: the model's own forward pass still runs
        why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
        _log.warning("the Triton %s cannot be used on %s in %s: %s", name, device, dtype, why)
        return why


@torch.inference_mode()
def run_trial(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why the kernels should not be used on a device; None if they pass. Whatever they raise is raised."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(max(ROWS), DEPTH, generator=generator).to(device, dtype)
    weight = torch.randn(COLUMNS, DEPTH, generator=generator).to(device, dtype)
    compile_ahead(device, lambda: same_bits(x, weight))
    error = (kernels.product(x, weight).double().sum(0) - x.double() @ weight.double().T).abs().max()
    if not error <= TOLERANCE:
        return f"a product was off by {float(error):.2g}"
    if not same_bits(x, weight):
        triton_tiles.use_small_tiles_only(dtype)
        _log.warning(
            "on %s in %s products differ between tiles: small tiles are used for every batch", device, dtype
        )
        if not same_bits(x, weight):
            return "a row of a product depends on its batch"
    return None


@torch.inference_mode()
def run_attention_trial(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, size: int, softcap: float
) -> str | None:
    """Why attention should not be used; None if it may. Whatever it raises is raised."""
    given = device, dtype, heads, kv_heads, size, softcap
    compile_ahead(device, lambda: packed_as_alone(*given))
    if packed_as_alone(*given):
        return None
    kernels.use_small_attention_tiles()
    _log.warning(
        "on %s in %s attention in a packed pass differs from a decode step: small tiles are used",
        device,
        dtype,
    )
    return None if packed_as_alone(*given) else "attention gives a prompt other bits than a decode step"


def same_bits(x: Tensor, weight: Tensor) -> bool:
    """Whether the last row of a product is the same to the bit alone and in batches of every kind of tile."""
    found = [kernels.product(x[-rows:], weight)[:, -1:] for rows in ROWS]  # all, for whoever compiles ahead
    alone = kernels.product(x[-1:], weight)
    return all(torch.equal(each, alone) for each in found)


@torch.inference_mode()
def run_experts_trial(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why experts should not be multiplied on a device; None if they may. Whatever the kernels raise is raised."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(max(EXPERT_ROWS), 512, generator=generator).to(device, dtype)
    weight = torch.randn(EXPERTS, 320, 512, generator=generator).to(device, dtype)
    chosen = torch.randn(max(EXPERT_ROWS), EXPERTS, generator=generator).topk(2).indices.int().to(device)
    compile_ahead(device, lambda: _launch_experts(x, weight, chosen))
    group = experts_triton.grouped(chosen, weight)
    whole = experts_triton.expert_product(x, weight, group, 2, shared_by=2)
    for pair in (0, 1, 2 * max(EXPERT_ROWS) - 1):
        expected = weight[int(chosen.view(-1)[pair])].double() @ x[pair // 2].double()
        error = float((whole[:, pair].double().sum(0) - expected).abs().max())
        if not error <= TOLERANCE:
            return f"a product of an expert was off by {error:.2g}"
    for rows in EXPERT_ROWS:
        few = experts_triton.grouped(chosen[-rows:], weight)
        if not torch.equal(
            experts_triton.expert_product(x[-rows:], weight, few, 2, shared_by=2), whole[:, -2 * rows :]
        ):
            return "a row of an expert's product depends on its batch"
    return None


def _launch_experts(x: Tensor, weight: Tensor, chosen: Tensor) -> None:
    """Whatever the trial of experts launches."""
    for rows in EXPERT_ROWS:
        group = experts_triton.grouped(chosen[-rows:], weight)
        experts_triton.expert_product(x[-rows:], weight, group, 2, shared_by=2)


def packed_as_alone(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, size: int, softcap: float
) -> bool:
    """Whether attention gives the tokens of a text the same bits in a packed pass and in decode steps.

    Over all keys before a token and over a window of them, in one chunk and in two.
    """
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    tokens = kernels.tile_tokens(heads, kv_heads, size)
    query = random(KEYS, heads, size)
    keys, values = (random(1, kv_heads, KEYS, size) for _ in range(2))
    end = torch.arange(1, KEYS + 1, device=device)[None]
    tiles = torch.tensor([(at, min(tokens, KEYS - at), 0) for at in range(0, KEYS, tokens)]).to(device)
    scale = size**-0.5
    few, same = kernels.CHUNK, []
    for start in (torch.zeros_like(end), (end - 100).clamp(min=0)):
        packed, alone, one = torch.empty_like(query), torch.empty_like(query), torch.empty_like(query[:few])
        torch.ops.eddecode.attend_packed(query, keys, values, start, end, tiles, packed, scale, softcap)
        torch.ops.eddecode.attend(query, keys, values, start, end, alone, KEYS, scale, softcap)
        where = [each[:, :few].contiguous() for each in (start, end)]
        torch.ops.eddecode.attend(query[:few], keys, values, *where, one, few, scale, softcap)
        same.append(torch.equal(packed, alone) and torch.equal(one, alone[:few]))
    return all(same)
