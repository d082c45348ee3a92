"""How the cost of a decode step grows: one thing varied at a time, `python -m benchmarks growth --out FILE`.

Batch, α's, prompt length, vocabulary and model size are each varied around one point: one prompt of 32 tokens, one α,
32,000 ids, 134M parameters, sampled. Every round takes a few steps at every point, eddecode's and those of
alternative (b) in turn: a step of the one between two steps of the other, so that both meet the same machine. A
round's figure is the median of its steps; beside it stands what reading the weights and the cache would take at the
bandwidth of that round.

Rounds are added to what FILE holds, one at a time, until there are `--rounds` of each; `--seconds` ends the command
after a round, with exit code 3 while rounds are missing. So a long measurement can be taken in short pieces.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.utils import logging

from benchmarks import report, store
from benchmarks.alternatives import PairProcessor, generate
from benchmarks.growth_picture import draw
from benchmarks.measure import Bandwidth
from benchmarks.pairs import DTYPES, BenchPair, Shape, build, texts_of
from benchmarks.roofline import position_bytes, step_weights
from benchmarks.tasks import Work
from eddecode.engine.engine import Engine
from eddecode.prompts.types import RenderedPrompt
from eddecode.sampler import Sampler
from eddecode.sampling.params import SamplingParams

STEPS = 8  # timed per point, round and contender
WARM = 2  # taken before, and not timed
ENTERING = 3  # steps that the engine may need to get all rows in
MORE_TO_DO = 3  # exit code

# Sizes at one and the same vocabulary, by the parameters of one model.
MIDDLE = Shape(hidden=768, feed_forward=2048, layers=12, heads=12)
LADDER = {
    "9M": Shape(hidden=128, feed_forward=352, layers=4, heads=2),
    "30M": Shape(hidden=320, feed_forward=864, layers=8, heads=5),
    "58M": Shape(hidden=512, feed_forward=1376, layers=8, heads=8),
    "134M": MIDDLE,
    "374M": Shape(hidden=1024, feed_forward=2816, layers=24, heads=16),
}


@dataclass(frozen=True)
class Point:
    """Where a step is measured.

    Attributes:
        rows: completions per α that decode together.
        alphas: how many α's.
        prompt: tokens that each model has read.
        shape: of both models.
        alternative: whether (b) is measured as well: where it does not take too long.
    """

    rows: int = 1
    alphas: int = 1
    prompt: int = 32
    shape: Shape = MIDDLE
    alternative: bool = True


PANELS: dict[str, dict[str, Point]] = {
    "batch": {str(n): Point(rows=n, alternative=n <= 32) for n in (1, 2, 4, 8, 16, 32, 64, 128)},
    "alphas": {str(n): Point(alphas=n) for n in (1, 2, 4, 8, 16)},
    "prompt": {str(n): Point(prompt=n) for n in (16, 64, 256, 1024, 2048)},
    "vocabulary": {
        str(n): Point(shape=replace(MIDDLE, vocabulary=n))
        for n in (8_000, 16_000, 32_000, 64_000, 128_000, 256_000)
    },
    "size": {name: Point(shape=shape) for name, shape in LADDER.items()},
}


@dataclass
class Steps:
    """A clock over steps that are told when they begin and end."""

    seconds: list[float] = field(default_factory=list)

    def time(self, step: Callable[[], object]) -> None:
        """Take a step."""
        start = time.perf_counter()
        step()
        self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        """Seconds, without the first few."""
        return statistics.median(self.seconds[WARM:])


class Interrupted(PairProcessor):
    """(b)'s processor, which lets someone else take a turn between two steps of `generate` and times its own."""

    def __init__(self, *arguments: Any, turn: Callable[[], None]) -> None:
        super().__init__(*arguments)
        self.turn, self.steps, self.since = turn, Steps(), None

    steps: Steps
    since: float | None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """As the processor does; called once per step, so the time between two calls is a step's."""
        result = super().__call__(input_ids, scores)
        now = time.perf_counter()
        if self.since is not None:  # the first call ends the prefill
            self.steps.seconds.append(now - self.since)
        self.turn()
        self.since = time.perf_counter()
        return result


