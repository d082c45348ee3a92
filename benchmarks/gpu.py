"""`python -m benchmarks gpu`: what captured steps bring on a GPU, against the ways to get there without eddecode.

Interleaved, in one process: eddecode with its steps launched from Python and captured; (b) `generate` with a logits
processor; the same with both models over static caches and compiled with mode="reduce-overhead", which is what
`generate(cache_implementation="static")` does by itself on a GPU; and the base model alone, plain and compiled. Every
contender does the whole task once before anything is timed, so that nothing is compiled or captured later; how long
that took is in the column "first". On a CPU nothing is compiled or captured: it only shows that the contenders work.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LogitsProcessorList, StaticCache

from benchmarks import report
from benchmarks.alternatives import Floor, Follower, PairProcessor, ProcessorWay, generate, positions, sides
from benchmarks.contenders import Contender, Eddecode
from benchmarks.errors import NotAvailable
from benchmarks.measure import Bandwidth, Prepared, interleave, ratios, seconds_of, spread
from benchmarks.pairs import DTYPES, SIZES, BenchPair, build
from benchmarks.roofline import bytes_to_read
from benchmarks.tasks import TASKS, Work
from eddecode.sampler import Sampler


class StaticFollower(Follower):
    """A `Follower` over a static cache, whose steps of one token have fixed shapes and can be compiled."""

    def __init__(self, model: Any, texts: Sequence[Sequence[int]], cache: Any, step: Any) -> None:
        super().__init__(model, texts)
        self.cache, self.step = cache, step
        self.places = self.mask.sum(-1, keepdim=True)
        self.whole = self.mask.new_ones(
            len(self.ids), cache.get_max_length()
        )  # what is not read yet is in the future
        self.whole[:, : self.ids.shape[1]] = self.mask

    def next_logits(self, newest: Tensor) -> Tensor:
        """See `Follower.next_logits`."""
        call, ids, places = self.model, self.ids, positions(self.mask)
        if self.started:
            call, ids, places = self.step, newest, self.places
            self.places = self.places + 1
        self.started = True
        result = call(
            input_ids=ids,
            attention_mask=self.whole,
            position_ids=places,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return result.logits[:, -1].clone()  # type: ignore[no-any-return]  # the next replay overwrites it


class CompiledPair:
    """(b) over static caches: the base by `generate`, which compiles it on a GPU, the second model likewise."""

    def __init__(self, pair: BenchPair) -> None:
        self.pair = pair
        cuda = pair.aligned.device.type == "cuda"
        self.step = pair.aligned.get_compiled_call(None) if cuda else pair.aligned
        self.caches: dict[tuple[int, int], Any] = {}

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """One `generate` of the base per α."""
        base_texts, aligned_texts = sides(work)
        rows = []
        torch.manual_seed(work.seed)
        for alpha in work.alphas:
            processor = PairProcessor(self.pair.aligned, alpha, aligned_texts)
            processor.follower = StaticFollower(
                self.pair.aligned, aligned_texts, self._cache(aligned_texts, work), self.step
            )
            rows += generate(
                self.pair.base,
                base_texts,
                work,
                logits_processor=LogitsProcessorList([processor]),
                cache_implementation="static",
            )
        return rows

    def _cache(self, texts: Sequence[Sequence[int]], work: Work) -> Any:
        """One per shape, emptied: a new one would be captured anew."""
        shape = len(texts), max(map(len, texts)) + work.new_tokens
        if shape not in self.caches:
            self.caches[shape] = StaticCache(config=self.pair.aligned.config, max_cache_len=shape[1])
        self.caches[shape].reset()
        return self.caches[shape]

    def score(self, work: Work) -> list[list[float]]:
        """Not done."""
        raise NotAvailable("there is no step in scoring")


class CompiledFloor(Floor):
    """(c) over a static cache, compiled by `generate`."""

    @torch.inference_mode()
    def complete(self, work: Work) -> list[list[int]]:
        """One `generate` of the base for all rows."""
        torch.manual_seed(work.seed)
        texts = sides(work)[0] * len(work.alphas)
        return generate(self.pair.base, texts, work, cache_implementation="static")


def captured(pair: BenchPair) -> Sampler:
    """The sampler of a pair with its steps captured."""
    return Sampler(pair.model_pair(), cuda_graphs=True)


# name → (label, how it is made, models that it runs)
GPU_CONTENDERS: dict[str, tuple[str, Callable[[BenchPair], Contender], int]] = {
    "eager": ("eddecode, steps launched", Eddecode, 2),
    "graphs": ("eddecode, steps captured", lambda pair: Eddecode(pair, captured), 2),
    "processor": ("(b) logits processor", ProcessorWay, 2),
    "compiled-pair": ("(b) static caches, compiled", CompiledPair, 2),
    "floor": ("(c) base model alone", Floor, 1),
    "compiled-floor": ("(c) static cache, compiled", CompiledFloor, 1),
}


def measure(pair: BenchPair, work: Work, names: Sequence[str], rounds: int, device: str) -> report.Record:
    """One task: per contender its seconds, the time of its first run, and its share of the read bandwidth."""
    made = {name: GPU_CONTENDERS[name][1](pair) for name in names}
    first = {name: seconds_of(contender, work)[0] for name, contender in made.items()}
    found = interleave(Prepared(made, dict.fromkeys(made, 0.0), {}), work, rounds, Bandwidth(device))
    result: report.Record = {"bandwidth": spread(found.bandwidth), "rounds": rounds, "contenders": {}}
    for name, seconds in found.seconds.items():
        needed = bytes_to_read(pair, work, GPU_CONTENDERS[name][2])
        result["contenders"][name] = {
            "first_seconds": first[name],
            "seconds": seconds,
            "tokens_per_s": spread([work.tokens / s for s in seconds]),
            "roofline": spread([needed / b / s for b, s in zip(found.bandwidth, seconds, strict=True)]),
            "over_eager": spread(ratios(found.seconds["eager"], seconds)) if "eager" in names else None,
        }
    if {"eager", "graphs"} <= set(names) and work.temperature == 0:
        result["same_tokens"] = found.results["eager"] == found.results["graphs"]
    return result


def show(console: Console, title: str, result: report.Record) -> None:
    """A table of one task: medians, with the least and the largest."""
    rate = result["bandwidth"]["median"] / 1e9
    table = Table(title=f"{title}; read {rate:.0f} GB/s", title_justify="left")
    for column in ("", "first, s", "tok/s", "× the first", "of the read"):
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    for name, entry in result["contenders"].items():
        speeds, shares, gains = (entry[key] for key in ("tokens_per_s", "roofline", "over_eager"))
        table.add_row(
            GPU_CONTENDERS[name][0],
            f"{entry['first_seconds']:.1f}",
            f"{speeds['median']:.1f} ({speeds['min']:.1f}–{speeds['max']:.1f})",
            f"{gains['median']:.2f} ({gains['min']:.2f}–{gains['max']:.2f})" if gains else "–",
            f"{shares['median']:.0%}",
        )
    console.print(table)
    if "same_tokens" in result:
        console.print(
            f"tokens with and without graphs: {'the same' if result['same_tokens'] else 'DIFFERENT'}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=["T1", "T2", "T3"], default=["T1", "T2", "T3"])
    parser.add_argument("--size", choices=SIZES, default="7B")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--contenders", nargs="+", choices=GPU_CONTENDERS, default=list(GPU_CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON")
    options = parser.parse_args(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # a file has room for the tables
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        console.print("There is no CUDA device here; nothing was measured.")
        return 2
    pair = build(options.size, options.dtype, "full", options.device)
    info = report.machine(options.device, torch.get_num_threads())
    results = {}
    for task in options.tasks:
        torch.compiler.reset()  # each task is compiled for its own shapes alone
        work = TASKS[task].work(pair, quick=options.quick)
        results[task] = measure(pair, work, options.contenders, options.rounds, options.device)
        show(console, f"{task}, {options.size} {options.dtype}: {TASKS[task].title}", results[task])
        gc.collect()
    if options.out is not None:
        options.out.write_text(
            json.dumps({"machine": info, "results": results}, indent=1, ensure_ascii=False)
        )
    return 0
