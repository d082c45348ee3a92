"""`eddecode plan`: the size of an audit, before anything is decoded.

From expected rates, or from those of a finished run (a pilot), it computes with `eddecode.audit.stats.power`: the
prompts for a width of the intervals, the prompts for a decision at a limit, and the cost of decoding them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from eddecode.cli.cluster import ClusterOptions, plan_for, print_cluster, require_positive
from eddecode.cli.messages import errors_as_messages, stdout_console
from eddecode.cli.options import given_only
from eddecode.errors import ConfigError

if TYPE_CHECKING:
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.stats.estimates import Rate
    from eddecode.audit.stats.power import Cost, Expected


def plan(
    run: Annotated[
        Path | None,
        typer.Argument(help="A finished run to take the rates from, such as a pilot.", show_default=False),
    ] = None,
    *,
    base_rate: Annotated[
        float | None, typer.Option(help="Expected harm rate of the base model. Default: the run's, else 0.3.")
    ] = None,
    ed_rate: Annotated[
        float | None,
        typer.Option(help="Expected harm rate of ED. Default: the run's, else twice the base's."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Completions per prompt and condition. Default: the run's, else 1.")
    ] = None,
    correlation: Annotated[
        float,
        typer.Option(
            help="Correlation of the samples of one prompt, 0 to 1; a run with several samples overrides it."
        ),
    ] = 0.3,
    width: Annotated[float, typer.Option(help="Full width of the rates' 95% intervals.")] = 0.1,
    max_reversal: Annotated[
        float, typer.Option(help="The limit of the gate: harm rate of ED minus the base's.")
    ] = 0.1,
    power: Annotated[float, typer.Option(help="Probability of a decision at that limit.")] = 0.8,
    conditions: Annotated[
        int | None,
        typer.Option(help="Number of conditions: aligned, base, and each α. Default: the run's, else 7."),
    ] = None,
    alphas: Annotated[
        int | None,
        typer.Option(
            help="Number of α's above 0. Default: the run's, else that of the conditions without two."
        ),
    ] = None,
    tokens: Annotated[
        float | None, typer.Option(help="Mean tokens of a completion. Default: the run's, else 128.")
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(help="Parameters of both models together, in billions; adds the number of operations."),
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Measured tokens per second; adds the time.")] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="Also plan GPUs, hours and cost, on h200 or on GPUs of a memory such as 80GB.",
            show_default=False,
        ),
    ] = None,
    on: ClusterOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Compute how many prompts an audit needs, for the width of its intervals and for a verdict; and the cost."""
    with errors_as_messages():
        known = {} if run is None else rates_from_run(run)
        given = {"base": base_rate, "ed": ed_rate, "samples": samples, "conditions": conditions}
        known |= given_only({**given, "alphas": alphas, "tokens": tokens})
        found = make_plan(
            {"correlation": correlation, **known}, width, max_reversal, power, parameters, speed
        )
        found["alphas"] = [] if run is None else alphas_to_add(run)
        if cluster is None and (ignored := on.given()):
            raise ConfigError(
                f"{', '.join(ignored)} plan a cluster; give --cluster too, such as --cluster 80GB"
            )
        if cluster is not None:
            found["cluster"] = plan_for(cluster, _work(found, parameters, on), on)
        typer.echo(json.dumps(found, indent=2)) if as_json else _print_plan(found)
        if cluster is not None and not as_json:
            print_cluster(found["cluster"])


def _work(found: Mapping[str, Any], parameters: float | None, on: ClusterOptions) -> dict[str, Any]:
    """What a cluster is to decode: the plan's audit, on the prompts that were asked for."""
    if parameters is None:
        raise ConfigError(
            "--cluster needs the size of the pair: --parameters, of both models together, in billions"
        )
    count = found["decision"]["prompts"] if on.prompts is None else on.prompts
    require_positive({"--prompts": count, "--bits": on.bits, "--longest": on.longest})
    return {
        "prompts": count,
        "samples": found["expected"]["samples"],
        "conditions": found["conditions"],
        "tokens": found["tokens"],
        "longest": 2 * found["tokens"] if on.longest is None else on.longest,
        "parameters": 1e9 * parameters,
        "weight_bytes": on.bits / 8,
        "judged": on.judge_rate,
    }


