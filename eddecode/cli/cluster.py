"""The part of `eddecode plan` about a cluster: GPUs, hours and cost, as data and as a table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from eddecode.cli.messages import stdout_console
from eddecode.cli.table_style import make_table
from eddecode.errors import ConfigError
from eddecode.utils.validation import did_you_mean

if TYPE_CHECKING:
    from eddecode.audit.stats.cluster import Gpu, Steps

DOUBLINGS = 7  # of the GPUs of one pair, in a table without --gpus


@dataclass(frozen=True)
class ClusterOptions:
    """What a cluster decodes and on what, beside the kind of its GPUs."""

    prompts: Annotated[
        int | None,
        typer.Option(help="Prompts on the cluster. Default: those for a verdict.", show_default=False),
    ] = None
    gpus: Annotated[
        int | None, typer.Option(help="GPUs of the cluster. Default: a table.", show_default=False)
    ] = None
    step: Annotated[
        str | None,
        typer.Option(
            help="Measured step times of your pair, ROWS:MILLISECONDS: 64:112 or 8:70,64:112.",
            show_default=False,
        ),
    ] = None
    rows: Annotated[int, typer.Option(help="Completions that a worker decodes at a time.")] = 64
    price: Annotated[float | None, typer.Option(help="Price of a GPU for an hour.", show_default=False)] = (
        None
    )
    bits: Annotated[float, typer.Option(help="Bits of a weight in memory.")] = 16.0
    longest: Annotated[
        float | None,
        typer.Option(help="Most tokens of a completion. Default: twice the mean.", show_default=False),
    ] = None
    judge_rate: Annotated[
        float | None,
        typer.Option(help="Completions per second that each worker's judge takes. Default: not counted."),
    ] = None

    def given(self) -> list[str]:
        """Names of the options whose value is not the default."""
        return [
            f"--{field.name.replace('_', '-')}"
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]


def plan_for(kind: str, work: Mapping[str, Any], on: ClusterOptions) -> dict[str, Any]:
    """GPUs, hours and cost as data: `pair`, and for each source of step times `plans` by the number of GPUs.

    Args:
        kind: of GPU: a name of `stats.cluster.GPUS`, or its memory such as 80GB.
        work: the fields of `stats.cluster.Work`.
        on: GPUs (None: a table over several numbers), completions at a time of one worker, measured times of the pair
            (as of `parse_steps`; needed where the kind has none), price of a GPU for an hour.

    Raises:
        ConfigError: an unknown kind, no step times, a number out of its range, or too few GPUs.
    """
    from eddecode.audit.stats.cluster import Work, gpus_per_pair, parse_steps, plan_cluster

    require_positive(
        {"--rows": on.rows, "--gpus": on.gpus, "--price": on.price, "--judge-rate": on.judge_rate}
    )
    gpu, asked = _gpu(kind), Work(**work)
    sources: tuple[Steps, ...] = gpu.steps if on.step is None else (parse_steps(on.step),)
    if not sources:
        raise ConfigError(
            f"no step times were measured on a GPU of {kind}; give those of your pair: --step ROWS:MILLISECONDS, as a "
            "short audit of it shows (docs/scale.md)"
        )
    per_pair = gpus_per_pair(asked.weights, gpu.memory)
    counts = [on.gpus] if on.gpus is not None else [per_pair * 2**i for i in range(DOUBLINGS)]
    return {
        "kind": kind,
        "rows": on.rows,
        "price": on.price,
        "completions": asked.completions,
        "weights": asked.weights,
        "per_pair": per_pair,
        "sources": [
            {
                "source": steps.source,
                "step_ms": 1e3 * steps.seconds(on.rows, asked.weights) / per_pair,
                "plans": [asdict(plan_cluster(asked, steps, n, per_pair, on.rows, on.price)) for n in counts],
            }
            for steps in sources
        ],
    }


def require_positive(values: Mapping[str, float | None]) -> None:
    """Check numbers by their names; None: not given.

    Raises:
        ConfigError: one is not above 0, or not finite.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value:g}; expected a number above 0")


def _gpu(kind: str) -> Gpu:
    from eddecode.audit.stats.cluster import GPUS, Gpu

    if (found := GPUS.get(kind.lower())) is not None:
        return found
    memory = re.fullmatch(r"(\d+(?:\.\d+)?)\s*GB", kind, flags=re.IGNORECASE)
    if memory is None or not float(memory[1]):
        raise ConfigError(
            f"--cluster {kind!r:.40}: expected {', '.join(GPUS)}, or the memory of a GPU such as 80GB; "
            f"{did_you_mean(kind.lower(), list(GPUS))}"
        )
    return Gpu(1e9 * float(memory[1]), ())


def print_cluster(found: Mapping[str, Any]) -> None:
    """The plan as a table for each source of step times, with what bends."""
    console = stdout_console(highlight=False)
    console.print(
        Text(
            f"\n{found['completions']:,} completions of a pair of {found['weights'] / 1e9:,.0f} GB: "
            f"{found['per_pair']} GPUs ({found['kind']}) hold it, {found['rows']} completions at a time.",
            "bold",
        )
    )
    for each in found["sources"]:
        console.print(Text(f"\nA step takes {each['step_ms']:.1f} ms: {each['source']}."))
        table = make_table("GPUs", "hours", "GPU hours", *(["cost"] if found["price"] else []))
        for plan in each["plans"]:
            cost = [f"{plan['cost']:,.0f}"] if found["price"] else []
            table.add_row(f"{plan['gpus']:,}", f"{plan['hours']:.1f}", f"{plan['gpu_hours']:,.1f}", *cost)
        console.print(table)
        for plan in each["plans"]:
            for bend in plan["bends"]:
                console.print(Text(f"At {plan['gpus']:,} GPUs: {bend}."))
