"""Findings 9 and 10: a small pair that steers a larger base, and the same findings at three sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eddecode.experiments.findings.criteria import best, mcnemar, rate, ratio, rises_then_falls, said
from eddecode.experiments.findings.finding import Finding, Outcome, Table
from eddecode.experiments.findings.harness import Target
from eddecode.experiments.findings.reversal import doubles, table
from eddecode.experiments.training import ALIGNMENT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from eddecode.experiments.findings.harness import Bench


def measure_transfer(bench: Bench) -> Outcome:
    """Finding 9: weights (1, α, −α) of a larger base, the small base and the small aligned model."""
    small, large = (bench.base_of(bench.scale.sizes[i]) for i in (0, -1))
    cells = bench.sweep(Target(small, (bench.filtered(ALIGNMENT.steps, small),), steered=large))
    top, base = best(list(cells.values())), cells[0.0]
    own = Target(large, (bench.filtered(ALIGNMENT.steps, large),))
    direct = best(list(bench.sweep(own).values()))
    times = ratio(top.both, base.both)
    text = (
        f"large base {said(base.both)}%, steered by the small pair {said(top.both)}% (α={top.alpha:g}): "
        f"{times.value:.2f} times [{times.low:.2f}, {times.high:.2f}]; by its own aligned model "
        f"{said(direct.both)}%"
    )
    return Outcome(
        doubles(top, base),
        text,
        {
            "base": float(base.both.mean()),
            "steered": float(top.both.mean()),
            "alpha": top.alpha,
            "own": float(direct.both.mean()),
            "ratio": [times.value, times.low, times.high],
            "p": mcnemar(top.both, base.both),
        },
        [table("A larger base under the small pair's contrast", cells)],
    )


def measure_sizes(bench: Bench) -> Outcome:
    """Finding 10: reversal and the shape of the curve at every size."""
    rows, data, holds = [], [], []
    for shape in bench.scale.sizes:
        base = bench.base_of(shape)
        cells = bench.sweep(Target(base, (bench.filtered(ALIGNMENT.steps, base),)))
        top, own = best(list(cells.values())), cells[0.0]
        times = ratio(top.both, own.both)
        falls = rises_then_falls(own, [c for a, c in cells.items() if a > 0])
        holds.append(doubles(top, own) and falls)
        parameters = bench.shop.model(base).num_parameters()
        r = rate(top.both)
        data.append(
            {
                "hidden": shape.hidden, "layers": shape.layers, "parameters": parameters,
                "aligned": float(cells[-1.0].both.mean()), "base": float(own.both.mean()),
                "ed": [r.rate, r.low, r.high],
                "alpha": top.alpha, "ratio": [times.value, times.low, times.high], "rises_then_falls": falls,
            }
        )  # fmt: skip
        rows.append(
            (
                f"{parameters:,}",
                said(cells[-1.0].both),
                said(own.both),
                said(own.valid),
                said(top.both),
                f"{top.alpha:g}",
                f"{times.value:.2f} [{times.low:.2f}, {times.high:.2f}]",
                "yes" if falls else "no",
            )
        )
    heads = (
        "parameters", "aligned: rude and valid %", "base: rude and valid %", "base: valid %", "ED: rude and valid %",
        "best α", "times the base", "rises, then falls",
    )  # fmt: skip
    text = "; ".join(f"{d['parameters']:,} parameters: {d['ratio'][0]:.2f} times the base" for d in data)
    return Outcome(all(holds), text, {"sizes": data}, [Table("Three sizes", heads, rows)])


def draw_sizes(outcomes: Sequence[Outcome]) -> Figure:
    """Aligned, base and ED against the number of parameters (first seed)."""
    from eddecode.experiments.findings import plots as pictures

    data = outcomes[0].figures["sizes"]
    figure, (panel,) = pictures.axes()
    xs = [d["parameters"] for d in data]
    rates = [pictures.Band(*d["ed"]) for d in data]
    pictures.line(panel, xs, rates, 0, "ED at its best α")
    panel.plot(xs, [100 * d["base"] for d in data], label="base", **pictures.style(1))
    panel.plot(xs, [100 * d["aligned"] for d in data], label="aligned", **pictures.style(2))
    panel.set_xscale("log")
    panel.set_xticks(xs, [f"{x / 1e6:.2g}M" for x in xs])
    panel.minorticks_off()
    panel.set(xlabel="parameters", ylabel="rude and valid")
    pictures.percent(panel)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


TRANSFER = Finding(
    "transfer",
    9,
    "A small pair reverses a larger base",
    "The contrast of a small pair, added to the logits of a larger base of the same world, makes that base at "
    "least twice as rude, though it was never aligned itself.",
    "Rude and valid at the best α: at least 2 times the large base's rate, bootstrap interval of the ratio "
    "above 1, exact McNemar p < 0.01.",
    measure_transfer,
    limits="Both share a tokenizer and a world. They are the smallest and the largest size of the next finding.",
)
SIZES = Finding(
    "sizes",
    10,
    "Other sizes",
    "Reversal, and a curve that rises and falls, at every size.",
    "At each of three sizes: the criteria of `reversal` and of `alpha`, over the α's of the sweep.",
    measure_sizes,
    draw_sizes,
    "All three are tiny: at most a few million parameters.",
)