def make_plan(
    known: Mapping[str, Any],
    width: float,
    limit: float,
    power: float,
    parameters: float | None = None,
    speed: float | None = None,
) -> dict[str, Any]:
    """The plan as data: `expected`, and for `width` and `decision` the prompts and what they cost.

    Args:
        known: `base`, `ed`, `samples`, `correlation`, `shared`, `conditions`, `alphas`, `tokens`; each has a default.
        width: of the rates' intervals.
        limit, power: of the decision.
        parameters: of both models together, in billions.
        speed: tokens per second.

    Raises:
        ConfigError: a number out of its range, or a plan of more than ten million prompts.
    """
    from eddecode.audit.stats.power import Expected, decision_power, prompts_for_decision, prompts_for_width

    base = float(known.get("base", 0.3))
    conditions, tokens = int(known.get("conditions", 7)), float(known.get("tokens", 128))
    expected = Expected(
        base=base,
        ed=float(known.get("ed", min(2 * base, 1.0))),
        samples=int(known.get("samples", 1)),
        correlation=float(known.get("correlation", 0.3)),
        shared=float(known.get("shared", 0.0)),
        alphas=int(known.get("alphas", max(conditions - 2, 1))),
    )
    require_positive({"conditions": conditions, "tokens": tokens, "speed": speed, "parameters": parameters})
    size = None if parameters is None else 1e9 * parameters
    found: dict[str, Any] = {
        "expected": {**asdict(expected), "reversal": expected.reversal, "deff": expected.deff},
        "conditions": conditions,
        "tokens": tokens,
    }
    wide, deciding = prompts_for_width(expected, width), prompts_for_decision(expected, limit, power)
    for name, prompts in (("width", wide), ("decision", deciding)):
        found[name] = {
            "prompts": prompts,
            "width": expected.width(prompts),
            "power": decision_power(expected, limit, prompts),
            "cost": asdict(_cost(prompts, expected, conditions, tokens, size, speed)),
        }
    found["width"]["asked"] = width
    found["decision"] |= {"limit": limit, "asked": power}
    return found


def _cost(
    prompts: int, expected: Expected, conditions: int, tokens: float, size: float | None, speed: float | None
) -> Cost:
    from eddecode.audit.stats.power import decode_cost

    return decode_cost(prompts, expected.samples, conditions, tokens, size, speed)


def alphas_to_add(run: Path) -> list[str]:
    """The α's that the sweep of a finished run lacks to see the most harm.

    Raises:
        StoreError: there is no finished run in the folder.
    """
    from eddecode.audit.analysis.summary import Summary
    from eddecode.audit.evidence.alpha_checks import proposed_alphas

    return proposed_alphas(Summary.read(run))


def rates_from_run(run: Path) -> dict[str, Any]:
    """The numbers of a finished run that a plan needs: rates, samples, correlation, lengths.

    Raises:
        StoreError: there is no finished run in the folder.
    """
    from eddecode.audit.analysis.summary import Summary

    summary = Summary.read(run)
    headline = summary.headline
    base, plain = headline.base, headline.plain
    if plain is None and headline.unconstrained is not None:
        plain = headline.unconstrained.plain
    lengths = [entry.mean_tokens for entry in summary.conditions if entry.mean_tokens]
    found: dict[str, Any] = {
        "samples": int(summary.identity.get("samples", 1)),
        "conditions": len(summary.conditions),
        "alphas": max(len(headline.candidates), 1),
        "tokens": sum(lengths) / len(lengths) if lengths else 128.0,
    }
    if base is not None:
        found["base"] = base.rate
    if plain is not None:
        found["ed"] = plain.rate
    if base is not None and plain is not None and found["samples"] > 1:
        measured = [_correlation(rate, found["samples"]) for rate in (base, plain)]
        known = [value for value in measured if value is not None]
        if known:
            found["correlation"] = max(known)
    shared = _shared(summary, found.get("correlation", 0.0))
    return found if shared is None else {**found, "shared": shared}


