"""Which stages there are, in which order and processes, and how long each may take. Imports nothing that could fail.

The first phase measures no time but that of compiling: its lanes are processes beside each other, and what they compile
is in Triton's cache afterwards. The second phase has the GPU for itself, cheapest stages first.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """Seconds of a stage on one H100 or H200.

    Attributes:
        expected: what it takes, by an estimate: compiling a kernel takes 1 s there.
        limit: after which it is ended.
    """

    expected: int
    limit: int


STAGES = {
    "environment": Stage(1, 20),
    "trial": Stage(45, 100),
    "first": Stage(60, 120),
    "families": Stage(60, 140),
    "draws": Stage(45, 100),
    "more-families": Stage(70, 140),
    "tests": Stage(110, 150),
    "bandwidth": Stage(2, 20),
    "sampling": Stage(4, 40),
    "products": Stage(8, 40),
    "attention": Stage(8, 40),
    "build": Stage(6, 40),
    "entering": Stage(10, 60),
    "steps": Stage(10, 50),
    "tasks": Stage(10, 50),
    "bits": Stage(28, 60),
    "speculation": Stage(25, 50),
    "profile": Stage(10, 30),
    "long": Stage(15, 50),
    "lora": Stage(12, 40),
    "alternatives": Stage(40, 70),
    "experts": Stage(20, 50),
    "grouped": Stage(22, 60),
    "compiled": Stage(60, 110),
}
# Phases, one after the other; lanes of a phase, beside each other; stages of a lane, in order.
PHASES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("environment", "trial", "first"), ("families",), ("draws", "more-families"), ("tests",)),
    (
        (
            *("bandwidth", "sampling", "products", "attention", "build", "entering", "steps", "tasks"),
            *(
                "bits",
                "speculation",
                "profile",
                "long",
                "lora",
                "alternatives",
                "experts",
                "grouped",
                "compiled",
            ),
        ),
    ),
)
TOTAL = 465  # seconds for everything
START_UP = 120  # seconds more for the first stage of a process: imports
DRY_FACTOR = 20  # times all of these in a dry run: Triton's interpreter on a busy machine


def expected_seconds() -> int:
    """What everything takes: of the lanes of a phase, the longest; and ten seconds for each phase to start."""
    return sum(10 + max(sum(STAGES[s].expected for s in lane) for lane in phase) for phase in PHASES)
