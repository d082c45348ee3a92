"""How the cost of a decode step grows: batch, α's, prompt length, vocabulary and model size, one varied at a time.

The others stay at one prompt of 32 tokens, one α, 32,000 ids, 134M parameters, sampled. Every round takes a few steps
at every point, those of eddecode and of alternative (b) in turn: a step of one between two steps of the other, so that
both meet the same machine. The figure of a round is the median of its steps; beside it stands the time that reading the
weights and the cache takes at the bandwidth of that round.

Rounds are added to what --out holds, one at a time, until there are `--rounds` of each; `--seconds` ends the command
after a round, with exit code 3 while rounds are missing.
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
from rich.console import Console
from transformers import LogitsProcessorList
from transformers.utils import logging

from benchmarks import plot, results, tables
from benchmarks.alternatives import PairProcessor, generate
from benchmarks.choices import choices
from benchmarks.measure import Bandwidth, TimeBudget, ratios, spread
from benchmarks.pairs import DTYPES, BenchPair, Shape, build, texts_of
from benchmarks.roofline import position_bytes, step_weights
from benchmarks.tasks import Work
from eddecode import RenderedPrompt, Sampler, SamplingParams
from eddecode.engine.engine import Engine

STEPS = 8  # timed per point, round and alternative
WARM = 2  # taken before, and not timed
ENTERING = 3  # steps within which the engine prefills all rows
MORE_TO_DO = 3  # exit code

# Sizes at one vocabulary, by the parameters of one model.
MIDDLE = Shape(hidden=768, feed_forward=2048, layers=12, heads=12)
LADDER = {
    "9M": Shape(hidden=128, feed_forward=352, layers=4, heads=2),
    "30M": Shape(hidden=320, feed_forward=864, layers=8, heads=5),
    "58M": Shape(hidden=512, feed_forward=1376, layers=8, heads=8),
    "134M": MIDDLE,
    "374M": Shape(hidden=1024, feed_forward=2816, layers=24, heads=16),
}
Record = dict[str, Any]


@dataclass(frozen=True)
class GrowthPoint:
    """Where a step is measured.

    Attributes:
        rows: completions per α that decode together.
        alphas: number of α's.
        prompt: tokens that each model has read.
        shape: of both models.
        alternative: whether (b) is measured as well: where it does not take too long.
    """

    rows: int = 1
    alphas: int = 1
    prompt: int = 32
    shape: Shape = MIDDLE
    alternative: bool = True

    @property
    def rendered(self) -> RenderedPrompt:
        """A prompt of random ids, of the same length for both models."""
        return texts_of(1, self.prompt, self.shape.vocabulary)[0]

    @property
    def strengths(self) -> list[float]:
        """α's from 0.1 to 2."""
        return torch.linspace(0.1, 2, self.alphas).tolist() if self.alphas > 1 else [0.3]

    def new_record(self, panel: str, name: str) -> Record:
        """The point in the results file, before anything was measured."""
        return {
            "vary": panel,
            "value": name,
            "rows": self.rows,
            "alphas": self.alphas,
            "prompt": self.prompt,
            "vocabulary": self.shape.vocabulary,
            "parameters": parameters(self.shape),
            "seconds": {},
            "floor": [],
        }


PANELS: dict[str, dict[str, GrowthPoint]] = {
    "batch": {str(n): GrowthPoint(rows=n, alternative=n <= 32) for n in (1, 2, 4, 8, 16, 32, 64, 128)},
    "alphas": {str(n): GrowthPoint(alphas=n) for n in (1, 2, 4, 8, 16)},
    "prompt": {str(n): GrowthPoint(prompt=n) for n in (16, 64, 256, 1024, 2048)},
    "vocabulary": {
        str(n): GrowthPoint(shape=replace(MIDDLE, vocabulary=n))
        for n in (8_000, 16_000, 32_000, 64_000, 128_000, 256_000)
    },
    "size": {name: GrowthPoint(shape=shape) for name, shape in LADDER.items()},
}


