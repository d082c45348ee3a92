"""How a run survives: kills, damage, full disks, moved folders, other machines, large inputs, long runs.

Every case makes runs with a sampler that writes texts by rule, so that no model is needed and thousands of completions
take seconds; the store, the judges, the summary and the report are the real ones. A figure is a count of cases; the
last column says which value is right. `docs/reliability.md` holds the table.

Mounting a file system needs root. Where that is refused, the cases that need one are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.choices import choices
from benchmarks.reliability import damage, disks, elsewhere, kills, sizes
from benchmarks.reliability.figure import Figure
from eddecode.audit import run as audit_run

# Makes figures in an empty folder.
Case = Callable[[Path], list[Figure]]
CASES = ("kills", "reports", "flips", "limits", "disks", "moves", "machines", "inputs", "long")


def main(arguments: list[str]) -> int:
    """Try all cases and print the table; exit code 1 where a figure is not right."""
    options = _parser().parse_args(arguments)
    # Pictures take longest, and are written after everything else.
    setattr(audit_run, "write_curve", lambda *_: [])  # noqa: B010
    cases, figures = _cases(options), list[Figure]()
    print("| what was tried | found | right |\n|---|---|---|")
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            for figure in cases[name](Path(folder)):
                mark = "" if figure.ok else " **WRONG**"
                print(f"| {figure.case} | {figure.found}{mark} | {figure.right} |", flush=True)
                figures.append(figure)
    if options.json:
        options.json.write_text(json.dumps([vars(figure) for figure in figures], indent=1))
    return int(not all(figure.ok for figure in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks reliability", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--limits", type=int, default=20)
    parser.add_argument("--completions", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", type=choices(CASES), default=list(CASES), help=f"some of {', '.join(CASES)}"
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def _cases(options: argparse.Namespace) -> dict[str, Case]:
    """Every case by its name; they draw from one stream of random numbers."""
    rng = random.Random(options.seed)
    return {
        "kills": lambda root: kills.of_audits(root, rng, options.kills),
        "reports": lambda root: kills.of_reports(root, rng, options.kills // 4),
        "flips": lambda root: damage.flips(root, rng, options.flips),
        "limits": lambda root: disks.file_limits(root, rng, options.limits),
        "disks": disks.small_disks,
        "moves": elsewhere.renamed_folder,
        "machines": elsewhere.other_machines,
        "inputs": sizes.large_inputs,
        "long": lambda root: sizes.long_runs(root, options.completions),
    }


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
