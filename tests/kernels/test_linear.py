"""Products for every width of register: against float64, and with the same bits in any batch."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eddecode_kernels import jit, layers_cpu
from eddecode_kernels.types import UnavailableError

# (weights, result): one rounding of a sum of K products, and one more for a result of less than float32.
DTYPES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
]
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
# Widths around multiples of 4, 8, 16 and 32, and one row of x or W as well as many.
SIZES = [(64, 96), (50, 33), (7, 5), (1, 1), (33, 31), (3, 700), (37, 1031), (129, 64), (36, 8)]
ROWS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 31, 64, 130)
WIDTHS = {"native": (), "at most eight lanes": ("-mno-avx512f",), "unknown": ("-mno-avx512f", "-mno-avx2")}


@pytest.fixture(scope="module", params=WIDTHS)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """What finds a function of the library, built for one of the widths."""
    flags = WIDTHS[request.param]
    try:
        compiler = jit.find_compiler()
        if not flags:
            jit.library()
            return jit.function
    except UnavailableError as why:
        pytest.skip(str(why))
    if platform.machine() != "x86_64":
        pytest.skip("other widths are those of x86")
    if "-mno-avx2" not in flags and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the native width")
    path = tmp_path_factory.mktemp("build") / "linear.so"
    source = str(Path(jit.SOURCES) / "linear.cpp")
    options = [*jit.COMMON, "-O1", "-march=native", *flags, "-fopenmp", "-shared"]
    subprocess.run(
        [*compiler, *options, source, "-o", str(path)], check=True, capture_output=True, timeout=100
    )
    library = ctypes.CDLL(str(path))

    def function(symbol: str, *argument_types: object) -> object:
        found = getattr(library, symbol)
        found.argtypes, found.restype = argument_types, None
        return found

    return function


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dtype", "out"), DTYPES)
def test_products_are_exact_and_a_row_has_the_same_bits_in_any_batch(
    build: Callable[..., object], dtype: torch.dtype, out: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers_cpu, "function", build)
    for n, k in SIZES:
        weight, bias, x = (
            random(n, k).to(dtype),
            random(n, seed=1).to(dtype),
            random(130, k, seed=2).to(dtype),
        )
        for b in (bias, None):
            linear = layers_cpu.compiled_linear(weight, b, out)
            if linear is None and dtype == torch.float16:
                pytest.skip("this processor does not convert float16")
            assert linear is not None
            whole = linear(x)
            assert whole.dtype == out
            expected = x.double() @ weight.double().T + (0 if b is None else b.double())
            scale = (x.double().abs() @ weight.double().abs().T).max()
            assert (whole.double() - expected).abs().max() / scale < LIMIT[out], (n, k)
            for rows in ROWS:
                assert torch.equal(linear(x[:rows]), whole[:rows]), (n, k, rows)
                assert torch.equal(linear(x[-rows:]), whole[-rows:]), (n, k, rows)
        many = random(600, k, seed=3).to(dtype)  # more than are multiplied at a time
        assert torch.equal(linear(many)[-1:], linear(many[-1:]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sums_and_threads_change_no_bit(
    build: Callable[..., object], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers_cpu, "function", build)
    weight, x = random(70, 9001).to(dtype), random(40, 9001, seed=1).to(dtype)
    linear = layers_cpu.compiled_linear(weight, None, torch.float32)
    assert linear is not None
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = linear(x)
        torch.set_num_threads(3)
        assert torch.equal(linear(x), alone)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat([linear(row[None]) for row in x]), alone)
    torch.testing.assert_close(alone.double(), x.double() @ weight.double().T, rtol=1e-4, atol=2e-3)
