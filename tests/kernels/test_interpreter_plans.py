"""Operations that are replayed in Triton's interpreter (`helpers.interpreter_plans`) do what Triton's own code does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip(
    "triton", reason="triton is not installed: pip install triton (the CPU build of torch lacks it)"
)

import triton
import triton.language as tl

from helpers.interpreter import INTERPRETED

pytestmark = pytest.mark.skipif(
    not INTERPRETED, reason="tests/kernels/test_interpreter.py runs this one in the interpreter"
)
FOUR = tl.constexpr(4)


@triton.jit
def add(x_ptr, y_ptr, out_ptr, SAME: tl.constexpr):
    at = tl.arange(0, 4)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(out_ptr + at, x + x if SAME else x + y)


@triton.jit
def load_or(x_ptr, other_ptr, inside_ptr, out_ptr):
    inside = tl.load(inside_ptr) != 0
    tl.store(out_ptr, tl.load(x_ptr, mask=inside, other=tl.load(other_ptr)))


@triton.jit
def plus_constant(number, out_ptr):
    tl.store(out_ptr, tl.where(number > 0, FOUR + number, 0))


@triton.jit
def scaled(x_ptr, factor, out_ptr):
    tl.store(out_ptr + tl.arange(0, 2), tl.load(x_ptr + tl.arange(0, 2)) * factor)


@triton.jit
def outer(x_ptr, y_ptr, out_ptr, N, BN: tl.constexpr):
    m, n = tl.program_id(0), tl.arange(0, BN)
    table = tl.load(x_ptr + tl.arange(0, 2))[:, None] * m + tl.load(y_ptr + n, mask=n < N, other=0.0)[None, :]
    tl.store(out_ptr + m, tl.sum(tl.sum(table, 1), 0))


def launched(kernel: Any, *arguments: Any, numbers: int = 1, **constants: Any) -> list[float]:
    """What one program writes."""
    out = torch.zeros(numbers)
    kernel[(1,)](*arguments, out, **constants)
    return out.tolist()


def test_one_operand_twice_is_not_two() -> None:
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    assert launched(add, x, y, numbers=4, SAME=True) == [2, 4, 6, 8]
    assert launched(add, x, y, numbers=4, SAME=False) == [11, 22, 33, 44]
    assert launched(add, y, x, numbers=4, SAME=True) == [20, 40, 60, 80]


def test_what_depends_on_a_value_is_asked_for_each_time() -> None:
    """Triton's interpreter takes `other` for absent if it is zero."""
    x = torch.tensor([7.0])
    for inside, other, expected in (
        (0, 0.0, 0.0),
        (0, 5.0, 5.0),
        (1, 5.0, 7.0),
        (0, 0.0, 0.0),
        (1, 0.0, 7.0),
    ):
        assert launched(load_or, x, torch.tensor([other]), torch.tensor([inside])) == [expected]


def test_a_constant_plus_a_tensor_is_no_constant() -> None:
    assert [launched(plus_constant, number) for number in (3, 4, 5)] == [[7], [8], [9]]


def test_an_operation_is_that_of_its_constant() -> None:
    x = torch.tensor([1.0, -2.5])
    for factor in (0.0, 1.0, True, 2, 2.0, 0.5, float("inf")):
        found = launched(scaled, x, factor, numbers=2)
        assert found == [number * factor for number in x.tolist()]


def test_programs_and_shapes_are_told_apart() -> None:
    x, y = torch.tensor([1.0, 2.0]), torch.arange(1.0, 6.0)
    for size, n in ((4, 3), (8, 5), (4, 4), (1, 1)):
        out = torch.zeros(3)
        outer[(3,)](x, y, out, n, BN=size)
        expected = [size * 3.0 * m + 2 * float(y[:n].sum()) for m in range(3)]
        assert out.tolist() == expected