class Ours:
    """Our engine with all its rows in place, about to take steps."""

    def __init__(self, sampler: Sampler, point: Point, steps: int) -> None:
        prompt = prompt_of(point)
        strengths = alphas_of(point)
        params = [
            SamplingParams(alpha=alpha, n=point.rows, max_new_tokens=steps + ENTERING + 1, ignore_eos=True)
            for alpha in strengths
        ]
        self.engine: Engine = sampler._submit([prompt] * len(strengths), params)[0]
        wanted = point.rows * point.alphas
        for _ in range(ENTERING):
            if len(self.engine.scheduler.running) < wanted:
                self.engine.step()
        if len(self.engine.scheduler.running) != wanted:
            raise RuntimeError(
                f"{len(self.engine.scheduler.running)} of {wanted} rows decode together: is there enough memory?"
            )
        self.left, self.steps = steps, Steps()

    def turn(self) -> None:
        """Take a timed step, if any is left to take."""
        if self.left:
            self.left -= 1
            self.steps.time(self.engine.step)


def prompt_of(point: Point) -> RenderedPrompt:
    """The same number of random ids for both models."""
    return texts_of(1, point.prompt, point.shape.vocabulary)[0]


def alphas_of(point: Point) -> list[float]:
    """Strengths from 0.1 to 2."""
    return torch.linspace(0.1, 2, point.alphas).tolist() if point.alphas > 1 else [0.3]


def measure(pair: BenchPair, sampler: Sampler, point: Point, steps: int = STEPS) -> dict[str, float]:
    """Seconds of one step of all rows at all α's, per contender."""
    ours = Ours(sampler, point, WARM + steps)
    found = {}
    if point.alternative:
        found["processor"] = sum(
            alternative_step(pair, point, alpha, ours, steps) for alpha in alphas_of(point)
        )
    while ours.left:
        ours.turn()
    return {"eddecode": ours.steps.median, **found}


@torch.inference_mode()
def alternative_step(pair: BenchPair, point: Point, alpha: float, ours: Ours, steps: int) -> float:
    """Seconds of a step of (b), which decodes one α; a step of ours is taken after each, while there are any."""
    prompt = prompt_of(point)
    processor = Interrupted(pair.aligned, alpha, [prompt.aligned_ids] * point.rows, turn=ours.turn)
    work = Work((prompt,) * point.rows, (alpha,), WARM + steps + 1, 1.0)
    processors = LogitsProcessorList([processor])
    generate(pair.base, [prompt.base_ids] * point.rows, work, logits_processor=processors)
    return processor.steps.median


