"""The self-check of a runner: does cached decoding give the logits of a plain forward pass?

Three texts of different lengths are decoded over a cache, and compared with one plain pass of the model in float32.
In float32 a fault stands alone. A runner in bfloat16 or float16 is compared with the same float32 logits, and may be
off by little more than a plain pass in its dtype is: what that rounds is measured, and not assumed. An error of a few
percent of a large logit, such as a low-rank term that is left out, is far above it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from eddecode.errors import EngineError
from eddecode.execution.compiled.replace import CompiledModules
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode.models.float32_pass import LOW_PRECISION, Float32Pass
from eddecode.models.rotary import rope_window
from eddecode.utils.memory import if_memory_suffices, is_out_of_memory

_log = logging.getLogger(__name__)

# How far a cached decode may be from a plain forward pass, relative to the largest logit. Rounding stays far below
# it; a mask or a position that a model ignores is far above it. The low dtypes: only without memory for a float32 pass.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.02}
TF32_TOLERANCE = 5e-3  # where torch may round the arguments of float32 products
ROUNDINGS = 2.0  # times what a plain pass in the same dtype is off by; sound runners have 0.5 to 1.5 (docs/numerics.md)
ROUTER_ROUNDINGS = 3.0  # the same for the median of a model with experts: up to 1.8
MIN_ROUNDING = 2.0**-12  # of the size of the logits: less than any low dtype rounds

PREFIXES = (5, 34, 13)  # tokens of the texts before the cache is extended
PIECES = (2, 1, 1)  # tokens that are added in one pass
PRETENDED = 1_000_003  # a length that no text has


@dataclass(frozen=True)
class Probe:
    """Texts to check a runner on.

    Attributes:
        texts: each of `prefixes[i]` tokens and the tokens that follow.
        prefixes: tokens of each before the first step.
        pieces: tokens of every text that each following pass adds.
    """

    texts: list[list[int]]
    prefixes: list[int]
    pieces: tuple[int, ...]

    @classmethod
    def of(cls, model: Any, pieces: tuple[int, ...] = PIECES) -> Probe:
        """For a model, within its vocabulary, and positions up to which its rotary angles stay the same."""
        width = model.get_input_embeddings().weight.shape[0]
        config = model.config.get_text_config()
        limits = [
            getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")
        ]
        known = [limit for limit in (*limits, rope_window(model)) if isinstance(limit, int) and limit > 0]
        longest = min(known, default=1 << 20) - sum(pieces)
        prefixes = [max(1, min(length, longest)) for length in PREFIXES]
        texts = [
            [(7 * i * i + 3 * i + 1) % width for i in range(start, start + length + sum(pieces))]
            for start, length in zip((2, 5, 11), prefixes, strict=True)
        ]
        return cls(texts, prefixes, pieces)

    @property
    def positions(self) -> Tensor:
        """(rows, K) int64: the tokens of the texts after which logits are compared, from the last of the prefix on."""
        return torch.tensor(self.prefixes)[:, None] - 1 + torch.arange(sum(self.pieces) + 1)

    def steps(self) -> list[Tensor]:
        """Per piece, the (rows, T) tokens that are added."""
        more = [
            text[length : length + sum(self.pieces)]
            for text, length in zip(self.texts, self.prefixes, strict=True)
        ]
        return list(torch.split(torch.tensor(more), list(self.pieces), dim=1))


@dataclass(frozen=True)
class Expectation:
    """What a model gives on a probe.

    Attributes:
        probe: the texts.
        exact: (rows, K, V) float32, by a plain pass in float32.
        rounded: the same by a plain pass in the model's own dtype; None where that is float32.
        tolerance: relative to the largest logit, for what is compared in the dtype of `exact`.
        has_router: whether a near tie of the model's router may give another expert, and so another logit.
    """

    probe: Probe
    exact: Tensor
    rounded: Tensor | None
    tolerance: float
    has_router: bool

    @classmethod
    def of(cls, model: Any, probe: Probe | None = None) -> Expectation:
        """Of a model, by plain passes without a cache."""
        probe = probe or Probe.of(model)
        plain = UncachedModelRunner(model, compiled_head=False)
        with torch.inference_mode():
            own = plain.logits_at(probe.texts, probe.positions)
            exact = _in_float32(plain, probe) if model.dtype in LOW_PRECISION else None
        compared_in = model.dtype if exact is None else torch.float32
        tolerance = TOLERANCE.get(compared_in, TOLERANCE[torch.bfloat16])
        may_round = model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
        if compared_in == torch.float32 and may_round:
            tolerance = TF32_TOLERANCE
        has_router = any("expert" in name for name, _ in model.named_modules())
        if exact is None:
            return cls(probe, own, None, tolerance, has_router)
        return cls(probe, exact, own, tolerance, has_router)

    def problem(self, found: Tensor) -> str | None:
        """Why logits (rows, K, V) are not those of the model; None if they are."""
        if self.rounded is None or found.shape != self.exact.shape:
            return self.structural_problem(found)
        error, rounding = (self._error(logits) for logits in (found, self.rounded))
        limit = (ROUTER_ROUNDINGS if self.has_router else ROUNDINGS) * max(
            rounding, MIN_ROUNDING * self._size()
        )
        if error <= limit:
            return None
        return f"was off by {error:.2g}, where rounding explains {limit:.2g}"

    def structural_problem(self, found: Tensor) -> str | None:
        """As `problem`, of logits that were computed in float32."""
        error = relative_error(found, self.exact)
        if error <= self.tolerance:
            return None
        return f"was off by {error:.2g} of the largest logit, above {self.tolerance:g}"

    def _error(self, logits: Tensor) -> float:
        """Root mean square of the error; the median over positions where a router may choose another expert."""
        finite = self.exact.isfinite() & logits.isfinite()
        if not torch.equal(finite, self.exact.isfinite()):
            return math.inf
        difference = torch.where(finite, logits.double() - self.exact.double(), 0.0)
        squares = difference.square().sum(dim=-1) / finite.sum(dim=-1).clamp(min=1)
        return float((squares.median() if self.has_router else squares.mean()).sqrt())

    def _size(self) -> float:
        finite = self.exact[self.exact.isfinite()].double()
        return float(finite.square().mean().sqrt())


def _in_float32(plain: UncachedModelRunner, probe: Probe) -> Tensor | None:
    """The logits of a plain pass in float32; None where one converted weight is more than the memory that is left."""

    def run() -> Tensor:
        with Float32Pass():
            return plain.logits_at(probe.texts, probe.positions)

    found = if_memory_suffices(run)
    if found is None:
        _log.warning(
            "%s: no memory for a pass in float32; the trial compares in %s, and allows more for rounding",
            plain.model.config.model_type,
            plain.model.dtype,
        )
    return found


# Runs of a runner on a probe --------------------------------------------------------------------------------------


def attempt(model: Any, check: Callable[[], str | None]) -> str | None:
    """What a check finds wrong with a way to run a model; an exception on the way is a finding, too.

    Raises:
        EngineError: there is no memory for the check.
    """
    try:
        return check()
    except (EngineError, ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError) as why:
        if is_out_of_memory(why):
            raise EngineError(
                f"not enough memory to try the model ({model.config.model_type}) on a few tokens: use a "
                'smaller dtype, a larger device, or device_map="auto"'
            ) from why
        return f"failed: {type(why).__name__}: {str(why).splitlines()[0] if str(why) else 'no message'}"


@torch.inference_mode()
def logits_of(runner: CachedModelRunner, probe: Probe) -> Tensor:
    """Logits (rows, K, V) of a probe: prefilled one by one, then extended together."""
    prefixes = [
        runner.prefill([tuple(text[:length])])[0]
        for text, length in zip(probe.texts, probe.prefixes, strict=True)
    ]
    for prefix in prefixes:
        runner.add(prefix)
    first = torch.stack([prefix.logits for prefix in prefixes])[:, None]
    return torch.cat([first, *(runner.forward(piece) for piece in probe.steps())], dim=1)


def check_runner(runner: CachedModelRunner, expectation: Expectation) -> str | None:
    """Why a runner cannot be used: it fails, or differs from plain forward passes; None if it can."""

    def check() -> str | None:
        problem = expectation.problem(logits_of(runner, expectation.probe))
        if problem is None and depends_on_length(runner, expectation.probe):
            problem = "makes a row depend on the length of the others"
        return problem

    return attempt(runner.model, check)


def check_structure(model: Any, kind: type[CachedModelRunner], expectation: Expectation) -> str | None:
    """Why a model in a low dtype cannot be decoded over a cache: its own layers, in float32, differ; None if it can."""
    if expectation.rounded is None:
        return None

    def check() -> str | None:
        layers = CompiledModules(model, whole_layers=False, operations=False)
        with Float32Pass():
            found = logits_of(kind(model, dense_mask=True, layers=layers), expectation.probe)
        return expectation.structural_problem(found)

    return attempt(model, check)


@torch.inference_mode()
def depends_on_length(runner: CachedModelRunner, probe: Probe) -> bool:
    """Whether a pass over rows of different lengths uses *the* length of the cache, after a probe has run.

    A pass is repeated while the cache gives another answer. Positions of released models are scaled from 8,192 tokens
    on (Llama 4), which no short text would show.
    """
    asked = any(layer.write is not None and layer.write.length_was_asked for layer in runner.cache.layers)
    if not (asked and runner.serves_ragged_passes):
        return False
    # Not by `runner` itself, whose steps may be captured: with the answer of that time.
    plain = CachedModelRunner(runner.model, dense_mask=runner.dense_mask, layers=runner.layers)
    logits_of(plain, probe)
    tokens, lengths = probe.steps()[-1], list(plain.cache.lengths)
    before = plain.forward(tokens)
    plain.truncate(lengths)
    plain.cache.pretended = PRETENDED
    try:
        after = plain.forward(tokens)
    except (ValueError, TypeError, RuntimeError, IndexError):
        return True
    return relative_error(after, before) > TOLERANCE[torch.float32]


def max_relative_error(runner: CachedModelRunner, pieces: tuple[int, ...] = PIECES) -> float:
    """Largest difference between cached decoding and a plain forward pass, see `relative_error`."""
    expectation = Expectation.of(runner.model, Probe.of(runner.model, pieces))
    return relative_error(logits_of(runner, expectation.probe), expectation.exact)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the size of a large logit, or to its own size where a logit is larger still.

    A padded id may have −1e4 or −inf in a sound model: it must not set the scale for the others.
    """
    if found.shape != expected.shape:
        return math.inf
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(expected[~finite], found[~finite]):
        return math.inf  # NaN equals nothing, not even itself
    found, expected = found[finite].double(), expected[finite].double()
    size = expected.abs()
    large = size.sort().values[int(0.99 * (size.numel() - 1))].clamp(min=torch.finfo(torch.float32).tiny)
    return ((found - expected).abs() / size.clamp(min=large)).max().item()