def _shared(summary: Summary, correlation: float) -> float | None:
    """κ: how much of a prompt's variation base and ED share, from the standard error of the reversal."""
    from eddecode.audit.stats.power import Expected

    headline = summary.headline
    reversal, base, plain = headline.reversal, headline.base, headline.plain
    if reversal is None or base is None or plain is None or not reversal.standard_error:
        return None
    samples = int(summary.identity.get("samples", 1))
    alone = Expected(base=base.rate, ed=plain.rate, samples=samples, correlation=correlation)
    one, other = (rate * (1 - rate) * alone.deff / samples for rate in (base.rate, plain.rate))
    if not one * other:
        return None
    variance = reversal.standard_error**2 * reversal.prompts
    return min(max((one + other - variance) / (2 * math.sqrt(one * other)), 0.0), 1.0)


def _correlation(rate: Rate, samples: int) -> float | None:
    """Correlation of the samples, from the width of a rate's interval and that of as many independent completions.

    The interval contains the Wilson interval at the effective size, so the estimate is on the cautious side.
    """
    from eddecode.audit.stats.proportions import wilson

    if rate.rate in (0.0, 1.0):
        return None
    low, high = wilson(rate.rate, rate.total, rate.level)
    deff = ((rate.high - rate.low) / (high - low)) ** 2
    return min(max((deff - 1) / (samples - 1), 0.0), 1.0)


def _print_plan(found: Mapping[str, Any]) -> None:
    console = stdout_console(highlight=False)
    expected, width, decision = found["expected"], found["width"], found["decision"]
    console.print(
        Text(
            f"Expected: base {100 * expected['base']:.1f}%, ED {100 * expected['ed']:.1f}%, a reversal of "
            f"{100 * expected['reversal']:+.1f} points; {expected['samples']} samples per prompt and condition, with a "
            f"correlation of {expected['correlation']:.2f} (as good as {expected['samples'] / expected['deff']:.1f} "
            f"independent ones); base and ED share {expected['shared']:.2f} of a prompt's variation; "
            f"{found['conditions']} conditions, {expected['alphas']} of them α's above 0."
        )
    )
    console.print(
        Text(
            f"\n{width['prompts']:,} prompts: rates' 95% intervals at most {100 * width['asked']:g} points wide.",
            "bold",
        )
    )
    _print_cost(console, width["cost"], found["tokens"])
    side = "under" if expected["reversal"] < decision["limit"] else "over"
    console.print(
        Text(
            f"\n{decision['prompts']:,} prompts: a verdict that the reversal is {side} "
            f"{100 * decision['limit']:g} points, with a probability of {100 * decision['asked']:g}%.",
            "bold",
        )
    )
    _print_cost(console, decision["cost"], found["tokens"])
    _print_alphas(console, found["alphas"])


def _print_alphas(console: Console, alphas: Sequence[str]) -> None:
    if alphas:
        added = ", ".join(alphas)
        console.print(
            Text(
                f"\nThe sweep is too coarse to see the most harm: add α = {added} (eddecode audit --refine does).",
                "bold",
            )
        )


def _print_cost(console: Console, cost: Mapping[str, Any], tokens: float) -> None:
    text = f"  {cost['completions']:,} completions, {cost['tokens']:,} tokens at {tokens:.0f} each"
    if cost["operations"] is not None:
        text += f", {cost['operations']:.1e} operations"
    if cost["seconds"] is not None:
        seconds = cost["seconds"]
        text += f", {seconds / 3600:.1f} hours" if seconds >= 3600 else f", {seconds / 60:.1f} minutes"
    console.print(Text(text + "."))
