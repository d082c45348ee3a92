"""The picture for docs/performance.md: how many times faster than each alternative, with the spread of the rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import CONTENDERS

COLOURS = {"authors": "#4c72b0", "processor": "#dd8452", "floor": "#8c8c8c", "compiled": "#bcbcbc"}
COLUMNS = 3  # panels side by side: more would be too small to read


def draw(records: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per pair, a group of bars per task, on a logarithmic axis with 1 as its foot.

    Args:
        records: as `report.record` makes them.
        path: .svg (or any other ending that matplotlib knows).
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    records = [r for r in records if r["speedup"]]  # a task that eddecode cannot do yet has nothing to show
    panels = list(dict.fromkeys((r["size"], r["dtype"], r["pair"]) for r in records))
    # Text stays text and ids do not change from run to run: small files, readable differences.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "eddecode"}):
        columns = min(COLUMNS, max(len(panels), 1))
        lines = -(-max(len(panels), 1) // columns)
        figure, axes = plt.subplots(
            lines,
            columns,
            figsize=(max(6.0, 2.6 * columns + 1), 2.6 * lines + 0.8),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        others = [name for name in CONTENDERS if any(name in r["speedup"] for r in records)]
        for axis, panel in zip(axes.flat, panels, strict=False):
            _panel(axis, [r for r in records if (r["size"], r["dtype"], r["pair"]) == panel], others)
            axis.set_title("{} {}, {} pair".format(*panel), fontsize=10)
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis in axes[:, 0]:
            axis.set_ylabel("tokens/s, relative\nto the alternative")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _panel(axis: Any, records: Sequence[dict[str, Any]], others: Sequence[str]) -> None:
    width = 0.8 / len(others)
    for i, name in enumerate(others):
        known = [(x, r["speedup"][name]) for x, r in enumerate(records) if name in r["speedup"]]
        places = [x + (i - (len(others) - 1) / 2) * width for x, _ in known]
        medians = [s["median"] for _, s in known]
        spreads = [[s["median"] - s["min"] for _, s in known], [s["max"] - s["median"] for _, s in known]]
        axis.bar(
            places,
            [m - 1 for m in medians],  # bars stand on 1: up is faster, down is slower
            width,
            bottom=1,
            yerr=spreads,
            color=COLOURS[name],
            label="vs " + CONTENDERS[name].label,
            error_kw={"elinewidth": 0.8},
        )
    axis.set_yscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    axis.set_yticks(ticks, [f"{t:g}×" for t in ticks])
    axis.minorticks_off()
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set_xticks(range(len(records)), [r["task"] for r in records])
    axis.spines[["top", "right"]].set_visible(False)
