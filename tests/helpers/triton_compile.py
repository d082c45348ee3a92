"""Compiles the Triton kernels for GPUs that are not there; run as a script, it prints a line per kernel and GPU."""

from __future__ import annotations

import sys
from typing import Any

from eddecode_kernels import triton_attention, triton_experts, triton_linear, triton_rows

HEADS = {"H": 32, "HK": 8, "D": 128, "BD": 128}
EXPERTS = {"E": 60, "BLOCK": 128, "BE": 64}
TILES = {"BM": 64, "BN": 64, "BK": 128}
# kernel → constants and options, as `layers_triton` launches them for a 7B-shaped model in bfloat16.
CASES: list[tuple[Any, dict[str, Any], dict[str, int]]] = [
    (triton_linear.linear, {**TILES, "EVEN": True, "IEEE": False}, {"num_warps": 4, "num_stages": 4}),
    (
        triton_linear.linear,
        {**TILES, "BM": 16, "EVEN": False, "IEEE": False},
        {"num_warps": 4, "num_stages": 5},
    ),
    (
        triton_linear.linear,
        {"BM": 128, "BN": 256, "BK": 64, "EVEN": True, "IEEE": False},
        {"num_warps": 8, "num_stages": 3},
    ),
    (
        triton_linear.add_low_rank,
        {"RANK": 48, "PARTS": 2, "BR": 64, "BN": 64, "IEEE": False},
        {"num_warps": 4},
    ),
    (
        triton_attention.attend,
        {**HEADS, "ROWS": 16, "BT": 64, "CHUNK": 256, "PARTS": 4, "CAPPED": True, "IEEE": False},
        {"num_warps": 2, "num_stages": 2},
    ),
    (
        triton_attention.join_chunks,
        {"H": 32, "D": 128, "BD": 128, "CHUNK": 256, "PARTS": 4},
        {"num_warps": 1},
    ),
    (
        triton_attention.attend_tile,
        {**HEADS, "RP": 4, "ROWS": 64, "BT": 64, "CHUNK": 256, "CAPPED": False, "IEEE": False},
        {"num_warps": 8, "num_stages": 2},
    ),
    (
        triton_rows.add_and_norm,
        {
            **{"SPLIT": 2, "BIAS": True, "AFTER": True, "SCALED": True},
            **{"NORM": True, "OFFSET": True, "LATE": True, "BLOCK": 4096},
        },
        {"num_warps": 8},
    ),
    (
        triton_rows.rotate_and_write,
        {
            **{"H": 32, "HK": 8, "D": 128, "ROTARY": 128, "SPLIT": 1, "BIAS": True},
            **{"NORM": 1, "OFFSET": False, "LATE": False, "BLOCK": 128},
        },
        {"num_warps": 1},
    ),
    (triton_rows.gate, {"SPLIT": 1, "BIAS": False, "GELU": True, "BLOCK": 1024}, {"num_warps": 4}),
    (
        triton_experts.route,
        {
            **{"E": 60, "TOP_K": 4, "COLUMNS": 61, "SPLIT": 8, "BIAS": False, "RENORMALIZED": True},
            **{"ROUNDED": True, "BLOCK": 64, "BK": 4},
        },
        {"num_warps": 1},
    ),
    (triton_experts.count_pairs, EXPERTS, {"num_warps": 4}),
    (triton_experts.group_pairs, {**EXPERTS, "BM": 16, "ONE": False, "BT": 64}, {"num_warps": 4}),
    (
        triton_experts.expert_linear,
        {**TILES, "BM": 16, "SHARED_BY": 4, "EVEN": True, "IEEE": False},
        {"num_warps": 4, "num_stages": 5},
    ),
    (
        triton_experts.expert_linear,
        {"BM": 128, "BN": 256, "BK": 64, "SHARED_BY": 1, "EVEN": True, "IEEE": False},
        {"num_warps": 8, "num_stages": 3},
    ),
    (
        triton_experts.mix_experts,
        {
            **{"TOP_K": 4, "SPLIT": 1, "ROUNDED": True, "SHARED_SPLIT": 2, "SHARED_BIAS": False},
            "BLOCK": 1024,
        },
        {"num_warps": 4},
    ),
    (triton_rows.copy_blocks, {"BYTES": 2, "BLOCK": 1024}, {"num_warps": 4}),
    (triton_rows.philox_uniforms, {"BLOCK": 64}, {"num_warps": 2}),
]
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # that one program may use
LONG = ("start_ptr", "end_ptr", "positions_ptr", "tiles_ptr", "table_ptr", "keys_ptr")
FLOAT32 = ("parts_ptr", "sums_ptr", "tops_ptr", "t_ptr", "weights_ptr", "gates_ptr", "shared_ptr")
INT32 = ("experts_ptr", "counts_ptr", "order_ptr", "tile_expert_ptr", "tile_pairs_ptr")
FLOAT32_OUT = (
    *(triton_linear.linear, triton_linear.add_low_rank),
    *(triton_experts.expert_linear, triton_experts.mix_experts),
)
OTHER_TYPES = ("constexpr", "fp32")
FLOATS = ("epsilon", "scale", "softcap")


def pointer_type(kernel: Any, name: str) -> str:
    """The type of a pointer argument."""
    if name in LONG:
        return "*i64"
    if name in INT32:
        return "*i32"
    if name in FLOAT32 or (name == "out_ptr" and kernel in FLOAT32_OUT):
        return "*fp32"
    return "*fp64" if kernel is triton_rows.philox_uniforms else "*bf16"


def main(capabilities: list[int]) -> None:
    """Compile everything for each compute capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for kernel, constants, options in CASES:
        names = kernel.arg_names
        assert set(constants) <= set(names), (kernel.__name__, set(constants) - set(names))
        signature = {
            name: "constexpr"
            if name in constants
            else pointer_type(kernel, name)
            if name.endswith("_ptr")
            else "fp32"
            if name in FLOATS
            else "i32"
            for name in names
        }
        # As torch's tensors are: aligned, with strides that divide by 16. Only then are loads pipelined.
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n] not in OTHER_TYPES
        }
        constexprs = {(names.index(n),): v for n, v in constants.items()}
        source = ASTSource(kernel, signature, constexprs, aligned)
        for capability in capabilities:
            built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
            fits = len(built.asm["cubin"]) > 0 and built.metadata.shared <= SHARED_BYTES[capability]
            print(
                kernel.__name__,
                capability,
                built.metadata.shared,
                "fits" if fits else "DOES NOT FIT",
                flush=True,
            )


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [80, 90, 100])
