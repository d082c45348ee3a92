"""Run the findings as `findings.toml` says and make docs/findings.md of them: `python -m benchmarks findings [DIR]`.

The page's sections are the run's own; the last one, by hand, is reading.md. Beside the configuration come
findings.json, the raw figures, and scale.json, what was measured in full. DIR stands in for the configured folder, for
a run whose models and measurements lie elsewhere.
"""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from eddecode.experiments.findings.harness import Scale
from eddecode.experiments.findings.page import PICTURES, write_page
from eddecode.experiments.findings.run import Plan, run

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"


def assemble(out: Path, here: Path = HERE, docs: Path = DOCS) -> Path:
    """Put the run's page, with reading.md at its end, and its pictures into docs; returns the page."""
    page = docs / "findings.md"
    reading = (here / "reading.md").read_text("utf-8")
    page.write_text((out / "findings.md").read_text("utf-8") + "\n" + reading, encoding="utf-8")
    shutil.rmtree(docs / PICTURES, ignore_errors=True)
    shutil.copytree(out / PICTURES, docs / PICTURES)
    shutil.copy(out / "findings.json", here / "findings.json")
    return page


def main(arguments: list[str]) -> None:
    """Run the findings and write the page."""
    config = tomllib.loads((HERE / "findings.toml").read_text("utf-8"))
    scale = Scale.quick() if config["quick"] else Scale()
    out = Path(arguments[0] if arguments else config["out"])
    plan = Plan(out, scale, config["seeds"], jobs=config["jobs"])
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    results = run(plan, console)
    quick = " --quick" if config["quick"] else ""
    write_page(
        plan, results, f"python -m eddecode.lab findings --out {config['out']}{quick} --seeds {plan.seeds}"
    )
    (HERE / "scale.json").write_text(json.dumps(asdict(scale), indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {assemble(out)}, {HERE / 'findings.json'}", highlight=False)


if __name__ == "__main__":
    main(sys.argv[1:])
