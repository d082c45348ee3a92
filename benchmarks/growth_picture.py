"""The picture of `benchmarks.growth`: small multiples on one scale of milliseconds, a line per contender."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

AXES = {
    "batch": ("completions in the batch", "rows"),
    "alphas": ("α's for one prompt", "alphas"),
    "prompt": ("tokens in the prompt", "prompt"),
    "vocabulary": ("ids in the vocabulary", "vocabulary"),
    "size": ("parameters of one model", "parameters"),
}
LINES = {
    "eddecode": ("eddecode", "#c44e52", "o"),
    "processor": ("(b) logits processor", "#dd8452", "s"),
}
FLOOR = ("reading weights and cache once", "#8c8c8c")


def draw(saved: dict[str, Any], path: Path) -> None:
    """Draw what was measured.

    Args:
        saved: what `benchmarks.growth` writes.
        path: .svg (or any other ending that matplotlib knows).
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [name for name in AXES if saved["panels"].get(name) and saved["panels"][name][0]["floor"]]
    # Text stays text and ids do not change from run to run: small files, readable differences.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "eddecode", "font.size": 9}):
        figure, axes = plt.subplots(2, 3, figsize=(8.0, 5.2), sharey=True, layout="constrained")
        for axis, panel in zip(axes.flat, panels, strict=False):
            _panel(axis, panel, saved["panels"][panel])
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis in axes[:, 0]:
            axis.set_ylabel("milliseconds per decode step")
        handles, labels = axes.flat[0].get_legend_handles_labels()
        place = axes.flat[-1] if len(panels) < 6 else axes.flat[0]
        place.legend(handles, labels, loc="center", frameon=False, title="one decode step of all rows")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _panel(axis: Any, panel: str, records: Sequence[dict[str, Any]]) -> None:
    label, key = AXES[panel]
    places = [record[key] for record in records]
    for name, (text, colour, marker) in LINES.items():
        known = [
            (x, r["seconds"][name]) for x, r in zip(places, records, strict=True) if r["seconds"].get(name)
        ]
        middle = [1e3 * statistics.median(values) for _, values in known]
        below = [m - 1e3 * min(values) for m, (_, values) in zip(middle, known, strict=True)]
        above = [1e3 * max(values) - m for m, (_, values) in zip(middle, known, strict=True)]
        axis.errorbar(
            [x for x, _ in known],
            middle,
            yerr=[below, above],
            color=colour,
            marker=marker,
            markersize=4,
            label=text,
        )
    text, colour = FLOOR
    reading = [1e3 * statistics.median(record["floor"]) for record in records]
    axis.plot(places, reading, color=colour, linestyle="--", label=text)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.set_xticks(places, [_short(x) for x in places])
    axis.set_yticks([1, 3, 10, 30, 100, 300, 1000], ["1", "3", "10", "30", "100", "300", "1,000"])
    axis.set_xlabel(label)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _short(count: int) -> str:
    """8, 1k, 256k, 134M."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.0f}{unit}"
    return str(count)
