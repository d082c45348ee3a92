"""Draws docs/pictures/architecture.svg from the import graph: `python docs/draw_architecture.py [--check]`.

A row is a stage of the pipeline, from the layers contract in pyproject.toml; a dot means that the stage of the row
imports the stage of the column, and its size how often. All dots lie to the right of the diagonal: imports go one way,
from the top to the bottom. The graph itself is stored in the picture's description, so that `--check` can
tell, whatever the version of matplotlib, whether the picture still shows the code (exit code 1 if not).
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path

import grimp
import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "pictures" / "architecture.svg"
KERNELS = "eddecode_kernels"
LEFT, ROW, HEAD = 3.4, 0.4, 1.0  # inches: width of the names, height of a stage, height of the column names
INK, PALE = "#1b2733", "#5a6a7a"
PURPOSES = {
    "cli": "commands and tables",
    "lab": "face of the bundled pair",
    "integrations": "other tools",
    "experiments": "small pairs, the paper's findings",
    "audit": "config, decode, judge, analyse, gate, report",
    "sampler": "generate, stream, score",
    "engine": "scheduler, continuous batching, speculation",
    "scoring": "log-probabilities of given text",
    "execution": "forward passes over KV caches, compiled layers",
    "models": "checkpoints, pairs, checks, memory",
    "sampling": "contrast, filters, random numbers",
    "prompts": "templates and presets",
    "testbed": "toy language, bundled pair",
    "outputs": "what the sampler returns",
    "utils": "small helpers",
    "errors": "what can go wrong",
    KERNELS: "C++ and Triton; torch only",
}


def layers() -> list[list[str]]:
    """Stages from the top to the bottom, those of one layer together; the kernels below all."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contract = next(
        c for c in settings["contracts"] if c["type"] == "layers" and c.get("containers") == ["eddecode"]
    )
    stages = [[stage.strip() for stage in layer.split("|")] for layer in contract["layers"]]
    return [layer for layer in stages if layer != ["__main__"]] + [[KERNELS]]


def stage_of(module: str) -> str:
    """`eddecode.audit.gate` → `audit`."""
    parts = module.split(".")
    return KERNELS if parts[0] == KERNELS else parts[1] if len(parts) > 1 else ""


def edges() -> dict[tuple[str, str], int]:
    """(importing stage, imported stage) → imports between their modules."""
    graph = grimp.build_graph("eddecode", KERNELS, exclude_type_checking_imports=True, cache_dir=None)
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            pair = stage_of(module), stage_of(imported)
            if pair[0] != pair[1] and pair[0] in PURPOSES and pair[1] in PURPOSES:
                found[pair] += 1
    return dict(sorted(found.items()))


def described(found: dict[tuple[str, str], int]) -> str:
    """The graph as one line; what `--check` compares. Without the counts: a further import is no new arrow."""
    return "; ".join(f"{one} imports {other}" for one, other in found)


def draw(found: dict[tuple[str, str], int]) -> None:
    """Write the picture: a row per stage, and to its right which of the stages below it imports."""
    matplotlib.rcParams.update({"svg.hashsalt": "eddecode", "svg.fonttype": "none", "font.size": 9})
    rows = layers()
    stages = [stage for row in rows for stage in row]
    height = ROW * len(stages) + HEAD
    figure = plt.figure(figsize=(LEFT + ROW * len(stages) + 0.7, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, figure.get_figwidth()), ylim=(0, height))
    axes.axis("off")
    ys = {stage: height - HEAD - ROW * (i + 0.5) for i, stage in enumerate(stages)}
    xs = {stage: LEFT + ROW * (i + 0.5) for i, stage in enumerate(stages)}
    for number, row in enumerate(rows):
        _band(axes, [ys[stage] for stage in row], figure.get_figwidth(), number)
    for stage in stages:
        axes.text(0.15, ys[stage] + 0.08, stage, va="center", weight="bold", color=INK)
        axes.text(0.15, ys[stage] - 0.11, PURPOSES[stage], va="center", fontsize=7.5, color=PALE)
        axes.text(xs[stage], height - HEAD + 0.08, stage, rotation=60, fontsize=8, color=INK)
        axes.plot(xs[stage], ys[stage], marker="s", ms=3, color=PALE)
    for (one, other), count in found.items():
        axes.scatter(xs[other], ys[one], s=18 + 4 * min(count, 40), color="#2f6f9f", zorder=3)
    figure.savefig(
        PICTURE, metadata={"Date": None, "Title": "The stages of eddecode", "Description": described(found)}
    )
    plt.close(figure)


def _band(axes: Axes, ys: list[float], width: float, number: int) -> None:
    """The background of the stages of one layer."""
    low = min(ys) - ROW / 2
    axes.add_patch(
        Rectangle((0, low), width, ROW * len(ys), fc=("#f3f6f8", "#ffffff")[number % 2], ec="none", zorder=0)
    )


def main() -> int:
    """Draw, or compare with what is drawn."""
    found = edges()
    if "--check" not in sys.argv[1:]:
        draw(found)
        return 0
    if PICTURE.exists() and described(found) in PICTURE.read_text(encoding="utf-8"):
        return 0
    print(
        f"{PICTURE.relative_to(ROOT)} does not show the imports of the code; run python docs/draw_architecture.py"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
