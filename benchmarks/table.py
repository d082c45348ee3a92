"""The whole table of docs/performance.md, in pieces: `until python -m benchmarks table; do :; done`.

Each call adds what fits into `--budget` seconds (and one round at least) to the first file of `benchmarks/results/`
that is not complete, and its exit code is 0 once all are. Where (a) would take minutes a round it is left out: there it
does what (b) does, at the same speed. To show the table: `python -m benchmarks compare --from
benchmarks/results/table/*.json`; the base alone, compiled, is measured beside other alternatives and has a file of its
own.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from benchmarks.compare import MORE_TO_DO
from benchmarks.compare import main as measure

FOLDER = Path(__file__).parent / "results"
ALWAYS = "--no-memory --limit 120 --resume"
FEW = "--alternatives eddecode,processor,floor"
PLAN = (
    ("table/130M.json", "--sizes 130M --dtypes bf16 --tasks T1,T2,T3"),
    ("table/130M.json", f"--sizes 130M --dtypes float32 --tasks T1,T2,T3 {FEW}"),
    ("table/130M.json", f"--sizes 130M --dtypes bf16,float32 --pair lora --tasks T1,T2,T3 {FEW}"),
    ("table/10M.json", "--sizes 10M --tasks T1,T2,T3"),
    ("table/bundled.json", f"--sizes bundled --tasks T1,T2,T3,T4 {FEW}"),
    ("table/scoring.json", f"--sizes 130M --pair full,lora --tasks T4 {FEW}"),
    ("compiled.json", "--sizes 130M --tasks T1,T2 --alternatives eddecode,floor,compiled"),
)


def main(arguments: list[str] | None = None) -> int:
    """Measure one piece; the exit code is that of `python -m benchmarks`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks table", description=__doc__.split("\n")[0])
    parser.add_argument("--budget", type=float, default=480, help="seconds of a piece (default: 480)")
    parser.add_argument("--rounds", type=int, default=3, help="of everything (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    options = parser.parse_args(arguments)
    common = f"{ALWAYS} --budget {options.budget} --rounds {options.rounds} --threads {options.threads}"
    (FOLDER / "table").mkdir(parents=True, exist_ok=True)
    before = {path: path.read_bytes() for path in FOLDER.rglob("*.json")}
    for name, what in PLAN:
        path = FOLDER / name
        code = measure([*shlex.split(what), *shlex.split(common), "--out", str(path)])
        if code != 0:
            return code
        if before.get(path) != path.read_bytes():  # that was this call's piece
            return MORE_TO_DO
    return 0
