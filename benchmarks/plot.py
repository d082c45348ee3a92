"""The plots of docs/performance.md: ratios to the alternatives, and how the cost of a decode step grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.registry import ALTERNATIVES
from eddecode.utils import plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3  # panels side by side: more would be too small to read
# Panel of `growth` → (label of its axis, key of its records).
GROWTH_AXES = {
    "batch": ("completions in the batch", "rows"),
    "alphas": ("α's for one prompt", "alphas"),
    "prompt": ("tokens in the prompt", "prompt"),
    "vocabulary": ("ids in the vocabulary", "vocabulary"),
    "size": ("parameters of one model", "parameters"),
}
GROWTH_LINES = {"eddecode": "eddecode", "processor": ALTERNATIVES["processor"].label}


@plotting.plot_style(**{"font.size": 9})
def draw_ratios(records: Sequence[dict[str, Any]], path: Path) -> None:
    """One panel per pair, a group of bars per task, on a logarithmic axis with 1 as the foot of the bars.

    Args:
        records: as `results.record` makes them.
        path: .svg (or any other ending that matplotlib knows).
    """
    records = [r for r in records if r["speedup"]]  # a task that eddecode could not do has no ratios
    pairs = list(dict.fromkeys((r["size"], r["dtype"], r["pair"]) for r in records))
    columns = min(COLUMNS, max(len(pairs), 1))
    rows = -(-max(len(pairs), 1) // columns)
    figure, panels = plotting.new_figure(max(432, 187 * columns + 72), 187 * rows + 58, columns, rows)
    others = [name for name in ALTERNATIVES if any(name in r["speedup"] for r in records)]
    for axes, pair in zip(panels, pairs, strict=False):
        _draw_bars(axes, [r for r in records if (r["size"], r["dtype"], r["pair"]) == pair], others)
        axes.set_title("{} {}, {} pair".format(*pair))
    highest = max((axes.get_ylim()[1] for axes in panels[: len(pairs)]), default=16.0)
    lowest = min((axes.get_ylim()[0] for axes in panels[: len(pairs)]), default=0.25)
    for i, axes in enumerate(panels):
        axes.set_ylim(lowest, highest)
        axes.set_axis_on() if i < len(pairs) else axes.set_axis_off()
        if i % columns == 0:
            axes.set_ylabel("tokens/s of eddecode,\nrelative to the alternative")
    plotting.figure_legend(figure)
    plotting.save(figure, path)


def _draw_bars(axes: Axes, records: Sequence[dict[str, Any]], others: Sequence[str]) -> None:
    width = 0.8 / len(others)
    for i, name in enumerate(others):
        known = [(x, r["speedup"][name]) for x, r in enumerate(records) if name in r["speedup"]]
        medians = [s["median"] for _, s in known]
        errors = [[s["median"] - s["min"] for _, s in known], [s["max"] - s["median"] for _, s in known]]
        axes.bar(
            [x + (i - (len(others) - 1) / 2) * width for x, _ in known],
            [m - 1 for m in medians],  # bars stand on 1: up is faster, down is slower
            width,
            bottom=1,
            yerr=errors,
            color=plotting.SERIES_COLORS[i],
            label="vs " + ALTERNATIVES[name].label,
            error_kw={"elinewidth": 0.8, "capsize": 0},
        )
    axes.set_yscale("log")
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    axes.set_yticks(ticks, [plotting.format_tick(t, "×") for t in ticks])
    axes.minorticks_off()
    axes.axhline(1, color=plotting.INK, linewidth=0.8)
    axes.set_xticks(range(len(records)), [r["task"] for r in records])


@plotting.plot_style(**{"font.size": 9, "lines.linewidth": 1.5})
def draw_growth(saved: dict[str, Any], path: Path) -> None:
    """Small multiples on one scale of milliseconds, a line per alternative, and the time that reading takes.

    Args:
        saved: what `benchmarks.growth` writes.
        path: .svg (or any other ending that matplotlib knows).
    """
    names = [name for name in GROWTH_AXES if saved["panels"].get(name) and saved["panels"][name][0]["floor"]]
    figure, panels = plotting.new_figure(576, 374, columns=3, rows=2)
    for axes, name in zip(panels, names, strict=False):
        _draw_growth_panel(axes, name, saved["panels"][name])
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[:: len(panels) // 2]:
        axes.set_ylabel("milliseconds per decode step")
    limits = [limit for axes in panels[: len(names)] for limit in axes.get_ylim()]
    for axes in panels[: len(names)]:
        axes.set_ylim(min(limits), max(limits))
    plotting.figure_legend(figure)
    plotting.save(figure, path)


def _draw_growth_panel(axes: Axes, name: str, records: Sequence[dict[str, Any]]) -> None:
    label, key = GROWTH_AXES[name]
    places = [record[key] for record in records]
    for i, (alternative, text) in enumerate(GROWTH_LINES.items()):
        known = [(x, r["seconds"].get(alternative)) for x, r in zip(places, records, strict=True)]
        points = [(x, [1e3 * s for s in seconds]) for x, seconds in known if seconds]
        ys = [(statistics.median(ms), min(ms), max(ms)) for _, ms in points]
        plotting.draw_line(axes, [x for x, _ in points], ys, i, text)
    reading = [1e3 * statistics.median(record["floor"]) for record in records]
    axes.plot(places, reading, color=plotting.GRAY, linestyle=":", label="reading weights and cache once")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks(places, [_short(x) for x in places])
    ticks = [1, 3, 10, 30, 100, 300, 1000]
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel(label)


def _short(count: int) -> str:
    """8, 1k, 256k, 134M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.0f}{unit}"
    return str(count)
