"""What the figures must reach, and whether they do. Imports nothing that could fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

H200_BANDWIDTH = (
    4.39  # TB/s that an H200 read where the tokens a second were set; others need as many per byte read
)
MET, MISSED, NO_FIGURE = "met", "MISSED", "no figure"


@dataclass(frozen=True)
class Goal:
    """What one figure must reach.

    Attributes:
        stage, figure: which one.
        at_least, at_most: one of the two.
        scaled: whether it is that of an H200, and grows with the bandwidth.
    """

    stage: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None
    scaled: bool = False


GOALS = (
    Goal("first", "compiling in a first call, s by the clock", at_most=10),
    Goal("first", "second process · kernels compiled", at_most=0),
    Goal("families", "families right, of 6", at_least=6),
    Goal("more-families", "families right, of 9", at_least=9),
    Goal("tests", "tests failed", at_most=0),
    Goal("sampling", "128000 ids × 1 row, top-p, µs", at_most=100),
    Goal("sampling", "128000 ids × 64 rows, top-p, µs", at_most=250),
    Goal("entering", "64 rows enter, ms", at_most=20),
    Goal("steps", "1 row · pair ÷ one model", at_most=1.6),
    Goal("tasks", "T1 · share of the read bandwidth", at_least=0.85),
    Goal("tasks", "T1 · tokens a second", at_least=140, scaled=True),
    Goal("tasks", "T2 · share of the read bandwidth", at_least=0.80),
    Goal("tasks", "T3 · share of the read bandwidth", at_least=0.65),
    Goal("tasks", "T3 · tokens a second", at_least=5000, scaled=True),
    Goal("bits", "sampled · alone = among 64, of 32", at_least=32),
    Goal("bits", "greedy · alone = among 64, of 32", at_least=32),
    Goal("bits", "sampled · 5 slots = 64 slots, of 32", at_least=32),
    Goal("bits", "greedy · 5 slots = 64 slots, of 32", at_least=32),
    Goal("speculation", "tokens that differ with drafts", at_most=0),
    Goal("alternatives", "T3, a sweep · (b) pair, eager ÷ ours", at_least=10),
    Goal("alternatives", "T1 · (c) one model's generate ÷ ours", at_least=1),
    Goal("alternatives", "T2 · (c) one model's generate ÷ ours", at_least=1),
    Goal("alternatives", "T3, a sweep · (c) one model's generate ÷ ours", at_least=1),
    Goal("compiled", "T1 · (e) pair, compiled by torch ÷ ours", at_least=1),
    Goal("long", "share of the read bandwidth", at_least=0.60),
    Goal("grouped", "share of the read bandwidth", at_least=0.60),
    Goal("grouped", "peak memory ÷ weights and used cache", at_most=1.10),
    Goal("lora", "completions alone = among 8, of 8", at_least=8),
    Goal("experts", "completions alone = among 8, of 8", at_least=8),
)


@dataclass(frozen=True)
class Verdict:
    """What was found of a goal.

    Attributes:
        stage, figure: of the goal.
        found: the figure; None if there is none.
        limit, at_most: what it must reach, or not exceed.
        state: MET, MISSED or NO_FIGURE.
    """

    stage: str
    figure: str
    found: float | None
    limit: float
    at_most: bool
    state: str

    @property
    def goal_text(self) -> str:
        """Such as ≥ 0.85."""
        return f"{'≤' if self.at_most else '≥'} {self.limit:.4g}"


def judged(results: Mapping[str, Any]) -> list[Verdict]:
    """A verdict on each goal of the stages that have a result."""
    bandwidth = results.get("bandwidth", {}).get("found", {}).get("read, TB/s")
    return [_verdict(goal, results[goal.stage], bandwidth) for goal in GOALS if goal.stage in results]


def _verdict(goal: Goal, result: Mapping[str, Any], bandwidth: float | None) -> Verdict:
    found = (result.get("found") or {}).get(goal.figure)
    limit = goal.at_most if goal.at_least is None else goal.at_least
    assert limit is not None
    if goal.scaled and bandwidth is not None:
        limit *= bandwidth / H200_BANDWIDTH
    at_most = goal.at_least is None
    if not isinstance(found, int | float):
        return Verdict(goal.stage, goal.figure, None, limit, at_most, NO_FIGURE)
    met = found <= limit if at_most else found >= limit  # a NaN meets nothing
    return Verdict(goal.stage, goal.figure, found, limit, at_most, MET if met else MISSED)
