"""The self-check of a runner: does cached decoding give the logits of a plain forward pass?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eddecode.errors import EngineError
from eddecode.execution.runner import CachedModelRunner
from eddecode.execution.uncached_runner import UncachedModelRunner
from eddecode.utils.memory import is_out_of_memory

# How far a cached decode may be from a plain forward pass, relative to the largest logit. Rounding stays far below
# it; a mask or a position that a model ignores is far above it.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.06, torch.float16: 0.02}


def self_check(model: Any, measure: Callable[[], float]) -> str | None:
    """Why a way to run a model cannot be used: it fails, or differs from a plain forward pass; None if it can.

    Args:
        model: the model.
        measure: runs it that way on probe inputs, and returns the largest relative error.

    Raises:
        EngineError: there is no memory for the check.
    """
    try:
        error = measure()
    except (EngineError, ValueError, TypeError, AttributeError, RuntimeError, IndexError, KeyError) as why:
        if is_out_of_memory(why):
            raise EngineError(
                f"not enough memory to try the model ({model.config.model_type}) on a few tokens: use a "
                'smaller dtype, a larger device, or device_map="auto"'
            ) from why
        return f"failed: {type(why).__name__}: {str(why).splitlines()[0] if str(why) else 'no message'}"
    limit = TOLERANCE.get(model.dtype, 0.06)
    return None if error <= limit else f"was off by {error:.2g} of the largest logit, above {limit:g}"


@torch.inference_mode()
def max_relative_error(runner: CachedModelRunner, pieces: tuple[int, ...] = (2, 1)) -> float:
    """Largest difference between cached decoding and plain forward passes, relative to the largest logit.

    Two rows of different lengths are prefilled and then given three tokens in `pieces`: several and one, or one by one
    where a step of one token is what is checked. Each is also run alone and whole.
    """
    texts, prefix_lengths = probe_inputs(runner.model)
    for text, length in zip(texts, prefix_lengths, strict=True):
        runner.add(runner.prefill([tuple(text[:length])])[0])
    more = torch.tensor(
        [text[length : length + 3] for text, length in zip(texts, prefix_lengths, strict=True)]
    )
    after = [runner.forward(piece) for piece in torch.split(more, list(pieces), dim=1)]
    found = torch.cat(after, dim=1)[:, 1:]  # (2, 2, V)
    return relative_error(found, plain_logits(runner.model, texts, prefix_lengths))


def probe_inputs(model: Any) -> tuple[list[list[int]], list[int]]:
    """Two texts to check a runner on, and how much of each is its prefix."""
    width = model.get_input_embeddings().weight.shape[0]
    return [[(7 * i * i + 3 * i + 1) % width for i in range(start, start + 7)] for start in (2, 5)], [4, 2]


def plain_logits(model: Any, texts: Sequence[Sequence[int]], prefix_lengths: Sequence[int]) -> Tensor:
    """Logits after two and after three tokens more than the prefix, (texts, 2, V), by plain forward passes."""
    plain = UncachedModelRunner(model)
    rows = [
        [plain.prefill([tuple(text[: length + more])])[0].logits for more in (2, 3)]
        for text, length in zip(texts, prefix_lengths, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the size of a large logit, or to its own size where a logit is larger still.

    A padded id may have −1e4 or −inf in a sound model: it must not set the scale for the others.
    """
    finite = expected.isfinite()
    if not torch.equal(finite, found.isfinite()) or not torch.equal(expected[~finite], found[~finite]):
        return math.inf  # NaN equals nothing, not even itself
    found, expected = found[finite].double(), expected[finite].double()
    size = expected.abs()
    large = size.sort().values[int(0.99 * (size.numel() - 1))].clamp(min=torch.finfo(torch.float32).tiny)
    return ((found - expected).abs() / size.clamp(min=large)).max().item()