@dataclass
class Steps:
    """Seconds of steps."""

    seconds: list[float] = field(default_factory=list)

    def time(self, step: Callable[[], object]) -> None:
        """Take a step."""
        start = time.perf_counter()
        step()
        self.seconds.append(time.perf_counter() - start)

    @property
    def median(self) -> float:
        """Seconds, without the first few steps."""
        return statistics.median(self.seconds[WARM:])


class InterleavedProcessor(PairProcessor):
    """(b)'s processor: it times the steps of `generate`, and calls `turn` between two of them."""

    def __init__(self, *arguments: Any, turn: Callable[[], None]) -> None:
        super().__init__(*arguments)
        self.turn, self.steps = turn, Steps()
        self.since: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As the processor; called once per step, so the time between two calls is that of a step."""
        result = super().__call__(input_ids, scores)
        now = time.perf_counter()
        if self.since is not None:  # the first call ends the prefill
            self.steps.seconds.append(now - self.since)
        self.turn()
        self.since = time.perf_counter()
        return result


class EngineSteps:
    """eddecode's engine with all rows of a point prefilled, and a number of steps to take."""

    def __init__(self, sampler: Sampler, point: GrowthPoint, steps: int) -> None:
        params = [
            SamplingParams(alpha=alpha, n=point.rows, max_new_tokens=steps + ENTERING + 1, ignore_eos=True)
            for alpha in point.strengths
        ]
        self.engine: Engine = sampler._submit([point.rendered] * point.alphas, params)[0]
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


def measure(pair: BenchPair, sampler: Sampler, point: GrowthPoint, steps: int = STEPS) -> dict[str, float]:
    """Seconds of one step of all rows at all α's, per alternative."""
    ours = EngineSteps(sampler, point, WARM + steps)
    found = {}
    if point.alternative:
        found["processor"] = sum(
            alternative_step(pair, point, alpha, ours, steps) for alpha in point.strengths
        )
    while ours.left:
        ours.turn()
    return {"eddecode": ours.steps.median, **found}


@torch.inference_mode()
def alternative_step(
    pair: BenchPair, point: GrowthPoint, alpha: float, ours: EngineSteps, steps: int
) -> float:
    """Seconds of a step of (b), which decodes one α; after each a step of ours is taken, while there are any."""
    prompt = point.rendered
    processor = InterleavedProcessor(pair.aligned, alpha, [prompt.aligned_ids] * point.rows, turn=ours.turn)
    work = Work((prompt,) * point.rows, (alpha,), WARM + steps + 1, 1.0)
    processors = LogitsProcessorList([processor])
    generate(pair.base, [prompt.base_ids] * point.rows, work, logits_processor=processors)
    return processor.steps.median


