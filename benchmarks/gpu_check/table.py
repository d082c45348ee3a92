"""The results as plain text of 80 columns: every figure by stage, then every goal, then the sums."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu_check.goals import Verdict

WIDTH = 80
NAME = 56  # columns of a figure's name


def table(
    results: Mapping[str, Any], verdicts: Sequence[Verdict], seconds: float, *, complete: bool = True
) -> str:
    """Everything.

    Args:
        results: by stage.
        verdicts: on the goals.
        seconds: that all of it took.
        complete: whether no stage is left.
    """
    lines: list[str] = []
    for stage, result in results.items():
        lines.append(line_of(stage, result))
        for name, value in (result.get("found") or {}).items():
            lines += _figure(name, value)
    if verdicts:
        lines += ["", f"{'GOALS':<{NAME - 8}}{'found':>10} {'goal':>9}", "-" * WIDTH]
        lines += [line for verdict in verdicts for line in _goal(verdict)]
    return "\n".join([*lines, "", *_sums(results, verdicts, seconds, complete)]) + "\n"


def line_of(stage: str, result: Mapping[str, Any]) -> str:
    """A stage in a line, or in several if it failed."""
    if result.get("ok"):
        kernels = result.get("kernels")
        compiled = f", {kernels} kernels compiled in {result['compiling']:.1f} s" if kernels else ""
        return f"{stage:<14}ok, {result.get('seconds', 0):.1f} s{compiled}"
    error = str(result.get("error", "not as promised"))
    return _wrapped(f"{stage:<14}FAILED: {error}", " " * 14)


def _figure(name: str, value: Any) -> list[str]:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    line = f"    {name:<{NAME}} {text}"
    if len(line) <= WIDTH:
        return [line]
    return [_wrapped(f"    {name}: {text}", " " * 8)]


def _goal(verdict: Verdict) -> list[str]:
    found = "–" if verdict.found is None else f"{verdict.found:.4g}"
    name = f"{verdict.stage}: {verdict.figure}"
    figures = f"{found:>10} {verdict.goal_text:>9}  {verdict.state}"
    if len(name) < NAME - 8:
        return [f"{name:<{NAME - 8}}{figures}"]
    return [name, " " * (NAME - 8) + figures]


def _sums(
    results: Mapping[str, Any], verdicts: Sequence[Verdict], seconds: float, complete: bool
) -> list[str]:
    """What it ran on, and how many stages and goals there were of each kind."""
    here = (results.get("environment") or {}).get("found") or {}
    passed = sum(bool(result.get("ok")) for result in results.values())
    states = Counter(verdict.state for verdict in verdicts)
    goals = ", ".join(f"{count} {state}" for state, count in sorted(states.items())) or "none judged"
    versions = ", ".join(f"{name} {here.get(name, '?')}" for name in ("torch", "triton", "transformers"))
    lines = [
        f"{here.get('name', here.get('device', 'device unknown'))}; {versions}; eddecode {here.get('eddecode', '?')}",
        f"{passed} of {len(results)} stages passed in {seconds:.0f} s; goals: {goals}",
    ]
    if not complete:
        lines.append("The check goes on: this is what there is so far.")
    return [_wrapped(line, "    ") for line in lines]


def _wrapped(text: str, indent: str) -> str:
    return "\n".join(
        part
        for line in text.splitlines()
        for part in textwrap.wrap(line, WIDTH, subsequent_indent=indent, break_on_hyphens=False) or [""]
    )
