"""Speculation pays or stops: on a clock that only the models' passes move, and what each of them costs is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from eddecode import ModelPair, Sampler, SamplingParams
from eddecode.engine.engine import Engine
from eddecode.engine.speculative.cost_model import PURSE, Account, Chances, Curve, Recent, Record
from eddecode.engine.speculative.drafters import Column, levels
from eddecode.engine.speculative.speculator import Speculation
from eddecode.execution.pair_runner import PairRunner
from eddecode.prompts.types import RenderedPrompt
from helpers import decoding, tiny

DRAW = 0.02  # seconds of drawing one token for every row


@dataclass
class Clock:
    now: float = 0.0


class Timed(PairRunner):
    """A pass over T tokens per row takes price(model, T) seconds; where `joint`, a step of both models takes that."""

    clock: Clock
    price: Callable[[int, int], float]
    joint: float | None = None

    def forward_model(self, model: int, tokens: torch.Tensor, lengths: Any) -> torch.Tensor:
        self.clock.now += self.price(model, tokens.shape[1])
        return super().forward_model(model, tokens, lengths)

    def forward(self, tokens: torch.Tensor, lengths: Any) -> list[torch.Tensor]:
        start = self.clock.now
        result = super().forward(tokens, lengths)
        if self.joint is not None:
            more = self.price(1, tokens.shape[1]) - self.price(1, 1)
            self.clock.now = start + self.joint + more
        return result


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(
        "eddecode.engine.speculative.speculator.time", SimpleNamespace(perf_counter=lambda: clock.now)
    )
    draw = Engine.draw

    def timed(self: Engine, draws: Any, logits: Any) -> Any:
        clock.now += DRAW
        return draw(self, draws, logits)

    monkeypatch.setattr(Engine, "draw", timed)
    return clock


def sampler_on(clock: Clock, pair: ModelPair, price: Callable[[int, int], float], **options: Any) -> Sampler:
    joint = options.pop("joint", None)
    sampler = Sampler(pair, **options)
    runner = Timed(pair)
    runner.clock, runner.price, runner.joint = clock, price, joint
    sampler._runner = runner
    return sampler


PRICES: dict[str, Callable[[int, int], float]] = {
    "flat": lambda model, tokens: 1 + 0.05 * (tokens - 1),
    "steep": lambda model, tokens: 1 + 0.9 * (tokens - 1),
}


def gains(clock: Clock, pair: ModelPair, rows: int, price: str, **options: Any) -> tuple[list[float], Record]:
    """Plain seconds over seconds with guesses, of three completions one after the other from a cold start."""
    speculation = options.pop("speculation", "base")
    plain = sampler_on(clock, pair, PRICES[price], **options)
    guessing = sampler_on(clock, pair, PRICES[price], speculation=speculation, **options)
    found = []
    for seed in range(3):
        params = SamplingParams(alpha=0.4, max_new_tokens=100, ignore_eos=True, n=rows, seed=seed)
        prompt = RenderedPrompt((1, 2, 3, 4, 5), (1, 2, 3, 4, 5))
        times, tokens = [clock.now], []
        for sampler in (plain, guessing):
            tokens.append(decoding.tokens(sampler.generate(prompt, params)))
            times.append(clock.now)
        assert tokens[0] == tokens[1]
        found.append((times[1] - times[0]) / (times[2] - times[1]))
    assert guessing._speculation is not None
    return found, guessing._speculation.record


def apart(amount: float) -> ModelPair:
    base = tiny.tiny_model("llama")
    return ModelPair.from_models(base, tiny.tiny_aligned(base, amount=amount))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("price", "joint"), [("flat", None), ("steep", None), ("flat", 1.2), ("steep", 1.2)])
@pytest.mark.parametrize("amount", [0.02, 0.2])
def test_it_loses_next_to_nothing_where_it_does_not_pay(
    clock: Clock, amount: float, price: str, joint: float | None, rows: int
) -> None:
    """Guesses that are mostly wrong, passes that cost by the token, models that share a pass: 3% at the most."""
    found, _ = gains(clock, apart(amount), rows, price, joint=joint)
    assert 1 / (sum(1 / gain for gain in found) / 3) > 0.97


@pytest.mark.parametrize("rows", [1, 5])
def test_it_gains_where_it_pays(clock: Clock, rows: int) -> None:
    """A base that is always right, passes that cost next to nothing by the token: k + 1.05 for 2·k is the limit."""
    found, record = gains(clock, apart(0.0), rows, "flat")
    assert found[0] > 1.4
    assert min(found[1:]) > 1.6
    assert record.right == record.guessed


class Oracle:
    """Guesses that are right, or wrong, each time, at a price."""

    name, is_base, token_bytes = "oracle", False, 0

    def __init__(self, clock: Clock, truth: dict[int, list[int]], price: float) -> None:
        self.clock, self.truth, self.price = clock, truth, price
        self.asked = 0

    def share(self, engine: Engine) -> float:
        return 0.0

    def fresh(self) -> Oracle:
        return self

    def trim(self) -> None: ...

    def follow(self, rows: Any) -> None: ...

    def room(self, rows: Any) -> int:
        return 100

    def guesses(self, engine: Engine, rows: Any) -> Iterator[Column]:
        for i in range(100):
            self.clock.now += self.price
            self.asked += 1
            texts = [self.truth[row.request.tag[1]][len(row.tokens) :] for row in rows]
            yield Column([text[i] if i < len(text) else 0 for text in texts], [9] * len(rows))


@pytest.mark.parametrize(("right", "price"), [(True, 0.1), (False, 0.1), (False, 0.0), (True, 3.0)])
def test_a_guesser_is_asked_as_long_as_it_earns_its_price(clock: Clock, right: bool, price: float) -> None:
    """Counts of guesses, not times: few if they are wrong, or dear; nearly one per token otherwise."""
    pair, tokens = apart(0.3), 200
    plain = sampler_on(clock, pair, PRICES["flat"])
    prompt = RenderedPrompt((1, 2, 3), (4, 5))
    params = SamplingParams(alpha=1.0, max_new_tokens=tokens, ignore_eos=True, seed=3)
    truth = plain.generate(prompt, params)[0].token_ids
    said = truth if right else [(token + 1) % tiny.VOCAB for token in truth]
    oracle = Oracle(clock, {0: said}, price)
    sampler = sampler_on(clock, pair, PRICES["flat"])
    sampler._speculation = Speculation([oracle])
    start = clock.now
    assert sampler.generate(prompt, params)[0].token_ids == truth
    record = sampler._speculation.record
    if right and price < 1:
        assert record.right == record.guessed > 0.7 * tokens
        assert clock.now - start < 0.5 * tokens * (2 + DRAW)
    else:
        assert record.guessed <= 4  # what was read
        assert oracle.asked < (tokens / 3 if price else tokens + 1)  # asking for nothing may go on
        assert clock.now - start < 1.03 * tokens * (2 + DRAW) + price * 3


# The parts


def test_a_purse_bounds_what_asking_loses() -> None:
    """Each step that it is asked loses a tenth of a plain step: rests double, so the loss grows by the logarithm."""
    account, lost, losses = Account(0.0, 0.0), 0.0, []
    for _ in range(2000):
        if account.may_be_asked(1.0):
            account.settle(0.1)
            lost += 0.1
        losses.append(lost)
    assert losses[127] <= 2 * (PURSE + 0.1)
    assert lost <= 7 * (PURSE + 0.1)


def test_one_that_gains_is_asked_at_every_step() -> None:
    account = Account(0.0, 0.0)
    for step in range(500):
        assert account.may_be_asked(1.0)
        account.settle(0.1 if step % 2 else -0.2)


def test_one_that_could_not_pay_even_if_always_right_is_not_asked() -> None:
    """The base of a shared backbone: its pass takes as long as the step of both."""
    account = Account(share=1.0, saved=1.0)
    assert not any(account.may_be_asked(1.0) for _ in range(500))


def test_chances_are_those_of_the_level() -> None:
    chances = Chances()
    generator = torch.Generator().manual_seed(0)
    for _ in range(2000):
        level = int(torch.randint(10, (), generator=generator))
        chances.add(level, bool(torch.rand((), generator=generator) < level / 10))
    for level in range(10):
        rate = level / 10
        error = (rate * (1 - rate) / 50) ** 0.5
        assert rate - 4 * error - 0.05 < chances.of(level) <= rate + 2 * error + 0.02
    assert chances.of(-1) == 0.0


def test_little_known_is_little_trusted() -> None:
    chances = Chances()
    assert chances.of(3) < 0.5
    chances.add(3, True)
    first = chances.of(3)
    for _ in range(10):
        chances.add(3, True)
    assert first < chances.of(3) < 1.0
    assert chances.of(7) > 0.5  # the others are taken to be like it


def test_a_curve_goes_through_what_is_known_and_on_from_there() -> None:
    curve = Curve()
    assert (curve.at(1, 2.0), curve.at(3, 2.0)) == (2.0, pytest.approx(2.2))
    assert curve.longest == 2
    for tokens, seconds in ((1, 1.0), (4, 1.6), (4, 1.6), (4, 9.9)):
        curve.add(tokens, seconds)
    assert curve.slope(5.0) == pytest.approx(0.2)
    assert [curve.at(tokens, 5.0) for tokens in (1, 2, 4, 6)] == pytest.approx([1.0, 1.2, 1.6, 2.0])
    assert curve.longest == 8


def test_a_step_that_was_held_up_does_not_count() -> None:
    recent = Recent()
    assert recent.value(3.0) == 3.0
    for seconds in (1.0, 1.1, 50.0, 0.9, 1.0):
        recent.add(seconds)
    assert recent.value(3.0) == 1.0


def test_levels_are_margins() -> None:
    logits = torch.tensor([[0.0, 0.05, -9.0], [4.0, 0.0, 1.2], [-float("inf"), 3.0, -float("inf")]])
    assert levels(logits) == [0, 6, 9]
