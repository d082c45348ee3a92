"""Speed of this checkout against another checkout of eddecode, in interleaved runs: before and after a change.

Each checkout runs in a process of its own, through public names only, on the same pairs and tasks. In every round
each of them runs a task once (small pairs several times, until a run takes `--seconds`), in turn. The ratio is the
other checkout's time over this one's, so above 1 this checkout is faster; its range is that of the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.choices import choices
from benchmarks.measure import interleave, ratios, spread

HERE = Path(__file__).parents[1]
PAIRS = ("bundled:float32", "10M:bf16", "10M:float32", "130M:bf16", "130M:float32")
TASKS = ("T1", "T2", "T3", "T4")


class Checkout:
    """A worker process that runs the tasks with the eddecode of one checkout."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self.path = path
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.worker", str(path), str(options.threads), options.clock],
            env=os.environ | {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": str(options.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request of `benchmarks.worker`.

        Raises:
            RuntimeError: the worker ended; its message is on standard error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.path} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def measure(this: Checkout, other: Checkout, task: str, options: argparse.Namespace) -> dict[str, Any]:
    """One task on the pair that both have loaded: seconds per round, ratios, and whether the tokens are equal."""
    first = this.ask(task=task, times=1, quick=options.quick)  # warms up
    digests = {first["digest"], other.ask(task=task, times=1, quick=options.quick)["digest"]}
    seconds = this.ask(task=task, times=1, quick=options.quick)["seconds"]
    times = max(1, math.ceil(options.seconds / seconds))

    def timer(checkout: Checkout) -> float:
        return float(checkout.ask(task=task, times=times, quick=options.quick)["seconds"])

    found = interleave({"this": lambda: timer(this), "other": lambda: timer(other)}, options.rounds)
    return {
        "task": task,
        "tokens": first["tokens"],
        "times": times,
        "seconds": found,
        "ratio": spread(ratios(found["other"], found["this"]))
        | {"median": spread(found["other"])["median"] / spread(found["this"])["median"]},
        "same_tokens": len(digests) == 1,
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks against", description=__doc__)
    parser.add_argument("other", type=Path, metavar="PATH", help="the other checkout")
    parser.add_argument(
        "--tasks",
        type=choices(TASKS),
        default=["T1", "T2", "T3"],
        help="some of T1,T2,T3,T4 (default: T1,T2,T3)",
    )
    parser.add_argument(
        "--pairs",
        type=choices(PAIRS, lambda pair: pair.count(":") == 1),
        default=list(PAIRS),
        help=f"size:dtype, … (default: {','.join(PAIRS)})",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all cores")
    parser.add_argument(
        "--seconds",
        type=float,
        default=1.0,
        help="repeat shorter tasks until a run takes as long (default: 1)",
    )
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, which other work on the machine disturbs less; best with --threads 1",
    )
    parser.add_argument("--quick", action="store_true", help="an eighth of the tokens")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write all figures as JSON")
    options = parser.parse_args(arguments)
    if not (options.other / "eddecode" / "__init__.py").is_file():
        parser.error(f"{options.other} is not a checkout: it has no eddecode/__init__.py")
    return options


def main(arguments: list[str]) -> int:
    """Measure, and print a line per task."""
    options = parse(arguments)
    this, other = Checkout(HERE, options), Checkout(options.other.resolve(), options)
    results: list[dict[str, Any]] = []
    print(f"this {HERE}, other {other.path}; {options.rounds} rounds, {options.threads} threads")
    print(f"{'pair':<17}{'task':<6}{'this tok/s':>10}{'other':>10}   other ÷ this (range)   tokens")
    try:
        for pair in options.pairs:
            for checkout in (this, other):
                checkout.ask(pair=pair.split(":"))
            for task in options.tasks:
                found = {"pair": pair} | measure(this, other, task, options)
                results.append(found)
                speeds = [
                    found["tokens"] / spread(found["seconds"][name])["median"] for name in ("this", "other")
                ]
                ratio = "{median:.3f} ({min:.3f} to {max:.3f})".format(**found["ratio"])
                tokens = "same" if found["same_tokens"] else "DIFFERENT"
                print(
                    f"{pair:<17}{task:<6}{speeds[0]:>10.1f}{speeds[1]:>10.1f}   {ratio:<22} {tokens}",
                    flush=True,
                )
                if options.out is not None:
                    saved = {"this": str(HERE), "other": str(other.path), "threads": options.threads}
                    options.out.write_text(json.dumps(saved | {"results": results}, indent=1) + "\n", "utf-8")
    finally:
        this.close()
        other.close()
    return 0
