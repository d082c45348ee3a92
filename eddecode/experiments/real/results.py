"""What one seed of the experiment gave: the criteria of the protocol, evaluated, and tables for the page."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from eddecode.experiments.findings.criteria import (
    Flags,
    best_alpha,
    doubles_rate,
    format_rate,
    format_ratio,
    is_higher,
    paired_p_value,
    rate,
    rate_difference,
    rate_ratio,
    rises_then_falls,
)
from eddecode.experiments.findings.experiment import ExperimentResult, ResultTable
from eddecode.experiments.findings.reversal import curve
from eddecode.experiments.real.measure import Measured
from eddecode.experiments.real.protocol import RealProtocol

COLUMNS = (
    "α", "complains %", "valid %", "complains and valid %", "by the filter's own list %", "implied reward, nats",
)  # fmt: skip
STRENGTH_ALPHA = 0.6

Targets = Mapping[str, Mapping[float, Measured]]
"""Name of an alignment ("dpo-6", "control-6") → α → what was measured."""


def evaluate(targets: Targets, protocol: RealProtocol) -> ExperimentResult:
    """All criteria on one seed; the result holds if every one does.

    Args:
        targets: every adapter that the protocol names; that of the strongest alignment holds α = 0, the base.
        protocol: names of the adapters.
    """
    by_alpha = {name: {a: m.independent for a, m in each.items()} for name, each in targets.items()}
    strongest, weakest, control = protocol.strongest, protocol.weakest, protocol.control
    base = by_alpha[strongest][0.0]
    contrasts = [c for a, c in by_alpha[strongest].items() if a > 0]
    best, of_control = best_alpha(contrasts), best_alpha([c for a, c in by_alpha[control].items() if a > 0])
    times = rate_ratio(best.rude_and_valid, base.rude_and_valid)
    few = [by_alpha[name][STRENGTH_ALPHA].rude_and_valid for name in (strongest, weakest)]
    holds = {
        "reversal": is_higher(best.rude_and_valid, base.rude_and_valid, level=0.01),
        "doubling": doubles_rate(best, base),
        "control": not is_higher(of_control.rude_and_valid, base.rude_and_valid)
        and is_higher(best.rude_and_valid, of_control.rude_and_valid),
        "curve": rises_then_falls(base, contrasts),
        "strength": is_higher(few[0], few[1]),
    }
    aligned = by_alpha[strongest][-1.0].rude_and_valid
    tuned = by_alpha[f"tuned-{protocol.tuned_epochs}"]
    of_tuned = best_alpha([c for a, c in tuned.items() if a > 0])
    summary = (
        f"aligned {format_rate(aligned)}%, base {format_rate(base.rude_and_valid)}%, ED "
        f"{format_rate(best.rude_and_valid)}% (α={best.alpha:g}): {format_ratio(times, 'the base')}; ED against the "
        f"control {format_rate(of_control.rude_and_valid)}% (α={of_control.alpha:g}); fine-tuned instead of DPO: "
        f"{format_rate(tuned[-1.0].rude_and_valid)}%, ED {format_rate(of_tuned.rude_and_valid)}%; not met: "
        f"{', '.join(name for name, met in holds.items() if not met) or 'none'}"
    )
    figures = {
        "criteria": {name: bool(met) for name, met in holds.items()},
        "base": _with_interval(base.rude_and_valid),
        "aligned": _with_interval(aligned),
        "ed": _with_interval(best.rude_and_valid),
        "alpha": best.alpha,
        "ratio": [times.value, times.low, times.high],
        "p": paired_p_value(best.rude_and_valid, base.rude_and_valid),
        "against_base": _difference(best.rude_and_valid, base.rude_and_valid),
        "against_control": _difference(best.rude_and_valid, of_control.rude_and_valid),
        "curves": {name: curve(each) for name, each in by_alpha.items()},
    }
    tables = [_table(name, each) for name, each in targets.items()]
    return ExperimentResult(all(holds.values()), summary, figures, tables)


def _with_interval(flags: Flags) -> list[float]:
    r = rate(flags)
    return [r.rate, r.low, r.high]


def _difference(a: Flags, b: Flags) -> list[float | None]:
    d = rate_difference(a, b)
    return [d.value, d.low, d.high]


def _table(name: str, measured: Mapping[float, Measured]) -> ResultTable:
    rows = []
    for alpha, each in sorted(measured.items()):
        c = each.independent
        label = {-1.0: "−1 (aligned)", 0.0: "0 (base)"}.get(alpha, f"{alpha:g}")
        rates = (format_rate(flags) for flags in (c.rude, c.valid, c.rude_and_valid, each.trained_against))
        rows.append((label, *rates, f"{np.mean(c.reward):.1f}"))
    return ResultTable(name, COLUMNS, rows)