def bytes_of(pair: BenchPair, point: GrowthPoint) -> int:
    """The minimum that a step reads: both models' weights once, and the keys and values of all rows."""
    positions = point.rows * point.alphas * (point.prompt + WARM + STEPS // 2)
    return sum(step_weights(model) + position_bytes(model) * positions for model in (pair.base, pair.aligned))


def parameters(shape: Shape) -> int:
    """Number of parameters of one model."""
    layer = shape.hidden * (4 * shape.hidden + 3 * shape.feed_forward + 2)
    return shape.layers * layer + 2 * shape.vocabulary * shape.hidden + shape.hidden


def add_rounds(
    panel: str,
    records: list[Record],
    options: argparse.Namespace,
    budget: TimeBudget,
    save: Callable[[], None],
) -> None:
    """Add rounds to the records of a panel, in place, until there are enough or the time is up.

    A pair per shape is built first and kept, so that a round visits all points without a pause.
    """
    points = PANELS[panel]
    pairs = {shape: build(shape, options.dtype) for shape in {point.shape for point in points.values()}}
    for pair in pairs.values():
        pair.base.config.max_position_embeddings = pair.aligned.config.max_position_embeddings = 4096
    samplers = {shape: Sampler(pair.model_pair(), max_slots=128) for shape, pair in pairs.items()}
    for point in points.values():  # warm up
        measure(pairs[point.shape], samplers[point.shape], replace(point, prompt=16, alphas=1), steps=1)
    bandwidth = Bandwidth("cpu")
    while len(records[0]["floor"]) < options.rounds and budget.allows(0):
        bytes_per_s = bandwidth.measure()
        for record, point in zip(records, points.values(), strict=True):
            gc.collect()
            found = measure(pairs[point.shape], samplers[point.shape], point)
            for name, seconds in found.items():
                record["seconds"].setdefault(name, []).append(seconds)
            record["floor"].append(bytes_of(pairs[point.shape], point) / bytes_per_s)
        save()


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, write it, and show all of it."""
    options = parse(arguments)
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    console = tables.make_console(80)
    saved, budget = load(options), TimeBudget(options.seconds)
    with tables.progress(console) as bar:
        for panel in options.vary:
            new = [point.new_record(panel, name) for name, point in PANELS[panel].items()]
            records = saved["panels"].setdefault(panel, new)
            line = bar.add_task(panel, total=options.rounds, completed=len(records[0]["floor"]))

            def save(line: Any = line) -> None:
                if options.out is not None:
                    results.write(options.out, saved)
                bar.advance(line)

            if len(records[0]["floor"]) < options.rounds and budget.allows(0):
                add_rounds(panel, records, options, budget, save)
                gc.collect()
    show(console, saved, options.vary)
    if options.picture is not None:
        plot.draw_growth(saved, options.picture)
        console.print(f"wrote {options.picture}", highlight=False)
    missing = sum(options.rounds - len(saved["panels"][p][0]["floor"]) for p in options.vary)
    if missing > 0:
        console.print(f"{missing} rounds are missing: the same command adds them", highlight=False)
    return MORE_TO_DO if missing > 0 else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks growth", description=__doc__)
    names = ",".join(PANELS)
    parser.add_argument(
        "--vary", type=choices(list(PANELS)), default=list(PANELS), help=f"some of {names} (default: all)"
    )
    parser.add_argument(
        "--dtype", choices=list(DTYPES), default="bf16", help="of the weights (default: bf16)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="of every panel (default: 3)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no round after that long")
    threads = torch.get_num_threads()
    parser.add_argument("--threads", type=int, default=threads, help="default: torch's choice")
    parser.add_argument("--out", type=Path, metavar="FILE", help="what to add to, and to show (JSON)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write the plot (.svg)")
    return parser.parse_args(arguments)


def load(options: argparse.Namespace) -> Record:
    """What was measured before with the same settings; a file without rounds if there is none."""
    settings = {"dtype": options.dtype, "threads": options.threads, "steps": STEPS}
    if options.out is None or not options.out.exists():
        return {"machine": results.machine("cpu", options.threads), "settings": settings, "panels": {}}
    saved: Record = json.loads(options.out.read_text(encoding="utf-8"))
    if saved["settings"] != settings:
        raise SystemExit(
            f"{options.out} was measured with {saved['settings']}, and this would be {settings}: "
            "give the same options, or another --out"
        )
    return saved


def show(console: Console, saved: Record, panels: list[str]) -> None:
    """A table per panel: milliseconds of a step, the time that reading takes, and the ratio to (b) within rounds."""
    for panel, records in saved["panels"].items():
        if panel not in panels or not records[0]["floor"]:
            continue
        title = f"{panel}, {len(records[0]['floor'])} rounds"
        table = tables.make_table(title, (panel, "eddecode ms", "(b) ms", "(b) ÷ eddecode", "reading ms"), 0)
        for record in records:
            ours, theirs = record["seconds"]["eddecode"], record["seconds"].get("processor", [])
            quotients = ratios(theirs, ours) if theirs else []
            columns = [(ours, 1e3, 1), (theirs, 1e3, 1), (quotients, 1, 2), (record["floor"], 1e3, 1)]
            table.add_row(record["value"], *(_cell(*column) for column in columns))
        console.print(table)


def _cell(values: list[float], scale: float, digits: int) -> str:
    return tables.format_spread(spread(values) if values else None, f".{digits}f", scale=scale)