def bytes_of(pair: BenchPair, point: Point) -> int:
    """What a step has to read: both models' weights once, and the keys and values of all rows."""
    positions = point.rows * point.alphas * (point.prompt + WARM + STEPS // 2)
    return sum(step_weights(model) + position_bytes(model) * positions for model in (pair.base, pair.aligned))


def parameters(shape: Shape) -> int:
    """How many numbers one model is made of."""
    layer = shape.hidden * (4 * shape.hidden + 3 * shape.feed_forward + 2)
    return shape.layers * layer + 2 * shape.vocabulary * shape.hidden + shape.hidden


# A panel's rounds ---------------------------------------------------------------------------------------------------

Record = dict[str, Any]


def blank(panel: str) -> list[Record]:
    """The points of a panel before anything was measured."""
    return [
        {
            "vary": panel,
            "value": name,
            "rows": point.rows,
            "alphas": point.alphas,
            "prompt": point.prompt,
            "vocabulary": point.shape.vocabulary,
            "parameters": parameters(point.shape),
            "seconds": {},
            "floor": [],
        }
        for name, point in PANELS[panel].items()
    ]


def add_rounds(
    panel: str,
    records: list[Record],
    options: argparse.Namespace,
    left: Callable[[], bool],
    told: Callable[[], None],
) -> None:
    """Add rounds to the records of a panel, in place, until there are enough or time is up.

    A pair per shape is made first and kept, so that a round goes over all points without a pause.
    """
    points = PANELS[panel]
    pairs = {shape: build(shape, options.dtype) for shape in {point.shape for point in points.values()}}
    for pair in pairs.values():
        pair.base.config.max_position_embeddings = pair.aligned.config.max_position_embeddings = 4096
    samplers = {shape: Sampler(pair.model_pair(), max_slots=128) for shape, pair in pairs.items()}
    for point in points.values():  # what is made on first use is made now
        measure(pairs[point.shape], samplers[point.shape], replace(point, prompt=16, alphas=1), steps=1)
    bandwidth = Bandwidth("cpu")
    while len(records[0]["floor"]) < options.rounds and left():
        speed = bandwidth.measure()
        for record, point in zip(records, points.values(), strict=True):
            gc.collect()
            found = measure(pairs[point.shape], samplers[point.shape], point)
            for name, seconds in found.items():
                record["seconds"].setdefault(name, []).append(seconds)
            record["floor"].append(bytes_of(pairs[point.shape], point) / speed)
        told()


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, write it, and show all of it."""
    options = parse(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    console = Console() if Console().is_terminal else Console(width=80)
    saved = load(options)
    start = time.perf_counter()
    with progress(console) as bar:
        for panel in options.vary:
            records = saved["panels"].setdefault(panel, blank(panel))
            line = bar.add_task(panel, total=options.rounds, completed=len(records[0]["floor"]))

            def left() -> bool:
                return bool(time.perf_counter() - start < options.seconds)

            def told(line: Any = line) -> None:
                save(options, saved)
                bar.advance(line)

            if len(records[0]["floor"]) < options.rounds and left():
                add_rounds(panel, records, options, left, told)
                gc.collect()
    show(console, saved, options.vary)
    if options.picture is not None:
        draw(saved, options.picture)
        console.print(f"wrote {options.picture}", highlight=False)
    missing = sum(options.rounds - len(saved["panels"][p][0]["floor"]) for p in options.vary)
    if missing > 0:
        console.print(f"{missing} rounds are missing: the same command goes on", highlight=False)
    return MORE_TO_DO if missing > 0 else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks growth", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--vary",
        type=lambda value: value.split(","),
        default=list(PANELS),
        help=f"some of {','.join(PANELS)} (default: all)",
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="bf16", help="of the weights (default: bf16)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of every panel (default: 3)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after that long")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="default: torch's choice"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="what to add to, and to show (JSON)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the picture (.svg)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.vary if name not in PANELS]:
        parser.error(f"--vary {','.join(unknown)}; expected some of {','.join(PANELS)}")
    return options


def load(options: argparse.Namespace) -> Record:
    """What was measured before, with the same settings; or the beginning of it."""
    settings = {"dtype": options.dtype, "threads": options.threads, "steps": STEPS}
    if options.out is None or not options.out.exists():
        return {"machine": report.machine("cpu", options.threads), "settings": settings, "panels": {}}
    saved: Record = json.loads(options.out.read_text(encoding="utf-8"))
    if saved["settings"] != settings:
        raise SystemExit(
            f"{options.out} was measured with {saved['settings']}, and this would be {settings}: "
            "give the same options, or another --out"
        )
    return saved


def save(options: argparse.Namespace, saved: Record) -> None:
    """Write the file, whole or not at all."""
    if options.out is not None:
        store.write(options.out, saved)


def progress(console: Console) -> Progress:
    """A bar that goes away when it is full."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
    )


def show(console: Console, saved: Record, panels: list[str]) -> None:
    """A table per panel: milliseconds of a step, what reading takes, and the ratio to (b) within rounds."""
    for panel, records in saved["panels"].items():
        if panel not in panels or not records[0]["floor"]:
            continue
        rounds = len(records[0]["floor"])
        table = Table(title=f"{panel}, {rounds} rounds", title_justify="left", box=SIMPLE)
        for column in (panel, "eddecode ms", "(b) ms", "(b) ÷ eddecode", "reading ms"):
            table.add_column(column, justify="right")
        for record in records:
            ours, theirs = record["seconds"]["eddecode"], record["seconds"].get("processor", [])
            ratios = [b / a for a, b in zip(ours, theirs, strict=False)]
            table.add_row(
                record["value"],
                spread(ours, 1e3),
                spread(theirs, 1e3),
                spread(ratios, 1, 2),
                spread(record["floor"], 1e3),
            )
        console.print(table)


def spread(values: list[float], scale: float, digits: int = 1) -> str:
    """Median, and the range below."""
    if not values:
        return "–"
    low, middle, high = (
        f"{scale * x:.{digits}f}" for x in (min(values), statistics.median(values), max(values))
    )
    return f"{middle}\n{low}–{high}"
