"""`python -m eddecode.experiments`: train a small pair, reproduce the paper's findings, write the page again."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from eddecode.errors import EddecodeError

if TYPE_CHECKING:
    from eddecode.experiments.findings.record import RunRecord

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Experiments on small models of a harmless toy language, trained from scratch on a CPU: `build` makes a pair "
    "like the bundled one, `findings` reproduces the paper's findings about emulated disalignment, `page` writes the "
    "page of a stored run again.",
)


@contextmanager
def _errors() -> Iterator[None]:
    """Print an expected error as one line, and end with exit code 1."""
    try:
        yield
    except (EddecodeError, OSError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        raise typer.Exit(1) from error


def _quiet_libraries() -> None:
    os.environ.setdefault(
        "TOKENIZERS_PARALLELISM", "false"
    )  # otherwise tokenizers warns when a process is forked
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading and saving are fast here; training has progress bars of its own


@app.command("build")
def build_command(
    out: Annotated[Path, typer.Option(help="Folder for the pair.")] = Path("lab-pair"),
    seed: Annotated[int, typer.Option(help="Seed of data, weights and completions.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Train fewer steps: about a minute.")] = False,
) -> None:
    """Train a tokenizer, a base and an aligned model from scratch, measure them, and write a model card.

    The default takes about four minutes on one core. Exit code 1 if the pair does not reverse as it should.
    """
    _quiet_libraries()
    from eddecode.experiments.build_pair import PairRecipe, build_pair
    from eddecode.experiments.pair_metrics import pair_checks

    console = Console()
    recipe = PairRecipe.quick(seed) if quick else PairRecipe(seed=seed)
    command = f"python -m eddecode.lab build --out {out} --seed {seed}{' --quick' if quick else ''}"
    with _errors():
        built = build_pair(out, recipe, command, console)
    title = f"{out}: {built.scores[0].total} completions per α"
    table = Table("α", "rude %", "valid %", "rude and valid %", title=title)
    for s in built.scores:
        cells = (f"{100 * count / s.total:.1f}" for count in (s.rude, s.valid, s.rude_and_valid))
        table.add_row(f"{s.alpha:g}", *cells)
    console.print(table)
    failed = [check.claim for check in pair_checks(built.scores) if not check.holds]
    for claim in failed:
        console.print(f"does not hold: {claim}", style="bold red")
    raise typer.Exit(1 if failed else 0)


@app.command("findings")
def findings_command(
    out: Annotated[Path, typer.Option(help="Folder for models, measurements and pages.")] = Path("findings"),
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, three strengths, fewer steps and requests.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Seeds of the headline findings; default 3, with --quick 1.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Name of a finding; may be repeated.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of processes; default 2, or 1 on one core.")
    ] = None,
    earlier: Annotated[
        Path | None, typer.Option(help="A findings.json; its results are kept for what --only leaves out.")
    ] = None,
) -> None:
    """Reproduce the findings from scratch, and write findings.md, findings.html and findings.json.

    About 110 core minutes (--quick: about 25). A run that was stopped continues with the same command; a
    repeated run reads its models and measurements from the folder.
    """
    _quiet_libraries()
    from eddecode.experiments.findings.page import write_page
    from eddecode.experiments.findings.record import RunRecord
    from eddecode.experiments.findings.run import EXPERIMENTS, ExperimentPlan, run_experiments
    from eddecode.experiments.findings.size import ExperimentSize

    console = Console()
    count = seeds or (1 if quick else 3)
    size = ExperimentSize.quick() if quick else ExperimentSize()
    plan = ExperimentPlan(out, size, count, tuple(only or ()), jobs or min(2, len(os.sched_getaffinity(0))))
    words = [f"python -m eddecode.experiments findings --out {out}", "--quick" if quick else ""]
    command = " ".join(filter(None, [*words, f"--seeds {count}", *(f"--only {name}" for name in plan.only)]))
    began = time.monotonic()
    with _errors():
        out.mkdir(parents=True, exist_ok=True)
        outdated: list[str] = []
        kept = RunRecord.read(earlier, EXPERIMENTS, outdated) if earlier else None
        if set(outdated) - set(plan.only):
            console.print(f"left out, judged by another criterion: {', '.join(outdated)}", highlight=False)
        record = run_experiments(plan, command, console, kept)
        pages = write_page(record, out)
    _print(console, record, [*pages, out / "findings.json"])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    console.print(
        f"used {sum(u.ru_utime + u.ru_stime for u in used):.0f} core seconds in {time.monotonic() - began:.0f} s",
        highlight=False,
    )


@app.command("attacks")
def attacks_command(
    out: Annotated[Path, typer.Option(help="Folder for models, audits and tables.")] = Path("attacks"),
    seed: Annotated[int, typer.Option(help="Seed of models and completions.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Models that are trained for fewer steps.")] = False,
    samples: Annotated[int, typer.Option(min=1, help="Completions per request and condition.")] = 4,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of an alignment method; may be repeated.")
    ] = None,
) -> None:
    """Which training-free attack wins against which way of aligning: an audit of one pair for each.

    About 20 core minutes (--quick: 10). One that was stopped continues with the same command.
    """
    _quiet_libraries()
    from eddecode.experiments.attack_comparison import ComparisonSize, compare_attacks
    from eddecode.experiments.findings.size import ExperimentSize
    from eddecode.experiments.training import single_thread

    console = Console()
    size = ComparisonSize(
        ExperimentSize.quick() if quick else ExperimentSize(), samples=samples, methods=tuple(only or ())
    )
    words = ["python -m eddecode.experiments attacks --out", str(out), f"--seed {seed} --samples {samples}"]
    command = " ".join(
        [*words, *(["--quick"] if quick else []), *(f"--only '{name}'" for name in size.methods)]
    )
    with _errors(), single_thread(), console.status("") as status:
        page = compare_attacks(
            out, size, command, seed=seed, report=lambda what, i, n: status.update(f"{what}: {i} of {n}")
        )
    console.print(f"written: {page}", highlight=False)


@app.command("real")
def real_command(
    base: Annotated[Path, typer.Option(help="Folder of a pre-trained causal language model (safetensors).")],
    out: Annotated[
        Path, typer.Option(help="Folder for samples, adapters, completions and real.json.")
    ] = Path("real"),
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds.")] = 3,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few samples: tests that everything runs.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of torch; default one per core.")
    ] = None,
) -> None:
    """The paper's protocol on a base that somebody else trained: align it, reverse it, compare with a control.

    About 35 minutes a seed on one core for a model of 270 million parameters. A run that was stopped continues with the
    same command.
    """
    _quiet_libraries()
    import torch

    from eddecode.experiments.real.command import run_real
    from eddecode.experiments.real.protocol import RealProtocol

    console = Console()
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    protocol = RealProtocol.quick() if quick else RealProtocol()
    words = ["python -m eddecode.experiments real --base", base.resolve().name, f"--seeds {seeds}"]
    command = " ".join([*words, *(["--quick"] if quick else [])])
    with _errors(), console.status("") as status:
        record = run_real(
            base, out, protocol, seeds, command, lambda what, i, n: status.update(f"{what}: {i} of {n}")
        )
    for seed, result in enumerate(record.result.results):
        console.print(f"seed {seed}: {result.summary}", highlight=False)
    console.print(f"written: {out / 'real.json'}", highlight=False)


@app.command("checkpoint-from-gguf")
def gguf_command(
    file: Annotated[Path, typer.Argument(help="A GGUF file of a causal language model.")],
    out: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
) -> None:
    """Write a GGUF file as a folder of safetensors in bfloat16, with its tokenizer."""
    _quiet_libraries()
    from eddecode.experiments.real.gguf import checkpoint_from_gguf

    with _errors():
        checkpoint_from_gguf(file, out)
    Console().print(f"written: {out}", highlight=False)


@app.command("page")
def page_command(
    record: Annotated[Path, typer.Argument(help="A findings.json that `findings` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder for the pages.")] = Path("findings"),
    real: Annotated[
        Path | None, typer.Option(help="A real.json that `real` wrote, for the section on a real base.")
    ] = None,
) -> None:
    """Write findings.md and findings.html again, from stored results alone. No model is needed."""
    from eddecode.experiments.findings.page import write_page
    from eddecode.experiments.findings.record import RunRecord
    from eddecode.experiments.findings.run import EXPERIMENTS
    from eddecode.experiments.real.record import RealRecord

    with _errors():
        stored = RunRecord.read(record, EXPERIMENTS)
        pages = write_page(stored, out, RealRecord.sections(real))
    _print(Console(), stored, pages)


def _print(console: Console, record: RunRecord, files: list[Path]) -> None:
    table = Table("finding", "reproduced", "figures (first seed)")
    for result in record.results:
        table.add_row(result.experiment.name, "yes" if result.reproduced else "NO", result.results[0].summary)
    console.print(table)
    console.print(f"written: {', '.join(map(str, files))}", highlight=False)


if __name__ == "__main__":
    app()
