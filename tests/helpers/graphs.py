"""Shared by the tests of captured steps: a runner on a tape, and the texts that its rows should have."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.pairs import Shape, build
from eddecode.execution.cuda_graph import GraphModelRunner
from eddecode.execution.factory import separate_pair_runner
from eddecode.models.pair import ModelPair
from eddecode.sampler import Sampler
from helpers import decoding, reference, tiny
from helpers.tape import Tape

EVERY = pytest.mark.parametrize("arch", list(tiny.ARCHITECTURES))


def close(found: torch.Tensor, model: Any, rows: list[list[int]]) -> None:
    wanted = np.stack([reference.next_logits(model, row) for row in rows])
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.double().numpy(), wanted, rtol=1e-4, atol=2e-4)


class Driver:
    """A decoder, and the texts that its rows should have read by now."""

    def __init__(
        self, model: Any, lengths: tuple[int, ...] = (), model_runner: GraphModelRunner | None = None
    ) -> None:
        self.model, self.rows = model, list[list[int]]()
        self.model_runner = model_runner or GraphModelRunner(model, Tape)
        self.seed = itertools.count(100)
        for length in lengths:
            self.enter(length)

    def enter(self, length: int) -> None:
        text = decoding.ids(next(self.seed), length)
        self.model_runner.add(self.model_runner.prefill([text])[0])
        self.rows.append(list(text))

    def leave(self, slot: int) -> None:
        self.model_runner.remove(slot)
        self.rows[slot] = self.rows[-1]
        self.rows.pop()

    def rewind(self, lengths: list[int]) -> None:
        self.model_runner.truncate(lengths)
        self.rows = [row[:length] for row, length in zip(self.rows, lengths, strict=True)]

    def go(self, count: int = 1, check: bool = True) -> torch.Tensor:
        """Read `count` random tokens at once; the logits of the last are those of plain forward passes."""
        new = [decoding.ids(next(self.seed), count) for _ in self.rows]
        found = self.model_runner.forward(torch.tensor(new))
        self.rows = [[*row, *more] for row, more in zip(self.rows, new, strict=True)]
        if check:
            close(found[:, -1], self.model, self.rows)
        return found

    @property
    def captured(self) -> list[tuple[int, int]]:
        return list(self.model_runner.buffers.steps)


def captured_sampler(pair: ModelPair, **options: Any) -> Sampler:
    made = Sampler(pair, **options)
    made._runner = separate_pair_runner(pair, Tape)
    assert all(isinstance(model_runner, GraphModelRunner) for model_runner in made.runner.model_runners)
    return made


def adapted(device: str = "cpu") -> ModelPair:
    """A pair on one backbone."""
    shape = Shape(hidden=32, feed_forward=48, layers=2, heads=4, vocabulary=tiny.VOCAB)
    made = build(shape, "float32", "lora", device)
    pair = made.model_pair()
    pair.aligned.low_rank_factors = dict(made.factors)
    return pair
