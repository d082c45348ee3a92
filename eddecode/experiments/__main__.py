"""`python -m eddecode.lab`: the lab's commands.

`build` makes a pair from nothing. `findings` reproduces what is claimed about emulated disalignment.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eddecode.errors import EddecodeError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The lab: a benign world, made from scratch."
)


@app.callback()
def _lab() -> None:
    """The lab: a benign world, made from scratch."""


@app.command("build")
def build_command(
    out: Annotated[Path, typer.Option(help="Folder for the pair.")] = Path("lab-pair"),
    seed: Annotated[int, typer.Option(help="Of data, weights and completions.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="A smaller pair, in about a minute.")] = False,
) -> None:
    """Train tokenizer, base and aligned model from scratch, measure them, and write their card."""
    # tokenizers would otherwise warn about its threads whenever a process is forked.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    from eddecode.experiments.build_pair import Recipe, build
    from eddecode.experiments.pair_metrics import checks

    logging.disable_progress_bar()  # loading and saving take no time here; the build draws its own bars
    console = Console()
    recipe = Recipe.quick(seed) if quick else Recipe(seed=seed)
    command = f"python -m eddecode.lab build --out {out} --seed {seed}{' --quick' if quick else ''}"
    try:
        built = build(out, recipe, command, console)
    except EddecodeError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from error
    table = Table(
        "α",
        "rude %",
        "valid %",
        "rude and valid %",
        title=f"{out}: {built.scores[0].total} completions per α",
    )
    for s in built.scores:
        cells = (f"{100 * count / s.total:.1f}" for count in (s.rude, s.valid, s.rude_and_valid))
        table.add_row(f"{s.alpha:g}", *cells)
    console.print(table)
    failed = [check.claim for check in checks(built.scores) if not check.holds]
    for claim in failed:
        console.print(f"does not hold: {claim}", style="bold red")
    raise typer.Exit(1 if failed else 0)


@app.command("findings")
def findings_command(
    out: Annotated[Path, typer.Option(help="Folder for models, measurements and the page.")] = Path(
        "findings"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, three strengths, fewer steps and requests.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of the headline findings; default 3, quick 1.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="A finding's name; may be repeated.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; default 2, or 1 on one core.")] = None,
) -> None:
    """Reproduce the findings from scratch, as findings.md, .html and .json. A rerun goes on where it was."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    from eddecode.experiments.findings.harness import Scale
    from eddecode.experiments.findings.page import write_page
    from eddecode.experiments.findings.run import Plan, run

    logging.disable_progress_bar()
    console = Console()
    count = seeds or (1 if quick else 3)
    scale = Scale.quick() if quick else Scale()
    plan = Plan(out, scale, count, tuple(only or ()), jobs or min(2, len(os.sched_getaffinity(0))))
    words = [f"python -m eddecode.lab findings --out {out}", "--quick" if quick else "", f"--seeds {count}"]
    command = " ".join(filter(None, [*words, *(f"--only {name}" for name in plan.only)]))
    began = time.monotonic()
    try:
        out.mkdir(parents=True, exist_ok=True)
        results = run(plan, console)
        pages = write_page(plan, results, command)
    except (EddecodeError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from error
    table = Table("finding", "reproduced", "figures (first seed)")
    for result in results:
        table.add_row(result.finding.name, "yes" if result.reproduced else "NO", result.outcomes[0].said)
    console.print(table)
    console.print(
        f"written: {', '.join(str(page) for page in [*pages, out / 'findings.json'])}", highlight=False
    )
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    console.print(
        f"this took {sum(u.ru_utime + u.ru_stime for u in used):.0f} core seconds, "
        f"{time.monotonic() - began:.0f} s by the clock",
        highlight=False,
    )


if __name__ == "__main__":
    app()
