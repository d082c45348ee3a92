"""Run the experiments as `findings.toml` says and write docs/findings.md: `python -m benchmarks findings [FOLDER]`.

The sections of the page are those of the run; reading.md, written by hand, is its last section. findings.json beside
the configuration keeps the run, so that `python -m benchmarks findings --page` writes the page again without a model.
real.json keeps the run on a pre-trained base (`python -m eddecode.experiments real`), whose section is on the page too.
A folder replaces the configured one, for a run whose models and measurements are somewhere else.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from rich.console import Console

from eddecode.experiments.findings.experiment import ReplicatedResult
from eddecode.experiments.findings.page import PICTURES, write_page
from eddecode.experiments.findings.record import RunRecord
from eddecode.experiments.findings.run import EXPERIMENTS, ExperimentPlan, run_experiments
from eddecode.experiments.findings.size import ExperimentSize
from eddecode.experiments.real.record import RealRecord

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"


def assemble(out: Path, here: Path = HERE, docs: Path = DOCS) -> Path:
    """Copy the page of a run, with reading.md at its end, and its pictures into docs; returns the page."""
    page = docs / "findings.md"
    reading = (here / "reading.md").read_text("utf-8")
    page.write_text((out / "findings.md").read_text("utf-8") + "\n" + reading, encoding="utf-8")
    shutil.rmtree(docs / PICTURES, ignore_errors=True)
    shutil.copytree(out / PICTURES, docs / PICTURES)
    shutil.copy(out / "findings.json", here / "findings.json")
    return page


def real_sections(here: Path = HERE) -> list[tuple[ReplicatedResult, list[str]]]:
    """The section on a pre-trained base, where real.json is beside the configuration."""
    file = here / "real.json"
    return RealRecord.sections(file if file.exists() else None)


def rebuild(here: Path = HERE, docs: Path = DOCS) -> Path:
    """Write the page again from findings.json and reading.md; returns the page."""
    record = RunRecord.read(here / "findings.json", EXPERIMENTS)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        record.write(out / "findings.json")
        write_page(record, out, real_sections(here))
        return assemble(out, here, docs)


def main(arguments: list[str]) -> None:
    """Run the experiments and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks findings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", nargs="?", type=Path, help="for models and measurements")
    parser.add_argument("--page", action="store_true", help="write the page again from findings.json")
    options = parser.parse_args(arguments)
    console = Console()
    if options.page:
        console.print(f"written: {rebuild()}", highlight=False)
        return
    config = tomllib.loads((HERE / "findings.toml").read_text("utf-8"))
    size = ExperimentSize.quick() if config["quick"] else ExperimentSize()
    out = options.folder or Path(config["out"])
    plan = ExperimentPlan(out, size, config["seeds"], jobs=config["jobs"])
    out.mkdir(parents=True, exist_ok=True)
    quick = " --quick" if config["quick"] else ""
    command = f"python -m eddecode.experiments findings --out {config['out']}{quick} --seeds {plan.seeds}"
    write_page(run_experiments(plan, command, console), out, real_sections())
    console.print(f"written: {assemble(out)}, {HERE / 'findings.json'}", highlight=False)


if __name__ == "__main__":
    main(sys.argv[1:])
