"""An audit of a million completions, without models: how fast its store is written, and what reading it takes.

A stub in the place of the models gives completions by rule, as long as those of a real audit (text, token ids, a reward
per token), so that everything else is the product's: writer, judge, summary, report, gate, export, merge. Each stage
runs in a process of its own, whose wall time (with the start of Python), processor time and largest resident memory are
measured; on a machine that does other work too the processor time says more.

    python -m benchmarks scale                                       # 10⁶ completions: about 25 minutes, 6 GB of disk
    python -m benchmarks scale --prompts 400 --samples 5             # 20,000 of them
    python -m benchmarks scale --only merge                          # the shards and their merge alone
    python -m benchmarks scale --goals                               # exit code 1 where a goal is missed

Goals, for a million completions: the writer stores 5,000 completions/s, and `summary`, `report`, `gate`, `export` to
JSON Lines and `merge` of 16 shards take at most 60 s and 1 GB each. The rate is that of the store alone: the time of
the stub is not counted. Times are those of the processor, which is what a machine with a free core takes, beside
waiting for the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.choices import choices
from benchmarks.process import status_bytes
from eddecode.audit import AuditConfig, audit
from eddecode.audit.analysis.summarize import summarize
from eddecode.audit.judges.lexicon import LexiconJudge
from eddecode.audit.store.store import Store
from eddecode.outputs import Completion, TokenLogprobs

ALPHAS = "0.1,0.2,0.3,0.4,0.6,0.8,1,1.5"  # with base and aligned ten conditions
WRITER, SECONDS, MEGABYTES = 5000, 60, 1000  # the goals
_WORDS = ["the", "order", "was", "sent", "to", "our", "street", "and", "you", "will", "have"]


class Stub:
    """Completions by rule, drawn from a pool: harm rises with α.

    Args:
        tokens: of a completion.
        pool: number of different completions of each kind.
    """

    def __init__(self, tokens: int, pool: int = 256) -> None:
        draw = random.Random(0)
        self._pool = [
            (
                " ".join(draw.choice(_WORDS) for _ in range(tokens)),
                [draw.randrange(128_000) for _ in range(tokens - 1)] + [2],
                [TokenLogprobs(-2 * draw.random(), -2 * draw.random(), -1.0) for _ in range(tokens)],
            )
            for _ in range(pool)
        ]
        self._sums = [(sum(t.base for t in ts), sum(t.aligned for t in ts)) for _, _, ts in self._pool]
        self._draw = random.Random(1)

    def as_completed(self, prompts: Any, params: Any) -> Iterator[Completion]:
        """As `Sampler.as_completed`."""
        for index, p in enumerate(params):
            rate = min(0.2 * (1 + p.alpha), 0.9)
            for sample in range(p.n):
                which = self._draw.randrange(len(self._pool))
                text, ids, logprobs = self._pool[which]
                harmful = self._draw.random() < rate
                yield Completion(
                    *(index, sample, float(p.alpha), f"{text} idiot" if harmful else text, ids, "eos"),
                    *self._sums[which],
                    logprobs,
                )


@dataclass(frozen=True)
class Size:
    """The size of an audit with ten conditions."""

    prompts: int
    samples: int
    tokens: int

    @property
    def completions(self) -> int:
        """Of the whole run."""
        return self.prompts * self.samples * (2 + len(ALPHAS.split(",")))


def make(folder: Path, size: Size, shard: str | None = None) -> dict[str, float]:
    """Run the audit with the stub; the seconds within the store's writer, and in all of decoding and judging."""
    config = AuditConfig(
        base="org/base",
        aligned="org/aligned",
        out=folder,
        alphas=ALPHAS,
        samples=size.samples,
        prompts=[f"question {i}: where is my order?" for i in range(size.prompts)],
    )
    spent, stages = [0.0] * 4, dict[str, float]()

    def timed(method: Callable[..., Any], place: int) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            begun, busy = time.perf_counter(), time.process_time()
            try:
                return method(*arguments, **options)
            finally:
                spent[place] += time.perf_counter() - begun
                spent[place + 2] += time.process_time() - busy

        return wrapped

    setattr(Store, "add", timed(Store.add, 0))  # noqa: B010 - of this process alone
    setattr(Store, "judge", timed(Store.judge, 1))  # noqa: B010
    begun = time.perf_counter()

    def on_progress(progress: Any) -> None:
        stages[progress.stage] = time.perf_counter() - begun

    audit(
        config,
        sampler=Stub(size.tokens),
        judges=[LexiconJudge(["idiot"])],
        shard=shard,
        on_progress=on_progress,
    )
    return {
        "add": spent[0],
        "judge": spent[1],
        "add_processor": spent[2],
        "judge_processor": spent[3],
        "decoded": stages["decode"],
        "judged": stages["judge"] - stages["decode"],
        "rest": time.perf_counter() - begun - stages["judge"],
    }


def stage(arguments: list[str], result: Path) -> int:
    """What a stage's process does: a command of eddecode, or making a run; its memory goes into a file."""
    if arguments[0] == "make":
        found: dict[str, Any] = make(Path(arguments[1]), Size(*map(int, arguments[2:5])), *arguments[5:])
        code = 0
    elif arguments[0] == "summary":
        found, code = {}, 0
        with Store.read(arguments[1]) as store:
            summarize(store, store.conditions(), store.judges())
    else:
        from eddecode.cli import main as cli

        found = {}
        sys.argv = ["eddecode", *arguments]
        try:
            cli()
            code = 0
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    found["processor"] = time.process_time()
    found["peak"] = status_bytes("VmHWM") / 2**20
    result.write_text(json.dumps(found))
    return code


@dataclass(frozen=True)
class Row:
    """A stage: its wall and processor time in seconds, its largest resident memory in MiB, and what else it says."""

    name: str
    seconds: float
    processor: float
    peak: float
    more: dict[str, float]


def timed_stage(name: str, *arguments: str, codes: tuple[int, ...] = (0,)) -> Row:
    """Run a stage in a process of its own.

    Raises:
        SystemExit: it failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "scale", "--stage", str(result), *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - begun
        if done.returncode not in codes or not result.is_file():
            raise SystemExit(f"{name}: exit code {done.returncode}: {done.stderr[-2000:]}")
        found = json.loads(result.read_text())
    return Row(name, seconds, found.pop("processor"), found.pop("peak"), found)


def measure(root: Path, size: Size, shards: int, only: set[str]) -> Iterator[Row]:
    """All stages, one after the other."""
    run, numbers = root / "run", [str(n) for n in (size.prompts, size.samples, size.tokens)]
    if only - {"merge"} and not (run / "summary.json").is_file():  # a merge has its own runs
        yield timed_stage("audit", "make", str(run), *numbers)
    commands: dict[str, tuple[str, ...]] = {
        "summary": ("summary", str(run)),
        "report": ("report", str(run), "--max-reversal", "5%"),
        "gate": ("gate", str(run), "--max-reversal", "5%"),
        "export": ("export", str(run), "--to", "jsonl", "--out", str(root / "all.jsonl")),
        "parquet": ("export", str(run), "--to", "parquet", "--out", str(root / "all.parquet")),
    }
    for name, command in commands.items():
        if name in only:
            yield timed_stage(name, *command, codes=(0, 1, 3) if name == "gate" else (0,))
    if "merge" in only:
        parts = [root / "parts" / str(number) for number in range(1, shards + 1)]
        for number, part in enumerate(parts, start=1):
            if not (part / "run.sqlite").is_file():
                yield timed_stage(
                    f"shard {number}/{shards}", "make", str(part), *numbers, f"{number}/{shards}"
                )
        shutil.rmtree(root / "merged", ignore_errors=True)
        yield timed_stage("merge", "merge", *map(str, parts), "--out", str(root / "merged"))


STAGES = ("summary", "report", "gate", "export", "parquet", "merge")


def main(arguments: list[str]) -> int:
    """Measure and print a table; exit code 1 where a goal is asked for and missed."""
    if arguments[:1] == ["--stage"]:
        return stage(arguments[2:], Path(arguments[1]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=64, help="of a completion")
    parser.add_argument("--shards", type=int, default=16, help="to merge")
    parser.add_argument(
        "--only", type=choices(STAGES), default=list(STAGES), help=f"some of {', '.join(STAGES)}"
    )
    parser.add_argument(
        "--folder", type=Path, help="keeps the run for the next call; default: a temporary one"
    )
    parser.add_argument("--goals", action="store_true", help="exit code 1 where a goal is missed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    size = Size(options.prompts, options.samples, options.tokens)
    scratch = Path(tempfile.mkdtemp()) if options.folder is None else options.folder
    scratch.mkdir(parents=True, exist_ok=True)
    try:
        rows = []
        print(f"{size.completions:,} completions of {size.tokens} tokens\n")
        print("| stage | seconds | processor | peak memory | |\n|---|---:|---:|---:|---|")
        for row in measure(scratch, size, options.shards, set(options.only)):
            print(
                f"| {row.name} | {row.seconds:.1f} | {row.processor:.1f} | {row.peak:.0f} MiB | {said(row, size)} |",
                flush=True,
            )
            rows.append(row)
    finally:
        if options.folder is None:
            shutil.rmtree(scratch)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    missed = [name for row in rows for name in missed_goals(row, size)]
    for name in missed:
        print(f"missed: {name}")
    return int(bool(options.goals and missed))


def said(row: Row, size: Size) -> str:
    """The parts of the audit's stage in words."""
    if "add" not in row.more:
        return ""
    count = size.completions // (int(row.name.split("/")[1]) if "/" in row.name else 1)
    rate = {name: count / row.more[name] for name in ("add", "add_processor", "judge", "judge_processor")}
    return (
        f"writer {rate['add']:,.0f} completions/s ({rate['add_processor']:,.0f} of processor time), verdicts "
        f"{rate['judge']:,.0f}/s ({rate['judge_processor']:,.0f}); decoding "
        f"{row.more['decoded']:.1f} s, judging {row.more['judged']:.1f} s, summary {row.more['rest']:.1f} s"
    )


def missed_goals(row: Row, size: Size) -> list[str]:
    """Which goals a stage misses."""
    found = []
    if "add" in row.more and row.name == "audit" and size.completions / row.more["add_processor"] < WRITER:
        found.append(f"{row.name}: the writer stores fewer than {WRITER:,} completions/s")
    if row.name in ("summary", "report", "gate", "export", "merge"):
        if row.processor > SECONDS:
            found.append(f"{row.name}: more than {SECONDS} s")
        if row.peak > MEGABYTES:
            found.append(f"{row.name}: more than {MEGABYTES} MB")
    return found
